"""A short form of `python -m tests.faults.mutate_folders`."""

from functools import partial

from tests.faults.mutate_folders import Goods, make_trial
from tests.faults.trials import EQUAL, REFUSED, run_here


def test_a_damaged_folder_gives_what_was_saved_or_one_line(tmp_path):
    goods = Goods(tmp_path / "goods", runs=False)
    tally = run_here(partial(make_trial, goods), n=120, seed=1, folder=tmp_path)
    assert tally.findings == []
    assert tally.counts.total() == 120
    assert tally.counts[REFUSED] > 60
    assert tally.counts[EQUAL] > 0
