"""Calls of the system that fail leave the old state or the new one: a short form of `make torture`."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import failing

pytestmark = pytest.mark.skipif(bool(failing.missing()), reason=failing.missing())


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return failing.build(tmp_path_factory.mktemp("library"))


@pytest.mark.parametrize(
    ("names", "every"),
    [
        (["file", "metrics", "record"], 1),
        (["checkpoint", "model", "tokenizer", "shards"], 12),
        pytest.param(["pretrain"], 40, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_call_that_fails_is_said_in_one_line_and_leaves_a_whole_state(names, every, library) -> None:
    words = [word for name in names for word in ("--only", name)]
    command = [sys.executable, "-m", "tests.faults.failing_calls", "--preloaded", "--every", str(every), *words]
    environment = failing.environment(library)
    done = subprocess.run(command, cwd=failing.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("\n0 findings\n")
    assert all(f"\n{name}" in done.stdout for name in names)
    assert "'refused': " in done.stdout


def test_a_call_told_to_fail_fails_once_and_below_the_folder_alone(library, tmp_path) -> None:
    """Or the others would find nothing."""
    program = (
        "import sys; from pathlib import Path\n"
        "for name in ('beside/a', 'watched/b', 'watched/c'):\n"
        "    try: print(Path(sys.argv[1], name).write_text('x' * 9))\n"
        "    except OSError as error: print(error.strerror)\n"
    )
    for name in ("beside", "watched"):
        (tmp_path / name).mkdir()
    orders = {"folder": 0, "kinds": failing.mask((failing.WRITE,)), "at": 1, "errno": 28}
    environment = {**failing.environment(library, **orders), "FAULTS_FOLDER": str(tmp_path / "watched")}
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["9", "No space left on device", "9"]
