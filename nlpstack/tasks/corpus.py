"""Raw text to a tokenizer and token shards, for every task that reads plain text."""

import hashlib
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from nlpstack.data.corpus import SEGMENTER, Split, split_sentences
from nlpstack.data.readers import Note
from nlpstack.data.shards import ShardSpec, TokenShards, load_or_tokenize, whole_spec
from nlpstack.errors import DataError, ModelError
from nlpstack.files import new_folder
from nlpstack.tasks.base import DocumentLayout
from nlpstack.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer, train_tokenizer


def make_tokenizer(split: Split, config: TokenizerConfig, cache: Path, note: Note) -> Tokenizer:
    """A tokenizer trained on a split, or the one that was trained on it before."""
    wanted = json.dumps({"text": split.key, "config": asdict(config)}, sort_keys=True)
    folder = cache / f"tokenizer-{hashlib.sha256(wanted.encode()).hexdigest()[:16]}"
    if folder.exists():
        try:
            tokenizer = load_tokenizer(folder)
            note(f"tokenizer trained before: {folder}")
            return tokenizer
        except ModelError as error:
            note(f"{error}; training it again")
    tokenizer = train_tokenizer((piece.text for piece in split.pieces(note)), config, report=note)
    with new_folder(folder) as made:
        tokenizer.save(made)
    note(f"tokenizer: {config.kind}, {tokenizer.vocab_size:,} pieces, trained on the {split.name} split")
    return tokenizer


def tokenize_split(
    split: Split, tokenizer: Tokenizer, layout: DocumentLayout, cache: Path, *, threads: int | None = None, note: Note
) -> TokenShards:
    """The token shards of a split, with documents laid out as a task wants them, made now or taken from the cache."""
    spec = _spec(split.key, tokenizer, layout)
    encode = partial(tokenizer.encode_batch, threads=threads or torch.get_num_threads())
    cut = partial(split_sentences, language=layout.language) if layout.language else None
    return load_or_tokenize(split.pieces, encode, spec, cache, lambda text: note(f"{split.name}: {text}"), segment=cut)


def _spec(key: str, tokenizer: Tokenizer, layout: DocumentLayout) -> ShardSpec:
    sentences = f"{SEGMENTER}-{layout.language}" if layout.language else ""
    names = {"split_key": key, "tokenizer_hash": tokenizer.hash, "sentences": sentences}
    return ShardSpec(**names, vocab_size=tokenizer.vocab_size, bos_id=layout.bos_id, eos_id=layout.eos_id)


def tokenized_before(
    folders: list[Path], tokenizer: Tokenizer, layout: DocumentLayout, val_share: float, note: Note
) -> list[TokenShards]:
    """Train and val of token shards that were made ahead, the last documents; DataError for those of another kind."""
    for folder in folders:
        own, wanted = (asdict(spec) for spec in (whole_spec(folder), _spec("", tokenizer, layout)))
        if wrong := [key for key in wanted if own[key] != wanted[key] and key != "split_key"]:
            told = f"{wrong[0]} {own[wrong[0]]!r}, and this run has {wanted[wrong[0]]!r}"
            raise DataError(f"{folder}: tokenized with {told}; give that tokenizer and task, or tokenize again")
    n = len(TokenShards(*folders).ends)
    cut = min(max(int(n * (1 - val_share) + 1e-9), 1), n - 1)
    if n < 2:
        raise DataError(f"{folders[0]}: holds one document, and validation needs one more; give more slices")
    note(f"tokenized before: {len(folders)} folders; the last {n - cut:,} of {n:,} documents are held out")
    return [TokenShards(*folders, documents=part) for part in (slice(0, cut), slice(cut, n))]
