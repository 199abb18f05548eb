"""Tokenized text on disk: memory-mapped .npy shards that say what they hold, cached by content."""

import fcntl
import hashlib
import json
import os
import shutil
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from nlpstack.data.readers import Piece
from nlpstack.errors import DataError
from nlpstack.files import fsync_path, read_json_object, sha256_file, write_text

FORMAT = 2
SHARD_TOKENS = 1 << 24  # tokens in a shard, at least: up to 64 MB, which a killed run may have to do again
GROUP_BYTES = 1 << 22  # characters handed to the tokenizer at a time
INDEX = "index.json"
Segment = Callable[[str], list[str]]
Encode = Callable[[list[str]], list[np.ndarray]]

_NOTHING_DONE: dict[str, Any] = {"pieces_done": 0, "tokens_done": 0, "bytes_done": 0, "state": [True, 0, False]}


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
        files = {"sha256": ".npy", "docs_sha256": ".docs.npy"}
        return files | {"sents_sha256": ".sents.npy"} if self.sentences else files


class TokenShards:
    """The tokens of a split as one long row; documents are stretches of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = read_json_object(folder / INDEX, DataError)
        entries = self.index["shards"]
        self.spec = ShardSpec(**self.index["spec"])
        self._arrays = [np.load(folder / f"{entry['name']}.npy", mmap_mode="r") for entry in entries]
        self._starts = np.cumsum([0, *(len(array) for array in self._arrays)])
        documents = [np.load(folder / f"{entry['name']}.docs.npy") for entry in entries]
        table = np.concatenate(documents) if documents else np.zeros((0, 2), dtype=np.int64)
        self.ends, self.words = table[:, 0], table[:, 1]  # (documents,): token after the last one; words in the text
        kept = entries if self.spec.sentences else []
        sentences = [np.load(folder / f"{entry['name']}.sents.npy") for entry in kept]
        # (sentences,): token after the last one of each; empty where they are not kept
        self.sentence_ends: np.ndarray = np.concatenate([np.zeros(0, dtype=np.int64), *sentences])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of the text that was tokenized."""
        return int(self.index["n_bytes"])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start to stop, int64, across shards."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        parts = []
        while start < stop:
            end = min(stop, int(self._starts[first + 1]))
            parts.append(self._arrays[first][start - self._starts[first] : end - self._starts[first]])
            start, first = end, first + 1
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)

    def documents(self) -> Iterator[tuple[int, int, int]]:
        """(first token, token after the last one, words) of each document, BOS and EOS included."""
        start = 0
        for end, words in zip(self.ends.tolist(), self.words.tolist(), strict=True):
            yield start, end, words
            start = end


def load_or_tokenize(
    pieces: Callable[[], Iterable[Piece]],
    encode: Encode,
    spec: ShardSpec,
    cache: Path,
    report: Callable[[str], None],
    *,
    segment: Segment | None = None,
) -> TokenShards:
    """The shards of a split from the cache, or made now; a run killed on the way goes on at its last whole shard.

    With `segment`, which cuts a text into its sentences, the ends of sentences are kept; `spec.sentences` names it.
    """
    assert bool(spec.sentences) == (segment is not None)
    folder = cache / spec.key
    if (folder / INDEX).exists():
        if _intact(folder, spec):
            shards = TokenShards(folder)
            report(f"tokenized before: {len(shards):,} tokens in {folder}")
            return shards
        report(f"{folder}: damaged or of another kind; tokenizing again")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _Writer(folder, spec, report).run(pieces(), encode, segment or (lambda text: [text]))
    return TokenShards(folder)


def _intact(folder: Path, spec: ShardSpec) -> bool:
    try:
        index = read_json_object(folder / INDEX, DataError)
        return bool(index["spec"] == asdict(spec)) and all(_whole(folder, entry, spec) for entry in index["shards"])
    except (DataError, KeyError, TypeError):
        return False


def _whole(folder: Path, entry: dict[str, Any], spec: ShardSpec) -> bool:
    """Whether all files of a shard are as its entry says."""
    paths = {key: folder / f"{entry['name']}{suffix}" for key, suffix in spec.files.items()}
    return all(path.is_file() and sha256_file(path) == entry[key] for key, path in paths.items())


class _Writer:
    """Turns pieces of text into shards, each with a small JSON file that is written when the shard is whole."""

    def __init__(self, folder: Path, spec: ShardSpec, report: Callable[[str], None]) -> None:
        self.folder, self.spec, self.report = folder, spec, report
        _remove_orphans(folder)
        self.entries = self._whole_shards()
        self.shard = _GrowingArray(self._temporary, spec.dtype)
        self.table = array("q")  # end and words of each document that ends in the shard being made
        self.sentences = array("q")  # end of each sentence that ends in it
        totals = self.entries[-1] if self.entries else _NOTHING_DONE
        self.n_pieces: int = totals["pieces_done"]
        self.n_tokens: int = totals["tokens_done"]
        self.n_bytes: int = totals["bytes_done"]
        self.fresh: bool  # the next piece begins a document
        self.words: int  # words of the document so far
        self.in_word: bool  # its text so far ends inside a word
        self.fresh, self.words, self.in_word = totals["state"]

    def _whole_shards(self) -> list[dict[str, Any]]:
        """Entries of the shards that an earlier, unfinished run left whole."""
        entries: list[dict[str, Any]] = []
        while (path := self.folder / f"shard-{len(entries):05d}.json").exists():
            try:
                entry = read_json_object(path, DataError)
                if entry["spec"] != asdict(self.spec) or not _whole(self.folder, entry, self.spec):
                    break
            except (DataError, KeyError):
                break
            entries.append(entry)
        if entries:
            self.report(f"tokenizing goes on after {entries[-1]['tokens_done']:,} tokens that are done")
        return entries

    def run(self, pieces: Iterable[Piece], encode: Encode, segment: Segment) -> None:
        """Tokenize everything, then write the index that makes the folder whole."""
        started, bytes_before = time.perf_counter(), self.n_bytes
        try:
            for group in _groups(pieces, skip=self.n_pieces):
                cut = [segment(piece.text) for piece in group]
                ids = iter(encode([sentence for sentences in cut for sentence in sentences]))
                for piece, sentences in zip(group, cut, strict=True):
                    self._add(piece, list(islice(ids, len(sentences))))
                if len(self.shard) >= SHARD_TOKENS:
                    self._finish_shard()
            if len(self.shard) or not self.entries:
                self._finish_shard()
        finally:
            self.shard.discard()
        index = {"format": FORMAT, "spec": asdict(self.spec), "n_tokens": self.n_tokens, "n_bytes": self.n_bytes}
        index["shards"] = [{key: e[key] for key in ("name", "n_tokens", *self.spec.files)} for e in self.entries]
        write_text(self.folder / INDEX, json.dumps(index, indent=1) + "\n")
        seconds, done = time.perf_counter() - started, self.n_bytes - bytes_before
        self.report(
            f"tokenized {done / 1e6:,.1f} MB into {self.n_tokens:,} tokens, {done / 1e6 / max(seconds, 1e-9):.1f} MB/s"
        )

    def _add(self, piece: Piece, ids: list[np.ndarray]) -> None:
        bos = [self.spec.bos_id] if self.fresh and self.spec.bos_id is not None else []
        eos = [self.spec.eos_id] if piece.last and self.spec.eos_id is not None else []
        row = np.concatenate((bos, *ids, eos)).astype(self.spec.dtype)
        if self.spec.sentences:
            self._add_sentences(len(bos), ids, len(row))
        self.shard.append(row)
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

    def _add_sentences(self, n_bos: int, ids: list[np.ndarray], n_tokens: int) -> None:
        """Keep the ends of a piece's sentences; BOS belongs to the first one, EOS to the last."""
        lengths = np.array([len(sentence) for sentence in ids if len(sentence)], dtype=np.int64)
        if not len(lengths) and n_tokens:
            lengths = np.array([0])  # special tokens alone
        ends = self.n_tokens + n_bos + np.cumsum(lengths)
        ends[-1:] = self.n_tokens + n_tokens
        self.sentences.extend(ends.tolist())

    @property
    def _temporary(self) -> Path:
        """Where the shard being made stands: renamed when whole, since another run may be making the same one."""
        return self.folder / f".shard-{len(self.entries):05d}.tmp-{os.getpid()}.npy"

    def _finish_shard(self) -> None:
        name, temporary = f"shard-{len(self.entries):05d}", self._temporary
        n_tokens = len(self.shard)
        self.shard.finish()
        os.replace(temporary, self.folder / f"{name}.npy")
        tables = {".docs.npy": np.frombuffer(self.table, dtype=np.int64).reshape(-1, 2)}
        if self.spec.sentences:
            tables[".sents.npy"] = np.frombuffer(self.sentences, dtype=np.int64)
        for suffix, table in tables.items():
            np.save(temporary, table, allow_pickle=False)
            fsync_path(temporary)
            os.replace(temporary, self.folder / f"{name}{suffix}")
        entry = {
            "name": name,
            "spec": asdict(self.spec),
            "n_tokens": n_tokens,
            **{key: sha256_file(self.folder / f"{name}{suffix}") for key, suffix in self.spec.files.items()},
            "pieces_done": self.n_pieces,
            "tokens_done": self.n_tokens,
            "bytes_done": self.n_bytes,
            "state": [self.fresh, self.words, self.in_word],
        }
        write_text(self.folder / f"{name}.json", json.dumps(entry) + "\n")
        self.entries.append(entry)
        self.shard = _GrowingArray(self._temporary, self.spec.dtype)
        self.table, self.sentences = array("q"), array("q")


class _GrowingArray:
    """A .npy file of one axis that is written as its rows come; nothing of it is held in memory."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path, self.dtype = path, dtype
        self._length = 0
        self._file = _locked(path)
        self._write_header()

    def __len__(self) -> int:
        return self._length

    def _write_header(self) -> None:
        # numpy leaves room in the header for the length to grow, so that it may be written again in place.
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, row: np.ndarray) -> None:
        """Add values at the end."""
        self._file.write(row.tobytes())
        self._length += len(row)

    def finish(self) -> None:
        """Write the length, and force the file onto the disk."""
        self._file.seek(0)
        self._write_header()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        """Take the file away."""
        self._file.close()
        self.path.unlink(missing_ok=True)


def _locked(path: Path) -> IO[bytes]:
    """A new file, open and locked, so that no other process takes it for an orphan."""
    while True:
        file = open(path, "w+b")  # noqa: SIM115 - open until the shard is whole
        fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file
        file.close()  # taken for an orphan between the two calls


def _remove_orphans(folder: Path) -> None:
    """Delete unfinished shards of writers that were killed; one that is being written is locked."""
    for path in folder.glob(".shard-*.tmp-*"):
        with suppress(FileNotFoundError, BlockingIOError), open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _groups(pieces: Iterable[Piece], skip: int) -> Iterator[list[Piece]]:
    """Pieces in groups of about GROUP_BYTES characters, so that the tokenizer's threads have work."""
    group: list[Piece] = []
    size = 0
    for number, piece in enumerate(pieces):
        if number < skip:
            continue
        group.append(piece)
        size += len(piece.text)
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
