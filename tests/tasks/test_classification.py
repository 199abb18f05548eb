"""Labels of texts: rows as transformers' tokenizers make them, losses as its classes compute them, and predictions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer
from transformers.utils import logging

from nlpstack.data.labelled import TextExample
from nlpstack.errors import ConfigError, DataError
from nlpstack.hub import load_model
from nlpstack.model import BERT, TransformerConfig
from nlpstack.model.heads import Labels
from nlpstack.tasks import Classification, TaskConfig
from nlpstack.tasks.classification import labels_of

logging.set_verbosity_error()

SHAPE = TransformerConfig(
    max_seq_len=24,
    dim=16,
    n_layers=1,
    n_heads=2,
    causal=False,
    pre_norm=False,
    norm_eps=1e-12,
    n_segments=2,
    vocab_size=93,
)
LABELS = {"single": Labels(("bad", "fine", "good")), "multi": Labels(("a", "b", "c"), "multi")}
LABELS["regression"] = Labels(("score",), "regression")
TEXTS = [("the thing", None), ("abc, def ghi", "jkl"), ("a", "b c d e f g"), ("the the the the", "ing thing")]
GOLD = {"single": ["fine", "bad", "good", "fine"], "multi": [("a", "c"), (), ("b",), ("a", "b", "c")]}
GOLD["regression"] = [0.5, -1.0, 3.25, 0.0]


def examples(problem: str, texts=TEXTS) -> list[TextExample]:
    return [
        TextExample(f"x:{n}", a, b, label)
        for n, ((a, b), label) in enumerate(zip(texts, GOLD[problem], strict=True), 1)
    ]


def task_of(tokenizers, problem: str = "single", **config) -> Classification:
    return Classification(tokenizers["wordpiece"], SHAPE, LABELS[problem], TaskConfig(name="classification", **config))


@pytest.fixture
def their_tokenizer(tokenizers, tmp_path: Path):
    tokenizers["wordpiece"].save(tmp_path)
    return BertTokenizer.from_pretrained(tmp_path)


def test_rows_are_those_of_transformers_cut_ones_too(tokenizers, their_tokenizer) -> None:
    texts = [
        *TEXTS[:3],
        ("abcdefghijklm nopqrs", "tuv wxyz abcdefgh"),
    ]
    notes: list[str] = []
    rows = task_of(tokenizers, truncate=True).encode(examples("single", texts), "train", notes.append)
    batch = rows.batch([(0, index) for index in range(4)])
    for number, (first, second) in enumerate(texts):
        wanted = their_tokenizer(first, second, truncation="longest_first", max_length=24)
        n = len(wanted["input_ids"])
        assert batch.tokens[number, :n].tolist() == wanted["input_ids"]
        assert batch.segments[number, :n].tolist() == wanted["token_type_ids"]
        assert batch.mask[number].tolist() == [True] * n + [False] * (batch.tokens.shape[1] - n)
    assert notes == ["train: 1 texts are longer than 24 tokens and were cut (task.truncate)"]


def test_a_text_that_is_too_long_is_named_and_not_cut(tokenizers) -> None:
    long = [TextExample("x.tsv:9", "abcdefghijklmnopqrstuvwxyz", None, "bad")]
    with pytest.raises(
        DataError, match=r"^x\.tsv:9: has 28 tokens with its marks, .*context 24; .*task\.truncate=true$"
    ):
        task_of(tokenizers).encode(long, "train", lambda line: None)


@pytest.mark.parametrize("problem", LABELS)
def test_logits_and_losses_are_those_of_transformers(problem: str, tokenizers, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=93,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=24,
        num_labels=len(LABELS[problem].names),
        problem_type={"single": "single_label_classification", "multi": "multi_label_classification"}.get(
            problem, problem
        ),
    )
    theirs = BertForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert model.labels.problem == problem
    task = task_of(tokenizers, problem)
    batch = task.encode(examples(problem), "train", lambda line: None).batch([(0, index) for index in range(4)])
    with torch.no_grad():
        labels = batch.labels["label"]
        out = theirs(batch.tokens, attention_mask=batch.mask.long(), token_type_ids=batch.segments, labels=labels)
        loss = task.loss(model, batch)["label"] / batch.n_targets["label"]
    assert loss.item() == pytest.approx(out.loss.item(), abs=1e-5)


@pytest.mark.parametrize("problem", LABELS)
def test_padded_texts_are_told_as_they_are_alone(problem: str, tokenizers) -> None:
    task = task_of(tokenizers, problem)
    model = BERT.create(SHAPE, seed=0, heads=task.heads, labels=task.labels).eval()

    def said(which: list[TextExample]) -> dict[str, dict]:
        rows = task.encode(which, "test", lambda line: None)
        with torch.inference_mode():
            return {which[n].where: one for n, one in task.results(model, rows, 999)}

    together = said(examples(problem))
    for example in examples(problem):
        alone = said([example])[example.where]
        if problem == "regression":
            assert alone["label"] == pytest.approx(together[example.where]["label"], abs=1e-5)
        else:
            assert alone["label"] == together[example.where]["label"]
            assert alone["probabilities"] == pytest.approx(together[example.where]["probabilities"], abs=1e-5)
            assert list(alone["probabilities"]) == list(task.labels.names)


def test_balanced_weights_are_scikit_learns_and_smoothing_is_torchs(tokenizers) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    task = task_of(tokenizers, class_weights="balanced", label_smoothing=0.1)
    task.weigh(examples("single"))
    wanted = compute_class_weight("balanced", classes=np.array(LABELS["single"].names), y=np.array(GOLD["single"]))
    np.testing.assert_allclose(task.weights.numpy(), wanted, rtol=1e-6)
    with pytest.raises(ConfigError, match=r"task\.class_weights .* any number of them"):
        task_of(tokenizers, "multi", class_weights="balanced")


def test_the_data_decides_what_labels_are(tokenizers) -> None:
    notes: list[str] = []
    assert labels_of(examples("single"), notes.append) == LABELS["single"]
    assert labels_of(examples("multi"), notes.append) == LABELS["multi"]
    assert labels_of(examples("regression"), notes.append) == LABELS["regression"]
    assert [note.split(";")[0] for note in notes] == [
        "labels: 3, one a text",
        "labels: 3, any number of them a text",
        "labels: numbers, so this is regression, of a squared error",
    ]
    with pytest.raises(DataError, match=r"x:2: the training data has one label only \(bad\)"):
        labels_of(examples("single")[1:2], notes.append)


def test_a_label_that_training_never_saw_is_named_or_counted(tokenizers) -> None:
    strange = [TextExample("v:3", "the", None, "awful"), TextExample("v:4", "the", None, "bad")]
    with pytest.raises(
        DataError, match=r"^v:3: label 'awful' is none that training saw \(bad, fine, good\); .*ignore$"
    ):
        task_of(tokenizers).encode(strange, "val", lambda line: None)
    notes: list[str] = []
    rows = task_of(tokenizers, ignore_unknown=True).encode(strange, "val", notes.append)
    assert len(rows.rows) == 1
    assert notes == ["val: 1 examples with labels that training never saw are left out"]
