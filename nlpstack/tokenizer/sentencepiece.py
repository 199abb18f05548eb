"""Our tokenizer: SentencePiece with byte pieces, made lossless; its models are mended without protobuf."""

import hashlib
import json
import re
import struct
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece as spm

from nlpstack.errors import ModelError
from nlpstack.files import write_file
from nlpstack.tokenizer.base import BYTE_PIECES, SPACE, Kind, Tokenizer, utf8

MODEL_FILE = "tokenizer.model"
SPECIALS = ("<pad>", "<unk>", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]")  # in the order of ROLES
NEWLINE_ID = len(SPECIALS)
FIXED_PIECES = (*SPECIALS, "\n", *BYTE_PIECES)
N_FIXED = len(FIXED_PIECES)  # the id of the first learned piece

# A unigram score is a multiple of 1/256 and at least -22. SentencePiece adds scores in float32, which is then exact up
# to a sum of 2^16: 2,000 characters stay below it whatever they are, as an unknown one costs 10 more than any piece.
SCORE_STEPS = 256
MIN_SCORE = -22.0
CHUNK = 2000  # characters that are encoded at once

# Field numbers and values of sentencepiece_model.proto.
_PIECES, _TRAINER_SPEC = 1, 2
_PIECE_SCORE, _PIECE_TYPE = 2, 3
_MODEL_TYPE = 3
_NORMAL = 1
_KINDS: dict[int, Kind] = {1: "unigram", 2: "bpe", 4: "char"}

_SPACE_IDS = [NEWLINE_ID + 1 + byte for byte in SPACE.encode()]  # the byte pieces follow the newline
# What all exported files have alike. Their texts are cut so that a piece may begin with a space, no more.
_EXPORT = json.loads(Path(__file__).with_name("export.json").read_text("utf-8"))
_PROBE = "  \u00c5 \ufb01\u0301\t "  # comes back unchanged only where text is not normalized


class ForeignModelError(ModelError):
    """A SentencePiece model of others."""


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model whose decode(encode(text)) is the text, for every text that UTF-8 can hold."""

    pad_id, unk_id, bos_id, eos_id, cls_id, sep_id, mask_id = range(len(SPECIALS))
    special_ids = frozenset(range(len(SPECIALS)))
    mask_token = SPECIALS[mask_id]

    def __init__(self, model: bytes) -> None:
        """Take a serialized SentencePiece model; raises ModelError if it is broken or not one of ours."""
        self._processor = spm.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
            specs = wire_values(model, _TRAINER_SPEC)
            types = [model[at] for spec in specs for at, _ in wire_values(model, _MODEL_TYPE, *spec)]
            kind = _KINDS.get(types[-1]) if types else "unigram"  # which SentencePiece may leave out
            self._pieces: list[str] = self._processor.IdToPiece(list(range(len(self._processor))))
        except (RuntimeError, LookupError, ValueError) as error:
            raise ModelError("not a whole SentencePiece model; copy it again or train the tokenizer again") from error
        fault = "its type is neither unigram, BPE nor char" if kind is None else self._fault()
        if kind is None or fault:
            ours = self._pieces[: len(SPECIALS)] == [*SPECIALS[: len(self._pieces)]]  # a damaged one, perhaps
            raise (ModelError if ours else ForeignModelError)(
                f"a SentencePiece model that is not nlpstack's ({fault}); train one with 'nlpstack tokenizer train'"
            )
        self.kind = kind
        self.hash = hashlib.sha256(model).hexdigest()
        self.vocab_size = len(self._pieces)
        self._model = model

    def _fault(self) -> str:
        """What keeps the model from being one of ours; empty if nothing does."""
        processor, learned = self._processor, self._pieces[N_FIXED:]
        for token, (found, wanted) in enumerate(zip(self._pieces, FIXED_PIECES, strict=False)):
            if found != wanted:
                return f"piece {token} is {found!r}, not {wanted!r}"
        if SPACE not in learned:
            return "it lacks the space or byte pieces"
        controls = [token for token in range(len(SPECIALS)) if token != self.unk_id]
        if not all(processor.IsControl(controls)) or not processor.IsUnknown(self.unk_id):
            return "its special tokens are not reserved"
        if processor.Normalize(_PROBE) != _PROBE.replace(" ", SPACE):
            return "it changes the text before encoding it"
        if any(SPACE in piece[1:] or "\n" in piece for piece in learned):
            return "a piece runs across a space or a line end"
        return ""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special ids; raises DataError on a lone surrogate."""
        rows = (_SPACE_IDS if chunk == SPACE else self._processor.Encode(chunk) for chunk in self._chunks(text))
        return list(chain.from_iterable(rows))

    def encode_batch(self, texts: Sequence[str], *, threads: int) -> list[np.ndarray]:
        """The ids of each text as an int32 array, `threads` chunks of text at a time."""
        rows = [list(self._chunks(text)) for text in texts]
        plain = [chunk for row in rows for chunk in row if chunk != SPACE]
        arrays = iter(self._processor.Encode(plain, num_threads=threads, return_type="numpy"))
        space, empty = np.array(_SPACE_IDS, np.int32), np.empty(0, np.int32)
        return [np.concatenate([empty, *(space if chunk == SPACE else next(arrays) for chunk in row)]) for row in rows]

    def _chunks(self, text: str) -> Iterator[str]:
        """Parts that encode, one by one, to the ids of the whole; each U+2581 is a part of its own."""
        utf8(text)
        for span in re.split(f"({SPACE})", text):
            start = 0
            while len(span) - start > CHUNK:
                # The last place within CHUNK characters, else the first one after them, that no piece can cross.
                stop = start + CHUNK
                places = chain(range(stop, start, -1), range(stop + 1, len(span)))
                cut = next((at for at in places if span[at - 1 : at + 1] not in self._inside), len(span))
                yield span[start:cut]
                start = cut
            if start < len(span):
                yield span[start:]

    @cached_property
    def _inside(self) -> frozenset[str]:
        """Every two characters that stand side by side in some piece."""
        texts = (piece.replace(SPACE, " ") for piece in self._pieces[N_FIXED:])
        return frozenset(text[at : at + 2] for text in texts for at in range(len(text) - 1))

    def save(self, folder: Path, *, max_length: int | None = None, pairs: bool = False) -> None:
        """Write tokenizer.model, and tokenizer.json and tokenizer_config.json for Hugging Face's libraries."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODEL_FILE).write_bytes(self._model)
        config: dict[str, Any] = dict(_EXPORT["tokenizer_config.json"])
        if pairs:
            config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
        if max_length is not None:
            config["model_max_length"] = max_length
        for name, value in (("tokenizer.json", self._exported(pairs=pairs)), ("tokenizer_config.json", config)):
            write_file(folder / name, json.dumps(value, ensure_ascii=False, indent=1) + "\n")

    def _exported(self, *, pairs: bool) -> dict[str, Any]:
        """A tokenizer.json that gives the same ids for the same text, and with `pairs` frames it as a BERT's input.

        Exceptions: a text that spells a special token or a byte piece, or that holds U+2581.
        """
        model = dict(_EXPORT["bpe" if self.kind == "bpe" else "unigram"])
        if self.kind == "bpe":
            learned = set(self._pieces[N_FIXED:])
            model["vocab"] = {piece: token for token, piece in enumerate(self._pieces)}
            model["merges"] = [merge for piece in self._pieces[N_FIXED:] for merge in _merges(piece, learned)]
        else:  # also right for characters: each text then has one segmentation only
            model["vocab"] = list(zip(self._pieces, self._processor.GetScore([*range(self.vocab_size)]), strict=True))
        frame = _EXPORT["post_processor"] if pairs else None
        return {**_EXPORT["tokenizer.json"], "post_processor": frame, "model": model}


def _varint(data: bytes, at: int) -> tuple[int, int]:
    end = at
    while data[end] & 0x80:
        end += 1
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(data[at : end + 1])), end + 1


def wire_values(data: bytes, wanted: int, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Where the values of the field numbered `wanted` of the protobuf message at data[start:end] begin and end."""
    end = len(data) if end is None else end
    while start < end:
        tag, start = _varint(data, start)
        match tag & 7:
            case 0:  # a number
                _, stop = _varint(data, start)
            case 2:  # bytes, or a message
                size, start = _varint(data, start)
                stop = start + size
            case wire_type:
                stop = start + {1: 8, 5: 4}[wire_type]
        if tag >> 3 == wanted:
            yield start, stop
        start = stop


def exact_model(model: bytes, kind: Kind) -> bytes:
    """The model with what keeps its choices from being exact mended in place.

    Unigram scores are rounded, so that float32 and float64 sums agree and ties break alike everywhere. The newline
    becomes an ordinary piece: SentencePiece adds -0.1 to the score of a user-defined one, which is no such multiple.
    """
    data = bytearray(model)
    pieces = list(wire_values(model, _PIECES))
    if kind == "unigram":
        for at, _ in (place for piece in pieces for place in wire_values(model, _PIECE_SCORE, *piece)):
            (score,) = struct.unpack_from("<f", data, at)
            struct.pack_into("<f", data, at, max(MIN_SCORE, round(score * SCORE_STEPS) / SCORE_STEPS))
    ((at, _),) = wire_values(model, _PIECE_TYPE, *pieces[NEWLINE_ID])
    data[at] = _NORMAL
    return bytes(data)


def _merges(piece: str, learned: set[str]) -> list[tuple[str, str]]:
    """The pairs that make up a piece, in the order that breaks ties as SentencePiece does."""
    # SentencePiece takes the best piece, then the leftmost pair, whatever its parts; Hugging Face ranks the pairs of
    # one piece. Two pairs of one piece compete only where they share a symbol, as "aba" does in ab|a|ba: the left pair
    # ends in the symbol that the right one, and so the piece, begins with. Such pairs come first.
    pairs = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
    return sorted((pair for pair in pairs if learned.issuperset(pair)), key=lambda pair: not piece.startswith(pair[1]))
