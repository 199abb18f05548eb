"""Guesses without a model, against plain counting."""

from collections import Counter
from itertools import pairwise

import numpy as np
import torch

from nlpstack.baselines import masked_token_baselines
from nlpstack.data.batch import IGNORE_INDEX, Batch
from tests.handmade import FIRST, MakeShards

MASK = 1


def test_guesses_are_the_most_frequent_token_and_the_most_frequent_follower(make_shards: MakeShards) -> None:
    text = "abracadabra abrakadabra simsalabim " * 3 + "zq"
    train = make_shards([text], bos_id=None, eos_id=None)
    tokens = [FIRST + ord(char) for char in text]
    frequent = Counter(tokens).most_common(1)[0][0]
    followers: dict[int, Counter[int]] = {}
    for left, right in pairwise(tokens):
        followers.setdefault(left, Counter())[right] += 1
    rng = np.random.default_rng(0)
    n = unigram = bigram = 0
    batches = []
    for start in rng.integers(0, len(tokens) - 11, size=12):
        row = np.array([0, *tokens[start : start + 11]])
        places = np.sort(rng.choice(np.arange(1, 12), size=4, replace=False))
        seen, labels = row.copy(), row[places]
        seen[places] = MASK
        for place, label in zip(places, labels, strict=True):
            known = followers.get(int(seen[place - 1]))
            best = [token for token, times in known.items() if times == max(known.values())] if known else [frequent]
            n, unigram, bigram = n + 1, unigram + (label == frequent), bigram + (label == min(best))
        batches.append(
            Batch(
                tokens=torch.from_numpy(seen)[None],
                labels={"mlm": torch.tensor([*labels, IGNORE_INDEX])},
                places=torch.tensor([*places, 0]),
            )
        )
    found = masked_token_baselines(train, batches)
    assert found == {"unigram": {"mlm_accuracy": unigram / n}, "bigram": {"mlm_accuracy": bigram / n}}
    assert 0 < found["unigram"]["mlm_accuracy"] < found["bigram"]["mlm_accuracy"] < 1
