"""Tokenized text on disk: memory-mapped .npy shards that say what they hold, cached by content."""

import fcntl
import hashlib
import io
import json
import os
import time
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import accumulate, count, islice
from pathlib import Path
from typing import Any

import numpy as np

from nlpstack.data.readers import Note, Piece
from nlpstack.errors import DataError
from nlpstack.files import naming, read_json_object, remove_leftovers, sha256_file, write_file

FORMAT = 2
SHARD_TOKENS = 1 << 24  # tokens in a shard, at least: up to 64 MB, which a killed run may have to do again
GROUP_BYTES = 1 << 22  # characters handed to the tokenizer at a time
INDEX = "index.json"
Pieces = Callable[[], Iterable[Piece]]
Segment = Callable[[str], list[str]]
Encode = Callable[[list[str]], list[np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class ShardSpec:
    """What tokens stand for; equal specs of equal text give equal shards."""

    split_key: str  # hash of the text
    tokenizer_hash: str
    vocab_size: int
    bos_id: int | None  # before each document
    eos_id: int | None  # after each document
    sentences: str = ""  # what cut the text into sentences, and for which language; empty: their ends are not kept

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest unsigned type that holds every id."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    @property
    def key(self) -> str:
        """A folder's name: other text, tokenizer, special tokens or sentences have folders of their own."""
        whole = json.dumps([FORMAT, asdict(self)], sort_keys=True)
        return f"{self.split_key[:16]}-{hashlib.sha256(whole.encode()).hexdigest()[:16]}"

    @property
    def files(self) -> dict[str, str]:
        """The files of a shard: the key under which an entry has the SHA-256, and how the name goes on."""
        sentences = {"sents_sha256": ".sents.npy"} if self.sentences else {}
        return {"sha256": ".npy", "docs_sha256": ".docs.npy"} | sentences


class TokenShards:
    """The tokens of a split as one long row, of one folder or several in turn; documents are stretches of it."""

    def __init__(self, *folders: Path, documents: slice = slice(None)) -> None:
        """Open the shards of folders of one kind, of which these `documents` count."""
        indexes = [read_json_object(folder / INDEX, DataError) for folder in folders]
        self.folder, self.index, self.spec = folders[0], indexes[0], ShardSpec(**indexes[0]["spec"])
        self.n_bytes: int = sum(index["n_bytes"] for index in indexes)  # UTF-8 bytes of the text that was tokenized
        first = accumulate((index["n_tokens"] for index in indexes), initial=0)
        parts = [(f"{d}/{e['name']}", n) for d, i, n in zip(folders, indexes, first, strict=False) for e in i["shards"]]
        self._arrays = [np.lib.format.open_memmap(f"{name}.npy", mode="r") for name, _ in parts]
        self._starts = list(accumulate(map(len, self._arrays), initial=0))
        table = np.concatenate([np.add(np.load(f"{name}.docs.npy"), (n, 0)) for name, n in parts])
        self._first = int(table[documents.start - 1, 0]) if documents.start else 0
        # (documents,): token after the last one; words in the text
        self.ends, self.words = table[documents, 0] - self._first, table[documents, 1]
        sentences = [np.load(f"{name}.sents.npy") + n for name, n in parts if self.spec.sentences]
        ends = np.concatenate([np.zeros(0, dtype=np.int64), *sentences]) - self._first
        # (sentences,): token after the last one of each; empty where they are not kept
        self.sentence_ends: np.ndarray = ends[(ends > 0) & (ends <= len(self))]

    def __len__(self) -> int:
        return int(self.ends[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start to stop, int64, across shards."""
        start, stop = start + self._first, min(stop, len(self)) + self._first
        inside = range(bisect_right(self._starts, start) - 1, bisect_left(self._starts, stop))
        parts = [self._arrays[i][max(start - self._starts[i], 0) : stop - self._starts[i]] for i in inside]
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts])

    def documents(self) -> Iterator[tuple[int, int, int]]:
        """(first token, token after the last one, words) of each document, BOS and EOS included."""
        ends = self.ends.tolist()
        return zip([0, *ends], ends, self.words.tolist(), strict=False)


def load_or_tokenize(
    pieces: Pieces, encode: Encode, spec: ShardSpec, cache: Path, report: Note, *, segment: Segment | None = None
) -> TokenShards:
    """The shards of a split from the cache, or made now; a run killed on the way goes on at its last whole shard.

    With `segment`, which cuts a text into its sentences, the ends of sentences are kept; `spec.sentences` names it.
    """
    assert bool(spec.sentences) == (segment is not None)
    folder = cache / spec.key
    if (folder / INDEX).exists():
        with suppress(DataError, LookupError, TypeError, ValueError, EOFError):
            if whole_spec(folder) == spec:
                shards = TokenShards(folder)
                report(f"tokenized before: {len(shards):,} tokens in {folder}")
                return shards
        report(f"{folder}: damaged or of another kind; tokenizing again")
        for path in folder.glob("shard-*.json"):  # no more: another run may be doing the same
            path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    with naming(folder), _among_writers(folder):
        _Writer(folder, spec, report).run(pieces(), encode, segment or (lambda text: [text]))
    return TokenShards(folder)


def found_shards(paths: Sequence[str]) -> list[Path]:
    """The folders of token shards among paths, or in them; DataError where some of the paths hold none and some do."""
    inside = {path: (Path(path), *sorted(Path(path).glob("*"))) for path in paths}
    found = {path: [one for one in some if (one / INDEX).is_file()] for path, some in inside.items()}
    if any(found.values()) and (other := [path for path in paths if not found[path]]):
        raise DataError(f"{other[0]}: holds no tokens, and other --data does; list one kind")
    for folder in (one for some in inside.values() for one in some if not (one / INDEX).is_file()):
        if folder.is_dir() and any(folder.glob("*shard-*.npy")):
            raise DataError(f"{folder}: tokens that are not whole; tokenize that slice again, which goes on")
    return [folder for folders in found.values() for folder in folders]


def whole_spec(folder: Path) -> ShardSpec:
    """What the tokens of a folder stand for; DataError if any of its files is not what was written."""
    with suppress(LookupError, TypeError, ValueError):
        index = read_json_object(folder / INDEX, DataError)
        spec = ShardSpec(**index["spec"])
        if all(_whole(folder, entry, spec) for entry in index["shards"]):
            return spec
    raise DataError(f"{folder}: altered since it was tokenized; tokenize again (nlpstack data tokenize)")


def _whole(folder: Path, entry: dict[str, Any], spec: ShardSpec) -> bool:
    paths = {key: folder / f"{entry['name']}{suffix}" for key, suffix in spec.files.items()}
    inside = (path.parent == folder and path.is_file() for path in paths.values())
    return all(inside) and all(sha256_file(path) == entry[key] for key, path in paths.items())


def _whole_entries(folder: Path, spec: ShardSpec) -> Iterator[dict[str, Any]]:
    """Entries of the shards that an earlier, unfinished run left whole."""
    with suppress(DataError, KeyError, TypeError):
        for number in count():
            entry = read_json_object(folder / f"shard-{number:05d}.json", DataError)
            if entry["spec"] != asdict(spec) or not _whole(folder, entry, spec):
                return
            yield entry


class _Writer:
    """Turns pieces of text into shards, each with a small JSON file that is written when the shard is whole."""

    def __init__(self, folder: Path, spec: ShardSpec, report: Note) -> None:
        self.folder, self.spec, self.report = folder, spec, report
        self.entries = list(_whole_entries(folder, spec))
        start = {"pieces_done": 0, "tokens_done": 0, "bytes_done": 0, "state": (True, 0, False)}
        done: dict[str, Any] = self.entries[-1] if self.entries else start
        self.n_pieces, self.n_tokens, self.n_bytes = done["pieces_done"], done["tokens_done"], done["bytes_done"]
        # Whether the next piece begins a document; words of the document so far, and whether it ends inside one.
        self.fresh, self.words, self.in_word = done["state"]
        if self.entries:
            report(f"tokenizing goes on after {self.n_tokens:,} tokens that are done")
        self._begin_shard()

    def _begin_shard(self) -> None:
        self.name = f"shard-{len(self.entries):05d}"
        # Renamed when whole, since another run may be making the same shard. Its tokens are written as they come.
        self.temporary = self.folder / f".{self.name}.tmp-{os.urandom(4).hex()}.npy"
        self.file = open(self.temporary, "xb")  # noqa: SIM115 - open until the shard is whole
        self.length = 0
        self._write_header()
        # Of what ends in the shard: end and words of each document, end of each sentence.
        self.table, self.sentences = array("q"), array("q")

    def _write_header(self) -> None:
        # numpy leaves room in the header for the length to grow, so that it may be written again in place.
        self.file.seek(0)
        descr, shape = np.lib.format.dtype_to_descr(self.spec.dtype), (self.length,)
        np.lib.format.write_array_header_1_0(self.file, {"descr": descr, "fortran_order": False, "shape": shape})

    def run(self, pieces: Iterable[Piece], encode: Encode, segment: Segment) -> None:
        """Tokenize everything, then write the index that makes the folder whole."""
        started, bytes_before = time.perf_counter(), self.n_bytes
        try:
            for group in _groups(pieces, skip=self.n_pieces):
                cut = [segment(piece.text) for piece in group]
                ids = iter(encode([sentence for sentences in cut for sentence in sentences]))
                for piece, sentences in zip(group, cut, strict=True):
                    self._add(piece, list(islice(ids, len(sentences))))
                if self.length >= SHARD_TOKENS:
                    self._finish_shard()
            if self.length or not self.entries:
                self._finish_shard()
        finally:
            self.file.close()
            self.temporary.unlink(missing_ok=True)
        index = {"format": FORMAT, "spec": asdict(self.spec), "n_tokens": self.n_tokens, "n_bytes": self.n_bytes}
        index["shards"] = [{key: e[key] for key in ("name", "n_tokens", *self.spec.files)} for e in self.entries]
        write_file(self.folder / INDEX, json.dumps(index, indent=1) + "\n")
        seconds, size = max(time.perf_counter() - started, 1e-9), (self.n_bytes - bytes_before) / 1e6
        self.report(f"tokenized {size:,.1f} MB into {self.n_tokens:,} tokens, {size / seconds:.1f} MB/s")

    def _add(self, piece: Piece, ids: list[np.ndarray]) -> None:
        bos = [self.spec.bos_id] if self.fresh and self.spec.bos_id is not None else []
        eos = [self.spec.eos_id] if piece.last and self.spec.eos_id is not None else []
        row = np.concatenate((bos, *ids, eos)).astype(self.spec.dtype)
        if self.spec.sentences:  # BOS belongs to the first one, EOS to the last
            lengths = [len(sentence) for sentence in ids if len(sentence)] or [0] * min(1, len(row))
            ends = self.n_tokens + len(bos) + np.cumsum(lengths, dtype=np.int64)
            ends[-1:] = self.n_tokens + len(row)
            self.sentences.extend(ends.tolist())
        self.file.write(row.tobytes())
        self.length += len(row)
        self.n_tokens += len(row)
        self.n_bytes += len(piece.text.encode("utf-8"))
        joined = self.in_word and not piece.text[:1].isspace()  # a word that was cut counts once
        self.words += len(piece.text.split()) - joined
        self.in_word = not piece.text[-1:].isspace()
        self.fresh = piece.last
        self.n_pieces += 1
        if piece.last:
            self.table.extend((self.n_tokens, self.words))
            self.words, self.in_word = 0, False

    def _finish_shard(self) -> None:
        self._write_header()
        self.file.flush()
        os.fsync(self.file.fileno())
        os.replace(self.temporary, self.folder / f"{self.name}.npy")
        self.file.close()
        tables = {".docs.npy": np.frombuffer(self.table, dtype=np.int64).reshape(-1, 2)}
        if self.spec.sentences:
            tables[".sents.npy"] = np.frombuffer(self.sentences, dtype=np.int64)
        for suffix, table in tables.items():
            np.save(saved := io.BytesIO(), table, allow_pickle=False)  # of a file it would not say why it is refused
            write_file(self.folder / f"{self.name}{suffix}", saved.getvalue())
        hashes = {key: sha256_file(self.folder / f"{self.name}{suffix}") for key, suffix in self.spec.files.items()}
        done = {"pieces_done": self.n_pieces, "tokens_done": self.n_tokens, "bytes_done": self.n_bytes}
        entry = {"name": self.name, "spec": asdict(self.spec), "n_tokens": self.length, **hashes, **done}
        entry["state"] = [self.fresh, self.words, self.in_word]
        write_file(self.folder / f"{self.name}.json", json.dumps(entry) + "\n")
        self.entries.append(entry)
        self._begin_shard()


@contextmanager
def _among_writers(folder: Path) -> Iterator[None]:
    """Inside the block one of those that write a folder; the first of them removes what killed ones left."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # another is at work, or a file system that locks no folder for one alone
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_leftovers(folder)
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield
    finally:
        os.close(lock)


def _groups(pieces: Iterable[Piece], skip: int) -> Iterator[list[Piece]]:
    """Pieces in groups of about GROUP_BYTES characters, so that the tokenizer's threads have work."""
    group, size = list[Piece](), 0
    for piece in islice(pieces, skip, None):
        group.append(piece)
        size += len(piece.text)
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
