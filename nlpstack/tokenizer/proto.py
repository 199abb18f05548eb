"""Our SentencePiece models: where their fixed pieces stand, and their bytes, read and mended without protobuf."""

import struct
from collections.abc import Iterator

from nlpstack.tokenizer.base import BYTE_PIECES, Kind

SPECIALS = ("<pad>", "<unk>", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]")  # in the order of ROLES
NEWLINE_ID = len(SPECIALS)
FIRST_BYTE_ID = NEWLINE_ID + 1  # the 256 byte pieces
FIXED_PIECES = (*SPECIALS, "\n", *BYTE_PIECES)
N_FIXED = len(FIXED_PIECES)  # the id of the first learned piece

# A unigram score is a multiple of 1/256 and at least -22. SentencePiece adds scores in float32, which is then exact up
# to a sum of 2^16: 2,000 characters stay below it whatever they are, as an unknown one costs 10 more than any piece.
SCORE_STEPS = 256
MIN_SCORE = -22.0

# Field numbers and values of sentencepiece_model.proto.
_PIECES, _TRAINER_SPEC = 1, 2
_PIECE_SCORE, _PIECE_TYPE = 2, 3
_MODEL_TYPE = 3
_NORMAL = 1
_KINDS: dict[int, Kind] = {1: "unigram", 2: "bpe", 4: "char"}


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
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


def model_kind(model: bytes) -> Kind | None:
    """The kind of a serialized SentencePiece model that SentencePiece could read; None if it is none of ours."""
    specs = wire_values(model, _TRAINER_SPEC)
    types = [model[at] for spec in specs for at, _ in wire_values(model, _MODEL_TYPE, *spec)]
    return _KINDS.get(types[-1]) if types else "unigram"  # which SentencePiece may leave out
