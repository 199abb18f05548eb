"""From raw text to a BERT, through the command line: what a run leaves, what it says, and what it refuses."""

import gzip
import json
import math
import shutil
import tomllib
from pathlib import Path

import pytest
import torch

import nlpstack as package
from nlpstack.samples import sample
from nlpstack.train.run import load_run
from tests.tiny import nlpstack, settings, tree

N_DOCUMENTS = 60


def bert(data: object, out: object, *words: object, recipe: str = "bert", **values: object) -> list[object]:
    """The words of a command that pretrains the smallest BERT."""
    values = {"optim__name": "adamw", "eval__pseudo_tokens": 60, "eval__max_tokens": 3000, **values}
    return ["pretrain", recipe, "--threads", 1, "--data", data, "--out", out, *settings(**values), *words]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The beginning of the bundled abstracts."""
    path = tmp_path_factory.mktemp("data") / "abstracts.jsonl"
    with gzip.open(sample("abstracts") / "train.jsonl.gz", "rb") as file:
        path.write_bytes(b"".join(line for line, _ in zip(file, range(N_DOCUMENTS), strict=False)))
    return path


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, str]:
    """A finished run, its last line of JSON and what it said; no test changes it."""
    out = tmp_path_factory.mktemp("runs") / "bert"
    done = nlpstack(*bert(data, out, "--json", train__checkpoint_every=2, train__log_every=1))
    return out, done.json, done.err


def test_the_run_says_what_it_built_and_hid(finished: tuple[Path, dict, str]) -> None:
    _, _, said = finished
    assert "next-sentence pairs: " in said
    assert f"from {N_DOCUMENTS - 6} documents; 0 documents of fewer than two sentences are left out" in said
    assert "sentences: " in said
    assert "% of these" not in said
    assert "masking: 15." in said or "masking: 14." in said
    assert "% are [MASK]" in said
    assert "padding: " in said
    assert "[MASK]" in said.split("val   ")[1], "a guess to look at follows each validation"
    assert "baseline unigram: mlm_accuracy" in said
    assert "baseline bigram: mlm_accuracy" in said


def test_losses_are_logged_apart_and_first_as_of_fresh_weights(finished: tuple[Path, dict, str]) -> None:
    out, result, said = finished
    assert "warning: the first loss" not in said
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert first["mlm_loss"] == pytest.approx(math.log(500), abs=0.4)
    assert first["nsp_loss"] == pytest.approx(math.log(2), abs=0.1)
    assert first["loss"] == pytest.approx(first["mlm_loss"] + first["nsp_loss"])
    names = {"loss", "mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy", "pseudo_perplexity"}
    assert set(result["val"]) == names
    stored = json.loads((out / "results.json").read_text())["results"][0]
    assert set(stored["metrics"]) == names
    assert stored["task"] == "masked_lm"
    assert 0 < stored["baselines"]["bigram"]["mlm_accuracy"]["value"] < 1
    rows = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["tokens"]
    assert rows < 4 * 32, "padding is not counted"


def test_the_model_folder_is_a_published_bert(finished: tuple[Path, dict, str]) -> None:
    transformers = pytest.importorskip("transformers")
    out, _, _ = finished
    config = json.loads((out / "model" / "config.json").read_text())
    assert config["architectures"] == ["BertForPreTraining"]
    theirs = transformers.AutoModelForPreTraining.from_pretrained(out / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "model")
    ours = package.load_model(out)
    given = tokenizer("We train a network.", "It is deep.", return_tensors="pt")
    assert given["input_ids"][0, 0] == ours.tokenizer.cls_id
    with torch.no_grad():
        wanted = theirs(**given)
        hidden = ours(given["input_ids"], segments=given["token_type_ids"])
        torch.testing.assert_close(ours.mlm_logits(hidden), wanted.prediction_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.nsp_logits(hidden), wanted.seq_relationship_logits, rtol=1e-4, atol=1e-4)


def test_eval_gives_the_numbers_of_the_last_validation(finished: tuple[Path, dict, str], tmp_path: Path) -> None:
    out, result, _ = finished
    copy = shutil.copytree(out, tmp_path / "bert")
    shutil.copytree(out.parent / ".cache", tmp_path / ".cache")
    dtype = tomllib.loads((out / "config.toml").read_text())["choices"]["dtype"]  # bf16 where that is fast
    scored = nlpstack("eval", copy, "--json", "--split", "val", "--threads", 1, "--dtype", dtype).json["results"][0]
    found = {name: score["value"] for name, score in scored["metrics"].items()}
    assert found == pytest.approx(result["val"], rel=1e-6)
    accuracy = scored["metrics"]["nsp_accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert "|nsp:yes|" in accuracy["signature"]
    assert scored["task"] == "masked_lm"


def test_a_resumed_run_equals_the_unbroken_one(data: Path, finished: tuple[Path, dict, str], tmp_path: Path) -> None:
    out, result, _ = finished
    copy = shutil.copytree(out, tmp_path / "bert")
    for name in ("model", "results.json"):
        (shutil.rmtree if (copy / name).is_dir() else Path.unlink)(copy / name)
    shutil.rmtree(copy / "checkpoints" / "step-00000005")
    again = nlpstack(*bert(data, copy, "--json", "--resume", train__checkpoint_every=2, train__log_every=1))
    assert "resumed after step 4 of 5" in again.err
    assert again.json["weights"] == result["weights"]


def test_without_next_sentences_rows_are_packed_and_there_is_one_loss(data: Path, tmp_path: Path) -> None:
    done = nlpstack(*bert(data, tmp_path / "run", "--json", task__nsp="false", task__whole_words="true"))
    assert set(done.json["val"]) == {"loss", "mlm_loss", "mlm_accuracy", "pseudo_perplexity"}
    assert "padding: 0.0%" in done.err
    assert "by whole words" in done.err
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM"]
    assert done.json["tokens"] == 5 * 4 * 32


@pytest.mark.parametrize(("recipe", "architecture"), [("roberta", "RobertaForMaskedLM"), ("bert-modern", "BERT")])
def test_other_encoders_are_the_same_run_by_configuration(
    recipe: str, architecture: str, data: Path, tmp_path: Path
) -> None:
    values = {"model__dropout": None if recipe == "bert-modern" else 0.1, "train__micro_batch": 2}
    done = nlpstack(*bert(data, tmp_path / "run", "--json", recipe=recipe, **values))
    assert math.isfinite(done.json["val"]["mlm_loss"])
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["architectures"] == [architecture]
    if recipe == "roberta":
        assert (config["pad_token_id"], config["max_position_embeddings"], config["type_vocab_size"]) == (0, 33, 1)
    assert package.load_model(tmp_path / "run").heads == ("mlm",)


def test_a_run_goes_on_from_a_model_and_says_which_heads_are_fresh(
    data: Path, finished: tuple[Path, dict, str], tmp_path: Path
) -> None:
    out, _, _ = finished
    bare = package.load_model(out)
    package.save_model(package.model.BERT(bare.config, bare.tokenizer, heads=("mlm",)), tmp_path / "bare")
    words = [
        word for word in bert(data, tmp_path / "on", "--model", out / "model") if not str(word).startswith("model.")
    ]
    words = [w for w, following in zip(words, [*words[1:], None], strict=True) if w != "--set" or "=" in str(following)]
    done = nlpstack(*words, "--json")
    assert "heads that" not in done.err
    assert done.json["val"]["mlm_loss"] < math.log(500)
    other = [tmp_path / "bare" if word == out / "model" else word for word in words]
    other[other.index(tmp_path / "on")] = tmp_path / "bare-on"
    assert "heads that begin with fresh weights: pooler, nsp" in nlpstack(*other, "--json").err


# -- what is refused -----------------------------------------------------------------------------------------------


def refused(words: list[object], folder: Path) -> str:
    before = tree(folder)
    fault = nlpstack(*words).fault
    after = {name: content for name, content in tree(folder).items() if not name.startswith(".cache")}
    assert after == before, "something was left half-written"
    return fault


def test_a_corpus_without_document_borders_is_refused_with_the_cure(data: Path, tmp_path: Path) -> None:
    text = tmp_path / "one.txt"
    text.write_text("\n".join(json.loads(line)["text"] for line in data.read_text().splitlines()))
    fault = refused(bert(text, tmp_path / "run"), tmp_path)
    assert "at least two documents" in fault
    assert "--documents paragraphs" in fault
    assert "task.nsp=false" in fault


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"task__mask_share": 0}, "task.mask_share=0: input should be greater than 0"),
        ({"task__mask_share": 1.0}, "task.mask_share=1.0: input should be less than 1"),
        ({"task__mask_share": -0.1}, "task.mask_share=-0.1: input should be greater than 0"),
        ({"model__max_seq_len": 4}, "model.max_seq_len=4: too short for a row with its marks; at least 5"),
        ({"task__nsp": "false", "model__max_seq_len": 2}, "model.max_seq_len=2: too short"),
        ({"model__n_segments": 1}, "model.n_segments=1: pairs of texts need 2, or task.nsp=false"),
        ({"task__mask_shar": 0.1}, "did you mean 'task.mask_share'?"),
        ({"eval__window": 16}, "eval.window"),
    ],
)
def test_a_value_that_cannot_be_meant_is_named(values: dict, fault: str, data: Path, tmp_path: Path) -> None:
    assert fault in refused(bert(data, tmp_path / "run", **values), tmp_path)


def test_a_gpts_recipe_has_no_masking(data: Path, tmp_path: Path) -> None:
    words = ["pretrain", "gpt", "--data", data, "--out", tmp_path / "run", "--set", "task.nsp=false"]
    assert "--set: task.nsp: of a BERT" in refused(words, tmp_path)


def test_a_tokenizer_without_the_marks_is_refused(data: Path, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    (tmp_path / "poor").mkdir()
    made.save(str(tmp_path / "poor" / "tokenizer.json"))
    fault = refused(bert(data, tmp_path / "run", "--tokenizer", tmp_path / "poor"), tmp_path)
    assert "no [CLS] and no [SEP] and no [MASK] token" in fault


def test_a_gpt_does_not_start_a_bert(data: Path, tmp_path: Path) -> None:
    shape = {"model.dim": 16, "model.n_layers": 1, "model.n_heads": 2, "model.vocab_size": 300}
    config = load_run("gpt", "pretrain", {}, [f"{key}={value}" for key, value in shape.items()]).config.model
    package.save_model(package.model.GPT.create(config, seed=0), tmp_path / "gpt")
    fault = refused(bert(data, tmp_path / "run", "--model", tmp_path / "gpt"), tmp_path)
    assert "is a GPT, and the recipe 'bert' trains a BERT" in fault
