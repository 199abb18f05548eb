"""Training state on disk: written whole or not at all, checked when read, the newest good one used."""

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from nlpstack.errors import CheckpointError
from nlpstack.files import new_folder, read_json_object, remove_leftovers, verify_manifest
from nlpstack.hub.weights import read_tensors, write_tensors
from nlpstack.train.runtime import gathered, rank

KEPT = 2  # the newest ones, beside the best
SUFFIX = ".safetensors"
NONE: Mapping[str, Tensor] = {}


class Checkpoint(NamedTuple):
    """What a run needs to go on as if it had never stopped."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]  # step, generators, counts: plain JSON


class Checkpoints:
    """The `checkpoints/` folder of a run; where several processes work, all of them call its methods."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """Where the checkpoint after `step` steps stands."""
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        entries = self.folder.iterdir() if self.folder.exists() else ()  # glob would find nothing where it may not look
        return sorted(int(one.name[5:]) for one in entries if one.match(f"step-{'[0-9]' * 8}") and one.is_dir())

    def save(self, checkpoint: Checkpoint, *, best_step: int | None) -> None:
        """Write a checkpoint under its final name in one move, then delete those that are no longer kept."""
        # The first process makes the folder and, when all have written into it, puts it in its place.
        with nullcontext() if rank() else new_folder(self.path(checkpoint.state["step"])) as made:
            folder = gathered(made)[0]
            _write(folder / "model", checkpoint.model)
            _write(folder / "optimizer", checkpoint.optimizer)
            if not rank():
                (folder / "state.json").write_text(json.dumps(checkpoint.state) + "\n", encoding="utf-8")
            gathered(None)
        for old in set(steps := self.steps()) - {*steps[-KEPT:], best_step} if not rank() else ():
            shutil.rmtree(self.path(old), ignore_errors=True)  # what cannot be deleted now is tried after the next
        gathered(None)

    def load_newest(self, note: Callable[[str], None], weights: Mapping[str, Tensor] = NONE) -> Checkpoint | None:
        """The newest checkpoint that is whole, after naming the damaged ones passed over; None if there is none."""
        step = gathered(None if rank() else self._newest(note))[0]
        return None if step is None else self.load(step, weights)

    def _newest(self, note: Callable[[str], None]) -> int | None:
        remove_leftovers(self.folder)
        damaged: dict[int, CheckpointError] = {}
        for step in reversed(self.steps()):
            try:
                self._check(step)
            except CheckpointError as error:
                damaged[step] = error
                continue
            for later, fault in damaged.items():
                note(f"damaged checkpoint passed over: {fault}")
                shutil.rmtree(self.path(later))
            return step
        for fault in damaged.values():
            raise CheckpointError(f"no checkpoint is whole: {fault}; start again with --overwrite")
        return None

    def load(self, step: int, weights: Mapping[str, Tensor] = NONE) -> Checkpoint:
        """One checkpoint, checked against its manifest; its tensors are spread over processes as the `weights` are."""
        folder, state = self.path(step), self._check(step)
        return Checkpoint(_read(folder / "model", weights), _read(folder / "optimizer", weights), state)

    def _check(self, step: int) -> dict[str, Any]:
        folder = self.path(step)
        if not verify_manifest(folder, CheckpointError, "an older checkpoint or --overwrite will do"):
            raise CheckpointError(f"{folder}: has no manifest, so it was never finished")
        state = read_json_object(folder / "state.json", CheckpointError)
        if state.get("step") != step:
            raise CheckpointError(f"{folder / 'state.json'}: is of step {state.get('step')!r:.20}, not of {step}")
        return state


def _write(place: Path, tensors: Mapping[str, Tensor]) -> None:
    """Tensors as one file or, of those that are spread over processes, as a folder with a file of each process."""
    if any(hasattr(tensor, "full_tensor") for tensor in tensors.values()):
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter  # takes a second
        from torch.distributed.checkpoint.state_dict_saver import save

        save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(place), save_distributed=True))
    elif not rank():
        write_tensors(place.with_suffix(SUFFIX), tensors)


def _read(place: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `_write` wrote, in whatever number of processes, spread as the `weights` are, `weight.entry` too."""

    def like(name: str, size: torch.Size) -> Any:
        found: Any = weights.get(name, weights.get(name.rpartition(".")[0]))
        return found if hasattr(found, "full_tensor") and found.shape == size else None

    if not place.is_dir():
        tensors = read_tensors(place.with_suffix(SUFFIX), CheckpointError)
        for name, tensor in tensors.items():
            if (one := like(name, tensor.shape)) is not None:
                from torch.distributed.tensor import distribute_tensor

                tensors[name] = distribute_tensor(tensor, one.device_mesh, one.placements)
        return tensors
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(place))
    tensors, stored = {}, cast(dict[str, Any], reader.read_metadata().state_dict_metadata)
    for name, about in stored.items():
        one = like(name, about.size)
        tensors[name] = torch.empty(about.size, dtype=about.properties.dtype) if one is None else torch.empty_like(one)
    load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())
    return tensors


def optimizer_state(model: nn.Module, optimizers: list[Optimizer]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State as tensors named `weight.entry`, such as `lm_head.weight.exp_avg`, and as plain numbers of such names.

    A list, as L-BFGS has them, stands among the numbers with None for each tensor; item 3 of them is `weight.entry.3`.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for weight, state in chain.from_iterable(optimizer.state.items() for optimizer in optimizers):
        for entry, value in state.items():
            key = f"{names[id(weight)]}.{entry}"
            if isinstance(value, Tensor):
                tensors[key] = value.detach()
            elif isinstance(value, list):
                tensors |= {f"{key}.{i}": item.detach() for i, item in enumerate(value) if isinstance(item, Tensor)}
                numbers[key] = [None if isinstance(item, Tensor) else item for item in value]
            else:
                numbers[key] = value
    return tensors, numbers


def restore_optimizers(
    model: nn.Module, optimizers: list[Optimizer], tensors: dict[str, Tensor], numbers: dict[str, Any]
) -> None:
    """Put saved state back; raises CheckpointError if it is not that of these weights."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    states: defaultdict[str, dict[str, Any]] = defaultdict(dict)  # weight -> entry -> value
    for key, value in deepcopy(numbers | tensors).items():
        name, _, entry = key.rpartition(".")
        if entry.isdigit():  # a tensor of a list, which came with the numbers
            name, _, whole = name.rpartition(".")
            states[name][whole][int(entry)] = value
        else:
            states[name][entry] = value
    for optimizer in optimizers:
        weights = [names[id(weight)] for group in optimizer.param_groups for weight in group["params"]]
        state = {number: states.pop(name) for number, name in enumerate(weights) if name in states}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    for name in states:
        raise CheckpointError(f"the checkpoint's optimizer has state for '{name}', which this run does not train")
