"""Beam search against every possible text, and what it shares with other decoding."""

import pytest
import torch

from nlpstack.decode import Generation, Sampling, decode
from nlpstack.errors import ConfigError, DataError, ModelError
from nlpstack.model import GPT
from tests.decode.fakes import by_definition, letter_model, random_model

PROMPTS = ["", "a", "babba", "bb"]


def every_text(model: GPT, prompt: str, sampling: Sampling) -> list[tuple[float, list[int]]]:
    """Score and tokens of every text a model can write, best first: by full forward passes, in float64."""
    tokenizer = model.tokenizer
    start = tokenizer.encode(prompt) or [tokenizer.bos_id]
    going: list[tuple[float, list[int]]] = [(0.0, [])]
    ended = []
    for length in range(1, sampling.max_new_tokens + 1):
        with torch.no_grad():
            logits = model(torch.tensor([start + new for _, new in going]))[:, -1]
        steps, before = logits.log_softmax(-1).tolist(), going
        going = []
        for (total, new), logprobs in zip(before, steps, strict=True):
            for token, logprob in enumerate(by_definition(logprobs, sampling, start, new, tokenizer)):
                if logprob == -float("inf"):
                    continue
                longer = (total + logprob, [*new, token])
                stopped = tokenizer.decode(longer[1]).endswith(sampling.stop or "-")
                if token == tokenizer.eos_id or stopped or length == sampling.max_new_tokens:
                    ended.append((longer[0] / length**sampling.length_penalty, longer[1]))
                else:
                    going.append(longer)
    return sorted(ended, reverse=True)


@pytest.mark.parametrize(
    ("n_letters", "n_new", "length_penalty", "options"),
    [
        (3, 4, -1.0, {}),
        (3, 4, 0.0, {}),
        (3, 4, 0.6, {}),
        (3, 4, 1.0, {}),
        (5, 3, 1.0, {"min_new_tokens": 2}),
        (2, 5, 2.0, {"no_repeat_ngram": 3}),
        (3, 4, 0.6, {"stop": ("ab", "c")}),
        (3, 4, 0.6, {"repetition_penalty": 1.4, "presence_penalty": 0.2, "penalize_prompt": True}),
        (3, 4, 0.6, {"frequency_penalty": 0.3}),
        (4, 3, 0.6, {"logit_bias": {4: 0.7, 3: -1.0}, "banned": (5,), "forced": (6,)}),
    ],
)
def test_with_a_beam_for_every_text_the_best_is_found(
    n_letters: int, n_new: int, length_penalty: float, options: dict
) -> None:
    beams = (n_letters + 1) ** n_new
    sampling = Sampling(beams=beams, samples=3, max_new_tokens=n_new, length_penalty=length_penalty, **options)
    model = letter_model(n_letters, seed=n_letters).double()
    with torch.no_grad():
        model.transformer.tokens.weight[4:].mul_(0.2)  # so that the end of text is neither rare nor certain
    generations, _ = decode(model, model.tokenizer, PROMPTS, sampling)
    for row, prompt in enumerate(PROMPTS):
        best = every_text(model, prompt, sampling)[:3]
        found = generations[3 * row : 3 * row + 3]
        assert [one.tokens for one in found] == [tokens for _, tokens in best]
        assert [one.score for one in found] == pytest.approx([score for score, _ in best])
        assert [one.sample for one in found] == [0, 1, 2]
        assert all(one.prompt == prompt for one in found)


def beam(model: GPT, prompts: list[str], batch_size: int = 16, **options) -> list[Generation]:
    return decode(model, model.tokenizer, prompts, Sampling(**options), batch_size=batch_size)[0]


OPTIONS = {
    "plain": {},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.2, "no_repeat_ngram": 2},
    "tokens": {"logit_bias": {"b": 2.0}, "banned": ("a",), "forced": ("c",), "min_new_tokens": 4},
    "stop": {"stop": ("ab", "ca"), "length_penalty": 0.5},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", ["learned", "rotary-grouped"])
def test_a_prompt_does_not_depend_on_its_neighbours_or_its_batch(shape: str, options: str) -> None:
    model = letter_model(8, shape)
    chosen = dict(beams=4, samples=2, max_new_tokens=10, logprobs=True) | OPTIONS[options]
    together = beam(model, PROMPTS, **chosen)
    alone = [one for prompt in PROMPTS for one in beam(model, [prompt], **chosen)]
    assert beam(model, PROMPTS, batch_size=1, **chosen) == alone
    for one, other in zip(together, alone, strict=True):
        assert (one.prompt, one.sample, one.tokens, one.text) == (other.prompt, other.sample, other.tokens, other.text)
        assert one.score == pytest.approx(other.score, rel=1e-4)
        assert one.logprobs == pytest.approx(other.logprobs, rel=1e-4)
    assert len({tuple(one.tokens) for one in together}) > len(PROMPTS)


def test_the_score_is_the_summed_log_probability_over_the_new_tokens() -> None:
    model = letter_model(8)
    for length_penalty in (0.0, 0.7, 1.0):
        for one in beam(model, PROMPTS, beams=3, length_penalty=length_penalty, logprobs=True, max_new_tokens=9):
            assert one.score == pytest.approx(sum(one.logprobs) / len(one.tokens) ** length_penalty, rel=1e-5)
            assert one.stopped_by == ("eos" if one.tokens[-1] == 3 else "length")
            assert one.text == model.tokenizer.decode(one.tokens)


def test_beam_search_does_not_go_beyond_the_context() -> None:
    model = random_model(max_seq_len=32)
    (one,) = beam(model, ["a" * 20], beams=2, max_new_tokens=12, banned=(3,))
    assert (len(one.tokens), one.slides) == (12, 0)
    message = "prompt 2 has 21 tokens, with max_new_tokens=12 that is 33, the model's context holds 32"
    with pytest.raises(DataError, match=message):
        beam(model, ["a", "b" * 21], beams=2, max_new_tokens=12)


def test_the_text_of_beam_search_is_passed_on_in_one_piece() -> None:
    model = letter_model(8)
    pieces: list[str] = []
    sampling = Sampling(beams=3, max_new_tokens=8, min_new_tokens=2)
    (one,), timing = decode(model, model.tokenizer, ["ab"], sampling, on_text=pieces.append)
    assert pieces == [one.text]
    assert (timing.prefill_tokens, timing.decode_tokens) == (2, 3 * 7)
    pieces.clear()
    decode(model, model.tokenizer, ["ab"], Sampling(beams=3, max_new_tokens=8, forced=(3,)), on_text=pieces.append)
    assert pieces == []


def test_fewer_texts_than_asked_for_are_an_error() -> None:
    model = letter_model(2)
    assert len(beam(model, ["a"], beams=9, samples=3, max_new_tokens=1)) == 3
    with pytest.raises(ConfigError, match="samples=4: beam search found 3 texts after prompt 1"):
        beam(model, ["a"], beams=9, samples=4, max_new_tokens=1)


def test_scores_that_are_not_finite_are_refused() -> None:
    model = letter_model(4)
    with torch.no_grad():
        model.transformer.tokens.weight[5] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        beam(model, ["a"], beams=2, max_new_tokens=4)
