"""The README's Python runs as it stands, and its commands exist."""

import re
import shlex

import pytest

from nlpstack.cli import main
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.S)
SHELL = re.findall(r"```\n(.*?)```", README, flags=re.S)
COMMANDS = re.findall(r"^nlpstack (.*?)(?:\s+#.*)?$", "".join(SHELL), flags=re.M)


def test_the_readme_shows_the_two_commands_first():
    assert re.match(r"# nlpstack\n\n```\nmake demo .*\nmake test .*\n```\n", README)


def test_the_python_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert len(PYTHON) == 1
    exec(compile(PYTHON[0], "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("20 ")
    assert any(line.startswith("ROMEO:") for line in printed)
    assert (tmp_path / "runs" / "readme" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_readme_parses(line):
    words = shlex.split(line)
    command, rest = main, words
    while rest and hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context("nlpstack", rest)


def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 6
