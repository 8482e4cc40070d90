from __future__ import annotations

import pytest

from hepdask.errors import OptionError
from hepdask.stopping import StopRules, StopTally


def test_by_default_failures_that_are_skipped_end_nothing() -> None:
    tally = StopTally(StopRules(), 1_000)
    assert tally.note(0, 999, {}) == ""


def test_a_fraction_ends_a_run_when_it_is_exceeded() -> None:
    tally = StopTally(StopRules(max_failed_fraction=0.1), 1_000)
    assert tally.note(5, 100, {}) == ""
    assert "101 of 1,000 entries have failed" in tally.note(0, 1, {})


def test_what_failed_before_counts() -> None:
    tally = StopTally(StopRules(max_failed_fraction=0.1), 1_000, 150)
    assert "max_failed_fraction=0.1" in tally.note(1, 0, {})


def test_a_fraction_of_zero_allows_none() -> None:
    tally = StopTally(StopRules(max_failed_fraction=0.0), 10)
    assert tally.note(1, 0, {}) == ""
    assert tally.note(0, 1, {})


def test_the_same_mistake_everywhere_ends_a_run() -> None:
    tally = StopTally(StopRules(max_same_failures=3), 1_000)
    assert tally.note(1, 10, {"KeyError at a.py": 2}) == ""
    why = tally.note(0, 10, {"KeyError at a.py": 1})
    assert "3 ranges have failed in the same way (KeyError at a.py)" in why


def test_a_rare_mistake_does_not() -> None:
    tally = StopTally(StopRules(max_same_failures=3), 1_000)
    assert tally.note(100, 10, {"KeyError at a.py": 50}) == ""


def test_different_mistakes_do_not() -> None:
    tally = StopTally(StopRules(max_same_failures=3), 1_000)
    assert tally.note(0, 10, {f"KeyError at a.py, line {n}": 1 for n in range(10)}) == ""


@pytest.mark.parametrize("fraction", [-0.1, 1.5])
def test_a_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(OptionError, match="max_failed_fraction"):
        StopRules(max_failed_fraction=fraction)


def test_a_number_out_of_range() -> None:
    with pytest.raises(OptionError, match="max_same_failures"):
        StopRules(max_same_failures=0)
