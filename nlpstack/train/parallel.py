"""A model that several processes train: each has all of it (DDP), or holds a share of its weights (FSDP2)."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nlpstack.model import LanguageModel, twin
from nlpstack.train.runtime import world_size


class _Called(nn.Module):
    """What DDP and FSDP2 wrap: whatever is done with the model is a call of this, and `model` keeps its names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[..., Any], *given: Any) -> Any:
        return work(self.model, *given)


class Parallel:
    """A model as the processes that train it hold it; one process alone simply has it."""

    def __init__(self, model: LanguageModel, kind: str, device: torch.device) -> None:
        """Put it onto the device, by `kind` ("ddp", "fsdp") all of it or a share of each weight."""
        self.is_sharded = kind == "fsdp" and dist.is_initialized()
        self._called: Any = _Called(model)
        self._skeleton = twin(model, "meta") if self.is_sharded else model
        if self.is_sharded:  # block by block, so that a device never holds the whole
            from torch.distributed.device_mesh import init_device_mesh  # takes a second, and other commands need none
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(device.type, (world_size(),))
            for module in (*model.transformer.blocks, self._called):
                fully_shard(module, mesh=mesh)
        else:
            model.to(device)
            self._called = DistributedDataParallel(self._called) if dist.is_initialized() else self._called

    def __call__(self, work: Callable[..., Any], *given: Any, last: bool = True) -> Any:
        """What `work` makes of model and `given`; gradients are exchanged in the backward pass of the `last` one."""
        waiting = nullcontext()
        if self.is_sharded:
            self._called.set_requires_gradient_sync(last)
        elif dist.is_initialized() and not last:
            waiting = self._called.no_sync()
        with waiting:
            return self._called(work, *given)

    def look(self, work: Callable[[Any], Any]) -> Any:
        """What `work` makes of the model without gradients; of a sharded one all processes must do the very same."""
        if not self.is_sharded:
            return work(self._skeleton)
        with torch.no_grad():
            found = self._called(work)
        self._called.reshard()
        return found

    def whole(self) -> LanguageModel:
        """The model with all of its weights, of a sharded one a copy on the CPU."""
        if self.is_sharded:
            weights = {name: whole(tensor).cpu() for name, tensor in self._called.model.state_dict().items()}
            self._skeleton.load_state_dict(weights, assign=True)
        return self._skeleton


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, of which this process may hold a share; then all processes must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def in_step(model: Any) -> bool:
    """Whether processes have to call a model together, each call of one with the same of the others."""
    return hasattr(model.transformer.blocks[0], "reshard")  # which FSDP2 gives its modules
