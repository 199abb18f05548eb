"""A SentencePiece model as Hugging Face's tokenizer.json: the same ids for the same text.

Exceptions: a text that spells a special token or a byte piece, or that holds U+2581.
"""

from nlpstack.tokenizer.base import ROLES, SPACE, Kind
from nlpstack.tokenizer.proto import N_FIXED, SPECIALS

Json = dict[str, object]


def tokenizer_json(kind: Kind, pieces: list[str], scores: list[float], *, pairs: bool = False) -> Json:
    """The content of tokenizer.json; with `pairs`, its reader puts [CLS] and [SEP] around a text or two."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    # Also right for characters: each text then has one segmentation only.
    vocab = list(zip(pieces, scores, strict=True))
    unigram = {"unk_id": SPECIALS.index("<unk>"), "vocab": vocab, "byte_fallback": True}
    cuts = [_split("\n", "Isolated"), _split(SPACE, "MergedWithNext")]  # a piece may begin with a space, no more
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token, "content": content, **special} for token, content in enumerate(SPECIALS)],
        "normalizer": _replace(" ", SPACE),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": cuts},
        "post_processor": _template() if pairs else None,
        "decoder": {"type": "Sequence", "decoders": [_replace(SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": _bpe(pieces) if kind == "bpe" else {"type": "Unigram", **unigram},
    }


def tokenizer_config(max_length: int | None, *, pairs: bool = False) -> Json:
    """The content of tokenizer_config.json; with `pairs`, its reader gives segment ids too."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{role}_token": content for role, content in zip(ROLES, SPECIALS, strict=True)},
        "clean_up_tokenization_spaces": False,
        **({"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]} if pairs else {}),
        **({} if max_length is None else {"model_max_length": max_length}),
    }


def _replace(old: str, new: str) -> Json:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def _split(at: str, behavior: str) -> Json:
    return {"type": "Split", "pattern": {"String": at}, "behavior": behavior, "invert": False}


def _template() -> Json:
    """BERT's input: [CLS] A [SEP], and B [SEP] of segment 1 after it."""
    pair = [
        {"SpecialToken" if name in SPECIALS else "Sequence": {"id": name, "type_id": segment}}
        for name, segment in (("[CLS]", 0), ("A", 0), ("[SEP]", 0), ("B", 1), ("[SEP]", 1))
    ]
    ids = {name: {"id": name, "ids": [SPECIALS.index(name)], "tokens": [name]} for name in ("[CLS]", "[SEP]")}
    return {"type": "TemplateProcessing", "single": pair[:3], "pair": pair, "special_tokens": ids}


def _bpe(pieces: list[str]) -> Json:
    learned = set(pieces[N_FIXED:])
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>",
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": {piece: token for token, piece in enumerate(pieces)},
        "merges": [merge for piece in pieces[N_FIXED:] for merge in _merges(piece, learned)],
    }


def _merges(piece: str, learned: set[str]) -> list[tuple[str, str]]:
    """The pairs that make up a piece, in the order that breaks ties as SentencePiece does."""
    # SentencePiece takes the best piece, then the leftmost pair, whatever its parts; Hugging Face ranks the pairs of
    # one piece. Two pairs of one piece compete only where they share a symbol, as "aba" does in ab|a|ba: the left pair
    # ends in the symbol that the right one, and so the piece, begins with. Such pairs come first.
    pairs = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
    return sorted((pair for pair in pairs if learned.issuperset(pair)), key=lambda pair: not piece.startswith(pair[1]))
