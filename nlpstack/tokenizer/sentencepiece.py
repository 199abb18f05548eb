"""Our tokenizer: SentencePiece with byte pieces, made lossless."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import sentencepiece as spm

from nlpstack.errors import ModelError
from nlpstack.files import write_text
from nlpstack.tokenizer import export
from nlpstack.tokenizer.base import utf8
from nlpstack.tokenizer.layout import FIRST_BYTE_ID, FIXED_PIECES, N_FIXED, SPACE, SPECIALS
from nlpstack.tokenizer.proto import model_kind
from nlpstack.tokenizer.words import WordMarks, check_ids, number_words, word_marks

MODEL_FILE = "tokenizer.model"

CHUNK = 2000  # characters that are encoded at once: sums of scores stay exact (see proto.py)

_SPACE_IDS = [FIRST_BYTE_ID + byte for byte in SPACE.encode()]
_PROBE = "  \u00c5 \ufb01\u0301\t "  # comes back unchanged only where text is not normalized


class ForeignModelError(ModelError):
    """A SentencePiece model of others."""


class SentencePieceTokenizer:
    """A SentencePiece model whose decode(encode(text)) is the text, for every text that UTF-8 can hold."""

    pad_id, unk_id, bos_id, eos_id, cls_id, sep_id, mask_id = range(len(SPECIALS))
    special_ids = frozenset(range(len(SPECIALS)))
    mask_token = SPECIALS[mask_id]

    def __init__(self, model: bytes) -> None:
        """Take a serialized SentencePiece model; raises ModelError if it is broken or not one of ours."""
        self._processor = spm.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise ModelError("not a whole SentencePiece model; copy it again or train the tokenizer again") from error
        kind = model_kind(model)
        self._pieces: list[str] = self._processor.IdToPiece(list(range(len(self._processor))))
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
        learned = [piece.replace(SPACE, " ").encode() for piece in self._pieces[N_FIXED:]]
        self._bytes = [b""] * len(SPECIALS) + [b"\n"] + [bytes([byte]) for byte in range(256)] + learned

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
        utf8(text)
        if len(text) <= CHUNK and SPACE not in text:
            ids: list[int] = self._processor.Encode(text)
            return ids
        return [token for chunk in self._chunks(text) for token in self._encode_chunk(chunk)]

    def _encode_chunk(self, chunk: str) -> list[int]:
        return _SPACE_IDS if chunk == SPACE else self._processor.Encode(chunk)

    def encode_batch(self, texts: Sequence[str], *, threads: int) -> list[np.ndarray]:
        """The ids of each text as an int32 array, `threads` chunks of text at a time."""
        chunks: list[str] = []
        counts = []
        for text in texts:
            utf8(text)
            before = len(chunks)
            chunks += self._chunks(text)
            counts.append(len(chunks) - before)
        plain = ["" if chunk == SPACE else chunk for chunk in chunks]
        arrays: list[np.ndarray] = self._processor.Encode(plain, num_threads=threads, return_type="numpy")
        for at, chunk in enumerate(chunks):
            if chunk == SPACE:
                arrays[at] = np.array(_SPACE_IDS, np.int32)
        ends = np.cumsum([0, *counts]).tolist()
        empty = np.empty(0, np.int32)
        return [np.concatenate([empty, *arrays[start:end]]) for start, end in pairwise(ends)]

    def _chunks(self, text: str) -> Iterator[str]:
        """Parts that encode, one by one, to the ids of the whole; each U+2581 is a part of its own."""
        for number, span in enumerate(text.split(SPACE)):
            if number:
                yield SPACE
            start = 0
            while len(span) - start > CHUNK:
                cut = self._cut(span, start)
                yield span[start:cut]
                start = cut
            if start < len(span):
                yield span[start:]

    def _cut(self, span: str, start: int) -> int:
        """The last place within CHUNK characters, else the first one after them, that no piece can cross."""
        stop = start + CHUNK + 1
        cut = max(span.rfind(" ", start + 1, stop), span.rfind("\n", start + 1, stop))  # no piece holds one inside
        if cut > 0:
            return cut
        inside = self._inside
        places = chain(range(stop - 1, start, -1), range(stop, len(span)))
        return next((at for at in places if span[at - 1 : at + 1] not in inside), len(span))

    @cached_property
    def _inside(self) -> frozenset[str]:
        """Every two characters that stand side by side in some piece."""
        texts = (piece.replace(SPACE, " ") for piece in self._pieces[N_FIXED:])
        return frozenset(text[at : at + 2] for text in texts for at in range(len(text) - 1))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; special ids give nothing, bytes that are not UTF-8 become U+FFFD."""
        ids = list(ids)
        check_ids(ids, self.vocab_size)
        return b"".join([self._bytes[token] for token in ids]).decode(errors="replace")

    def piece(self, token: int) -> str:
        """How the vocabulary spells an id, its word mark included."""
        return self._pieces[token]

    def token_bytes(self, token: int) -> bytes:
        """What an id contributes to the UTF-8 of a text: nothing for a special id."""
        return self._bytes[token]

    def word_ids(self, ids: np.ndarray) -> np.ndarray:
        """The number, from 0, of the word that each id belongs to; -1 at special ids. A line end is a word."""
        return number_words(ids, self._marks)

    @cached_property
    def _marks(self) -> WordMarks:
        return word_marks(self._pieces, self.special_ids, SPACE, "\n", "")

    def save(self, folder: Path, *, max_length: int | None = None, pairs: bool = False) -> None:
        """Write tokenizer.model, and tokenizer.json and tokenizer_config.json for Hugging Face's libraries.

        `max_length` is the model's longest input in tokens; with `pairs` those libraries put [CLS] and [SEP] around
        texts and pairs of texts, as a BERT wants.
        """
        folder.mkdir(parents=True, exist_ok=True)
        scores: list[float] = self._processor.GetScore(list(range(self.vocab_size)))
        (folder / MODEL_FILE).write_bytes(self._model)
        for name, value in (
            ("tokenizer.json", export.tokenizer_json(self.kind, self._pieces, scores, pairs=pairs)),
            ("tokenizer_config.json", export.tokenizer_config(max_length, pairs=pairs)),
        ):
            write_text(folder / name, json.dumps(value, ensure_ascii=False, indent=1) + "\n")
