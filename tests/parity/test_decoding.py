"""Decoding against transformers' generate() on random weights: the same settings, the same tokens."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from nlpstack.decode import Sampling, decode
from nlpstack.hub import save_model
from nlpstack.model import GPT
from tests.decode.fakes import letter_model

logging.set_verbosity_error()
logging.disable_progress_bar()

N_LETTERS, EOS = 26, 3
N_NEW = 12
ACTIVATIONS = {"learned": "gelu_tanh", "rotary-grouped": "swiglu"}  # GPT-2's and Llama's

# Ours and theirs; `bad_words_ids`, `sequence_bias` and the rest are what transformers calls them.
GREEDY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "repetition": ({"repetition_penalty": 1.6}, {"repetition_penalty": 1.6}),
    "reward": ({"repetition_penalty": 0.7}, {"repetition_penalty": 0.7}),
    "unigrams": ({"no_repeat_ngram": 1, "max_new_tokens": 6}, {"no_repeat_ngram_size": 1, "max_new_tokens": 6}),
    "bigrams": ({"no_repeat_ngram": 2}, {"no_repeat_ngram_size": 2}),
    "trigrams": ({"no_repeat_ngram": 3}, {"no_repeat_ngram_size": 3}),
    "length": ({"min_new_tokens": 7}, {"min_new_tokens": 7}),
    "bias": ({"logit_bias": {5: 4.0, 6: -3.0}}, {"sequence_bias": [[[5], 4.0], [[6], -3.0]]}),
    "banned": ({"banned": (7, 8, 9)}, {"bad_words_ids": [[7], [8], [9]]}),
    "forced": ({"forced": (7, 8)}, {"forced": (7, 8)}),
    "all": (
        {
            "repetition_penalty": 1.3,
            "no_repeat_ngram": 2,
            "logit_bias": {5: 2.0},
            "banned": (7,),
            "min_new_tokens": 5,
        },
        {
            "repetition_penalty": 1.3,
            "no_repeat_ngram_size": 2,
            "sequence_bias": [[[5], 2.0]],
            "bad_words_ids": [[7]],
            "min_new_tokens": 5,
        },
    ),
}
BEAMS = [(2, 1.0), (3, 0.0), (4, 0.6), (5, 2.0), (5, 1.0)]  # beams, length penalty


class Pair(NamedTuple):
    """One model, here and there."""

    ours: GPT
    theirs: Any


@pytest.fixture(scope="module", params=ACTIVATIONS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    activation = ACTIVATIONS[request.param]
    ours = letter_model(N_LETTERS, request.param, max_seq_len=64, activation=activation, tied=False)
    assert ours.lm_head is not None
    with torch.no_grad():  # so that texts end early, and differ
        ours.lm_head.weight.mul_(0.3)
        ours.lm_head.weight[EOS].mul_(1.5)
    folder: Path = tmp_path_factory.mktemp("model")
    tokenizer, ours.tokenizer = ours.tokenizer, None
    save_model(ours, folder / "model")
    ours.tokenizer = tokenizer
    return Pair(ours, AutoModelForCausalLM.from_pretrained(folder / "model"))


def prompts(n: int, seed: int) -> list[str]:
    """Random letters, 1 to 12 of them."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 13, (n,), generator=generator).tolist()
    return ["".join(chr(97 + i) for i in torch.randint(0, N_LETTERS, (k,), generator=generator)) for k in lengths]


def expected(pair: Pair, texts: list[str], *, forced: tuple[int, ...] = (), **options: Any) -> Iterator[list[int]]:
    """New tokens of each text by transformers, without what it fills up the rows with behind the end of text."""
    encoded = [pair.ours.tokenizer.encode(text) for text in texts]
    width = max(map(len, encoded))
    tokens = torch.tensor([[0] * (width - len(ids)) + ids for ids in encoded])
    if forced:
        anything = list(range(pair.ours.config.vocab_size))
        steps = [*([token] for token in forced), *[anything] * N_NEW]
        options["prefix_allowed_tokens_fn"] = lambda _, ids: steps[len(ids) - width]
    options = {"max_new_tokens": N_NEW, "suppress_tokens": [0, 1, 2], "eos_token_id": EOS, "pad_token_id": 0} | options
    out = pair.theirs.generate(tokens, attention_mask=(tokens > 0).long(), do_sample=False, **options)
    for row in out[:, width:].tolist():
        yield row[: row.index(EOS) + 1] if EOS in row else row


def by_us(pair: Pair, texts: list[str], **options: Any) -> list[list[int]]:
    sampling = Sampling(**{"max_new_tokens": N_NEW} | options)
    return [one.tokens for one in decode(pair.ours, pair.ours.tokenizer, texts, sampling, batch_size=32)[0]]


@pytest.mark.parametrize("rules", GREEDY)
def test_greedy_decoding_under_each_rule_matches_transformers(pair: Pair, rules: str) -> None:
    ours, theirs = GREEDY[rules]
    texts = prompts(20, seed=1)
    found = by_us(pair, texts, greedy=True, **ours)
    assert found == list(expected(pair, texts, **theirs))
    assert rules == "plain" or found != by_us(pair, texts, greedy=True)


@pytest.mark.parametrize(("beams", "length_penalty"), BEAMS)
def test_beam_search_matches_transformers(pair: Pair, beams: int, length_penalty: float) -> None:
    """Five settings, two models: 500 prompts in all."""
    texts = prompts(50, seed=beams)
    found = by_us(pair, texts, beams=beams, length_penalty=length_penalty)
    assert found == list(expected(pair, texts, num_beams=beams, length_penalty=length_penalty))
    assert sum(tokens[-1] == EOS for tokens in found) > 5
    assert sum(one != other for one, other in zip(found, by_us(pair, texts, greedy=True), strict=True)) > 20


@pytest.mark.parametrize("rules", [rules for rules in GREEDY if rules != "plain"])
def test_beam_search_under_each_rule_matches_transformers(pair: Pair, rules: str) -> None:
    ours, theirs = GREEDY[rules]
    texts = prompts(8, seed=2)
    found = by_us(pair, texts, beams=4, samples=3, **ours)
    assert found == list(expected(pair, texts, num_beams=4, num_return_sequences=3, **theirs))
