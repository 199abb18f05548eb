"""Tensors on disk: safetensors and nothing else."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nlpstack.errors import NlpstackError


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors to one file."""
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)


def read_tensors(path: Path, kind: type[NlpstackError]) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU; raises `kind`, naming the file, if it cannot be read."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise kind(f"{path}: cannot be read ({error})") from error
