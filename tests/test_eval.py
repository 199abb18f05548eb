"""`nlpstack eval`: the numbers of training again, those of plain transformers, and what is scored and written."""

import gzip
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from nlpstack.eval import EvalOptions, evaluate
from nlpstack.hub import load_model, save_model
from nlpstack.model import GPT, TransformerConfig
from nlpstack.tokenizer import TokenizerConfig, train_tokenizer
from tests.tiny import nlpstack, pretrain, tree, write_text

logging.set_verbosity_error()
logging.disable_progress_bar()

GPT2 = TransformerConfig(vocab_size=1, max_seq_len=24, dim=48, n_layers=2, n_heads=4, activation="gelu_tanh")
LLAMA = replace(
    GPT2, positions="rotary", norm="rmsnorm", activation="swiglu", bias=False, tied=False, n_kv_heads=2, ffn_dim=80
)
DOCUMENTS = ["The cat sat on the mat. " * 9, "Größer als 5 €?\n\nJa \u2581!", "q", "", "a b\tc\r\n" * 12]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A folder with two finished runs, in fp32 and bf16; no test changes it."""
    folder = tmp_path_factory.mktemp("work") / "runs"
    for dtype in ("fp32", "bf16"):
        values = {"train__dtype": dtype, "train__val_every": 2, "eval__stride": 24, "eval__max_tokens": 900}
        assert nlpstack(*pretrain(text, folder / dtype, "--quiet", **values)).code == 0
    return folder


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    """A copy of the fp32 run, which scores the whole validation split window by window."""
    return Path(shutil.copytree(runs / "fp32", tmp_path / "runs" / "tiny"))


def score(*words: object) -> dict[str, Any]:
    """The result of the only model that is scored."""
    (result,) = nlpstack("eval", *words, "--json").json["results"]
    return dict(result)


def values(result: dict[str, Any]) -> dict[str, float]:
    return {name: entry["value"] for name, entry in result["metrics"].items()}


WHOLE = ("--set", "eval.max_tokens=0")


# -- the numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_scores_in_the_runs_dtype_are_those_of_its_last_validation(dtype: str, runs: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs / dtype, tmp_path / "runs" / "tiny"))
    records = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    last = [record["val"] for record in records if "val" in record][-1]
    at_the_end = json.loads((run / "results.json").read_text())["results"][0]
    result = score(run, "--dtype", dtype)
    assert values(result) == last == values(at_the_end)
    assert result["metrics"] == at_the_end["metrics"]  # intervals and signatures too
    assert f"|dtype:{dtype}|" in result["metrics"]["loss"]["signature"]
    other = "bf16" if dtype == "fp32" else "fp32"
    assert values(score(run, "--dtype", other)) != last


def reference(folder: Path, documents: list[list[int]], bos: int, window: int, stride: int) -> tuple[float, int]:
    """Summed nats and number of tokens, by transformers in float64, window after window."""
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    nats, n_tokens = 0.0, 0
    for ids in documents:
        row = [bos, *ids]
        scored: set[int] = set()
        for start in range(0, len(ids), stride):
            stop = min(start + window, len(ids))
            with torch.inference_mode():
                losses = -theirs(torch.tensor([row[start:stop]])).logits[0].log_softmax(-1)
            for at in range(start + 1, stop + 1):
                if at not in scored:
                    scored.add(at)
                    nats += losses[at - 1 - start, row[at]].item()
            if stop == len(ids):
                break
        assert scored == set(range(1, len(ids) + 1))
        n_tokens += len(scored)
    return nats, n_tokens


@pytest.mark.parametrize(("window", "stride"), [(24, 24), (16, 5)])
@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_perplexity_is_that_of_transformers_in_float64(
    config: TransformerConfig, window: int, stride: int, tmp_path: Path
) -> None:
    tokenizer = train_tokenizer(DOCUMENTS, TokenizerConfig(kind="char"))
    model = GPT.create(replace(config, vocab_size=tokenizer.vocab_size), seed=0, tokenizer=tokenizer)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.2)
    save_model(model, tmp_path / "model")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    metrics = score(
        tmp_path / "model", "--data", tmp_path / "data.jsonl", "--window", window, "--stride", stride, "--threads", 1
    )["metrics"]

    encoded = [tokenizer.encode(text) for text in DOCUMENTS if text]
    nats, n_tokens = reference(tmp_path / "model", encoded, tokenizer.bos_id, window, stride)
    joined = "".join(DOCUMENTS)
    expected = {
        "loss": (nats / n_tokens, n_tokens),
        "perplexity": (math.exp(nats / n_tokens), n_tokens),
        "word_perplexity": (math.exp(nats / sum(len(text.split()) for text in DOCUMENTS)), 0),
        "bits_per_byte": (nats / math.log(2) / len(joined.encode()), len(joined.encode())),
    }
    for name, (value, n) in expected.items():
        assert metrics[name]["value"] == pytest.approx(value, rel=1e-5), name
        assert metrics[name]["n"] == n or name == "word_perplexity"
    assert 5 < metrics["perplexity"]["value"] < 1e6  # neither nothing nor everything is known


# -- what is scored ------------------------------------------------------------------------------------------------


def test_without_a_model_every_finished_run_is_scored(
    runs: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    stopped = Path(shutil.copytree(runs / "fp32", tmp_path / "runs" / "a-stopped"))
    (stopped / "results.json").unlink()
    monkeypatch.chdir(tmp_path)
    assert nlpstack("eval", "runs/a-stopped").code == 0  # has results now, but is no more finished than before
    results = nlpstack("eval", "--json").json["results"]
    assert [result["model"] for result in results] == ["runs/bf16", "runs/fp32"]
    assert [result["model"] for result in evaluate()] == ["runs/bf16", "runs/fp32"]


def test_all_of_a_given_file_is_scored(run: Path, tmp_path: Path) -> None:
    file = write_text(tmp_path, 500_000, 3_000)
    text = file.read_text()
    result = score(run, "--data", file, *WHOLE)
    assert (result["data"], result["split"]) == ([str(file)], "all")
    n_tokens = len(load_model(run).tokenizer.encode(text))
    assert {name: entry["n"] for name, entry in result["metrics"].items()} == {
        "loss": n_tokens,
        "perplexity": n_tokens,
        "word_perplexity": len(text.split()),
        "bits_per_byte": len(text.encode()),
    }
    packed = tmp_path / "packed.txt.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert values(score(run, "--data", packed, *WHOLE)) == values(result)
    result = evaluate([run / "model"], EvalOptions(data=[str(file)]))[0]  # a model folder that is no run
    assert result["metrics"]["loss"]["n"] == n_tokens


def test_the_split_that_is_asked_for_is_scored(run: Path, text: Path, tmp_path: Path) -> None:
    n = {split: score(run, "--split", split, *WHOLE)["metrics"]["bits_per_byte"]["n"] for split in ("train", "val")}
    assert n == {"train": 36_000, "val": 4_000}
    done = nlpstack("eval", run, "--json")
    assert done.json["results"][0]["split"] == "val"
    assert "no test split; the val split is scored" in done.err

    folder = tmp_path / "data"
    folder.mkdir()
    for name, size in (("train", 900), ("dev", 500), ("test", 700)):
        (folder / f"{name}.txt").write_text(text.read_text()[:size])
    result = score(run, "--data", folder, *WHOLE)
    assert (result["split"], result["metrics"]["bits_per_byte"]["n"]) == ("test", 700)
    result = score(run, "--data", folder, "--split", "val", *WHOLE)
    assert (result["split"], result["metrics"]["bits_per_byte"]["n"]) == ("val", 500)


def test_paragraphs_are_documents_if_asked_for(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "two.txt"
    file.write_text("One paragraph.\n\nAnd another one.\n")
    whole, parts = (
        score(run, "--data", file, "--documents", kind)["metrics"]["bits_per_byte"]["n"]
        for kind in ("files", "paragraphs")
    )
    assert (whole, parts) == (33, 30)


def test_only_the_scores_that_are_asked_for_are_given(run: Path) -> None:
    everything = score(run)["metrics"]
    assert list(everything) == ["loss", "perplexity", "word_perplexity", "bits_per_byte"]
    chosen = score(run, "--metric", "bits_per_byte", "--metric", "loss")["metrics"]
    assert chosen == {name: everything[name] for name in ("bits_per_byte", "loss")}
    assert "did you mean 'bits_per_byte'?" in nlpstack("eval", run, "--metric", "bits_per_byt").fault


def test_window_and_stride_change_the_score_and_its_signature_but_not_what_is_scored(run: Path) -> None:
    scores = {
        words: score(run, *words, *WHOLE)["metrics"]["loss"]
        for words in [
            ("--window", 32, "--stride", 32),
            ("--window", 32, "--stride", 4),
            ("--window", 8),
            ("--stride", 8),
            (),
        ]
    }
    assert len({entry["n"] for entry in scores.values()}) == 1
    assert len({entry["value"] for entry in scores.values()}) == 5
    signatures = [entry["signature"].split("|")[:2] for entry in scores.values()]
    assert signatures == [
        ["window:32", "stride:32"],
        ["window:32", "stride:4"],
        ["window:8", "stride:8"],  # the run's stride belongs to its own window
        ["window:32", "stride:8"],
        ["window:32", "stride:24"],
    ]


def test_text_that_has_changed_since_training_is_pointed_out(tmp_path: Path) -> None:
    mine, out = write_text(tmp_path), tmp_path / "runs" / "a"
    assert nlpstack(*pretrain(mine, out)).code == 0
    warning = f"warning: the val split is not the text that {out} was made with"
    assert warning not in nlpstack("eval", out).err
    mine.write_text(mine.read_text() + "one more line\n")
    done = nlpstack("eval", out)
    assert (done.code, warning in done.err) == (0, True)


# -- what is written -----------------------------------------------------------------------------------------------


def test_results_are_rewritten_and_keep_the_run(run: Path, tmp_path: Path) -> None:
    before = json.loads((run / "results.json").read_text())
    saved = tmp_path / "saved.json"
    done = nlpstack("eval", run, "--window", 16, "--json", "--save", saved)
    results = done.json["results"]
    now = json.loads((run / "results.json").read_text())
    assert json.loads(saved.read_text()) == {"results": now["results"]}
    drawn = now["results"][0].pop("resampled")  # for `compare`; not printed
    assert drawn.keys() == results[0]["metrics"].keys()
    assert {len(one["values"]) for one in drawn.values()} == {results[0]["eval"]["resamples"]}
    assert now == {"results": results, "run": before["run"]}
    assert now["results"] != before["results"]
    assert results[0]["hashes"].keys() == {"data", "tokenizer", "weights"}
    assert results[0]["eval"]["window"] == 16
    assert {"nlpstack", "torch"} <= results[0]["versions"].keys()
    assert results[0]["command"].startswith("nlpstack")


def test_a_model_that_is_no_run_gets_nothing_written_into_it(run: Path, text: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(run / "model", tmp_path / "alone" / "model"))
    assert nlpstack("eval", model, "--data", text).code == 0
    assert tree(tmp_path / "alone") == {f"model/{path.name}": path.read_bytes() for path in sorted(model.iterdir())} | {
        "model": None
    }


def test_the_table_has_one_line_a_score_and_says_how_it_was_made(run: Path, tmp_path: Path) -> None:
    long = Path(shutil.copytree(run, tmp_path / "runs" / ("[red]long" + "-and-longer" * 12)))
    done = nlpstack("eval", run, long, "--no-baselines")
    lines = done.out.removesuffix("\n").split("\n")
    head, rows, footnotes = lines[0], lines[1:9], lines[9:]
    assert head.split() == ["model", "split", "metric", "value", "95", "%", "interval", "n", "how"]
    results = [json.loads((path / "results.json").read_text())["results"][0] for path in (run, long)]
    expected = [
        [result["model"], "val", name, f"{entry['value']:.4f}", f"{entry['low']:.4f}", "to", f"{entry['high']:.4f}"]
        for result in results
        for name, entry in result["metrics"].items()
    ]
    assert [row.split()[:7] for row in rows] == expected
    assert all(row.endswith("(1)") for row in rows)
    assert len({len(line.rstrip()) for line in rows}) == 1  # columns stand below each other
    assert footnotes == [f"(1) {results[0]['metrics']['loss']['signature']}"]
