"""The options of decoding, and which of them cannot be meant."""

import pytest

from nlpstack.decode import Sampling
from nlpstack.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be at least 1"),
        ({"temperature": -0.5}, "temperature=-0.5: must be at least 0"),
        ({"temperature": float("nan")}, "temperature=nan: input should be a finite number"),
        ({"temperature": "1"}, "temperature='1': input should be a valid number"),
        ({"top_k": -1}, "top_k=-1: must be at least 1, or 0"),
        ({"top_k": True}, "top_k=True: input should be a valid integer"),
        ({"top_p": 0.0}, "top_p=0.0: must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p=1.5: must be above 0 and at most 1"),
        ({"stop": ("a", "")}, "stop='': an empty stop string"),
        ({"stop": "ab"}, "stop='ab': input should be a valid tuple"),
        ({"greedy": True, "temperature": 0.7}, "greedy with temperature=0.7"),
        ({"greedy": True, "top_k": 5, "top_p": 0.9}, "greedy with top_k=5, top_p=0.9"),
        ({"greedy": True, "min_p": 0.1}, "greedy with min_p=0.1"),
        ({"min_p": -0.1}, "min_p=-0.1: must be at least 0 and at most 1"),
        ({"min_p": 1.1}, "min_p=1.1: must be at least 0 and at most 1"),
        ({"min_new_tokens": -1}, "min_new_tokens=-1: must be at least 0"),
        ({"min_new_tokens": 129}, "min_new_tokens=129 with max_new_tokens=128"),
        ({"beams": 0}, "beams=0: must be at least 2 for beam search, or 1 for none"),
        ({"beams": 2, "greedy": True}, "beams=2 with greedy: beam search draws nothing"),
        (
            {"beams": 3, "temperature": 0.7, "top_k": 4},
            "beams=3 with temperature=0.7, top_k=4: beam search draws nothing",
        ),
        ({"beams": 3, "top_p": 0.7}, "beams=3 with top_p=0.7"),
        ({"beams": 3, "min_p": 0.7}, "beams=3 with min_p=0.7"),
        ({"beams": 3, "samples": 4}, "samples=4 with beams=3: there are no more texts than beams"),
        ({"length_penalty": 0.6}, "length_penalty=0.6 without beams"),
        ({"beams": 2, "length_penalty": 11.0}, "length_penalty=11.0: must be between -10 and 10"),
        ({"samples": 0}, "samples=0: must be at least 1"),
        ({"samples": 2, "greedy": True}, "samples=2 with greedy: they would all be the same text"),
        ({"samples": 2, "temperature": 0}, "samples=2 with temperature=0.0: they would all be the same text"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0: must be between 0.01 and 100"),
        ({"repetition_penalty": 1e9}, "repetition_penalty=1000000000.0: must be between 0.01 and 100"),
        ({"frequency_penalty": -101.0}, "frequency_penalty=-101.0: must be between -100 and 100"),
        ({"presence_penalty": float("inf")}, "presence_penalty=inf: input should be a finite number"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram=-1: must be at least 1, or 0"),
        ({"penalize_prompt": 1}, "penalize_prompt=1: input should be a valid boolean"),
        ({"logit_bias": {"a": 1e4}}, "logit_bias 'a'=10000.0: must be between -1,000 and 1,000; ban or force"),
        ({"logit_bias": {"a": float("-inf")}}, "logit_bias.a=-inf: input should be a finite number"),
        ({"logit_bias": {1.5: 1.0}}, "logit_bias.1.5=1.5: a token is its id, a whole number, or its text"),
        ({"banned": (True,)}, "banned.0=True: a token is its id, a whole number, or its text"),
        ({"forced": [b"a"]}, "forced.0=b'a': a token is its id, a whole number, or its text"),
        ({"forced": "abc"}, "forced='abc': input should be a valid tuple"),
        ({"forced": ("a", "b"), "max_new_tokens": 1}, "forced: 2 tokens do not fit into max_new_tokens=1"),
        ({"temprature": 1.0}, "unknown sampling option 'temprature'; did you mean 'temperature'"),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused_in_one_line(options: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Sampling(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_that_agree_are_taken() -> None:
    assert Sampling(stop=["a", "b"]).stop == ("a", "b")
    assert Sampling(greedy=True, temperature=0).always_likeliest
    assert Sampling(temperature=0, top_k=3).always_likeliest
    assert not Sampling().always_likeliest
    assert Sampling(banned=["a", 7], forced=[3]).banned == ("a", 7)
    assert Sampling(beams=4, samples=4, seed=3, temperature=0).beams == 4
    assert Sampling(min_new_tokens=5, max_new_tokens=5, forced=("a",) * 5).forced == ("a",) * 5
    assert Sampling(logit_bias={"a": -3, 7: 1.5}).logit_bias == {"a": -3.0, 7: 1.5}
    assert hash(Sampling(logit_bias={"a": 1.0})) == hash(Sampling(logit_bias={"a": 1.0}))
