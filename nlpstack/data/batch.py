"""What a model is trained and scored on: token rows of equal length, with their labels counted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

IGNORE_INDEX = -100  # a label that does not count, in every loss of torch


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of tokens with what is asked of them; tensors are (B, T)."""

    tokens: Tensor  # int64
    labels: Tensor  # int64, IGNORE_INDEX where nothing counts
    mask: Tensor | None = None  # bool, True at real tokens; None: all are, or padding cannot be seen
    n_targets: dict[str, int] = field(default_factory=dict)  # loss term -> labels that count

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on another device; the copy may go on in the background."""
        if self.tokens.device == device:
            return self
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> "Batch":
        """The same batch in page-locked memory, from which a GPU copies without waiting."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        values: dict[str, Any] = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        changed = {name: change(v) for name, v in values.items() if isinstance(v, Tensor)}
        return Batch(**{**values, **changed})


def pad_rows(rows: Sequence[np.ndarray], value: int) -> Tensor:
    """Rows of unequal length as one int64 tensor (B, T), filled up on the right with `value`."""
    out = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)
