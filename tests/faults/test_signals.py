"""A run that is stopped anywhere says how to go on and ends as if never stopped: a short form of `make torture`."""

from pathlib import Path

import pytest

from tests.faults.signals import INT, TERM, torture, words_in_shell

LONG = pytest.mark.slow
MOMENTS = [("save", (TERM,)), pytest.param("validation", (INT, INT), marks=LONG)]


@pytest.mark.parametrize(("moment", "sent"), [*MOMENTS, pytest.param("finishing", (TERM,), marks=LONG)])
def test_a_run_that_is_stopped_says_how_to_go_on_and_ends_as_if_never_stopped(moment, sent, tmp_path: Path) -> None:
    places, found = torture(tmp_path, runs=1, seed=3, moments=[moment], sequences=[sent])
    assert found == 0
    assert places.total() == 1


def test_the_printed_command_is_read_as_a_shell_reads_it() -> None:
    assert words_in_shell(r"nlpstack a 'b c' $'d\ne'") == ["a", "b c", "d\ne"]
