"""Classifiers of transformers open here and ours there, with the same logits and label names."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    RobertaConfig,
)
from transformers.utils import logging

from nlpstack.errors import ModelError
from nlpstack.hub import load_model, save_model
from nlpstack.model import BERT
from nlpstack.model.heads import Labels
from tests.parity.test_bert import MASK, OURS, SIZES, batch, close, shaken

logging.set_verbosity_error()
logging.disable_progress_bar()

AUTO = {"sequence": AutoModelForSequenceClassification, "tokens": AutoModelForTokenClassification}
HEADS = {"sequence": ("pooler", "sequence"), "tokens": ("tokens",)}
NAMES = ("O", "B-Ort", "I-Ort")
PROBLEMS = {"single": "single_label_classification", "multi": "multi_label_classification", "regression": "regression"}


def their_config(family: str, **given):
    kind = {"bert": BertConfig, "roberta": RobertaConfig}[family]
    return kind(**SIZES, id2label=dict(enumerate(NAMES)), label2id={n: i for i, n in enumerate(NAMES)}, **given)


@torch.no_grad()
def assert_same_labels(our_model: BERT, their_model) -> None:
    pad = max(0, our_model.config.position_offset - 1)
    tokens, segments = batch(pad, our_model.config.n_segments)
    wanted = their_model(tokens, attention_mask=MASK.long(), token_type_ids=segments).logits
    logits = our_model.label_logits(our_model(tokens, mask=MASK, segments=segments))
    close(*((one[MASK] for one in (logits, wanted)) if "tokens" in our_model.heads else (logits, wanted)))


@pytest.mark.parametrize("head", AUTO)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_their_classifiers_open_here(family: str, head: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = shaken(AUTO[head].from_config(their_config(family)))
    theirs.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert (model.heads, model.labels) == (HEADS[head], Labels(NAMES))
    assert_same_labels(model, theirs)


@pytest.mark.parametrize("problem", ["single", "multi", "regression"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_our_classifiers_of_sequences_open_there_and_here(family: str, problem: str, tmp_path: Path) -> None:
    labels = Labels(("score",) if problem == "regression" else NAMES, problem)
    model = shaken(BERT.create(OURS[family], seed=0, heads=HEADS["sequence"], labels=labels))
    save_model(model, tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert theirs.config.problem_type == PROBLEMS[problem]
    assert tuple(theirs.config.id2label.values()) == labels.names
    assert_same_labels(model, theirs)
    again = load_model(tmp_path)
    assert (again.heads, again.labels) == (model.heads, labels)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_our_classifiers_of_tokens_open_there_and_here(family: str, tmp_path: Path) -> None:
    model = shaken(BERT.create(OURS[family], seed=0, heads=("tokens",), labels=Labels(NAMES)))
    save_model(model, tmp_path)
    theirs = AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
    assert tuple(theirs.config.id2label.values()) == NAMES
    assert_same_labels(model, theirs)
    assert load_model(tmp_path).labels == Labels(NAMES)


@pytest.mark.parametrize("head", AUTO)
def test_a_shape_of_no_family_keeps_its_classifier(head: str, tmp_path: Path) -> None:
    config = replace(OURS["bert"], pre_norm=True, positions="rotary", bias=False)
    model = BERT.create(config, seed=0, heads=HEADS[head], labels=Labels(NAMES))
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert (again.heads, again.labels) == (HEADS[head], Labels(NAMES))


def test_labels_that_are_not_named_get_the_names_of_transformers(tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_config(BertConfig(**SIZES, num_labels=2)).save_pretrained(tmp_path)
    assert load_model(tmp_path).labels == Labels(("LABEL_0", "LABEL_1"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("id2label", {"0": "a", "1": "a", "2": "b"}), ("id2label", {"0": "a"}), ("problem_type", "ranking")],
)
def test_labels_that_do_not_fit_are_refused(key: str, value: object, tmp_path: Path) -> None:
    AutoModelForTokenClassification.from_config(their_config("bert")).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(ModelError, match=key):
        load_model(tmp_path)


@pytest.mark.parametrize("head", AUTO)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_steps_of_training_are_those_of_transformers(family: str, head: str, tmp_path: Path) -> None:
    """Every gradient, of padded batches: losses of eight steps of all weights, and the logits after them."""
    torch.manual_seed(0)
    theirs = shaken(AUTO[head].from_config(their_config(family)))
    theirs.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    pad = max(0, model.config.position_offset - 1)
    tokens, segments = batch(pad, model.config.n_segments)
    labels = torch.randint(3, tokens.shape if head == "tokens" else tokens.shape[:1])
    if head == "tokens":
        labels[~MASK] = -100
    optimizers = [torch.optim.AdamW(each.parameters(), lr=1e-3) for each in (model, theirs)]
    for step in range(8):
        wanted = theirs(tokens, attention_mask=MASK.long(), token_type_ids=segments, labels=labels).loss
        logits = model.label_logits(model(tokens, mask=MASK, segments=segments))
        loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten())
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-4), step
        for optimizer, one in zip(optimizers, (loss, wanted), strict=True):
            optimizer.zero_grad()
            one.backward()
            optimizer.step()
    assert_same_labels(model, theirs)
