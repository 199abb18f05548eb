"""The weights of a folder: tensors in one safetensors file, or in several that an index names; never a pickle."""

import errno
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from nlpstack.errors import ModelError, NlpstackError
from nlpstack.files import read_json_object, sha256_file

WEIGHTS = "model.safetensors"
MEND = "copy the folder again, or save the model again"
INDEX = f"{WEIGHTS}.index.json"
PICKLES = frozenset((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"))
_ZIP_START, _PICKLE_START = b"PK\x03\x04", b"\x80"  # torch.save: a zip of pickles; before 1.6, and others: a bare one
READABLE = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Weights:
    """Where each tensor of a folder lies, its size, and its dtype as safetensors names it.

    Files are mapped only while a tensor is read: weights are never held twice, and no later change of a file counts.
    """

    fresh = False  # a tensor that is read is the file's

    def __init__(self, folder: Path, name: str) -> None:
        """The weights in `folder`/`name` or else, by its index, beside it; ModelError if they are not there whole."""
        self.source = folder / name  # what errors name
        shards: dict[str, str] = {}
        if not self.source.is_file() and name == WEIGHTS and (folder / INDEX).is_file():
            self.source = folder / INDEX
            shards = self._indexed(read_json_object(self.source, ModelError).get("weight_map"))
        self.files = [folder / shard for shard in sorted(set(shards.values()))] or [self.source]
        self._places: dict[str, Path] = {}
        self.sizes: dict[str, list[int]] = {}
        self.kinds: dict[str, str] = {}
        for file in self.files:
            if not file.is_file():
                refuse_pickles(folder)
                raise ModelError(f"{file}: missing{f', though {INDEX} names it' if shards else ''}; {MEND}")
            refuse_pickle(file)
            self._survey(file)
        if shards and (wrong := {name: file.name for name, file in self._places.items()}.items() ^ shards.items()):
            which = sorted({name for name, _ in wrong})[0]
            raise ModelError(f"{self.source}: {which} is not in the file that the index says; {MEND}")

    def _indexed(self, found: object) -> dict[str, str]:
        """The index's files by tensor; none may lie outside the folder."""
        if not isinstance(found, dict) or not found or not all(isinstance(one, str) for one in found.values()):
            raise ModelError(f"{self.source}: 'weight_map' must tell the file of each tensor; {MEND}")
        for name in found.values():
            if name != Path(name).name or not name.endswith(".safetensors"):
                raise ModelError(f"{self.source}: names {name!r}, which is no .safetensors file beside it; {MEND}")
        return found

    def _survey(self, file: Path) -> None:
        with _opened(file) as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict
                if name in self._places:
                    raise ModelError(f"{file}: {name} also stands in {self._places[name].name}; {MEND}")
                part, self._places[name] = opened.get_slice(name), file
                self.sizes[name], self.kinds[name] = list(part.get_shape()), part.get_dtype()

    def read(self, name: str) -> Tensor:
        """A tensor, mapped."""
        with _opened(self._places[name]) as opened:
            return cast(Tensor, opened.get_tensor(name))

    def hash(self) -> str:
        """SHA-256 of the file, of several that of their hashes one after the other, as hexadecimal digits."""
        hashes = [sha256_file(file) for file in self.files]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A file of weights; torch maps it, and says RuntimeError where it is gone, which becomes an OSError."""
    try:
        opened = safe_open(file, framework="pt")
    except RuntimeError as error:
        raise OSError(str(error)) from error
    except SafetensorError as error:
        raise ModelError(f"{file}: not a whole safetensors file ({error}); {MEND}") from error
    with opened:
        yield opened


def refuse_pickles(folder: Path) -> None:
    """Raise ModelError if a folder holds a pickle."""
    for entry in sorted(folder.iterdir()):
        if entry.suffix in PICKLES:
            refuse_pickle(entry)


def refuse_pickle(file: Path) -> None:
    """Raise ModelError if a file is a pickle, by its name or by how it begins."""
    if file.suffix not in PICKLES:
        with open(file, "rb") as opened:
            start = opened.read(9)
        # The header of a safetensors file begins with its length, whose first byte may be any, and a brace.
        if not start.startswith(_ZIP_START) and (not start.startswith(_PICKLE_START) or start[8:] == b"{"):
            return
    other = f", or write its tensors as that: nlpstack convert {file} --out DIR" if file.suffix in PICKLES else ""
    raise ModelError(f"{file}: a pickle, which can run any code when it is opened; get the model as {WEIGHTS}{other}")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write named tensors to one file; OSError where the system refuses it."""
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path, metadata)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from error  # what the system said stands in its words alone


def read_tensors(path: Path, kind: type[NlpstackError]) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU; raises `kind`, naming the file, if it cannot be read."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise kind(f"{path}: cannot be read ({error})") from error
