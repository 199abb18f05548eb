"""Training state on disk: written whole or not at all, checked when read, the newest good one used."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from nlpstack.errors import CheckpointError
from nlpstack.files import fsync_path, new_folder, read_json_object, remove_leftovers, verify_manifest
from nlpstack.hub.tensors import read_tensors, write_tensors

KEPT = 2  # the newest ones, beside the best


class Checkpoint(NamedTuple):
    """What a run needs to go on as if it had never stopped."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]  # step, generators, counts: plain JSON


class Checkpoints:
    """The `checkpoints/` folder of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """Where the checkpoint after `step` steps stands."""
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*") if path.is_dir())

    def save(self, checkpoint: Checkpoint, *, best_step: int | None) -> None:
        """Write a checkpoint under its final name in one move, then delete those that are no longer kept."""
        step = checkpoint.state["step"]
        with new_folder(self.path(step)) as folder:
            write_tensors(folder / "model.safetensors", checkpoint.model)
            write_tensors(folder / "optimizer.safetensors", checkpoint.optimizer)
            (folder / "state.json").write_text(json.dumps(checkpoint.state) + "\n", encoding="utf-8")
        kept = {*self.steps()[-KEPT:], best_step}
        for old in set(self.steps()) - kept:
            shutil.rmtree(self.path(old))

    def load_newest(self, note: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that is whole, after naming the damaged ones passed over; None if there is none."""
        if self.folder.exists():
            remove_leftovers(self.folder)
        damaged = []
        for step in reversed(self.steps()):
            try:
                checkpoint = self.load(step)
            except CheckpointError as error:
                damaged.append(str(error))
                continue
            for text in damaged:
                note(f"damaged checkpoint passed over: {text}")
            for later in (s for s in self.steps() if s > step):
                shutil.rmtree(self.path(later))
            return checkpoint
        if damaged:
            raise CheckpointError(f"no checkpoint is whole: {damaged[0]}; start again with --overwrite")
        return None

    def load(self, step: int) -> Checkpoint:
        """One checkpoint, checked against its manifest."""
        folder = self.path(step)
        if not verify_manifest(folder, CheckpointError, "an older checkpoint or --overwrite will do"):
            raise CheckpointError(f"{folder}: has no manifest, so it was never finished")
        model, optimizer = (
            read_tensors(folder / f"{name}.safetensors", CheckpointError) for name in ("model", "optimizer")
        )
        return Checkpoint(model, optimizer, read_json_object(folder / "state.json", CheckpointError))


def fsync_file(path: Path) -> int:
    """Force a file onto the disk; its length in bytes comes back, 0 if there is none."""
    if not path.exists():
        return 0
    fsync_path(path)
    return path.stat().st_size


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as tensors named `weight.entry`, such as `lm_head.weight.exp_avg`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}.{entry}": value.detach()
        for parameter, entries in optimizer.state.items()
        for entry, value in entries.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(model: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put saved state back; raises CheckpointError if it is not that of these weights."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, _, entry = key.rpartition(".")
        if name not in parameters:
            raise CheckpointError(f"the checkpoint's optimizer has state for '{name}', which the model lacks")
        parameter = parameters[name]
        # Counters stay where the optimizer keeps them; what is shaped like the weight goes to its device.
        where = parameter.device if value.shape == parameter.shape or parameter.device.type == "cuda" else value.device
        optimizer.state[parameter][entry] = value.to(where, copy=True)
