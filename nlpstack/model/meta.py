"""Modules without memory for their weights, to be filled from a file or from fresh values."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _NoInitialValues(TorchFunctionMode):
    """Leaves out torch.nn.init, which on the meta device sets nothing, yet imports torch's compiler: seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else given["tensor"]
        return func(*args, **given)


@contextmanager
def on_meta() -> Iterator[None]:
    """Modules built inside the block have shapes and no memory."""
    with torch.device("meta"), _NoInitialValues():
        yield
