"""A GGUF file, llama.cpp's one-file form of a model: its metadata as a config.json and a tokenizer, and its tensors."""

import mmap
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
_AT_ONCE = 2**20  # values that are dequantised at a time, so that no large tensor is held twice


class GGUF(Weights):
    """The weights of a file by their family's names, dequantised, and what it says beside them."""

    fresh = True  # a tensor that is read has memory of its own

    def __init__(self, file: Path) -> None:
        """Read all but the tensors' values; ModelError if the file is not whole, or no model that the core can be."""
        try:
            import gguf

            self.source, self._library, reader = file, gguf, _reader(file)
            self.said = {name: field.contents() for name, field in reader.fields.items()}
        except ImportError as error:
            raise ModelError(f"{file}: opening it needs `gguf`; pip install 'nlpstack[gguf]'") from error
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            fault = f"is no GGUF file of version 2 or 3, or a damaged one ({error})"
            raise ModelError(f"{file}: {''.join(filter(str.isprintable, fault))}; {_MEND}") from error
        self._mapped, self._stored = reader.data.base, {tensor.name: tensor for tensor in reader.tensors}
        self.architecture = str(self.said.get("general.architecture"))
        there = ", ".join(name for name, family in FAMILIES.items() if family.gguf)
        if self.architecture not in there.split(", "):
            raise ModelError(f"{file}: the architecture {self.architecture!r} is not supported; there are {there}")
        theirs = self._family_names(self.said.get(f"{self.architecture}.block_count"))
        self._named = {theirs.get(name, f"'{name}'"): one for name, one in self._stored.items()}  # quoted: no family's
        self.sizes = {name: one.shape[::-1].tolist() for name, one in self._named.items()}
        self.kinds = {name: "F16" if one.data.dtype == np.float16 else "F32" for name, one in self._named.items()}

    def _family_names(self, n_blocks: object) -> dict[str, str]:
        if type(n_blocks) is not int or n_blocks > len(self._stored):
            fault = f"has {len(self._stored):,} tensors, too few for a block_count of {n_blocks!r}"
            raise ModelError(f"{self.source}: {fault}; {_MEND}")
        known = self._library.get_tensor_name_map(self._library.MODEL_ARCH[self.architecture.upper()], n_blocks)
        blocks = [(m, n) for m in FAMILIES[self.architecture].modules for n in range(n_blocks if ".N." in m else 1)]
        modules = [module.replace(".N.", f".{number}.") for module, number in blocks]
        return {f"{known.get_name(m)}.{part}": f"{m}.{part}" for m in modules for part in ("weight", "bias")}

    def read(self, name: str) -> Tensor:
        """A tensor, dequantised to fp32 unless it is in fp16; ModelError for a kind that `gguf` cannot dequantise."""
        stored, size = self._named[name], self.sizes[name]
        data = np.asarray(stored.data).reshape(-1, stored.data.shape[-1])
        half, step = self.kinds[name] == "F16", max(1, _AT_ONCE // size[-1])
        out = np.empty((len(data), size[-1]), np.float16 if half else np.float32)
        for first in range(0, len(data), step):
            rows = data[first : first + step]
            try:
                out[first : first + step] = rows if half else self._library.dequantize(rows, stored.tensor_type)
            except NotImplementedError as error:
                form = stored.tensor_type.name
                raise ModelError(f"{self.source}: {name} is stored as {form}, which `gguf` cannot read") from error
        if self.architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            # The two rows that a rotation turns together are neighbours here; in a folder they are half a head apart.
            grouped = self.said.get("llama.attention.head_count_kv") if name.endswith("k_proj.weight") else None
            n_heads = grouped or self.said["llama.attention.head_count"]
            out = out.reshape(n_heads, -1, 2, size[-1]).swapaxes(1, 2).reshape(size)
        self._mapped.madvise(mmap.MADV_DONTNEED)  # what was read of the file takes no memory
        return torch.from_numpy(out.reshape(size))

    @np.errstate(over="ignore")  # of a number that is too large for fp32
    def config(self) -> Json:
        """What a config.json would say; ModelError for what the file asks and the core cannot do."""
        head, words = (self._stored.get(name) for name in ("output.weight", "token_embd.weight"))
        alike = head and words and head.tensor_type == words.tensor_type and np.array_equal(head.data, words.data)
        tied, n_words = alike or not head, int(words.shape[-1]) if words else 0
        values: Json = {"model_type": self.architecture, "vocab_size": n_words, "tie_word_embeddings": tied}
        pieces = self.said.get("tokenizer.ggml.tokens")
        if isinstance(pieces, list) and len(pieces) != n_words:
            fault = f"holds {len(pieces):,} pieces of text, but vectors for {n_words:,}"
            raise ModelError(f"{self.source}: {fault}; {_MEND}")
        prefix, rope = f"{self.architecture}.", dict[str, Any]()
        for said, value in self.said.items():
            if type(value) is float and np.float32(value) == value:
                value = float(str(np.float32(value)))  # 1e-05, not 9.9999997e-06
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


@np.errstate(over="ignore")  # where sizes and places lie
def _reader(file: Path) -> Any:
    """The library's reader of a whole file, whose tensors follow one another; raises whatever comes of another one."""
    from gguf import GGUFReader, GGUFValueType

    class Reader(GGUFReader):
        """Takes no part from beyond the end of the file, and a list of numbers as one part: a length may be a lie."""

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            kind, n = np.dtype(dtype).newbyteorder("<"), int(count)
            if offset + kind.itemsize * n > len(self.data):
                raise ValueError("cut off: it ends within its header or a tensor, or says of one that it is longer")
            return np.frombuffer(self.data, kind, n, offset)  # a view of a memmap takes ten times as long

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if int(raw_type) == GGUFValueType.ARRAY:
                kind, n = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
                if number := self.gguf_scalar_to_np.get(kind[0]):
                    parts = kind, n, self._get(orig_offs + 12, number, n[0])
                    types = [GGUFValueType.ARRAY, GGUFValueType(kind[0])]
                    return sum(part.nbytes for part in parts), [*parts], [2], types
            return super()._get_field_parts(orig_offs, raw_type)

    reader = Reader(file)
    end, alignment, n_bytes = int(reader.data_offset), int(reader.alignment), len(reader.data)
    for one in reader.tensors:
        if not one.data.size or not one.data.ndim or one.data_offset != -(-end // alignment) * alignment:
            raise ValueError(f"{one.name} {one.shape[::-1].tolist()} has a size or a place it cannot have")
        end = one.data_offset + one.n_bytes
    if n_bytes - end >= alignment:
        raise ValueError(f"says wrong sizes: {n_bytes:,} bytes instead of {end:,}")
    names = [*reader.fields, *(one.name for one in reader.tensors)]
    if reader.byte_order != "I" or not all(map(str.isprintable, names)):
        raise ValueError("its bytes lie in another order, or it names something with what are no letters")
    return reader
