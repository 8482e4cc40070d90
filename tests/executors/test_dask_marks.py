"""Which tasks are run in child processes; what then comes of it is in `tests.faults.test_workers`."""

from __future__ import annotations

import pytest

from hepdask.executors.dask_marks import CLEARED, DIED, KILLS, TWICE, is_suspect


@pytest.mark.parametrize(
    ("deaths", "own", "others"),
    [
        ("", False, False),
        (DIED, True, False),
        (KILLS, True, False),
        (CLEARED, False, False),
        (f"{CLEARED}, {DIED}, {DIED}", False, False),
        (f"{DIED}, {DIED}, {DIED}", True, True),
        (f"{DIED}, {KILLS}", True, True),
        # others kill the workers
        (f"{DIED}, {CLEARED}, {CLEARED}", False, False),
        (f"{TWICE}, {CLEARED}, {CLEARED}", True, False),
        (f"{KILLS}, {CLEARED}, {CLEARED}", True, False),
        (f"{DIED}, {DIED}, {DIED}, {CLEARED}, {CLEARED}", False, False),
        # a node of many threads lost a few innocent tasks, too
        (f"{DIED}, {KILLS}, {KILLS}, {CLEARED}, {CLEARED}", True, True),
    ],
)
def test_who_is_suspected(deaths: str, own: bool, others: bool) -> None:
    known = {f"place {number}": one for number, one in enumerate(deaths.split(", ")) if one}
    assert is_suspect("place 0", known, is_young=False) is own
    assert is_suspect("another place", known, is_young=False) is others


def test_a_worker_that_has_just_replaced_another_is_careful() -> None:
    assert is_suspect("another place", {"place": DIED}, is_young=True)
    assert not is_suspect("another place", {}, is_young=True)
    assert not is_suspect("another place", {"place": CLEARED}, is_young=True)
    cleared = {"one": CLEARED, "two": CLEARED, "three": DIED}
    assert not is_suspect("another place", cleared, is_young=True)
