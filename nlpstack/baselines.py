"""What guessing without a model reaches, scored on the very targets that the model is scored on."""

from collections.abc import Iterable

import numpy as np

from nlpstack.data.batch import IGNORE_INDEX, Batch
from nlpstack.data.shards import TokenShards

_COUNTED_TOKENS = 1 << 24  # of the training text, from its beginning: counts of what is frequent settle long before


def masked_token_baselines(train: TokenShards, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
    """mlm_accuracy of two guesses at the hidden tokens of `batches`, learned from the tokens of a training split.

    "unigram": always the most frequent token. "bigram": the most frequent one after the left neighbour as it stands in
    the row, where that was seen in the training text (a [MASK] or [CLS] was not: then the unigram's).
    """
    tokens = train.read(0, min(len(train), _COUNTED_TOKENS))
    size = train.spec.vocab_size
    unigram = int(np.bincount(tokens, minlength=size).argmax())
    pairs, times = np.unique(tokens[:-1] * size + tokens[1:], return_counts=True)
    order = np.lexsort((-pairs, times))  # of the equally frequent ones the smallest id comes last, and stays
    followers = np.full(size, unigram)
    followers[pairs[order] // size] = pairs[order] % size
    n = hits = bigram_hits = 0
    for batch in batches:
        assert batch.places is not None
        labels, places = batch.labels["mlm"].numpy(), batch.places.numpy()
        counted = labels != IGNORE_INDEX
        labels, left = labels[counted], batch.tokens.flatten().numpy()[places[counted] - 1]
        n += len(labels)
        hits += int((labels == unigram).sum())
        bigram_hits += int((labels == followers[left]).sum())
    return {"unigram": {"mlm_accuracy": hits / max(n, 1)}, "bigram": {"mlm_accuracy": bigram_hits / max(n, 1)}}
