"""Commands end well, or in one line, wherever they are run: a short form of `make torture`."""

import tempfile
from pathlib import Path

import pytest

from tests.faults.surroundings import Place, closed_streams, full_output, make, odd_paths
from tests.tiny import nlpstack


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make(tmp_path_factory.mktemp("place").resolve())


@pytest.mark.parametrize("name", ['it\'s a "path"', "new\nline", "[漢字]*?\u2028"])
def test_the_printed_command_works_as_printed_wherever_the_run_stands(name: str, place: Place) -> None:
    odd_paths(place, [name])


@pytest.mark.slow
def test_no_file_takes_the_place_of_a_closed_stream(place: Place) -> None:
    closed_streams(place, ["<&- >&- 2>&-"])


def test_output_that_finds_no_room_is_an_error_of_one_line(place: Place) -> None:
    full_output(place)


def test_a_fault_of_ours_whose_traceback_finds_no_room_is_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nlpstack.eval.evaluate", lambda *_, **__: [][0])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    done = nlpstack("eval")
    assert (done.code, done.out) == (3, "")
    fault = "a fault of nlpstack (IndexError: list index out of range)"
    assert done.err == f"nlpstack: {fault}; --debug shows the traceback, which cannot be saved\n"
