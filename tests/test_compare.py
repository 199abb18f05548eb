"""`nlpstack compare`: differences, intervals and p against resampling by hand; what does not compare is refused."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import nlpstack, pretrain, write_text

GOLD = ["a", "b", "c"] * 40


def labels(path: Path, share: float, seed: int, *more: object) -> Path:
    """A result of predictions of which about this share is right."""
    rng = np.random.default_rng(seed)
    told = [one if rng.random() < share else "b" for one in GOLD]
    out, gold = path.with_suffix(".txt"), path.parent / "gold.txt"
    out.write_text("\n".join(told) + "\n")
    gold.write_text("\n".join(GOLD) + "\n")
    words = ("--predictions", out, "--references", gold, "--task", "classification", "--save", path, *more)
    assert nlpstack("eval", *words).code == 0
    return path


def rows(*words: object) -> dict[str, dict[str, object]]:
    return {row["metric"]: row for row in nlpstack("compare", *words, "--json").json}


def test_the_difference_and_its_chance_are_those_of_samples_drawn_for_both(tmp_path: Path) -> None:
    many = ("--set", "eval.resamples=4000")
    one, two = labels(tmp_path / "one.json", 0.6, 1, *many), labels(tmp_path / "two.json", 0.8, 2, *many)
    row = rows(one, two)["accuracy"]
    hits = [
        np.array([a == b for a, b in zip(path.with_suffix(".txt").read_text().split(), GOLD, strict=True)])
        for path in (one, two)
    ]
    difference = hits[1].astype(float) - hits[0]
    drawn = difference[np.random.default_rng(9).integers(120, size=(4000, 120))].mean(axis=1)
    assert (row["first"], row["second"]) == (pytest.approx(hits[0].mean()), pytest.approx(hits[1].mean()))
    assert row["difference"] == pytest.approx(difference.mean())
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])), abs=0.02)
    assert row["p"] == pytest.approx(2 * (drawn <= 0).mean(), abs=0.02)
    assert row["better"] == "second"
    assert rows(two, one)["accuracy"]["better"] == "first"
    table = nlpstack("compare", one, two).out.splitlines()
    assert table[0].split()[0] == "metric"
    assert any(line.startswith("f1_macro ") and line.rstrip().endswith("second") for line in table)


def test_a_result_is_no_better_than_itself_and_seldom_than_its_like(tmp_path: Path) -> None:
    one = labels(tmp_path / "one.json", 0.7, 1)
    for row in rows(one, one).values():
        assert (row["difference"], row["p"], row["better"]) == (0, 1, "neither")
    significant = [
        rows(labels(tmp_path / "a.json", 0.7, seed), labels(tmp_path / "b.json", 0.7, seed + 500)) for seed in range(20)
    ]
    assert sum(found["accuracy"]["better"] != "neither" for found in significant) <= 4


def test_draws_that_are_not_finite_are_left_out_without_a_word(tmp_path: Path) -> None:
    paths = [labels(tmp_path / f"{number}.json", 0.5 + number / 10, number) for number in (1, 2)]
    usual = rows(*paths)["accuracy"]
    for path in paths:
        result = json.loads(path.read_text())
        result["results"][0]["resampled"]["accuracy"]["values"] += [float("inf"), None]
        path.write_text(json.dumps(result))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rows(*paths)["accuracy"] == usual


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPTs on one text: two seeds of one tokenizer, and one of another."""
    folder = tmp_path_factory.mktemp("runs")
    text = write_text(folder)
    for name, values in {"one": {}, "two": {"train__seed": 7}, "other": {"tokenizer__vocab_size": 350}}.items():
        words = ("--documents", "paragraphs", "--quiet")
        assert nlpstack(*pretrain(text, folder / name, *words, **values)).code == 0
        assert nlpstack("eval", folder / name, "--no-baselines").code == 0
    return folder


def test_perplexities_compare_under_one_tokenizer_alone(runs: Path) -> None:
    same = rows(runs / "one", runs / "two")
    assert {"loss", "perplexity", "word_perplexity", "bits_per_byte"} == same.keys()
    assert not any("refused" in row for row in same.values())
    other = rows(runs / "one", runs / "other")
    assert {name for name, row in other.items() if "refused" in row} == {"loss", "perplexity"}
    assert str(other["perplexity"]["refused"]).startswith("tok is ")
    assert {"word_perplexity", "bits_per_byte"} < other.keys()
    assert "not compared: tok is" in " ".join(nlpstack("compare", runs / "one", runs / "other").out.split())


def saved(path: Path, model: Path, *more: object) -> Path:
    """What eval says of a model whose text is one document, so that windows are resampled."""
    assert nlpstack("eval", model, "--documents", "files", "--no-baselines", "--save", path, *more).code == 0
    return path


def test_windows_are_pairs_in_any_batches_and_under_one_tokenizer_alone(runs: Path, tmp_path: Path) -> None:
    one = saved(tmp_path / "one.json", runs / "one")
    few = saved(tmp_path / "few.json", runs / "one", "--set", "eval.batch_tokens=100")
    drawn = [json.loads(path.read_text())["results"][0]["resampled"]["loss"] for path in (one, few)]
    assert drawn[0]["units"] == drawn[1]["units"] > 10
    assert drawn[0]["values"] == pytest.approx(drawn[1]["values"], rel=1e-6)
    fault = nlpstack("compare", one, saved(tmp_path / "other.json", runs / "other")).fault
    assert "bits_per_byte: tok is " in fault
    assert "word_perplexity: tok is " in fault


def test_a_score_that_is_not_resampled_is_not_compared_and_said(tmp_path: Path) -> None:
    for name in ("out", "gold"):
        (tmp_path / f"{name}.txt").write_text("a b c d\ne f g h\n")
    words = ("--predictions", tmp_path / "out.txt", "--references", tmp_path / "gold.txt", "--task", "generation")
    assert nlpstack("eval", *words, "--save", tmp_path / "a.json").code == 0
    found = rows(tmp_path / "a.json", tmp_path / "a.json")
    assert found["distinct1"] == {"metric": "distinct1", "refused": "it is not resampled"}
    assert found["bleu"]["difference"] == 0
    assert nlpstack("eval", *words, "--save", tmp_path / "b.json", "--set", "eval.resamples=0").code == 0
    assert "bleu: it is not resampled" in nlpstack("compare", tmp_path / "b.json", tmp_path / "b.json").fault


def test_what_does_not_compare_is_one_line(runs: Path, tmp_path: Path) -> None:
    one = labels(tmp_path / "one.json", 0.6, 1)
    assert "not of the same task (causal_lm and classification)" in nlpstack("compare", runs / "one", one).fault
    moved = Path(shutil.copytree(runs / "one", tmp_path / "moved"))
    text = write_text(tmp_path, 50_000, 20_000)
    assert nlpstack("eval", moved, "--data", text, "--split", "val", "--no-baselines").code == 0
    assert "not of the same data (" in nlpstack("compare", runs / "one", moved).fault
    other = labels(tmp_path / "other.json", 0.6, 1, "--set", "eval.seed=3")
    assert "accuracy: seed is 0 and 3" in nlpstack("compare", one, other).fault
    fresh = Path(shutil.copytree(runs / "one", tmp_path / "fresh"))
    results = json.loads((fresh / "results.json").read_text())
    del results["results"][0]["resampled"]
    (fresh / "results.json").write_text(json.dumps(results))
    assert "lacks resampled, which eval writes; run: nlpstack eval" in nlpstack("compare", fresh, fresh).fault
    assert "holds no results" in nlpstack("compare", runs / "one" / "model" / "config.json", fresh).fault
    assert "gone: no such run or file" in nlpstack("compare", tmp_path / "gone", fresh).fault
    assert f"has no results; run: nlpstack eval {tmp_path}" in nlpstack("compare", tmp_path, fresh).fault
