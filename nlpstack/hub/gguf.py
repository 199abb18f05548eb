"""A GGUF file, llama.cpp's one-file form of a model: its metadata as a config.json and a tokenizer, and its tensors."""

import math
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlpstack.errors import ModelError
from nlpstack.hub.families import FAMILIES, Json
from nlpstack.hub.weights import Weights
from nlpstack.tokenizer.published import PublishedTokenizer, gguf_files

SUFFIX = ".gguf"
_MEND = "get the file again, or the model as a folder"
_NUMBERS = {**dict(enumerate("BbHhIif?")), 10: "Q", 11: "q", 12: "d"}  # struct's letter of each type of value
_TEXT, _LIST = 8, 9
_MOST_DIMS = 4
_Form = tuple[list[int], Any, int]  # a tensor's size, its type and the place of its first byte
_AT_ONCE = 2**20  # values that are dequantised at a time, so that no large tensor is held twice


class GGUF(Weights):
    """The weights of a file by their family's names, dequantised, and what it says beside them."""

    fresh = True  # a tensor that is read has memory of its own

    def __init__(self, file: Path) -> None:
        """Read all but the tensors' values; ModelError if the file is not whole, or no model that the core can be."""
        try:
            import gguf
        except ImportError as error:
            raise ModelError(f"{file}: opening it needs `gguf`; pip install 'nlpstack[gguf]'") from error
        self.source, self._at, self._library = file, 0, gguf
        with open(file, "rb") as opened:
            self._data: Any = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) if file.stat().st_size else b""
        if self._take(4) != b"GGUF" or self._number("I") not in (2, 3):
            raise ModelError(f"{file}: is no GGUF file of version 2 or 3; {_MEND}")
        n_tensors, n_values = self._number("Q"), self._number("Q")
        self.said = {self._text(): self._value(self._number("I")) for _ in range(n_values)}
        stored = {self._text(): self._form() for _ in range(n_tensors)}
        alignment = self.said.get("general.alignment", 32)
        names = [*self.said, *stored]
        if len(names) < n_values + n_tensors or not all(map(str.isprintable, names)):
            raise ModelError(f"{file}: names something twice, or with what are no letters; {_MEND}")
        if type(alignment) is not int or alignment < 1:
            raise ModelError(f"{file}: has an alignment of {alignment!r}; {_MEND}")
        self._stored = self._placed(stored, alignment)
        self.architecture = str(self.said.get("general.architecture"))
        there = ", ".join(name for name, family in FAMILIES.items() if family.gguf)
        if self.architecture not in there.split(", "):
            raise ModelError(f"{file}: the architecture {self.architecture!r} is not supported; there are {there}")
        theirs = self._family_names(self.said.get(f"{self.architecture}.block_count"))
        self._names = {theirs.get(name, f"'{name}'"): name for name in stored}  # in quotes: none that a family has
        sizes = {name: stored[there][0] for name, there in self._names.items()}
        self.sizes = {name: size[::-1] if self._lies_transposed(name) else size for name, size in sizes.items()}
        self.kinds = {name: "F16" if stored[there][1].name == "F16" else "F32" for name, there in self._names.items()}

    def _take(self, n: int) -> bytes:
        if n > len(self._data) - self._at:
            raise ModelError(f"{self.source}: ends within its header, or says of a part that it is longer; {_MEND}")
        self._at += n
        return bytes(self._data[self._at - n : self._at])

    def _number(self, letter: str) -> Any:
        return struct.unpack(f"<{letter}", self._take(struct.calcsize(f"<{letter}")))[0]

    def _text(self) -> str:
        return self._take(self._number("Q")).decode(errors="replace")

    def _value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind in _NUMBERS:
            value = self._number(_NUMBERS[kind])
            return float(str(np.float32(value))) if _NUMBERS[kind] == "f" else value  # 1e-05, not 9.9999997e-06
        inner, n = (self._number("I"), self._number("Q")) if kind == _LIST else (kind, 0)
        if inner == _TEXT:
            return [self._text() for _ in range(n)]
        if inner not in _NUMBERS:
            raise ModelError(f"{self.source}: holds a value of an unknown type ({inner}); {_MEND}")
        return np.frombuffer(self._take(n * struct.calcsize(f"<{_NUMBERS[inner]}")), f"<{_NUMBERS[inner]}").tolist()

    def _form(self) -> _Form:
        """What the header says of a tensor, whose place it counts from its own end."""
        n_dims = self._number("I")
        size = [self._number("Q") for _ in range(min(n_dims, _MOST_DIMS))][::-1]
        kind, offset = self._number("I"), self._number("Q")
        if n_dims > _MOST_DIMS or kind not in [*self._library.GGMLQuantizationType]:
            raise ModelError(f"{self.source}: holds a tensor of {n_dims} dims or an unknown type ({kind}); {_MEND}")
        return size, self._library.GGMLQuantizationType(kind), offset

    def _placed(self, stored: dict[str, _Form], alignment: int) -> dict[str, _Form]:
        """Tensors with their place in the file; ModelError unless one follows the other up to its end."""
        end = start = -(-self._at // alignment) * alignment
        placed = {}
        for name, (size, form, offset) in stored.items():
            values, n_bytes = self._library.GGML_QUANT_SIZES[form]
            place = -(-end // alignment) * alignment
            if not size or 0 in size or size[-1] % values or start + offset != place:
                raise ModelError(f"{self.source}: {name} {size} has a size or a place it cannot have; {_MEND}")
            placed[name], end = (size, form, place), place + math.prod(size) // values * n_bytes
        if not 0 <= len(self._data) - end < alignment:
            fault = f"is cut off, or says wrong sizes: {len(self._data):,} bytes instead of {end:,}"
            raise ModelError(f"{self.source}: {fault}; {_MEND}")
        return placed

    def _family_names(self, n_blocks: object) -> dict[str, str]:
        if type(n_blocks) is not int or n_blocks > len(self._stored):
            fault = f"has {len(self._stored):,} tensors, too few for a block_count of {n_blocks!r}"
            raise ModelError(f"{self.source}: {fault}; {_MEND}")
        known = self._library.get_tensor_name_map(self._library.MODEL_ARCH[self.architecture.upper()], n_blocks)
        blocks = [(m, n) for m in FAMILIES[self.architecture].modules for n in range(n_blocks if ".N." in m else 1)]
        modules = [module.replace(".N.", f".{number}.") for module, number in blocks]
        return {f"{known.get_name(m)}.{part}": f"{m}.{part}" for m in modules for part in ("weight", "bias")}

    def _lies_transposed(self, name: str) -> bool:
        module, _, part = name.rpartition(".")
        return part == "weight" and module.rpartition(".")[2] in FAMILIES[self.architecture].transposed

    def read(self, name: str) -> Tensor:
        """A tensor, dequantised to fp32 unless it is in fp16; ModelError for a kind that `gguf` cannot dequantise."""
        size, form, _ = self._stored[self._names[name]]
        data, plain = self._bytes(self._names[name]), {"F32": np.float32, "F16": np.float16}.get(form.name)
        out, step = np.empty((len(data), size[-1]), plain or np.float32), max(1, _AT_ONCE // size[-1])
        for first in range(0, len(data), step):
            rows = data[first : first + step]
            try:
                out[first : first + step] = rows.view(plain) if plain else self._library.dequantize(rows, form)
            except NotImplementedError as error:
                raise ModelError(f"{self.source}: {name} is stored as {form.name}, which `gguf` cannot read") from error
        if self.architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            # The two rows that a rotation turns together are neighbours here; in a folder they are half a head apart.
            grouped = self.said.get("llama.attention.head_count_kv") if name.endswith("k_proj.weight") else None
            n_heads = grouped or self.said["llama.attention.head_count"]
            out = out.reshape(n_heads, -1, 2, size[-1]).swapaxes(1, 2).reshape(size)
        self._data.madvise(mmap.MADV_DONTNEED)  # what was read of the file takes no memory
        tensor = torch.from_numpy(out.reshape(size))
        return tensor.T if self._lies_transposed(name) else tensor

    def config(self) -> Json:
        """What a config.json would say; ModelError for what the file asks and the core cannot do."""
        both = "output.weight", "token_embd.weight"
        head, words = self._stored.get(both[0]), self._stored.get(both[1], ([0], None, 0))
        tied = head is None or (head[:2] == words[:2] and np.array_equal(self._bytes(both[0]), self._bytes(both[1])))
        values: Json = {"model_type": self.architecture, "vocab_size": words[0][0], "tie_word_embeddings": tied}
        pieces = self.said.get("tokenizer.ggml.tokens")
        if isinstance(pieces, list) and len(pieces) != words[0][0]:
            fault = f"holds {len(pieces):,} pieces of text, but vectors for {words[0][0]:,}"
            raise ModelError(f"{self.source}: {fault}; {_MEND}")
        prefix, rope = f"{self.architecture}.", dict[str, Any]()
        for said, value in self.said.items():
            key = FAMILIES[self.architecture].gguf.get(said.removeprefix(prefix))
            if key and (other := values.setdefault(key, value)) is not value and other != value:
                raise ModelError(f"{self.source}: {said}={value!r}, but {key} is {other!r}; {_MEND}")
            if said.startswith(f"{prefix}rope.scaling.") and value:
                rope[said.removeprefix(f"{prefix}rope.scaling.")] = value
            elif not key and said.startswith(prefix) and value:
                raise ModelError(f"{self.source}: {said}={value!r:.80} is not supported")
        if rope and rope.get("type") != "none":
            values["rope_scaling"] = rope
        return values

    def tokenizer(self) -> PublishedTokenizer:
        """The file's tokenizer; raises ModelError for a kind that is not known."""
        return PublishedTokenizer(self.source, gguf_files(self.said, self.source))

    def _bytes(self, name: str) -> np.ndarray:
        """A tensor as it lies in the file, row by row."""
        size, form, start = self._stored[name]
        values, n_bytes = self._library.GGML_QUANT_SIZES[form]
        shape = math.prod(size[:-1]), size[-1] // values * n_bytes
        return np.frombuffer(self._data, np.uint8, shape[0] * shape[1], start).reshape(shape)
