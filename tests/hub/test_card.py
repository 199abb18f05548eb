"""The card says what it was told, and nothing in a fact can break out of its place."""

import json

import pytest

from nlpstack.hub import model_card, shape_facts
from nlpstack.model import BERT, GPT, TransformerConfig


def front(card: str) -> dict[str, object]:
    head = card.split("---\n")[1]
    return {key: json.loads(value) for key, value in (line.split(": ", 1) for line in head.splitlines())}


def test_a_card_of_a_family_says_how_to_open_it_and_where_tokenizers_differ() -> None:
    model = GPT.create(TransformerConfig(vocab_size=300, dim=32, n_layers=1, activation="gelu_tanh"), seed=0)
    card = model_card(shape_facts(model) | {"data": "sample:shakespeare", "scores": {"bits_per_byte": 1.5}})
    assert front(card)["library_name"] == "transformers"
    assert f"- parameters: {sum(parameter.numel() for parameter in model.parameters()):,}\n" in card
    assert "- scores:\n  - bits_per_byte: 1.5\n" in card
    assert "AutoModelForCausalLM" in card
    assert "does not spell a special\ntoken or a byte piece such as `<0x41>`, or contain U+2581" in card
    assert "may be false" in card


ENCODER = TransformerConfig(vocab_size=300, dim=32, n_layers=1, causal=False, pre_norm=False, n_segments=2)


@pytest.mark.parametrize(
    ("heads", "task", "loader"),
    [
        (("mlm", "pooler", "nsp"), "fill-mask", "AutoModelForPreTraining"),
        (("mlm", "pooler"), "fill-mask", "AutoModelForMaskedLM"),
        (("mlm",), "fill-mask", "AutoModelForMaskedLM"),
        (("pooler", "nsp"), "feature-extraction", "AutoModelForNextSentencePrediction"),
        (("pooler",), "feature-extraction", "AutoModel"),
        ((), "feature-extraction", "AutoModel"),
    ],
)
def test_a_card_of_a_bert_says_what_its_heads_do_and_how_to_open_it(heads: tuple, task: str, loader: str) -> None:
    card = model_card(shape_facts(BERT.create(ENCODER, seed=0, heads=heads)))
    assert (front(card)["pipeline_tag"], front(card)["tags"]) == (task, ["nlpstack", task])
    assert f"from transformers import {loader}, AutoTokenizer\n" in card
    assert f"model = {loader}.from_pretrained(" in card
    assert "An encoder (BERT) of the bert family" in card
    assert ("guesses hidden tokens" in card) == ("mlm" in heads)
    assert ("whether one text follows another" in card) == ("nsp" in heads)
    assert ("one vector of the whole" in card) == ("pooler" in heads)
    assert "to be fine-tuned for a task. It writes no text." in card
    assert "causal" not in card
    assert "outputs" not in card


def test_a_card_of_a_bert_of_another_shape_does_not_promise_transformers() -> None:
    model = BERT.create(TransformerConfig(vocab_size=300, dim=32, n_layers=1, causal=False), seed=0)
    card = model_card(shape_facts(model))
    assert (front(card)["library_name"], front(card)["pipeline_tag"]) == ("nlpstack", "fill-mask")
    assert "of a shape that only nlpstack opens" in card
    assert "transformers" not in card


@pytest.mark.parametrize("family", [None, "nlpstack"])
def test_a_card_of_another_shape_does_not_promise_transformers(family: str | None) -> None:
    card = model_card({"family": family})
    assert front(card)["library_name"] == "nlpstack"
    assert "transformers" not in card
    assert "tokenizer.json" in card
    assert "license" not in front(card)


def test_facts_cannot_break_yaml_or_markdown() -> None:
    bad = 'a: "b"\n---\n# [x](y) <script> | `z` *_u_*'
    card = model_card({"name": bad, "license": bad, "data": bad, "scores": {bad: bad}})
    assert front(card)["license"] == bad
    assert [line for line in card.splitlines() if line == "---"] == ["---"] * 2
    escaped = r'a: "b" --- \# \[x\](y) \<script\> \| \`z\` \*\_u\_\*'
    assert f"# {escaped}\n" in card
    assert f"- data: {escaped}\n" in card
    assert f"  - {escaped}: {escaped}\n" in card
