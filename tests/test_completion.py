"""What a shell is offered: commands, options, recipes, folders; quickly, and by its own script."""

import os
import shutil
import subprocess
import sys

import pytest
from click.shell_completion import CompletionItem, ShellComplete

from nlpstack.cli import main
from nlpstack.recipes import list_recipes

PRETRAIN = [recipe.name for recipe in list_recipes("pretrain")]


def offered(*words: str) -> list[CompletionItem]:
    """What is offered for the last of these words, the others being typed."""
    return ShellComplete(main, {}, "nlpstack", "_NLPSTACK_COMPLETE").get_completions(list(words[:-1]), words[-1])


def values(*words: str) -> list[str]:
    return [item.value for item in offered(*words)]


@pytest.mark.parametrize("command", ["pretrain", "recipes", "info"])
def test_recipes_complete_by_name_and_with_their_stage(command: str) -> None:
    assert sorted(values(command, "sh")) == ["shakespeare-char", "shakespeare-char-cpu"]
    assert set(values(command, "")) >= set(PRETRAIN)
    assert values(command, "pretrain/ll") == ["pretrain/llama-mini"]
    assert all(item.help for item in offered(command, ""))


def test_a_recipes_file_or_a_model_folder_completes_where_no_recipe_begins_so() -> None:
    assert [(item.type, item.value) for item in offered("pretrain", "./my")] == [("file", "./my")]
    assert [(item.type, item.value) for item in offered("info", "runs/")] == [("dir", "runs/")]


@pytest.mark.parametrize(
    "words",
    [
        *(("pretrain", option, "ru") for option in ("--out", "--model", "--tokenizer")),
        *(("generate", "--model", "ru"), ("attention", "--model", "ru"), ("eval", "ru"), ("doctor", "--out", "ru")),
        *(("tokenizer", "train", "--out", "ru"), ("tokenizer", "inspect", "ru")),
        *(("tokenizer", command, "--tokenizer", "ru") for command in ("encode", "decode", "inspect")),
    ],
    ids=" ".join,
)
def test_options_that_take_a_folder_complete_folders(words: tuple[str, ...]) -> None:
    assert [(item.type, item.value) for item in offered(*words)] == [("dir", "ru")]


def test_commands_options_and_choices_complete() -> None:
    assert values("pret") == ["pretrain"]
    assert values("tokenizer", "in") == ["inspect"]
    assert values("pretrain", "--ov") == ["--overwrite"]
    assert values("pretrain", "--arch", "") == ["gpt", "bert"]
    assert values("pretrain", "--dtype", "b") == ["bf16"]


def test_completing_loads_nothing_heavy() -> None:
    code = (
        "import atexit, sys\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'rich', 'sentencepiece'}\n"
        "atexit.register(lambda: print(sorted(heavy & set(sys.modules)), file=sys.stderr))\n"
        "from nlpstack.cli import run\n"
        "run()\n"
    )
    asked = {"_NLPSTACK_COMPLETE": "bash_complete", "COMP_WORDS": "nlpstack pretrain sh", "COMP_CWORD": "2"}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert sorted(done.stdout.split()) == ["plain,shakespeare-char", "plain,shakespeare-char-cpu"]


def script(shell: str) -> str:
    """What click prints for a shell to read."""
    asked = {**os.environ, "_NLPSTACK_COMPLETE": f"{shell}_source"}
    done = subprocess.run([sys.executable, "-m", "nlpstack"], env=asked, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_that_its_shell_reads(shell: str) -> None:
    text = script(shell)
    assert f"_NLPSTACK_COMPLETE={shell}_complete" in text
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    read = subprocess.run([shell, "-n"], input=text, capture_output=True, text=True)
    assert (read.returncode, read.stderr) == (0, "")


def test_bash_completes_with_the_script() -> None:
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    folder = os.path.dirname(sys.executable)
    typed = (
        "COMP_WORDS=(nlpstack info llam); COMP_CWORD=2; _nlpstack_completion nlpstack\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "--norc"],
        input=script("bash") + typed,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
    )
    assert done.stdout == "llama-mini\n", done.stderr
