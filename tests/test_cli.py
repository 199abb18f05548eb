"""The command line's promises: help, output, exit codes, signals, and what a run folder allows."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from nlpstack.cli import main
from nlpstack.hub import load_model, weights_hash
from tests.tiny import STEPS, Outcome, nlpstack, pretrain, tree, write_text

HELP_SECONDS = 0.3
HEAVY = {"torch", "numpy", "pydantic", "rich", "sentencepiece"}
SHOW_HELP = (
    "import atexit, sys\n"
    f"atexit.register(lambda: print(*sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr))\n"
    "from nlpstack.cli import run\n"
    "run()\n"
)


def commands(group: click.Group = main, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with the words that call it, the program itself first."""
    yield words, group
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


COMMANDS = dict(commands())


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A finished run; no test changes it."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert nlpstack(*pretrain(text, out, "--quiet")).code == 0
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "tiny"))


# -- help ----------------------------------------------------------------------------------------------------------


def test_every_command_is_looked_at() -> None:
    wanted = {"pretrain", "generate", "eval", "recipes", "tokenizer train", "tokenizer encode", "info", "doctor"}
    assert wanted <= {" ".join(words) for words in COMMANDS}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_comes_at_once_and_loads_nothing_heavy(words: tuple[str, ...]) -> None:
    fastest = float("inf")
    for _ in range(8):
        before = os.times()
        done = subprocess.run([sys.executable, "-c", SHOW_HELP, *words, "--help"], capture_output=True, text=True)
        after = os.times()
        # Processor time, which it waits for nothing beside: on the clock, other work on the machine would decide.
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        fastest = min(fastest, spent)
        assert (done.returncode, done.stderr) == (0, "\n")
        assert done.stdout.startswith("Usage: ")
        if fastest <= HELP_SECONDS:
            break
    assert fastest <= HELP_SECONDS


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_examples_in_the_help_are_commands_that_can_be_typed(words: tuple[str, ...]) -> None:
    lines = nlpstack(*words, "--help").out.split("\n")
    examples = [line.rpartition("| ")[2].strip() for line in lines if line.startswith("    ") and "nlpstack " in line]
    assert examples
    for example in examples:
        program, *rest = shlex.split(example)
        assert program == "nlpstack"
        n_words = max(n for n in (1, 2) if tuple(rest[:n]) in COMMANDS)
        COMMANDS[tuple(rest[:n_words])].make_context(" ".join(rest[:n_words]), rest[n_words:])  # raises if it is wrong
        if words:
            assert tuple(rest[: len(words)]) == words


@pytest.mark.parametrize("words", [w for w, c in COMMANDS.items() if not isinstance(c, click.Group)], ids=" ".join)
def test_every_command_takes_json_quiet_and_debug(words: tuple[str, ...]) -> None:
    flags = {name: option for option in COMMANDS[words].params for name in option.opts}
    for name in ("--json", "--quiet", "--debug"):
        assert isinstance(flags[name], click.Option)
        assert flags[name].is_flag
        assert flags[name].help


@pytest.mark.parametrize("words", [(), ("tokenizer",)], ids=" ".join)
def test_a_group_without_a_command_shows_its_help(words: tuple[str, ...]) -> None:
    done = nlpstack(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err == nlpstack(*words, "--help").out
    assert done.err.count("\n") > 5


# -- output --------------------------------------------------------------------------------------------------------


def test_json_is_one_line_on_stdout_and_all_else_on_stderr(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "a"
    done = nlpstack(*pretrain(text, out, "--json", "--seed", 3))
    result = done.json
    assert result["out"] == str(out)
    assert result["model"] == str(out / "model")
    assert (result["steps"], result["tokens"], result["seed"]) == (STEPS, STEPS * 4 * 32, 3)
    assert result["tokens_per_second"] > 0 < result["seconds"]
    assert {"loss", "perplexity", "bits_per_byte"} <= result["val"].keys()
    assert result["weights"] == weights_hash(out)
    assert f"step {STEPS}/{STEPS}" in done.err
    assert "{" not in done.err.replace("{'lm'", "")

    done = nlpstack("eval", out, "--json")
    (scored,) = done.json["results"]
    assert (scored["model"], scored["task"], scored["data"], scored["split"]) == (
        str(out),
        "causal_lm",
        [str(text)],
        "val",
    )
    for score in scored["metrics"].values():
        assert score.keys() == {"value", "low", "high", "n", "signature"}
        assert score["low"] <= score["value"] <= score["high"]
    assert "tokens scored" in done.err

    done = nlpstack("generate", "--model", out, "--prompt", "To be", "--prompt", "\u2028é", "--json", "--greedy")
    entries = done.json
    assert [entry["prompt"] for entry in entries] == ["To be", "\u2028é"]
    assert all(isinstance(entry["text"], str) for entry in entries)
    assert "tokens/s" in done.err

    ids = nlpstack("tokenizer", "encode", "--tokenizer", out, "--json", stdin=b"To be\n").json["ids"]
    assert ids == load_model(out).tokenizer.encode("To be\n")
    back = nlpstack("tokenizer", "decode", "--tokenizer", out, "--json", stdin=json.dumps(ids).encode())
    assert back.json == {"text": "To be\n"}
    assert nlpstack("tokenizer", "inspect", out, "--json").json["vocab_size"] == 500
    assert {"gpt", "llama-mini"} <= {entry["name"] for entry in nlpstack("recipes", "--json").json}
    assert "[model]" in nlpstack("recipes", "gpt", "--json").json


def test_quiet_leaves_stderr_empty(text: Path, finished: Path, tmp_path: Path) -> None:
    for words in (
        pretrain(text, tmp_path / "a"),
        pretrain(text, tmp_path / "b", "--dry-run"),
        ["eval", finished],
        ["generate", "--model", finished],
        ["tokenizer", "train", "--data", text, "--vocab-size", 400, "--out", tmp_path / "tok"],
        ["tokenizer", "inspect", finished],
        ["recipes"],
        ["info", "gpt"],
        ["doctor", "--out", tmp_path],
    ):
        done = nlpstack(*words, "--quiet")
        assert (done.code, done.err) == (0, "")
        assert bool(done.out) == ("--dry-run" not in words)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["pretain"], "'pretain'. Did you mean 'pretrain'?"),
        (["tokenizer", "inspct"], "'inspct'. Did you mean 'inspect'?"),
        (["pretrain", "--ovrwrite"], "'--ovrwrite'. Did you mean '--overwrite'?"),
        (["eval", "--windw", "3"], "Did you mean"),
        (["pretrain", "gtp"], "'gtp'; did you mean 'gpt'?"),
        (["recipes", "lama-mini"], "'lama-mini'; did you mean 'llama-mini'?"),
        (["pretrain"], "give a RECIPE or --arch gpt"),
        (["pretrain", "gpt", "--arch", "bert"], "--arch bert: the recipe 'gpt' is of arch gpt"),
        (["pretrain", "--arch", "bertt"], "'bertt' is not one of 'gpt', 'bert'"),
        (["generate"], "Missing option '--model'"),
    ],
)
def test_a_word_that_does_not_exist_is_one_line_with_the_nearest_that_does(words: list[str], hint: str) -> None:
    done = nlpstack(*words)
    assert hint in done.fault
    assert done.err.count("\n") == 1


def test_a_fault_of_ours_is_one_line_and_a_saved_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise TypeError("first line\nsecond line")

    monkeypatch.setattr("nlpstack.eval.evaluate", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    done = nlpstack("eval")
    (saved,) = tmp_path.iterdir()
    assert (done.code, done.out) == (3, "")
    fault = f"a fault of nlpstack (TypeError: first line second line); traceback in {saved}"
    assert done.err == f"nlpstack: {fault}\n"
    assert saved.read_text().startswith("Traceback")
    assert "in fail" in saved.read_text()

    done = nlpstack("eval", "--debug")
    assert done.code == 3
    assert done.err.startswith("Traceback")


def test_debug_shows_the_traceback_of_an_error(tmp_path: Path) -> None:
    words = pretrain(tmp_path / "none.txt", tmp_path / "out")
    assert "Traceback" not in nlpstack(*words).err
    for refused in (
        words,
        ["recipes", "gtp"],
        ["info", "gtp"],
        ["eval", tmp_path / "none"],
        ["generate", "--model", tmp_path / "none"],
        ["tokenizer", "inspect", tmp_path / "none"],
        ["tokenizer", "encode", "--tokenizer", tmp_path / "none"],
        ["tokenizer", "decode", "--tokenizer", tmp_path / "none"],
    ):
        assert "Traceback" not in nlpstack(*refused).fault
        done = nlpstack(*refused, "--debug")
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("Traceback")
        assert done.err.split("\n")[-2].startswith("nlpstack: ")


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "/there"), OSError(28, "No space left on device", "/there")]
)
def test_what_the_machine_refuses_is_the_users_to_mend(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("nlpstack.eval.evaluate", refuse)
    assert nlpstack("eval").fault.startswith(f"nlpstack: /there: {error.strerror}; ")


def test_an_interrupted_command_exits_as_the_signal_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nlpstack.eval.evaluate", interrupt)
    done = nlpstack("eval")
    assert (done.code, done.out, done.err.lstrip("\n")) == (130, "", "nlpstack: interrupted\n")  # below the ^C


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_does_not_train_is_stopped_in_one_line_too(
    signum: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nlpstack.eval.evaluate", lambda *_, **__: signal.raise_signal(signum))
    done = nlpstack("eval")
    assert (done.code, done.out, done.err) == (128 + signum, "", f"nlpstack: stopped by {signum.name}\n")


def test_an_interrupt_while_python_ends_shows_nothing() -> None:
    ending = f"import atexit, signal\natexit.register(signal.raise_signal, signal.SIGINT)\n{SHOW_HELP}"
    done = subprocess.run([sys.executable, "-c", ending, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    assert done.stdout.startswith("nlpstack, version ")


# -- signals -------------------------------------------------------------------------------------------------------


STOPPED = {"train__steps": 120, "train__log_every": 1, "train__val_every": 0, "train__checkpoint_every": 0}


@pytest.fixture(scope="module")
def unbroken(text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What a run says that nothing stops."""
    return nlpstack(*pretrain(text, tmp_path_factory.mktemp("unbroken") / "run", "--json", **STOPPED)).json


def send_after_first_step(out: Path, send: Callable[[], None]) -> None:
    log, deadline = out / "metrics.jsonl", time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.002)
    send()


def in_a_process(words: list[object], out: Path) -> Outcome:
    """Run a command in a process of its own, which gets a SIGTERM after its first step."""
    command = [sys.executable, "-m", "nlpstack", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    send_after_first_step(out, process.terminate)
    printed, said = process.communicate(timeout=120)
    return Outcome(process.returncode, printed, said)


def in_this_process(words: list[object], out: Path) -> Outcome:
    """Run a command here; after its first step this process gets a SIGINT."""
    send = threading.Thread(target=send_after_first_step, args=(out, lambda: os.kill(os.getpid(), signal.SIGINT)))
    send.start()
    try:
        return nlpstack(*words)
    finally:
        send.join()


@pytest.mark.parametrize(
    ("run_and_stop", "signum", "flags"),
    [(in_this_process, signal.SIGINT, []), (in_a_process, signal.SIGTERM, ["--overwrite"])],
)
def test_a_stopped_run_says_how_to_go_on_and_ends_as_if_never_stopped(
    run_and_stop: Callable[[list[object], Path], Outcome],
    signum: signal.Signals,
    flags: list[object],
    text: Path,
    tmp_path: Path,
    unbroken: dict[str, object],
) -> None:
    out = tmp_path / "runs" / "a run"
    done = run_and_stop(pretrain(text, out, *flags, **STOPPED), out)
    assert (done.code, done.out) == (128 + signum, "")
    last = done.err.split("\n")[-2]
    assert last.startswith(f"nlpstack: stopped by {signum.name}, saved; go on with: nlpstack pretrain gpt ")
    assert load_model(out).config.dim == 32
    (step,) = [int(path.name.removeprefix("step-")) for path in (out / "checkpoints").iterdir()]
    assert 0 < step < STOPPED["train__steps"]
    assert not (out / "results.json").exists()

    words = shlex.split(last.partition("go on with: ")[2])
    done = nlpstack(*words[1:], "--json")
    assert f"resumed after step {step} of {STOPPED['train__steps']}" in done.err
    apart = {"out", "model", "seconds", "tokens_per_second"}  # places and clocks
    assert {key for key, value in done.json.items() if value != unbroken[key]} <= apart


def stopped_inside(signum: signal.Signals) -> Iterator[bytes]:
    """Sentences for SentencePiece, which makes an error of its own of whatever is raised while it takes them."""
    yield b"to be"
    signal.raise_signal(signum)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("place", "act"),
    [("pretrain.load_corpus", signal.raise_signal), ("tokenizer.training._sentences", stopped_inside)],
    ids=["reading", "inside a library"],
)
def test_a_run_stopped_before_its_first_step_leaves_nothing(
    place: str,
    act: Callable[[signal.Signals], object],
    signum: signal.Signals,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(f"nlpstack.{place}", lambda *_: act(signum))
    done = nlpstack(*pretrain(text, tmp_path / "out"))
    assert (done.code, done.out) == (128 + signum, "")
    assert done.err.splitlines()[-1] == f"nlpstack: stopped by {signum.name} before the first step"
    assert tree(tmp_path) == {}
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


# -- what a run folder allows --------------------------------------------------------------------------------------


def test_a_second_call_is_refused_and_changes_nothing(text: Path, run: Path) -> None:
    before = tree(run)
    done = nlpstack(*pretrain(text, run))
    assert done.fault == f"nlpstack: {run}: a run stands here; --resume goes on with it, --overwrite replaces it"
    assert tree(run) == before


def test_resuming_a_finished_run_says_so_and_changes_nothing(text: Path, run: Path) -> None:
    before = tree(run)
    done = nlpstack(*pretrain(text, run, "--resume", "--json"))
    assert done.json["finished_before"]
    assert done.json["weights"] == weights_hash(run)
    assert done.err == f"{run}: already finished after {STEPS} steps\n"
    assert tree(run) == before


@pytest.mark.parametrize("there", [False, True])
def test_resuming_where_no_run_stands_is_an_error(there: bool, text: Path, tmp_path: Path) -> None:
    if there:
        (tmp_path / "out").mkdir()
    before = tree(tmp_path)
    done = nlpstack(*pretrain(text, tmp_path / "out", "--resume"))
    assert "no run stands here to --resume; leave the flag out to start one" in done.fault
    assert tree(tmp_path) == before


def test_overwrite_replaces_the_run_and_all_that_is_its_own(text: Path, run: Path) -> None:
    before = weights_hash(run)
    (run / "notes.md").write_text("mine")
    done = nlpstack(*pretrain(text, run, "--overwrite", "--json", "--seed", 7, train__steps=3))
    assert done.json["steps"] == 3
    assert weights_hash(run) == done.json["weights"] != before
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000003"]
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()] == [1, 3, 3]
    assert (run / "notes.md").read_text() == "mine"


def test_an_overwrite_that_fails_to_start_leaves_the_old_run(text: Path, run: Path) -> None:
    before = tree(run)
    done = nlpstack(*pretrain(text, run, "--overwrite", tokenizer__vocab_size=50_000))
    assert "tokenizer.vocab_size=50000" in done.fault
    assert tree(run) == before


def test_a_start_that_failed_is_in_nobodys_way(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "a"
    assert "no such file" in nlpstack(*pretrain(tmp_path / "none.txt", out)).fault
    assert not out.exists()
    out.mkdir()
    assert "no such file" in nlpstack(*pretrain(tmp_path / "none.txt", out)).fault
    assert tree(out) == {}
    (out / ".lock").touch()  # killed before its first step
    assert nlpstack(*pretrain(text, out)).code == 0
    assert nlpstack(*pretrain(text, out, "--resume")).code == 0


@pytest.mark.parametrize("flags", [[], ["--minutes", 1], ["--json"]])
def test_a_dry_run_does_a_step_and_writes_nothing(
    flags: list[object], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    steps = None if "--minutes" in flags else STEPS
    done = nlpstack(*pretrain(text, tmp_path / "runs" / "a", "--dry-run", *flags, train__steps=steps))
    assert done.code == 0
    for part in ("memory: ", "steps: ", "first batch: (4, 32)", "step 1: loss 6.", "nothing was written"):
        assert part in done.err
    assert done.out == ('{"dry_run": true}\n' if "--json" in flags else "")
    assert tree(tmp_path) == {"scratch": None}


def test_a_dry_run_refuses_what_the_run_would_be_refused(text: Path, run: Path) -> None:
    before = tree(run)
    assert "a run stands here" in nlpstack(*pretrain(text, run, "--dry-run")).fault
    assert nlpstack(*pretrain(text, run, "--dry-run", "--overwrite")).code == 0
    assert tree(run) == before


def test_minutes_become_a_step_count_that_is_stored(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "a"
    words = pretrain(text, out, "--minutes", 0.01, "--json", train__steps=None)
    started = time.perf_counter()
    result = nlpstack(*words).json
    assert time.perf_counter() - started < 60
    record = tomllib.loads((out / "config.toml").read_text())
    assert record["choices"]["steps"] == result["steps"] >= 1
    assert record["train"]["minutes"] == 0.01
    assert "steps" not in record["train"]
    assert record["origin"]["train.minutes"] == "flag"
    (out / "results.json").unlink()  # not finished: the steps are not measured again
    again = nlpstack(*words, "--resume")
    assert again.json["weights"] == result["weights"]
    assert "train.minutes" not in again.err


# -- from a model, with a tokenizer --------------------------------------------------------------------------------


def test_a_model_goes_on_with_its_tokenizer_on_other_text(finished: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "runs" / "b", write_text(tmp_path, 300_000)
    values = {"train__checkpoint_every": 0}
    words = pretrain(other, out, "--model", finished, "--json", **values)
    done = nlpstack(*words)
    assert "whose shape holds, not the recipe's" in done.err
    assert done.json["weights"] != weights_hash(finished)
    model = load_model(out)
    assert model.config.dim == 32
    for name in ("tokenizer.model", "tokenizer.json"):
        assert (out / "model" / name).read_bytes() == (finished / "model" / name).read_bytes()
    fresh = nlpstack(*pretrain(other, tmp_path / "runs" / "c", "--tokenizer", finished, "--json")).json
    assert done.json["val"]["loss"] < fresh["val"]["loss"]  # it knew something before

    (out / "results.json").unlink()
    without = pretrain(other, out, "--resume", **values)
    assert "--resume with changed values (model.vocab_size: then 500, now 0)" in nlpstack(*without).fault
    assert nlpstack(*words, "--resume").json["weights"] == done.json["weights"]


def test_the_model_of_the_run_that_is_overwritten_is_refused(text: Path, run: Path) -> None:
    before = tree(run)
    for path in (run, run / "model"):
        done = nlpstack(*pretrain(text, run, "--overwrite", "--model", path))
        assert f"--model {path}: stands in the run folder" in done.fault
    assert tree(run) == before


def test_a_given_tokenizer_is_used_and_none_is_trained(text: Path, tmp_path: Path) -> None:
    made = tmp_path / "tok"
    trained = nlpstack("tokenizer", "train", "--data", text, "--kind", "char", "--out", made, "--json").json
    out = tmp_path / "runs" / "a"
    done = nlpstack(*pretrain(text, out, "--tokenizer", made, tokenizer__vocab_size=9999))
    assert done.code == 0, done.err
    assert "pieces, trained on" not in done.err
    assert load_model(out).config.vocab_size == trained["vocab_size"]
    assert load_model(out).tokenizer.hash == trained["hash"]
    record = tomllib.loads((out / "config.toml").read_text())
    assert record["hashes"]["tokenizer"] == trained["hash"]


def test_the_run_folder_is_a_recipe_that_gives_the_same_run(finished: Path, tmp_path: Path) -> None:
    words = ["pretrain", finished / "config.toml", "--out", tmp_path / "again", "--json"]
    assert nlpstack(*words).json["weights"] == weights_hash(finished)
