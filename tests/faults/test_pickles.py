"""A short form of `python -m tests.faults.pickles`."""

import pickle

from tests.faults.payloads import payloads
from tests.faults.pickles import all_places, offer_all, other_trials


def test_no_pickle_is_opened_wherever_it_stands(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "goods").mkdir()
    names = list(payloads(tmp_path / "marker"))
    places = all_places(tmp_path / "goods", runs=False)
    tally = offer_all(tmp_path / "scratch", places, lambda n: [names[n % len(names)], names[(n + 9) % len(names)]])
    assert tally.findings == []
    assert tally.counts.total() == 2 * len(places)


def test_the_payloads_do_what_they_say_where_they_are_opened(tmp_path):
    marker = tmp_path / "marker"
    data = payloads(marker)["os.mkdir"]
    assert not marker.exists()
    pickle.loads(data)
    assert marker.exists()


def test_nothing_outside_a_folder_is_read_or_written(tmp_path):
    assert other_trials(tmp_path).findings == []
