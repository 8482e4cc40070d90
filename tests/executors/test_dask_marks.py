"""Which tasks are run in child processes of their workers, as they may kill them."""

from __future__ import annotations

import pytest

from hepdask.executors.dask_marks import (
    CLEARED,
    DIED,
    FULL_WORKER,
    KILLS,
    SEEN,
    TWICE,
    is_suspect,
    may_kill,
)


@pytest.mark.parametrize(
    ("deaths", "expected"),
    [
        ({}, False),
        ({"0-4": SEEN}, True),
        ({"0-4": DIED}, True),
        ({"0-4": TWICE}, True),
        ({"0-4": KILLS}, True),
        ({"0-4": CLEARED}, False),
        ({"4-8": DIED}, False),
        # whatever kills is in many events ...
        ({"4-8": DIED, "8-12": DIED}, False),
        ({"4-8": DIED, "8-12": KILLS}, True),
        ({"4-8": DIED, "8-12": DIED, "12-16": TWICE}, True),
        ({"4-8": SEEN, "8-12": SEEN, "12-16": SEEN}, True),
        # ... or somebody else kills the workers
        ({"4-8": DIED, "8-12": CLEARED, "12-16": CLEARED, "16-20": DIED}, False),
        ({"0-4": DIED, "8-12": CLEARED, "12-16": CLEARED}, False),
        ({"0-4": TWICE, "8-12": CLEARED, "12-16": CLEARED}, True),
        ({"4-8": KILLS, "8-12": CLEARED, "12-16": CLEARED, "16-20": KILLS}, True),
        # what is kept in memory is kept by any task
        ({"tcp://192.0.2.1:1": FULL_WORKER, "8-12": CLEARED, "12-16": CLEARED}, False),
        ({"tcp://192.0.2.1:1": FULL_WORKER, "tcp://192.0.2.2:1": FULL_WORKER}, True),
    ],
)
def test_suspects(deaths: dict[str, str], expected: bool) -> None:
    assert is_suspect("0-4", deaths, is_young=False) is expected


@pytest.mark.parametrize(
    ("deaths", "expected"),
    [
        ({}, False),
        ({"4-8": SEEN}, True),
        ({"4-8": DIED}, True),
        ({"4-8": CLEARED}, False),
        ({"4-8": CLEARED, "8-12": CLEARED, "12-16": DIED}, False),
    ],
)
def test_a_worker_that_replaces_another_one_is_careful(
    deaths: dict[str, str], expected: bool
) -> None:
    assert is_suspect("0-4", deaths, is_young=True) is expected


@pytest.mark.parametrize(
    ("deaths", "expected"),
    [
        ({}, True),
        ({"4-8": DIED}, True),
        ({"4-8": CLEARED, "8-12": CLEARED}, False),
        ({"4-8": CLEARED, "8-12": CLEARED, "0-4": DIED}, True),
        ({"4-8": CLEARED, "8-12": CLEARED, "12-16": KILLS, "16-20": KILLS}, True),
    ],
)
def test_what_dask_has_given_up(deaths: dict[str, str], expected: bool) -> None:
    assert may_kill("0-4", deaths) is expected
