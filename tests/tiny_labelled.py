"""Tiny models of fresh weights, a small data folder of each task, and the shortest fine-tuning."""

import json
from pathlib import Path

import pytest

from nlpstack.hub import save_model
from nlpstack.model import BERT, GPT, TransformerConfig
from nlpstack.samples import sample
from nlpstack.tokenizer import TokenizerConfig, train_tokenizer
from tests.tiny import Outcome, nlpstack

SHAPE = {"max_seq_len": 48, "dim": 32, "n_layers": 2, "n_heads": 2, "dropout": 0.1}
TAGGED = {
    "train": "Ann\tB-PER\nlives\tO\nin\tO\nNew\tB-LOC\nYork\tI-LOC\n.\tO\n\n"
    "Bob\tB-PER\nsaw\tO\nParis\tB-LOC\n\nrain\tO\nfell\tO\n\n",
    "dev": "Cid\tB-PER\nleft\tO\nRome\tB-LOC\n\n",
    "test": "Dan\tB-PER\nsaw\tO\nRome\tB-LOC\n\n",
}


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny BERT and a tiny GPT of fresh weights."""
    folder = tmp_path_factory.mktemp("bases")
    text = sample("shakespeare").read_text("utf-8")[:50_000]
    tokenizer = train_tokenizer([text], TokenizerConfig(vocab_size=400))
    bert = TransformerConfig(vocab_size=400, causal=False, pre_norm=False, n_segments=2, **SHAPE)
    gpt = TransformerConfig(vocab_size=400, **SHAPE)
    save_model(BERT.create(bert, seed=0, tokenizer=tokenizer), folder / "bert")
    save_model(GPT.create(gpt, seed=0, tokenizer=tokenizer), folder / "gpt")
    return {"bert": folder / "bert", "gpt": folder / "gpt"}


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Path]:
    """A small data folder of each task."""
    return write_data(tmp_path)


def write_data(parent: Path) -> dict[str, Path]:
    """The same in a folder that is given."""
    tagged, texts, pairs, prompts = (parent / name for name in ("tagged", "texts", "pairs", "prompts"))
    for folder in (tagged, texts, pairs, prompts):
        folder.mkdir()
    for split, content in TAGGED.items():
        (tagged / f"{split}.conll").write_text(content * (8 if split == "train" else 2))
    rows = [
        f"I {verb} the {noun}\t{label}"
        for noun in ("play", "king", "sea", "crown")
        for verb, label in (("love", "good"), ("hate", "bad"))
    ]
    (texts / "train.tsv").write_text("text\tlabel\n" + "\n".join(rows * 3) + "\n")
    numbers = [
        json.dumps({"text_a": "a king", "text_b": "a " + noun, "score": n / 2})
        for n, noun in enumerate(("king", "queen", "sea", "crown"))
    ]
    (pairs / "train.jsonl").write_text("\n".join(numbers * 4) + "\n")
    asked = [
        json.dumps({"prompt": f"who is {name}?", "completion": f"{name} is a king"}) for name in ("Lear", "John", "Hal")
    ]
    (prompts / "train.jsonl").write_text("\n".join(asked * 4) + "\n")
    return {"ner": tagged, "classification": texts, "pair": pairs, "generation": prompts}


def finetune(recipe: str, out: Path, model: Path, data: Path, *words: object, **values: object) -> Outcome:
    values = {
        **{"train.epochs": 2, "train.batch_size": 4, "train.val_every": 3, "train.checkpoint_every": 2},
        **{"train.log_every": 1, "eval.resamples": 20, "train.sample_tokens": 4, "train.device": "cpu"},
        **values,
    }
    settings = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    return nlpstack("finetune", recipe, "--out", out, "--model", model, "--data", data, "--json", *settings, *words)
