"""Several processes train, evaluate and predict as one does; a run that loses one of them goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import safe_open

from nlpstack.data.batch import Bucketed, Loader, Shuffled
from tests.tiny import settings, write_text
from tests.tiny_labelled import write_data
from tests.train.spread import train
from tests.train.test_trainer import collate

ROOT = Path(__file__).resolve().parents[2]
CLOCKS = {"seconds", "tokens_per_second", "utilisation", "memory_bytes"}
STEPS = 50
VALUES = {
    "model.dropout": 0.0,
    "model.n_layers": 2,
    "train.steps": STEPS,
    "train.batch_size": 8,
    "train.log_every": 1,
    "train.val_every": 20,
    "train.checkpoint_every": 10,
    "train.dtype": "fp32",
    "train.compile": "false",
    "eval.max_tokens": 2000,
    "eval.pseudo_tokens": 60,
}


def start(n: int, *words: object) -> subprocess.Popen[str]:
    """Start a module on one thread of `n` processes by torchrun, of 0 processes by Python alone."""
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)] if n else []
    command = [sys.executable, *run, "-m", *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def run(n: int, *words: object, code: int = 0) -> str:
    """The output of a command that ends with an exit code."""
    process = start(n, *words)
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, f"{out}\n{err}"
    return out if code == 0 else err


def pretrain(arch: str, out: Path, data: Path, *words: object, **values: object) -> list[object]:
    given = {key.replace(".", "__"): value for key, value in VALUES.items()} | values
    paragraphs = ["--documents", "paragraphs"] if arch == "bert" else []
    return ["nlpstack", "pretrain", "--arch", arch, "--threads", 1, "--data", data, "--out", out, "--json", *paragraphs,
            *settings(**given), *words]  # fmt: skip


def records(out: Path) -> list[dict]:
    """The lines of a run's log, clocks aside."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCKS} for line in lines]


def assert_close(found: Path, wanted: Path, rel: float) -> None:
    """Every loss and every score of two runs agree."""
    for one, other in zip(records(found), records(wanted), strict=True):
        assert one["step"] == other["step"]
        assert one.get("tokens") == other.get("tokens")
        if "loss" in other:
            assert one["loss"] == pytest.approx(other["loss"], rel=rel)
        for name, value in other.get("val", {}).items():
            assert one["val"][name] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("order", [Shuffled(30, batch_size=7, seed=3), Bucketed(range(1, 31), batch_size=7, seed=3)])
@pytest.mark.parametrize("n", [1, 2, 4, 9])
def test_the_shares_of_processes_are_the_examples_that_one_would_see(order, n):
    loaders = [Loader(order, list, micro_batch=2, share=(rank, n)) for rank in range(n)]  # type: ignore[arg-type]
    for loader in loaders:
        loader._idle = lambda examples: []
    for step in range(12):
        parts = [loader.micro_batches(step) for loader in loaders]
        assert len({len(part) for part in parts}) == 1, "all of them call the model equally often"
        assert sorted(one for part in parts for batch in part for one in batch) == sorted(order.step(step))


def test_a_batch_that_only_keeps_step_counts_for_nothing():
    loader = Loader(Shuffled(30, batch_size=3, seed=0), collate, micro_batch=2, share=(3, 4))
    (batch,) = loader.micro_batches(0)
    assert batch.idle
    assert (batch.n_tokens, batch.n_targets) == (0, {"lm": 0})


@pytest.mark.parametrize("n", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_in_float64_the_number_of_processes_changes_only_the_last_digits(n, tmp_path):
    run(n, "tests.train.spread", tmp_path / "found.json", "ddp", "fsdp")
    alone = train("ddp", tmp_path)
    for found in json.loads((tmp_path / "found.json").read_text()).values():
        assert len(found) == STEPS
        for (loss, norm), (wanted, wanted_norm) in zip(found, alone, strict=True):
            assert loss == pytest.approx(wanted, rel=1e-12)
            assert norm == pytest.approx(wanted_norm, rel=1e-11)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, Path]:
    """A run of each architecture by one process, and their text."""
    folder = tmp_path_factory.mktemp("alone")
    found = {"data": write_text(folder), "folder": folder}
    for arch in ("gpt", "bert"):
        run(0, *pretrain(arch, folder / arch, found["data"]))
        found[arch] = folder / arch
    return found


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["gpt", "bert"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("n", [2, 4])
def test_a_recipe_gives_the_same_losses_on_several_processes(arch, kind, n, alone, tmp_path):
    result = json.loads(run(n, *pretrain(arch, tmp_path / "run", alone["data"], train__parallel=kind)))
    assert result["steps"] == STEPS
    assert_close(tmp_path / "run", alone[arch], rel=1e-6)
    names = {path.name for path in (tmp_path / "run" / "model").iterdir()}
    assert names == {path.name for path in (alone[arch] / "model").iterdir()}, "a plain folder, as of one process"


@pytest.mark.slow
def test_a_checkpoint_of_shares_holds_tensors_and_json_alone(alone, tmp_path):
    run(2, *pretrain("gpt", tmp_path / "run", alone["data"], train__parallel="fsdp", train__steps=12))
    files = [path for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert kinds == {".safetensors", ".json"}
    assert sum(path.suffix == ".safetensors" for path in files) == 2 * 2 * 2, "model and optimizer, two shares, twice"
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            with safe_open(path, framework="pt") as opened:
                assert list(opened.keys())


def kill_one(process: subprocess.Popen[str], out: Path, step: int) -> None:
    """Wait for a line of the log, then kill the second process, which ends them all."""
    log = out / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= step):
        time.sleep(0.01)
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            told = place.read_bytes().split(b"\0")
            typed = (place.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if b"RANK=1" in told and str(out).encode() in typed:
            os.kill(int(place.parent.name), signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_run_that_lost_a_process_goes_on_bit_for_bit_or_on_one(kind, alone, tmp_path):
    given = {"train__parallel": kind, "model__dropout": 0.1}
    whole, broken, single = (tmp_path / name for name in ("whole", "broken", "single"))
    run(2, *pretrain("gpt", whole, alone["data"], **given))
    process = start(2, *pretrain("gpt", broken, alone["data"], **given))
    kill_one(process, broken, 25)
    run(2, *pretrain("gpt", broken, alone["data"], **given), "--resume")
    assert records(broken) == records(whole)
    weights = [json.loads((path / "results.json").read_text())["run"]["weights"] for path in (broken, whole)]
    assert weights[0] == weights[1]

    given["model__dropout"] = 0.0
    process = start(2, *pretrain("gpt", single, alone["data"], **given))
    kill_one(process, single, 25)
    refused = run(0, *pretrain("gpt", single, alone["data"], **given), "--resume", code=2)
    assert "world: then 2, now 1" in refused
    run(0, *pretrain("gpt", single, alone["data"], **given), "--resume", "--inexact")
    assert_close(single, alone["gpt"], rel=1e-6)
    run(0, *pretrain("gpt", single, alone["data"], **given), "--resume")  # finished


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_with_two(alone, tmp_path):
    given = {"train__parallel": "fsdp"}
    process = start(0, *pretrain("gpt", tmp_path / "run", alone["data"], **given))
    log = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= 15):
        time.sleep(0.005)
    process.kill()
    process.communicate()
    run(2, *pretrain("gpt", tmp_path / "run", alone["data"], **given), "--resume", "--inexact")
    assert_close(tmp_path / "run", alone["gpt"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ner", "classification", "generation"])
def test_evaluation_and_prediction_give_what_one_process_gives(recipe, bases, tmp_path):
    data = write_data(tmp_path)[recipe]
    given = {"train.epochs": 2, "train.batch_size": 4, "eval.resamples": 20, "train.sample_tokens": 4}
    words = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    base = bases["gpt" if recipe == "generation" else "bert"]
    made = ["nlpstack", "finetune", recipe, "--model", base, "--data", data, "--json", *words]
    run(2, *made, "--out", tmp_path / "run")
    found = [
        json.loads(
            run(n, "nlpstack", "eval", tmp_path / "run", "--json", "--examples", 2, "--set", "eval.batch_tokens=64")
        )
        for n in (0, 2)
    ]
    for one in found:
        del one["results"][0]["command"]
    assert found[0] == found[1]
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Ann saw {'Rome ' * (n % 7 + 1)}\n" for n in range(1100)))
    short = ["--max-new-tokens", 2] if recipe == "generation" else []
    lines = [run(n, "nlpstack", "predict", "--model", tmp_path / "run", text, *short) for n in (0, 2)]
    assert lines[0].count("\n") == 1100
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_all_processes_end_with_the_one_message_of_the_one_that_fails(alone, tmp_path):
    told = run(2, *pretrain("gpt", tmp_path / "run", alone["data"], "--set", "optim.lr=high"), code=1)
    assert told.count("optim.lr='high'") == 1
    told = run(2, "nlpstack", "embed", "x.txt", "--model", alone["gpt"], code=1)
    assert told.count("torchrun: starts pretrain, finetune, eval and predict") == 1
