"""Tokens named in the options: by id or text, and which of them are refused."""

import pytest
import torch

from nlpstack.decode import Sampling, decode
from nlpstack.decode.next_token import TokenRules
from nlpstack.errors import ConfigError
from tests.decode.fakes import LetterTokenizer, letter_model, random_model

A, B, C, D, EOS = 4, 5, 6, 7, 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logit_bias": {"abc": 1.0}}, "logit_bias: unknown token 'abc', the tokenizer cuts it into 3: 'a', 'b', 'c'"),
        ({"logit_bias": {"": 1.0}}, "logit_bias: unknown token '', it is empty"),
        ({"logit_bias": {8: 1.0}}, "logit_bias: unknown token 8, the tokenizer's ids run from 0 to 7"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias: unknown token -1, the tokenizer's ids run from 0 to 7"),
        ({"logit_bias": {"a": 1.0, A: 2.0}}, "logit_bias: token 4 ('a') is given twice"),
        ({"banned": (1,)}, "banned: token 1 is a special one, and never chosen; of these only the end of text can be"),
        ({"banned": ("ab",)}, "banned: unknown token 'ab'"),
        ({"forced": (2,)}, "forced: token 2 is a special one"),
        ({"forced": ("a", "b"), "banned": (B,)}, "token 5 ('b') is banned and forced"),
        ({"logit_bias": {"c": 1.0}, "banned": ("c",)}, "token 6 ('c') is banned and given a bias"),
        ({"forced": (EOS, "a", "b")}, "forced: token 3 is the end of text, and 2 follow"),
        ({"forced": ("a", EOS), "min_new_tokens": 2}, "the end of text, would come before min_new_tokens=2"),
        ({"banned": (A, B, C, D, EOS)}, "banned: no token is left to choose; ban fewer"),
        (
            {"banned": (A, B, C, D), "min_new_tokens": 1},
            "no token is left to choose, and min_new_tokens=1 rules out the end of text",
        ),
    ],
)
def test_a_token_that_cannot_be_meant_is_refused_in_one_line(options: dict, message: str) -> None:
    model = letter_model(4)
    with pytest.raises(ConfigError) as caught:
        decode(model, model.tokenizer, ["a"], Sampling(**options))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_token_is_its_id_or_its_text() -> None:
    model, logits = letter_model(4), torch.zeros(1, 8)
    by_text = Sampling(logit_bias={"a": 2.0, "b": -3.0}, banned=("c",), forced=("d",))
    by_id = Sampling(logit_bias={A: 2.0, B: -3.0}, banned=(C,), forced=(D,))
    out, tokens = -torch.inf, torch.tensor([[A, B]])
    for sampling in (by_text, by_id):
        rules = TokenRules(sampling, model.tokenizer, model)
        assert rules.apply(logits, tokens, tokens[:, 2:]).tolist() == [[out] * 7 + [0]]
        assert rules.apply(logits, tokens, tokens[:, 1:]).tolist() == [[out, out, out, 0, 2, -3, out, 0]]


def test_the_end_of_text_can_be_banned_biased_and_forced() -> None:
    model = letter_model(4)

    def tokens(**options) -> list[int]:
        (one,), _ = decode(model, model.tokenizer, ["ab"], Sampling(max_new_tokens=20, **options))
        return one.tokens

    assert EOS not in tokens(banned=(EOS,), seed=3)
    assert tokens(logit_bias={EOS: 1000.0}) == [EOS]
    assert tokens(logit_bias={EOS: 1000.0}, min_new_tokens=5)[5:] == [EOS]
    assert tokens(forced=("c", EOS)) == [C, EOS]
    assert tokens(banned=(A, B, C, D), forced=(EOS,)) == tokens(banned=(A, B, C, D)) == [EOS]


def test_ids_beyond_the_tokenizer_and_special_ones_are_ruled_out() -> None:
    model = random_model(vocab_size=12)
    rules = TokenRules(Sampling(), LetterTokenizer(4), model)
    tokens = torch.tensor([[A]])
    (logits,) = rules.apply(torch.zeros(1, 12), tokens, tokens[:, 1:])
    assert logits.isfinite().nonzero()[:, 0].tolist() == [EOS, A, B, C, D]


def test_when_every_token_would_repeat_it_is_said() -> None:
    model = letter_model(4)
    sampling = Sampling(no_repeat_ngram=1, banned=(EOS,), greedy=True)
    with pytest.raises(ConfigError, match="no_repeat_ngram=1: after 2 new tokens of prompt 2 every token is ruled out"):
        decode(model, model.tokenizer, ["a", "ab"], sampling)
    sampling = Sampling(no_repeat_ngram=1, banned=(EOS,), beams=3, max_new_tokens=20)
    with pytest.raises(ConfigError, match="samples=1: beam search found 0 texts after prompt 1"):
        decode(model, model.tokenizer, ["ab"], sampling)
