"""Tokenizers that others published, of their folders or GGUF files, read by Hugging Face's `tokenizers` library."""

import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from nlpstack.errors import ModelError
from nlpstack.files import decode_utf8, read_json_object
from nlpstack.signals import Stopped
from nlpstack.tokenizer.base import BYTE_PIECES, ROLES, SPACE, Tokenizer, check_ids, utf8

JSON_FILE, VOCAB_FILE, BPE_FILE, _MERGES = "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt"
FILES = (JSON_FILE, VOCAB_FILE, BPE_FILE)  # the first that a folder has counts
SETTINGS, _TEMPLATE = ("tokenizer_config.json", "special_tokens_map.json"), "chat_template.jinja"

# What their tokens are called where no file says it: in BERT; RoBERTa and Llama; GPT-2.
_USUAL = "[PAD] <pad>", "[UNK] <unk>", "<s> <|endoftext|>", "</s> <|endoftext|>", "[CLS]", "[SEP]", "[MASK] <mask>"

# GPT-2's characters for bytes: the printable ones stand for themselves, U+0100 and what follows it for the others.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + at): byte for at, byte in enumerate(_OTHERS)}
_MEND = "copy the folder again"
_MOST_GAPS = 10_000  # ids without a piece

# Of GGUF files.
_SPECIAL, _USER_DEFINED = (2, 3), 4  # kinds of tokens that no merge makes: what is unknown, control; words
_LISTS: dict[str, Any] = {"tokens": str, "merges": str, "scores": (int, float), "token_type": int}
_LONGEST = 128  # of a vocabulary's pieces, where its merges are not given
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # as tokenizer_config.json and GGUF call them

# The parts of a tokenizer.json by how text is cut: byte BPE's as GGUF files name them (tokenizer.ggml.pre; "default" is
# none of them, since programs that read it differ), SentencePiece's BPE, and BERT's pieces.
_FORMS = json.loads(Path(__file__).with_name("published.json").read_text("utf-8"))


class PublishedTokenizer(Tokenizer):
    """A folder's tokenizer.json, vocab.txt or vocab.json with merges.txt; what spells a special token is plain text."""

    def __init__(self, place: Path, files: Mapping[str, bytes] | None = None) -> None:
        """Of a folder's files, or of `files` that the file at `place` stands for; ModelError if they make none."""
        self._files = _read(place) if files is None else dict(files)
        name = next(name for name in FILES if name in self._files)
        file = place / name if files is None else place
        data = self._files[name] + self._files.get(_MERGES, b"")
        said = {n: read_json_object(place / n, ModelError, self._files[n]) for n in SETTINGS if n in self._files}
        self.chat_template = _template(self._files, said)
        settings, marked = [*said.values()], set[str]()
        if name == JSON_FILE:
            spec = json.loads(_library(file, data).to_str())  # with nothing left out
            marked = {token["content"] for token in spec["added_tokens"] if token["special"]}
            roles = _role_tokens(settings, marked or dict(spec["model"]["vocab"]))  # a table, or pairs with scores
        elif name == BPE_FILE:
            spec = _byte_bpe_spec(file, self._files.get(_MERGES))
            roles = _role_tokens(settings, spec["model"]["vocab"])
        else:
            pieces = _lines(file, data)
            roles = _role_tokens(settings, pieces)
            spec = _wordpiece_spec(pieces, roles, said.get(SETTINGS[0], {}))
        self.hash = hashlib.sha256(data + json.dumps([roles, spec["normalizer"]]).encode()).hexdigest()
        special = marked.union(roles.values())
        self.suffix = secrets.token_hex(32)  # of special tokens in the library: nobody can write one
        self.named = _role_tokens(settings, ())  # roles whose tokens the settings name
        self._library = _library(file, json.dumps(_reserved(spec, special, self.suffix)).encode())
        self._library.no_truncation()
        self._library.no_padding()
        found = self._library.get_vocab(with_added_tokens=True)
        ids: dict[str, int] = {piece.removesuffix(self.suffix): token for piece, token in found.items()}
        for role, spelling in roles.items():
            if spelling not in ids:
                where = " or ".join(SETTINGS)
                raise ModelError(f"{file}: lacks {spelling!r}, the folder's {role}_token; correct {where}")
        by_role = [ids[roles[role]] if role in roles else None for role in ROLES]
        self.pad_id, self.unk_id, self.bos_id, self.eos_id, self.cls_id, self.sep_id, self.mask_id = by_role
        self.mask_token = roles.get("mask")
        self.special_ids = frozenset(ids[spelling] for spelling in special)
        self.vocab_size = max(ids.values(), default=-1) + 1
        if self.vocab_size > 2 * len(ids) + _MOST_GAPS:  # each would take memory
            raise ModelError(f"{file}: has ids up to {self.vocab_size - 1:,} for {len(ids):,} pieces; {_MEND}")
        spelled = {token: piece for piece, token in ids.items()}
        self._pieces = [spelled.get(token, "") for token in range(self.vocab_size)]
        self._read_style(file, spec, found)

    def _read_style(self, file: Path, spec: dict[str, Any], plain: dict[str, int]) -> None:
        """How pieces spell bytes and words; raises ModelError where that cannot be told, or text would be lost."""
        model = spec["model"]
        around = json.dumps([spec["normalizer"], spec["pre_tokenizer"], spec["decoder"]], ensure_ascii=False)
        self._byte_of = BYTE_PIECES if model.get("byte_fallback") else {}
        if '"ByteLevel"' in around:
            self._space, self._newline, self._byte_of = "\u0120", "\u010a", _BYTE_OF
        elif SPACE not in around:
            self._inner = model.get("continuing_subword_prefix") or ""
            if not self._inner:
                raise ModelError(f"{file}: its pieces do not mark where a word begins; use another model")
        unknown = model["unk_id"] is not None if model["type"] == "Unigram" else model["unk_token"] in self._pieces
        whole = model["type"] == "BPE" and self._byte_of and self._byte_of.keys() <= plain.keys()
        if not unknown and not whole:
            raise ModelError(f"{file}: lacks the token for what no piece spells (unk_token); {_MEND}")

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special ids but unk_id; raises DataError on a lone surrogate."""
        utf8(text)
        return list(self._library.encode(text, add_special_tokens=False).ids)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text, and where in it each begins and ends."""
        found = self._library.encode(text, add_special_tokens=False)
        return found.ids, found.offsets

    def encode_batch(self, texts: Sequence[str], *, threads: int) -> list[np.ndarray]:
        """The ids of each text as an int32 array; `threads` is unused, the library reads RAYON_NUM_THREADS."""
        for text in texts:
            utf8(text)
        encodings = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids as the library writes it; special ids give nothing."""
        ids = list(ids)
        check_ids(ids, self.vocab_size)
        return str(self._library.decode([token for token in ids if token not in self.special_ids]))

    def save(self, folder: Path, *, max_length: int | None = None, pairs: bool = False) -> None:
        """Write the files that were read, byte for byte, whatever `max_length` and `pairs` are."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self._files.items():
            (folder / name).write_bytes(data)


def _read(folder: Path) -> dict[str, bytes]:
    first = next(name for name in FILES if (folder / name).is_file())
    names = (BPE_FILE, _MERGES) if first == BPE_FILE else (JSON_FILE, VOCAB_FILE)
    return {n: (folder / n).read_bytes() for n in (*names, *SETTINGS, _TEMPLATE) if (folder / n).is_file()}


def _template(files: Mapping[str, bytes], said: Mapping[str, dict[str, Any]]) -> str | None:
    """How a conversation is written down, in Jinja: its own file, or a setting; of several the one named default."""
    if _TEMPLATE in files:
        return files[_TEMPLATE].decode(errors="replace") or None
    given = said.get(SETTINGS[0], {}).get("chat_template")
    if isinstance(given, list):
        named = [one for one in given if isinstance(one, dict)]
        given = next((one.get("template") for one in named if one.get("name") == "default"), None)
    return given if isinstance(given, str) and given else None


def _role_tokens(said: list[dict[str, Any]], known: Iterable[str]) -> dict[str, str]:
    """The spelling of each role's token: as the folder's files say, else a usual one that is known."""
    known = set(known)
    found: dict[str, Any] = {}
    for role, names in zip(ROLES, _USUAL, strict=True):
        usual = next((name for name in names.split() if name in known), None)
        token = next(filter(None, (values.get(f"{role}_token") for values in said)), usual)
        found[role] = token.get("content") if isinstance(token, dict) else token
    if found["mask"] == "<mask>":  # RoBERTa's [CLS] and [SEP] begin and end a text
        found |= {"cls": found["cls"] or found["bos"], "sep": found["sep"] or found["eos"]}
    return {role: str(token) for role, token in found.items() if token}


def _library(file: Path, data: bytes) -> Any:
    try:
        from tokenizers import Tokenizer

        return Tokenizer.from_buffer(data)
    except ImportError as error:
        raise ModelError(f"{file}: opening it needs `tokenizers`; pip install 'nlpstack[hf]'") from error
    except (KeyboardInterrupt, SystemExit, Stopped):
        raise
    except BaseException as error:  # the library's errors have no type of their own, and its panics are no Exception
        fault = " ".join(str(error).split())
        raise ModelError(f"{file}: `tokenizers` refuses it ({fault}); {_MEND}, or upgrade `tokenizers`") from error


def _reserved(spec: dict[str, Any], special: set[str], suffix: str) -> dict[str, Any]:
    """The tokenizer.json with special tokens renamed to what no text holds, so that their spellings are plain text."""
    # The library's own `encode_special_tokens` is not enough: unigram and whole-word models match the spellings too.

    def renamed(value: Any) -> Any:
        if isinstance(value, str):
            return value + suffix if value in special else value
        if isinstance(value, dict):
            return {renamed(key): renamed(inner) for key, inner in value.items()}
        return [renamed(inner) for inner in value] if isinstance(value, list) else value

    if merges := spec["model"].get("merges"):
        spec["model"]["merges"] = [pair for pair in merges if "".join(pair) not in special]
    spec["post_processor"] = None  # nothing is put around texts; GPT-2's would shift offsets
    # What only the folder's settings call special is found whole as well, where a chat template writes it.
    pieces = spec["model"]["vocab"]
    ids = pieces if isinstance(pieces, dict) else {piece: place for place, (piece, _) in enumerate(pieces)}
    others = special.intersection(ids).difference(token["content"] for token in spec["added_tokens"])
    spec["added_tokens"] += [_added(ids[one], one) for one in sorted(others)]
    return dict(renamed(spec))


def _lines(file: Path, data: bytes) -> list[str]:
    text = decode_utf8(data, file, ModelError, f"; {_MEND}")
    if (lines := text.replace("\r\n", "\n").removesuffix("\n").split("\n")) == [""]:
        raise ModelError(f"{file}: holds no pieces; {_MEND}")
    for piece, count in Counter(lines).items():
        if count > 1:
            raise ModelError(f"{file}:{lines.index(piece) + 1}: {piece!r} stands in the file {count} times; {_MEND}")
    return lines


def _byte_bpe_spec(file: Path, merges: bytes | None) -> dict[str, Any]:
    """The tokenizer.json that the vocab.json and merges.txt of GPT-2 and RoBERTa stand for."""
    beside, vocabulary = file.with_name(_MERGES), read_json_object(file, ModelError)
    if merges is None:
        raise ModelError(f"{beside}: missing, though {file.name} is there; {_MEND}")
    pairs = []
    for number, line in enumerate(merges.decode(errors="replace").split("\n"), 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        if len(pair := line.removesuffix("\r").split(" ")) != 2:
            raise ModelError(f"{beside}:{number}: wanted two pieces that are merged, found {line!r:.60}; {_MEND}")
        for piece in (*pair, "".join(pair)):
            if piece not in vocabulary:
                raise ModelError(f"{beside}:{number}: {piece!r} is no piece of {file.name}; {_MEND}")
        pairs.append(pair)
    model = {"type": "BPE", "unk_token": None, "vocab": vocabulary, "merges": pairs}
    return {**_FORMS["gpt-2"], "added_tokens": [], "model": model}


def _wordpiece_spec(pieces: list[str], roles: dict[str, str], config: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer.json that BERT's vocab.txt and tokenizer_config.json stand for."""
    lower, chinese = config.get("do_lower_case"), config.get("tokenize_chinese_chars")
    if lower is None:
        lower = all(piece == piece.lower() for piece in set(pieces).difference(roles.values()))
    strip = config.get("strip_accents")  # null: as lower-casing
    normalizer = {"handle_chinese_chars": chinese is None or chinese, "strip_accents": strip, "lowercase": lower}
    spec: dict[str, Any] = deepcopy(_FORMS["wordpiece"]) | {"added_tokens": []}
    spec["normalizer"] |= normalizer
    spec["model"] |= {"unk_token": roles.get("unk", "[UNK]"), "vocab": {piece: n for n, piece in enumerate(pieces)}}
    return spec


def gguf_files(metadata: Mapping[str, Any], source: Path) -> dict[str, bytes]:
    """The tokenizer.json and tokenizer_config.json; ModelError for a tokenizer of a kind that is not known."""
    said = {key.removeprefix("tokenizer.ggml."): one for key, one in metadata.items() if key.startswith("tokenizer.")}
    if (model := said.get("model")) not in ("gpt2", "llama"):
        raise ModelError(f"{source}: a tokenizer of the kind {model!r} is not supported; there are gpt2, llama")
    for key, kind in _LISTS.items():
        if not isinstance(found := said.setdefault(key, []), list) or not all(isinstance(one, kind) for one in found):
            raise ModelError(f"{source}: tokenizer.ggml.{key} is no list of what it should hold; get the file again")
    pieces, scores, merges = said["tokens"], said["scores"], [merge.split(" ") for merge in said["merges"]]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    if not pieces or len(vocabulary) < len(pieces) or (model == "llama" and not merges and len(scores) != len(pieces)):
        fault = "lacks tokenizer.ggml.tokens, or as many scores, or has one of them twice"
        raise ModelError(f"{source}: {fault}; get the file again")
    cut = said.get("pre", "gpt-2" if metadata.get("general.architecture") == "gpt2" else None)
    if model == "gpt2" and cut not in (there := ["gpt-2", "smollm", "llama-bpe"]):
        raise ModelError(f"{source}: tokenizer.ggml.pre={cut!r} is not supported; there are {', '.join(there)}")
    spec: dict[str, Any] = deepcopy(_FORMS[cut if model == "gpt2" else "sentencepiece"])
    if model == "llama" and not merges:
        if (longest := max(map(len, pieces))) > _LONGEST:  # there would be as many merges as the square of it
            raise ModelError(f"{source}: a piece of {longest:,} characters is not supported; at most {_LONGEST} are")
        merges = _implied_merges(vocabulary, scores)
    if model == "llama" and not said.get("add_space_prefix", True):
        spec["pre_tokenizer"]["prepend_scheme"], spec["decoder"]["decoders"][-1]["start"] = "never", 0
    ids = {f"{ours}_token": said.get(f"{theirs}_token_id") for ours, theirs in _ROLES.items()}
    config: dict[str, Any] = {
        role: pieces[number] for role, number in ids.items() if type(number) is int and 0 <= number < len(pieces)
    }
    first = config.get("bos_token") if said.get("add_bos_token", model == "llama") else None
    spec["post_processor"] = _begun(first, vocabulary[first]) if first else None
    spec["model"] |= {"unk_token": config.get("unk_token"), "vocab": vocabulary, "merges": merges}
    kinds = enumerate(zip(pieces, said["token_type"], strict=False))
    added = [(n, one, kind != _USER_DEFINED) for n, (one, kind) in kinds if kind in (*_SPECIAL, _USER_DEFINED)]
    spec |= {"version": "1.0", "added_tokens": [_added(*one) for one in added]}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": said.get("tokenizer.chat_template")}
    return {JSON_FILE: json.dumps(spec).encode(), SETTINGS[0]: json.dumps(config, indent=2).encode()}


def _added(number: int, piece: str, special: bool = True) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": piece, "special": special, **flags}


def _begun(first: str, number: int) -> dict[str, Any]:
    """How transformers, asked for special tokens, puts one before a text; we encode without."""
    token = {"SpecialToken": {"id": first, "type_id": 0}}
    one, two = ([token, {"Sequence": {"id": name, "type_id": 0}}] for name in "AB")
    named = {first: {"id": first, "ids": [number], "tokens": [first]}}
    return {"type": "TemplateProcessing", "single": one, "pair": one + two, "special_tokens": named}


def _implied_merges(vocabulary: Mapping[str, int], scores: list[float]) -> list[list[str]]:
    """The merges that a SentencePiece vocabulary implies: each way to make a piece of two, the best pieces first."""
    found = []
    for piece, number in vocabulary.items():
        pairs = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        found += [(-scores[number], -len(a), [a, b]) for a, b in pairs if a in vocabulary and b in vocabulary]
    return [pair for *_, pair in sorted(found, key=lambda one: one[:2])]
