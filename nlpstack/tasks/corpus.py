"""Raw text to a tokenizer and token shards, for every task that reads plain text."""

import hashlib
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from nlpstack.data.corpus import SEGMENTER, Split, split_sentences
from nlpstack.data.readers import Note
from nlpstack.data.shards import ShardSpec, TokenShards, load_or_tokenize
from nlpstack.errors import ModelError
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
    spec = ShardSpec(
        split_key=split.key,
        tokenizer_hash=tokenizer.hash,
        vocab_size=tokenizer.vocab_size,
        bos_id=layout.bos_id,
        eos_id=layout.eos_id,
        sentences=f"{SEGMENTER}-{layout.language}" if layout.language else "",
    )
    encode = partial(tokenizer.encode_batch, threads=threads or torch.get_num_threads())
    cut = partial(split_sentences, language=layout.language) if layout.language else None
    return load_or_tokenize(split.pieces, encode, spec, cache, lambda text: note(f"{split.name}: {text}"), segment=cut)
