"""Every code block of the README runs: the quick form here, the form as it stands among the slow tests."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nlpstack.samples import sample
from tests.conftest import ROOT
from tests.tiny import nlpstack

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.S | re.M)
MAKE, COMMANDS, PIP, PYTHON = (text for _, text in BLOCKS)
# What makes a run short; with --set, since that is stronger than the flags of the README.
SHORT = {
    "train.steps": 3,
    "train.batch_size": 4,
    "train.sample_tokens": 5,
    "model.dim": 32,
    "model.n_layers": 1,
    "model.n_heads": 2,
    "tokenizer.vocab_size": 400,
    "tokenizer.max_train_bytes": 50_000,
    "eval.max_tokens": 2000,
    "eval.pseudo_tokens": 50,
    "eval.resamples": 20,
}


TEXTS = "We train a network.\nTo be, or not to be.\n"  # one a line


def lines(block: str) -> list[str]:
    """The commands of a block, without what is said of them."""
    return [re.sub(r"\s+#.*", "", line) for line in block.splitlines()]


def as_typed(block: str, folder: Path) -> str:
    """Run a block in a shell, in a folder with my.txt and texts.txt, where nlpstack is installed; stdout comes back."""
    shutil.copy(sample("shakespeare"), folder / "my.txt")
    (folder / "texts.txt").write_text(TEXTS)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e"], input=block, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_runs(target: str) -> list[str]:
    """The commands that a target runs once the environment stands."""
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
    found = done.stdout.splitlines()
    return [line for line in found if re.match(r"\.venv/bin/(nlpstack|pytest)\b", line)]


def test_there_are_these_blocks_and_no_others():
    assert [language for language, _ in BLOCKS] == ["", "", "", "python"]
    assert re.match(r"# nlpstack\n\n```\nmake demo .*\nmake test .*\n```\n", README)
    assert len(lines(COMMANDS)) >= 6
    assert all(line.startswith("nlpstack ") for line in lines(COMMANDS))


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")
def test_make_has_the_targets_and_they_run_what_is_said():
    assert lines(MAKE) == ["make demo", "make test"]
    train, write = make_runs("demo")
    assert train == ".venv/bin/nlpstack pretrain --arch gpt --overwrite"
    assert write.startswith(".venv/bin/nlpstack generate --model runs/gpt ")
    assert make_runs("test") == [".venv/bin/pytest"]


def test_pip_would_install_the_checkout():
    (line,) = lines(PIP)
    pip, *words = shlex.split(line)
    assert pip == "pip"
    # Without the network, and without changing the environment: the same command, stopped before it does anything.
    offline = ["--dry-run", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    done = subprocess.run([sys.executable, "-m", "pip", *words, *offline], cwd=ROOT, capture_output=True, text=True)
    if "No module named pip" in done.stderr:
        pytest.skip("there is no pip in this environment")
    assert done.returncode == 0, done.stderr
    assert "Would install nlpstack-" in done.stdout


def test_the_commands_run_one_after_another_with_shortened_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text(sample("shakespeare").read_text(encoding="utf-8")[:300_000], encoding="utf-8")
    (tmp_path / "texts.txt").write_text(TEXTS)
    for line in lines(COMMANDS):
        _, *words = shlex.split(line)
        if words[0] == "pretrain":
            words += [word for key, value in SHORT.items() for word in ("--set", f"{key}={value}")]
        elif words[0] == "finetune":
            words += ["--set", "train.steps=3", "--set", "eval.resamples=20"]
        done = nlpstack(*words)
        assert done.code == 0, (line, done.err)
        assert done.out, line


def test_the_python_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(PYTHON, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("20 ")
    assert any(line.startswith("ROMEO:") for line in printed)
    assert (tmp_path / "runs" / "readme" / "model" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_commands_run_as_typed(tmp_path):
    out = as_typed(COMMANDS, tmp_path)
    assert "runs/gpt/model: 500 steps" in out
    assert "bits_per_byte" in out


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")
def test_what_make_demo_runs_trains_a_model_and_lets_it_write(tmp_path):
    commands = [line.removeprefix(".venv/bin/") for line in make_runs("demo")]
    out = as_typed("\n".join(commands), tmp_path)
    assert "runs/gpt/model: 500 steps" in out
    assert len(out.splitlines()) > 5
