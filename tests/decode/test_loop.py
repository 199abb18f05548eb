"""Batches with a cache against one full forward pass a token."""

import pytest
import torch

from nlpstack.decode import Sampling, decode
from nlpstack.errors import ConfigError, DataError
from tests.decode.fakes import SHAPES, ByteTokenizer, random_model, scripted, uncached

PROMPTS = ["", "The cat sat", "x" * 24, "on the mat, 23 letters.", "é", "z" * 17]
LENGTHS = {"within": (40, 15), "sliding": (24, 50)}  # context, new tokens
WAYS = {"greedy": {"greedy": True}, "sampled": {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "seed": 5}}
RULES = {
    "penalties": {"repetition_penalty": 1.4, "frequency_penalty": 0.5, "presence_penalty": 0.7, "no_repeat_ngram": 2},
    "prompt-too": {"frequency_penalty": 2.0, "presence_penalty": 1.0, "penalize_prompt": True, "seed": 2},
    "prompt-not": {"repetition_penalty": 1.9, "no_repeat_ngram": 2, "penalize_prompt": False, "min_p": 0.02},
    "tokens": {"logit_bias": {40: 3.0, 3: 4.0}, "banned": (50, 51), "forced": (70, 80), "min_new_tokens": 9},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_ragged_cached_decoding_matches_a_full_forward_of_each_prompt(shape: str, length: str, way: str) -> None:
    context, n_new = LENGTHS[length]
    model = random_model(shape, max_seq_len=context)
    sampling = Sampling(max_new_tokens=n_new, **WAYS[way])
    generations, _ = decode(model, model.tokenizer, PROMPTS, sampling, batch_size=4)
    for row, (prompt, one) in enumerate(zip(PROMPTS, generations, strict=True)):
        tokens, slides = uncached(model, prompt, sampling, row=row)
        assert (one.prompt, one.tokens, one.slides) == (prompt, tokens, slides)
        assert one.stopped_by == ("eos" if tokens[-1] == model.tokenizer.eos_id else "length")
        assert one.text == model.tokenizer.decode(tokens)
    if length == "sliding":
        assert max(one.slides for one in generations) >= 4


@pytest.mark.parametrize("context", [40, 12])  # at 12 it slides
@pytest.mark.parametrize("rules", RULES)
def test_rules_for_tokens_match_their_definition_on_a_full_forward(rules: str, context: int) -> None:
    model = random_model("rotary-grouped", max_seq_len=context)
    sampling = Sampling(max_new_tokens=18, **RULES[rules])
    prompts = ["", "abcabcabc", "é"]
    generations, _ = decode(model, model.tokenizer, prompts, sampling)
    expected = [uncached(model, prompt, sampling, row=row) for row, prompt in enumerate(prompts)]
    assert [(one.tokens, one.slides) for one in generations] == expected


@pytest.mark.parametrize("rules", RULES)
def test_temperature_zero_equals_greedy_through_all_rules(rules: str) -> None:
    model = random_model("rotary-grouped")
    options = {name: value for name, value in RULES[rules].items() if name != "min_p"} | {"max_new_tokens": 15}
    greedy, _ = decode(model, model.tokenizer, PROMPTS, Sampling(greedy=True, **options))
    assert decode(model, model.tokenizer, PROMPTS, Sampling(temperature=0, **options))[0] == greedy
    assert decode(model, model.tokenizer, PROMPTS, Sampling(temperature=1e-6, **options))[0] == greedy


def test_samples_of_a_prompt_are_drawn_as_if_alone_and_come_in_prompt_order() -> None:
    model = random_model("rotary-grouped")
    options = {"max_new_tokens": 12, "seed": 7, "repetition_penalty": 1.2}
    generations, timing = decode(model, model.tokenizer, PROMPTS, Sampling(samples=3, **options), batch_size=7)
    assert [(one.prompt, one.sample) for one in generations] == [(prompt, k) for prompt in PROMPTS for k in range(3)]
    for n, one in enumerate(generations):
        sampling = Sampling(**options)
        tokens, slides = uncached(model, one.prompt, sampling, row=n // 3, sample=n % 3)
        assert (one.tokens, one.slides) == (tokens, slides)
    assert generations[::3] == decode(model, model.tokenizer, PROMPTS, Sampling(**options))[0]
    assert len({tuple(one.tokens) for one in generations}) == len(generations)
    assert timing.prefill_tokens == sum(max(1, len(prompt.encode())) for prompt in PROMPTS)


def test_logprobs_are_those_of_the_model_whatever_the_options() -> None:
    model = random_model("rotary-grouped", max_seq_len=64)
    options = {"max_new_tokens": 20, "logprobs": True, "forced": (9,), "banned": (3,)}
    for more in ({"temperature": 0.5, "top_k": 9, "repetition_penalty": 1.5}, {"greedy": True, "logit_bias": {7: 3.0}}):
        generations, _ = decode(model, model.tokenizer, PROMPTS, Sampling(**options, **more))
        for prompt, one in zip(PROMPTS, generations, strict=True):
            start = model.tokenizer.encode(prompt) or [2]
            with torch.no_grad():
                logits = model(torch.tensor([start + one.tokens]))[0, len(start) - 1 : -1]
            expected = logits.double().log_softmax(-1)[range(20), one.tokens]
            assert one.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
    (one,), _ = decode(model, model.tokenizer, ["a"], Sampling(max_new_tokens=3))
    assert (one.logprobs, one.score, one.sample) == (None, None, 0)


def test_pieces_are_what_each_token_adds() -> None:
    script = [*ByteTokenizer().encode("hé"), 3]
    (one,), _ = decode(scripted(random_model(), script), ByteTokenizer(), ["a"], Sampling(greedy=True))
    assert one.pieces == ["h", "\ufffd", "\ufffd", ""]


@pytest.mark.parametrize("context", [1, 2, 3, 5])
def test_the_smallest_contexts_slide_too(context: int) -> None:
    model = random_model("rotary-grouped", max_seq_len=context, eos=False)
    sampling = Sampling(max_new_tokens=12, seed=1)
    generations, _ = decode(model, model.tokenizer, ["", "a", "b"], sampling)
    expected = [uncached(model, prompt, sampling, row=row) for row, prompt in enumerate(["", "a", "b"])]
    assert [(one.tokens, one.slides) for one in generations] == expected
    assert all(len(one.tokens) == 12 for one in generations)


def test_a_row_does_not_depend_on_its_neighbours_or_its_batch() -> None:
    model = random_model("rotary-grouped")
    sampling = Sampling(max_new_tokens=40, seed=7)
    together = decode(model, model.tokenizer, PROMPTS, sampling)[0]
    assert decode(model, model.tokenizer, PROMPTS, sampling, batch_size=1)[0] == together
    others = ["something", *PROMPTS[1:3], "and more"]
    assert decode(model, model.tokenizer, others, sampling)[0][1:3] == together[1:3]


def test_the_seed_decides_the_text() -> None:
    model = random_model(eos=False)

    def text(**options) -> list[str]:
        generations, _ = decode(model, model.tokenizer, ["a", "a"], Sampling(max_new_tokens=20, **options))
        return [one.text for one in generations]

    assert text(seed=1) == text(seed=1)
    assert text(seed=1) != text(seed=2)
    assert text(seed=1)[0] != text(seed=1)[1]  # same prompt, another row
    assert text(temperature=0) == text(temperature=0, seed=3) == text(greedy=True)


def test_special_tokens_and_ids_beyond_the_tokenizer_are_never_chosen() -> None:
    model = random_model(vocab_size=300)
    for sampling in (Sampling(max_new_tokens=1, greedy=True), Sampling(max_new_tokens=1)):
        for token in [0, 1, 2, 260, 299]:
            (one,), _ = decode(scripted(model, [token]), model.tokenizer, ["a"], sampling)
            assert one.tokens[0] in range(3, 260)


def test_end_of_text_ends_a_row_and_is_no_text() -> None:
    tokenizer = ByteTokenizer()
    script = [*tokenizer.encode("hé"), 3]
    generations, timing = decode(scripted(random_model(), script), tokenizer, ["ab", "c"], Sampling(greedy=True))
    assert [(one.text, one.tokens, one.stopped_by) for one in generations] == [("hé", script, "eos")] * 2
    assert (timing.prefill_tokens, timing.decode_tokens) == (3, 6)
    assert timing.prefill_rate > 0
    assert timing.decode_rate > 0
    assert timing.seconds > 0


def test_a_stop_string_across_tokens_ends_the_text_before_it() -> None:
    tokenizer = ByteTokenizer()
    script = tokenizer.encode("one STé two")
    sampling = Sampling(greedy=True, stop=("STOP", "STé"))
    deltas: list[str] = []
    (one,), _ = decode(scripted(random_model(), script), tokenizer, ["a"], sampling, on_text=deltas.append)
    assert (one.text, one.stopped_by) == ("one ", "stop")
    assert one.tokens == tokenizer.encode("one STé")
    assert deltas == list("one ")


def test_what_began_a_stop_string_is_text_if_it_ends_there() -> None:
    tokenizer = ByteTokenizer()
    for n_new, script, stopped_by in [(6, "one ST", "length"), (9, "one ST", "eos")]:
        model = scripted(random_model(), [*tokenizer.encode(script), 3])
        sampling = Sampling(greedy=True, stop=("STOP",), max_new_tokens=n_new)
        (one,), _ = decode(model, tokenizer, ["a"], sampling)
        assert (one.text, one.stopped_by) == ("one ST", stopped_by)


@pytest.mark.parametrize("seed", range(4))
def test_streamed_deltas_make_up_the_text(seed: int) -> None:
    model = random_model(seed=seed)
    deltas: list[str] = []
    sampling = Sampling(max_new_tokens=60, seed=seed, stop=("q",))
    (one,), _ = decode(model, model.tokenizer, ["é"], sampling, on_text=deltas.append)
    assert "".join(deltas) == one.text
    assert all(deltas)
    assert decode(model, model.tokenizer, ["é"], sampling)[0] == [one]
    script = model.tokenizer.encode("Straße 😀!")
    deltas.clear()
    decode(
        scripted(model, script), model.tokenizer, ["x"], Sampling(greedy=True, max_new_tokens=13), on_text=deltas.append
    )
    assert deltas == list("Straße 😀!")


def test_the_model_is_left_as_it_was() -> None:
    model = random_model(dropout=0.5).train()
    model.transformer.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    sampling = Sampling(max_new_tokens=5, greedy=True)
    first = decode(model, model.tokenizer, ["ab", "c"], sampling)[0]
    assert decode(model, model.tokenizer, ["ab", "c"], sampling)[0] == first  # no dropout
    assert [module.training for module in model.modules()] == modes
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())

    def stop(_: str) -> None:
        assert not torch.is_inference_mode_enabled()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode(model, model.tokenizer, ["abc"], sampling, on_text=stop)
    assert [module.training for module in model.modules()] == modes


def test_a_prompt_longer_than_the_context_is_refused_with_both_lengths() -> None:
    model = random_model(max_seq_len=32)
    with pytest.raises(DataError, match="prompt 2 has 33 tokens, the model's context holds 32"):
        decode(model, model.tokenizer, ["a", "b" * 33], Sampling())


def test_an_empty_prompt_needs_a_beginning_of_text_token() -> None:
    with pytest.raises(DataError, match="prompt 1 is empty, and the model's tokenizer has no beginning-of-text token"):
        decode(random_model(), ByteTokenizer(bos=False), [""], Sampling())
    (one,), _ = decode(random_model(), ByteTokenizer(), [""], Sampling(max_new_tokens=2))
    assert one.n_prompt_tokens == 1


def test_streaming_takes_one_prompt_and_a_batch_at_least_one() -> None:
    model = random_model()
    with pytest.raises(ConfigError, match="one prompt at a time, not for 2"):
        decode(model, model.tokenizer, ["a", "b"], Sampling(), on_text=print)
    with pytest.raises(ConfigError, match="one prompt at a time, not for 1 with 2 samples"):
        decode(model, model.tokenizer, ["a"], Sampling(samples=2), on_text=print)
    with pytest.raises(ConfigError, match="batch_size=0: must be at least 1"):
        decode(model, model.tokenizer, ["a"], Sampling(), batch_size=0)
    assert decode(model, model.tokenizer, [], Sampling())[0] == []
