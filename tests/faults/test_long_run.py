"""A long run holds no more at its end than after its beginning: a short form of `make torture`."""

import sys
from pathlib import Path

import pytest

from tests.faults.long_run import Sample, growth, watch

STEPS = 400


@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from /proc, on Linux only")
@pytest.mark.slow
def test_a_run_holds_no_more_at_its_end_than_after_its_beginning(tmp_path: Path) -> None:
    line, found = growth(watch(tmp_path, STEPS, train__batch_size=2), STEPS, allowed=0.05)
    assert found == [], line


LEVEL = [Sample(step, 300 << 20, 12, 3, 0, 9, 2) for step in range(1, 101)]


def test_what_stays_level_is_no_finding() -> None:
    noise = [one._replace(files=12 + one.step % 3, memory=one.memory + (one.step % 5 << 16)) for one in LEVEL]
    assert growth(noise, 101)[1] == []


@pytest.mark.parametrize("name", Sample._fields[1:])
def test_what_grows_is_found(name: str) -> None:
    added = [one.step << 17 if name == "memory" else one.step // 33 for one in LEVEL]  # 128 KiB a step, or three things
    grown = [one._replace(**{name: getattr(one, name) + more}) for one, more in zip(LEVEL, added, strict=True)]
    (finding,) = growth(grown, 101)[1]
    assert finding.startswith(f"{name} grew from ")


def test_too_few_samples_are_a_finding() -> None:
    assert growth(LEVEL[:20], 101)[1] == ["only 0 samples after the warm-up"]
