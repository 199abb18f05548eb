"""A short form of `python -m tests.faults.mutate_data`."""

from functools import partial

from tests.faults.mutate_data import all_formats, make_trial
from tests.faults.trials import ACCEPTED, REFUSED, run_here


def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path):
    formats = all_formats(tmp_path / "goods")
    tally = run_here(partial(make_trial, formats), n=2 * len(formats), seed=1, folder=tmp_path)
    assert tally.findings == []
    assert tally.by_group.keys() == formats.keys()
    assert tally.counts[REFUSED] > 10
    assert tally.counts[ACCEPTED] > 10
