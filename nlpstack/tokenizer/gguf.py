"""The tokenizer that a GGUF file's metadata stands for, as the files of a published folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nlpstack.errors import ModelError
from nlpstack.tokenizer.base import SPACE
from nlpstack.tokenizer.published import JSON_FILE, SETTINGS

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # kinds of tokens that no merge makes
_LONGEST = 128
_LISTS: dict[str, Any] = {"tokens": str, "merges": str, "scores": (int, float), "token_type": int}
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # as tokenizer_config.json and GGUF call them
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
# How text is cut into words, whose bytes are then merged, by the file's name for it (tokenizer.ggml.pre); GPT-2's words
# are what the step after these makes. "default" is none of them: programs that read it differ.
_WORDS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [],
    "smollm": [{"type": "Digits", "individual_digits": True}],
    "llama-bpe": [{"type": "Split", "pattern": {"Regex": _LLAMA3_WORDS}, "behavior": "Isolated", "invert": False}],
}


def gguf_files(metadata: Mapping[str, Any], source: Path) -> dict[str, bytes]:
    """The tokenizer.json and tokenizer_config.json; ModelError for a tokenizer of a kind that is not known."""
    said = {
        key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items() if key.startswith("tokenizer.")
    }
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
    added = [
        {"id": number, "content": piece, "special": kind != _USER_DEFINED, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for number, (piece, kind) in enumerate(zip(pieces, said["token_type"], strict=False))
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]
    spec: dict[str, Any] = {"version": "1.0", "added_tokens": added, "normalizer": None}
    spec |= {"truncation": None, "padding": None}
    if model == "gpt2":
        cut = said.get("pre", "gpt-2" if metadata.get("general.architecture") == "gpt2" else None)
        if cut not in [*_WORDS]:
            there = ", ".join(_WORDS)
            raise ModelError(f"{source}: tokenizer.ggml.pre={cut!r} is not supported; there are {there}")
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": cut != "llama-bpe"}
        spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*_WORDS[cut], level]}
        spec["decoder"] = level
        settings: dict[str, Any] = {"ignore_merges": cut == "llama-bpe"}
    else:
        if not merges and (longest := max(map(len, pieces))) > _LONGEST:  # merges would be as the square of it
            raise ModelError(f"{source}: a piece of {longest:,} characters is not supported; at most {_LONGEST} are")
        merges = merges or _merges(vocabulary, scores)
        scheme = "first" if said.get("add_space_prefix", True) else "never"
        spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}
        steps = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}]
        steps += [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": int(scheme == "first"), "stop": 0}]
        spec["decoder"] = {"type": "Sequence", "decoders": steps}
        settings = {"byte_fallback": True, "fuse_unk": True}
    ids = {f"{ours}_token": said.get(f"{theirs}_token_id") for ours, theirs in _ROLES.items()}
    config: dict[str, Any] = {
        role: pieces[number] for role, number in ids.items() if type(number) is int and 0 <= number < len(pieces)
    }
    settings["unk_token"] = config.get("unk_token")
    first = config.get("bos_token") if said.get("add_bos_token", model == "llama") else None
    spec["post_processor"] = _begun(first, vocabulary[first]) if first else None
    spec["model"] = {"type": "BPE", "vocab": vocabulary, "merges": merges, **settings}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": said.get("tokenizer.chat_template")}
    return {JSON_FILE: json.dumps(spec).encode(), SETTINGS[0]: json.dumps(config, indent=2).encode()}


def _begun(first: str, number: int) -> dict[str, Any]:
    """How transformers, asked for special tokens, puts one before a text; we encode without."""
    token = {"SpecialToken": {"id": first, "type_id": 0}}
    one, two = ([token, {"Sequence": {"id": name, "type_id": 0}}] for name in "AB")
    named = {first: {"id": first, "ids": [number], "tokens": [first]}}
    return {"type": "TemplateProcessing", "single": one, "pair": one + two, "special_tokens": named}


def _merges(vocabulary: Mapping[str, int], scores: list[float]) -> list[list[str]]:
    """The merges that a SentencePiece vocabulary implies: each way to make a piece of two, the best pieces first."""
    found = []
    for piece, number in vocabulary.items():
        pairs = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        found += [(-scores[number], -len(a), [a, b]) for a, b in pairs if a in vocabulary and b in vocabulary]
    return [pair for *_, pair in sorted(found, key=lambda one: one[:2])]
