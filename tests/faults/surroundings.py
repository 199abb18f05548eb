"""Run commands where the machine is not as usual: locales, paths, streams, folders and clocks of every bad kind.

    python -m tests.faults.surroundings

Each command ends well, with the results of an ordinary one, or with the exit code that is promised and one line.
Exit code 1 if one does otherwise.
"""

import argparse
import errno
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from nlpstack.train.run import MetricsLog
from tests.faults import failing
from tests.faults.failing import FULL, ROOT
from tests.faults.kill_and_resume import outcome
from tests.faults.signals import words_in_shell
from tests.faults.subjects import require
from tests.tiny import nlpstack, pretrain, tree, write_text

NOWHERE = "/dev/null/nowhere"  # a folder that nobody can make, root neither
TEXT = "Größe und Maß, 漢字 und 🎉: naïve café. "
ODD_NAMES = (
    "a b",
    'it\'s "quoted"',
    "new\nline",
    "ünï 漢字 🎉",
    "[a]*?{b}",
    "$HOME `x` \\n",
    " edges ",
    "-dash",
    "tab\tand\rreturn",
    "line\u2028separator",
    "100%s",
)
VALUES = {"train__val_every": 2, "train__checkpoint_every": 2, "train__log_every": 1, "train__compile": "false"}
DEADLINE_SECONDS = 120


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class Place(NamedTuple):
    """Where everything is tried: a text, a finished run, its weights, a program called nlpstack, and the library."""

    folder: Path
    text: Path
    run: Path
    weights: str
    programs: Path
    preload: Path | None

    def sh(self, script: str, **environment: str | None) -> Done:
        """Run a shell script in which `nlpstack` is our command; None takes a variable out of the environment."""
        changed = {"PATH": f"{self.programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), **environment}
        values = {**os.environ, **changed}
        values = {name: value for name, value in values.items() if value is not None}
        done = subprocess.run(
            ["sh", "-c", script], cwd=self.folder, env=values, capture_output=True, timeout=DEADLINE_SECONDS
        )
        return Done(done.returncode, *(stream.decode(errors="replace") for stream in (done.stdout, done.stderr)))

    def words(self, out: Path | str, *words: object, text: Path | None = None) -> str:
        """The command of a small run, for a shell."""
        return line("nlpstack", *pretrain(text or self.text, out, "--quiet", *words, **VALUES))


def line(*words: object) -> str:
    """Words for a shell."""
    return shlex.join(map(str, words))


def make(folder: Path) -> Place:
    """A place with all that is needed."""
    programs = folder / "programs"
    programs.mkdir()
    (programs / "nlpstack").write_text(f"#!{sys.executable}\nfrom nlpstack.cli import run\nrun()\n")
    (programs / "nlpstack").chmod(0o755)
    text, run = write_text(folder), folder / "ordinary" / "a"
    text.write_text(text.read_text(encoding="utf-8") + TEXT * 20, encoding="utf-8")
    require(nlpstack(*pretrain(text, run, "--quiet", **VALUES)).code == 0, "the ordinary run failed")
    preload = None if failing.missing() else failing.build(folder)
    return Place(folder, text, run, outcome(run).weights, programs, preload)


def ends_well(done: Done, place: Place, out: Path | None = None) -> None:
    """Exit code 0 and nothing on stderr, and the run equals the ordinary one."""
    require(done.code == 0 and done.err == "", f"exit code {done.code}: {done.err}")
    require(out is None or outcome(out).weights == place.weights, "other weights than the ordinary run's")


def ends_in_a_line(done: Done, *parts: str, code: int = 2) -> None:
    """The exit code, and one line that has these parts."""
    require(done.code == code and done.err.count("\n") == 1, f"exit code {done.code}: {done.err}")
    require(done.err.startswith("nlpstack: ") and all(part in done.err for part in parts), done.err)


# -- languages and paths ---------------------------------------------------------------------------------------------


def plain_locale(place: Place) -> None:
    """Under LANG=C a run with such text and paths ends as ever, and what is printed is UTF-8."""
    folder = place.folder / "Größe 漢字"
    folder.mkdir()
    text = Path(shutil.copy(place.text, folder / "é.txt"))
    for name, values in {
        "C": {"LANG": "C", "LC_ALL": None},
        "POSIX": {"LC_ALL": "POSIX"},
        "ASCII": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    }.items():
        out = folder / name / "ü"
        done = place.sh(place.words(out, text=text), **values)
        if name == "ASCII" and done.code:  # where Python was told to read paths as ASCII, they may be refused
            ends_in_a_line(done)
            continue
        ends_well(done, place, out)
        words = line("nlpstack", "generate", "--model", out, "--prompt", "Größe 漢字", "--max-new-tokens", 3, "--quiet")
        done = place.sh(words, **values)
        require(done.code == 0 and done.err == "", f"{name}: exit code {done.code}: {done.err}")
        require(done.out.startswith("Größe 漢字") or name == "ASCII", done.out)


def ascii_output(place: Place) -> None:
    """Where the terminal takes ASCII only, what it cannot show is an error of one line or is written otherwise."""
    words = line("nlpstack", "generate", "--model", place.run, "--prompt", "漢字", "--max-new-tokens", 3, "--quiet")
    done = place.sh(words, PYTHONIOENCODING="ascii")
    require(done.code in (0, 2) and done.err.count("\n") == (done.code > 0), f"exit code {done.code}: {done.err}")


def odd_paths(place: Place, names: Sequence[str] = ODD_NAMES) -> None:
    """Paths of every kind: the run, its resumption as a shell reads the printed command, and the commands after it."""
    for name in names:
        folder = place.folder / "odd" / name
        folder.mkdir(parents=True)
        text = Path(shutil.copy(place.text, folder / f"{name}.txt"))
        out = folder / name / "a"
        words = [str(word) for word in pretrain(text, out, "--quiet", **VALUES)]
        stopped = stop_after_the_settling(words)
        require(
            stopped.code == 143 and stopped.err.count("\n") == 1, f"{name!r}: exit code {stopped.code}: {stopped.err}"
        )
        printed = stopped.err.partition("; go on with: ")[2]
        again = words_in_shell(printed)
        require(again == [*words, "--resume"], f"{name!r}: the shell reads {again} in {printed}")
        done = nlpstack(*again)
        require(done.code == 0, f"{name!r}: exit code {done.code}: {done.err}")
        require(outcome(out).weights == place.weights, f"{name!r}: other weights")
        done = nlpstack("eval", out, "--json", "--quiet")
        require(done.code == 0 and done.out.count("\n") == 1, f"{name!r}: exit code {done.code}: {done.err}")
        done = nlpstack("generate", "--model", out / "nö\nmodel")
        require(done.code == 2 and done.err.count("\n") == 1, f"{name!r}: exit code {done.code}: {done.err}")


def stop_after_the_settling(words: list[str]) -> Done:
    """Run a command here; a SIGTERM comes with its first step."""
    write = MetricsLog.write

    def write_and_stop(log: MetricsLog, record: dict[str, object]) -> None:
        write(log, record)
        signal.raise_signal(signal.SIGTERM)

    with mock.patch.object(MetricsLog, "write", write_and_stop):
        return Done(*nlpstack(*words))


# -- folders ---------------------------------------------------------------------------------------------------------


def no_home(place: Place) -> None:
    """Without a home, and where no library can keep what it likes to keep there, a run says nothing of it."""
    out = place.folder / "homeless" / "a"
    homeless = {"HOME": NOWHERE, "XDG_CACHE_HOME": NOWHERE, "XDG_CONFIG_HOME": NOWHERE, "MPLCONFIGDIR": None}
    ends_well(place.sh(place.words(out), **homeless), place, out)
    require((out / "loss.png").exists(), "the picture is missing")
    picture = place.folder / "attention.png"
    words = line("nlpstack", "attention", "to be", "--model", out, "--out", picture, "--quiet")
    ends_well(place.sh(words, **homeless), place)


def no_room_for_temporary_files(place: Place) -> None:
    """A folder for temporary files that is full, or is not there."""
    full = place.folder / "full"
    full.mkdir()
    kinds = str(failing.mask(FULL))
    loaded = {"LD_PRELOAD": str(place.preload), "FAULTS_FOLDER": str(full), "FAULTS_KINDS": kinds, "FAULTS_AT": "1"}
    loaded |= {"FAULTS_ERRNO": str(errno.ENOSPC), "FAULTS_ONWARD": "1"} if place.preload else {}
    for number, values in enumerate((loaded if place.preload else {}, {"TMPDIR": NOWHERE})):
        values = {"TMPDIR": str(full), **values}
        out = place.folder / "temporary" / str(number)
        ends_well(place.sh(place.words(out), **values), place, out)
        for words in (
            place.words(place.folder / "temporary" / "dry", "--dry-run"),
            line("nlpstack", "eval", place.run, "--quiet"),
            line("nlpstack", "eval", place.run / "model", "--data", place.text, "--quiet"),
            line(
                "nlpstack",
                "tokenizer",
                "train",
                "--data",
                place.text,
                "--vocab-size",
                400,
                "--out",
                out / "t",
                "--quiet",
            ),
            line("nlpstack", "attention", "to be", "--model", out, "--out", place.folder / "b.png", "--quiet"),
        ):
            done = place.sh(words, **values)
            require(done.code == 0 or (done.code == 2 and done.err.count("nlpstack: ") == 1), f"{words}: {done}")
        require(not any(full.iterdir()), f"left over: {list(full.iterdir())}")


def no_current_folder(place: Place) -> None:
    """In a folder that has been removed every command is refused in one line."""
    out = place.folder / "from-nowhere" / "a"
    for words in (place.words(out), place.words("runs/a"), "nlpstack generate --model runs/a", "nlpstack recipes"):
        ends_in_a_line(place.sh(f"mkdir gone && cd gone && rmdir ../gone && exec {words}"), "the current folder: ")
    require(not out.exists(), "something was written")


# -- streams ---------------------------------------------------------------------------------------------------------


def closed_streams(place: Place, ways: Sequence[str] = (">&-", "2>&-", "<&-", "<&- >&- 2>&-")) -> None:
    """Closed standard streams: nothing is printed there, and no file of ours takes their place."""
    for number, closed in enumerate(ways):
        out = place.folder / f"closed-{number}" / "a"
        ends_well(place.sh(f"{place.words(out).replace(' --quiet', '')} 2>said {closed}"), place, out)
        model = out / "model"
        require(tree(model).keys() == tree(place.run / "model").keys(), "the model's folder holds other files")
        done = place.sh(f"{line('nlpstack', 'generate', '--model', out, '--max-new-tokens', 3, '--quiet')} {closed}")
        require(done.code == 0 and done.err == "", f"generate {closed}: {done}")
    done = place.sh("nlpstack recipes nowhere 2>&-")
    require(done.code == 2, f"a refusal without stderr: {done}")


def closed_input(place: Place) -> None:
    """Commands that read standard input, where there is none."""
    for words in (
        line("nlpstack", "tokenizer", "encode", "--tokenizer", place.run),
        line("nlpstack", "tokenizer", "decode", "--tokenizer", place.run),
        line("nlpstack", "generate", "--model", place.run, "--chat", "--quiet"),
    ):
        done = place.sh(f"{words} <&-")
        require(done.code in (0, 2) and done.err.count("\n") <= 1, f"{words}: {done}")


SHORT = ("recipes", "recipes gpt --json", "pretrain --help", "--version")  # they load no torch


def full_output(place: Place, commands: Sequence[str] = SHORT) -> None:
    """Standard output on a full device: exit code 2 and one line, also of what click prints itself."""
    for words in commands:
        ends_in_a_line(place.sh(f"nlpstack {words} >/dev/full"), "stdout", "No space left on device")


def full_streams(place: Place) -> None:
    """Results that find no room: exit code 2 and one line, and what was made is there; so too for a full stderr."""
    out, other = (place.folder / f"full-{name}" / "a" for name in ("stdout", "stderr"))
    model = place.run
    run = line(*pretrain(place.text, out, "--quiet", "--json", **VALUES))
    generate = line("generate", "--model", model, "--max-new-tokens", 3, "--quiet")
    rest = (line("eval", model, "--json", "--quiet"), line("eval", model, "--quiet"), "info gpt", "doctor")
    full_output(place, (run, f"{run} --resume", generate, *rest))
    require(outcome(out).weights == place.weights, "other weights")
    done = place.sh(f"{place.words(other).replace(' --quiet', '')} 2>/dev/full")
    require(done.code == 2, f"stderr on a full device: {done}")
    done = place.sh(f"{place.words(other, '--resume')}")
    require(done.code == 0 or not (other / "config.toml").exists(), f"{done}")


# -- clocks ----------------------------------------------------------------------------------------------------------


def jumping_clock(place: Place) -> None:
    """A clock that jumps by three years at every other look, and folders of the future and of the distant past."""
    require(place.preload is not None, "the clock cannot be moved here")
    jumps = {"LD_PRELOAD": str(place.preload), "FAULTS_CLOCK": str(3 * 365 * 86400)}
    out = place.folder / "clock" / "runs" / "a"
    ends_well(place.sh(place.words(out), **jumps), place, out)
    for moment in (time.time() + 10**9, 1.0):
        shutil.rmtree(out)
        done = stop_after_the_settling([str(word) for word in pretrain(place.text, out, "--quiet", **VALUES)])
        require(done.code == 143, f"{done}")
        for path in (*out.parent.rglob("*"), place.text):
            os.utime(path, (moment, moment))
        ends_well(place.sh(place.words(out, "--resume"), **jumps), place, out)
        ends_well(place.sh(line("nlpstack", "generate", "--model", out, "--max-new-tokens", 3, "--quiet")), place)
    other = out.parent / "b"
    shutil.copytree(out, other)
    os.utime(other / "results.json", (1.0, 1.0))
    data = place.folder / "pairs.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n' * 40)
    words = ("finetune", "--task", "generation", "--data", data, "--dry-run")
    done = place.sh(f"cd {shlex.quote(str(out.parent.parent))} && {line('nlpstack', *words)}")
    require("starts from runs/a\n" in done.err, f"does not say that it starts from runs/a, finished last: {done.err}")


CASES: Mapping[str, Callable[[Place], None]] = {
    case.__name__: case
    for case in (
        plain_locale,
        ascii_output,
        odd_paths,
        no_home,
        no_room_for_temporary_files,
        no_current_folder,
        closed_streams,
        closed_input,
        full_output,
        full_streams,
        jumping_clock,
    )
}


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=CASES, help="repeatable; all if none is given")
    options = parser.parse_args()
    found = 0
    with tempfile.TemporaryDirectory() as name:
        place = make(Path(name).resolve())
        for case in options.only or CASES:
            started = time.monotonic()
            try:
                CASES[case](place)
                print(f"{case}: as promised ({time.monotonic() - started:.0f} s)", flush=True)
            except AssertionError as fault:
                found += 1
                print(f"FINDING {case}: {fault}", flush=True)
    print(f"{found} findings")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
