"""The bytes of a SentencePiece model, read and mended without protobuf."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from nlpstack.tokenizer.base import Kind
from nlpstack.tokenizer.layout import NEWLINE_ID

# A unigram score is a multiple of 1/256 and at least -22. SentencePiece adds scores in float32, which is then exact up
# to a sum of 2^16: 2,000 characters stay below it whatever they are, as an unknown one costs 10 more than any piece.
SCORE_STEPS = 256
MIN_SCORE = -22.0

# Field numbers and wire types of sentencepiece_model.proto.
_PIECES, _TRAINER_SPEC = 1, 2
_PIECE_SCORE, _PIECE_TYPE = 2, 3
_MODEL_TYPE = 3
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_NORMAL = 1
_KINDS: dict[int, Kind] = {1: "unigram", 2: "bpe", 4: "char"}


class WireField(NamedTuple):
    """One field of a protobuf message: its number and where its value lies."""

    number: int
    start: int
    end: int


def _varint(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80:
            return value, at


def wire_fields(data: bytes | bytearray, start: int, end: int) -> Iterator[WireField]:
    """The fields of the protobuf message at data[start:end], in order."""
    while start < end:
        tag, start = _varint(data, start)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            _, stop = _varint(data, start)
        elif wire_type == _BYTES:
            size, start = _varint(data, start)
            stop = start + size
        else:
            stop = start + {_FIXED32: 4, _FIXED64: 8}[wire_type]
        yield WireField(number, start, stop)
        start = stop


def exact_model(model: bytes, kind: Kind) -> bytes:
    """The model with what keeps its choices from being exact mended in place.

    Unigram scores are rounded, so that float32 and float64 sums agree and ties break alike everywhere. The newline
    becomes an ordinary piece: SentencePiece adds -0.1 to the score of a user-defined one, which is no such multiple.
    """
    data = bytearray(model)
    pieces = [part for part in wire_fields(data, 0, len(data)) if part.number == _PIECES]
    for token, piece in enumerate(pieces):
        for part in wire_fields(data, piece.start, piece.end):
            if part.number == _PIECE_SCORE and kind == "unigram":
                (score,) = struct.unpack_from("<f", data, part.start)
                rounded = max(MIN_SCORE, round(score * SCORE_STEPS) / SCORE_STEPS)
                struct.pack_into("<f", data, part.start, rounded)
            elif part.number == _PIECE_TYPE and token == NEWLINE_ID:
                data[part.start] = _NORMAL
    return bytes(data)


def model_kind(model: bytes) -> Kind | None:
    """The kind of a serialized SentencePiece model that SentencePiece could read; None if it is none of ours."""
    value = 1  # unigram, which SentencePiece may leave out
    for spec in wire_fields(model, 0, len(model)):
        if spec.number == _TRAINER_SPEC:
            for part in wire_fields(model, spec.start, spec.end):
                if part.number == _MODEL_TYPE:
                    value, _ = _varint(model, part.start)
    return _KINDS.get(value)
