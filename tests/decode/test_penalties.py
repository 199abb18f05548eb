"""Penalties on random logits against transformers' processors and plain Python."""

import pytest
import torch
from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from nlpstack.decode import Sampling
from nlpstack.decode.loop import CachedBatch
from nlpstack.decode.next_token import penalize, penalize_frequency, penalize_repetition, repeated_ngrams
from tests.decode.fakes import ByteTokenizer, by_definition, letter_model

V = 12


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(6, V, generator=torch.Generator().manual_seed(0)) * 3


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, V, (6, 40), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("penalty", [0.5, 1.3, 3.0])
def test_repetition_penalty_matches_transformers(logits: torch.Tensor, tokens: torch.Tensor, penalty: float) -> None:
    few = tokens[:, :7]
    expected = RepetitionPenaltyLogitsProcessor(penalty)(few, logits)
    assert torch.equal(penalize_repetition(logits, few, penalty), expected)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 41])
def test_repeated_ngrams_match_transformers(logits: torch.Tensor, tokens: torch.Tensor, n: int) -> None:
    few = tokens % 3  # so that long ones repeat too
    expected = NoRepeatNGramLogitsProcessor(n)(few, logits) == -torch.inf
    assert torch.equal(repeated_ngrams(few, n, logits), expected)
    assert expected.any() == (n < 41)


def test_frequency_and_presence_count_as_defined(logits: torch.Tensor, tokens: torch.Tensor) -> None:
    out = penalize_frequency(logits, tokens, 0.25, -1.5)
    for row in range(6):
        for token in range(V):
            n = tokens[row].tolist().count(token)
            assert out[row, token] == pytest.approx(float(logits[row, token]) - 0.25 * n + 1.5 * (n > 0), abs=1e-5)


@pytest.mark.parametrize("prompt", [None, True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.7},
        {"frequency_penalty": 0.3},
        {"presence_penalty": 0.8},
        {"no_repeat_ngram": 1},
        {"no_repeat_ngram": 2},
        {"repetition_penalty": 0.8, "frequency_penalty": -0.3, "presence_penalty": 0.4, "no_repeat_ngram": 3},
    ],
)
def test_ragged_rows_are_penalized_as_if_alone(logits: torch.Tensor, options: dict, prompt: bool | None) -> None:
    sampling = Sampling(penalize_prompt=prompt, **options)
    generator = torch.Generator().manual_seed(4)
    prompts = [torch.randint(0, 4, (n,), generator=generator).tolist() for n in (1, 9, 4, 2, 6, 1)]
    tokenizer = ByteTokenizer(eos=False)
    tokenizer.special_ids = frozenset()
    new: list[list[int]] = [[] for _ in prompts]
    tokens = torch.tensor([[-1] * (9 - len(start)) + start for start in prompts])
    for _ in range(8):
        out = penalize(logits, tokens, tokens[:, 9:], sampling)
        for row, (start, added) in enumerate(zip(prompts, new, strict=True)):
            expected = by_definition(logits[row].tolist(), sampling, start, added, tokenizer)
            assert out[row].tolist() == pytest.approx(expected, abs=1e-5)
        column = torch.randint(0, 4, (6, 1), generator=generator)
        tokens = torch.cat((tokens, column), dim=1)
        for added, token in zip(new, column[:, 0].tolist(), strict=True):
            added.append(token)


def test_the_tokens_of_a_batch_follow_rows_that_are_kept() -> None:
    batch = CachedBatch(letter_model(6), [[4, 5], [6]], 3)
    assert batch.prefill(copies=1).shape == (2, 10)
    batch.step([0, 1], [7, 8])
    assert batch.step([1, 0, 1], [4, 5, 6]).shape == (3, 10)
    assert batch.tokens.tolist() == [[-1, 6, 8, 4], [4, 5, 7, 5], [-1, 6, 8, 6]]
    assert batch.new.tolist() == [[8, 4], [7, 5], [8, 6]]


def test_other_options_penalize_nothing(logits: torch.Tensor, tokens: torch.Tensor) -> None:
    sampling = Sampling(logit_bias={4: 1.0}, banned=(5,), forced=(6,), min_new_tokens=3, top_k=5)
    assert penalize(logits, tokens, tokens, sampling) is logits
