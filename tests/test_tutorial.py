"""Every block of the tutorial runs as it stands, in order, and prints what the page shows."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT
from tests.tiny import nlpstack

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
CAPTION = re.compile(r"\A:caption: (\S+)\n\n")


class Block(NamedTuple):
    """A fenced block of the page."""

    kind: str  # console, python, text, {code-block} toml, ...
    body: str

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """Of a console: each command, and the lines that are shown below it."""
        found: list[tuple[str, list[str]]] = []
        for line in self.body.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
        return found


BLOCKS = [Block(kind, body) for kind, body in re.findall(r"^```([^\n]*)\n(.*?)^```$", TUTORIAL, flags=re.S | re.M)]


def plain(line: str) -> str:
    """A line without what differs between machines: numbers, dtypes, what goes with them, and how wide a column is."""
    line = re.sub(r"\b(bf16|fp32)\b", "dtype", line)
    line = re.sub(r"\battention (plain|fused)\b", "attention product", line)
    line = re.sub(r"\b[0-9a-f]{12,64}\b", "hash", line)
    return " ".join(re.sub(r"-?\d[\d,.]*(e-?\d+)?", "0", line).split())


def shown_but_not_printed(shown: list[str], printed: str) -> list[str]:
    """Lines of the page that the command did not print, in whatever order; `...` stands for any."""
    real = {plain(line) for line in printed.splitlines()}
    return [line for line in shown if line != "..." and plain(line) not in real]


def test_a_shown_line_that_is_not_printed_is_found():
    printed = "step  50/100  loss 5.01  in dtype fp32\n(1) tok:a0054f4bf2a0|seed:0\n"
    shown = ["step 25/100 loss 4.9999 in dtype bf16", "...", "(1) tok:0123456789ab|seed:0", "step 50/100  lost 5.01"]
    assert shown_but_not_printed(shown, printed) == ["step 50/100  lost 5.01"]


def test_the_tutorial_shows_only_blocks_that_are_run_here():
    assert {block.kind for block in BLOCKS} == {
        "console",
        "python",
        "text",
        "{code-block} toml",
        "{image} _static/loss.png",
    }
    consoles = [block for block in BLOCKS if block.kind == "console"]
    commands = [command for block in consoles for command, _ in block.commands]
    assert len(commands) >= 12
    assert all(command.startswith("nlpstack ") for command in commands)


def test_every_block_runs_and_prints_what_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in BLOCKS:
        if block.kind == "{code-block} toml":
            (tmp_path / CAPTION.match(block.body)[1]).write_text(CAPTION.sub("", block.body), encoding="utf-8")
        elif block.kind == "python":
            exec(compile(block.body, "tutorial.md", "exec"), {})
        elif block.kind == "console":
            for command, shown in block.commands:
                done = nlpstack(*shlex.split(command)[1:])
                assert done.code == (2 if any(line.startswith("nlpstack: ") for line in shown) else 0), done.err
                assert shown_but_not_printed(shown, done.out + done.err) == [], done.out + done.err
    assert (tmp_path / "runs" / "my" / "model" / "model.safetensors").is_file()
    assert capsys.readouterr().out.count("\n") == 2


@pytest.mark.slow
def test_every_block_runs_in_a_shell(tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in BLOCKS:
        if block.kind == "{code-block} toml":
            (tmp_path / CAPTION.match(block.body)[1]).write_text(CAPTION.sub("", block.body), encoding="utf-8")
        if block.kind == "python":
            program, scripts = [sys.executable, "-"], [block.body]
        elif block.kind == "console":
            program, scripts = ["bash", "-e"], [command for command, _ in block.commands]
        else:
            continue
        for script in scripts:
            done = subprocess.run(
                program, input=script, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
            )
            refused = done.returncode == 2 and f"$ {script}\nnlpstack: " in TUTORIAL
            assert done.returncode == 0 or refused, done.stderr
