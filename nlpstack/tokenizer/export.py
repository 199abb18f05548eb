"""A SentencePiece model as Hugging Face's tokenizer.json: the same ids for the same text.

Exceptions: a text that spells a special token or a byte piece, or that holds U+2581.
"""

from nlpstack.tokenizer.base import Kind
from nlpstack.tokenizer.layout import N_FIXED, SPACE, SPECIALS

Json = dict[str, object]


def tokenizer_json(kind: Kind, pieces: list[str], scores: list[float], *, pairs: bool = False) -> Json:
    """The content of tokenizer.json; with `pairs`, its reader puts [CLS] and [SEP] around a text or two."""
    model = _bpe(pieces) if kind == "bpe" else _unigram(pieces, scores)
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token, "content": content, **special} for token, content in enumerate(SPECIALS)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": {  # no piece holds a line end, nor a space behind its first place
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"String": "\n"}, "behavior": "Isolated", "invert": False},
                {"type": "Split", "pattern": {"String": SPACE}, "behavior": "MergedWithNext", "invert": False},
            ],
        },
        "post_processor": _template() if pairs else None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": model,
    }


def tokenizer_config(max_length: int | None, *, pairs: bool = False) -> Json:
    """The content of tokenizer_config.json; with `pairs`, its reader gives segment ids too."""
    roles = ("pad", "unk", "bos", "eos", "cls", "sep", "mask")
    config: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{role}_token": content for role, content in zip(roles, SPECIALS, strict=True)},
        "clean_up_tokenization_spaces": False,
    }
    if pairs:
        config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    return config if max_length is None else {**config, "model_max_length": max_length}


def _template() -> Json:
    """BERT's input: [CLS] A [SEP], and B [SEP] of segment 1 after it."""
    first, second = ({"Sequence": {"id": name, "type_id": segment}} for segment, name in enumerate("AB"))
    cls, sep, last = (
        {"SpecialToken": {"id": name, "type_id": segment}}
        for name, segment in (("[CLS]", 0), ("[SEP]", 0), ("[SEP]", 1))
    )
    ids = {name: {"id": name, "ids": [SPECIALS.index(name)], "tokens": [name]} for name in ("[CLS]", "[SEP]")}
    single = [cls, first, sep]
    return {"type": "TemplateProcessing", "single": single, "pair": [*single, second, last], "special_tokens": ids}


def _unigram(pieces: list[str], scores: list[float]) -> Json:
    """Also right for characters: each text then has one segmentation only."""
    vocab = [[piece, score] for piece, score in zip(pieces, scores, strict=True)]
    return {"type": "Unigram", "unk_id": SPECIALS.index("<unk>"), "vocab": vocab, "byte_fallback": True}


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
    """The pairs that make up a piece, in the order that breaks ties as SentencePiece does.

    SentencePiece takes the best piece, then the leftmost pair, whatever its parts; Hugging Face ranks the pairs of one
    piece. Two pairs of one piece compete only where they share a symbol, as "aba" does in ab|a|ba: the left pair ends
    in the symbol that the right one, and so the piece, begins with. Such pairs come first.
    """
    cuts = [at for at in range(1, len(piece)) if piece[:at] in learned and piece[at:] in learned]
    cuts.sort(key=lambda at: not piece.startswith(piece[at:]))
    return [(piece[:at], piece[at:]) for at in cuts]
