"""Training state on disk: written whole or not at all, checked when read, the newest good one used."""

import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from nlpstack.errors import CheckpointError
from nlpstack.files import new_folder, read_json_object, remove_leftovers, verify_manifest
from nlpstack.hub.weights import read_tensors, write_tensors

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
        with new_folder(self.path(checkpoint.state["step"])) as folder:
            write_tensors(folder / "model.safetensors", checkpoint.model)
            write_tensors(folder / "optimizer.safetensors", checkpoint.optimizer)
            (folder / "state.json").write_text(json.dumps(checkpoint.state) + "\n", encoding="utf-8")
        for old in set(self.steps()) - {*self.steps()[-KEPT:], best_step}:
            shutil.rmtree(self.path(old), ignore_errors=True)  # what cannot be deleted now is tried after the next

    def load_newest(self, note: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that is whole, after naming the damaged ones passed over; None if there is none."""
        remove_leftovers(self.folder)
        damaged: dict[int, CheckpointError] = {}
        for step in reversed(self.steps()):
            try:
                checkpoint = self.load(step)
            except CheckpointError as error:
                damaged[step] = error
                continue
            for later, fault in damaged.items():
                note(f"damaged checkpoint passed over: {fault}")
                shutil.rmtree(self.path(later))
            return checkpoint
        for fault in damaged.values():
            raise CheckpointError(f"no checkpoint is whole: {fault}; start again with --overwrite")
        return None

    def load(self, step: int) -> Checkpoint:
        """One checkpoint, checked against its manifest."""
        folder = self.path(step)
        if not verify_manifest(folder, CheckpointError, "an older checkpoint or --overwrite will do"):
            raise CheckpointError(f"{folder}: has no manifest, so it was never finished")
        model = read_tensors(folder / "model.safetensors", CheckpointError)
        optimizer = read_tensors(folder / "optimizer.safetensors", CheckpointError)
        return Checkpoint(model, optimizer, read_json_object(folder / "state.json", CheckpointError))


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
