from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hepdask.executors.dask_placement import SHORT_SECONDS, place_tasks
from hepdask.tree import Node

TWO = {"tcp://b": 1, "tcp://a": 1}


def tasks(number: int) -> list[Node]:
    return [Node(index, index + 1) for index in range(number)]


def test_each_worker_has_half_of_equal_tasks() -> None:
    placed = place_tasks(tasks(4), lambda _: 0.1, TWO)
    assert list(placed.values()) == ["tcp://a"] * 2 + ["tcp://b"] * 2


def test_what_counts_is_time() -> None:
    placed = place_tasks(tasks(4), lambda one: 3.0 if one.start == 0 else 1.0, TWO)
    assert list(placed.values()) == ["tcp://a"] + ["tcp://b"] * 3


def test_a_worker_of_two_threads_has_twice_as_much() -> None:
    placed = place_tasks(tasks(6), lambda _: 0.1, {"tcp://a": 2, "tcp://b": 1})
    assert list(placed.values()) == ["tcp://a"] * 4 + ["tcp://b"] * 2


def test_long_runs_and_single_tasks_are_left_to_dask() -> None:
    assert place_tasks(tasks(4), lambda _: SHORT_SECONDS, TWO) == {}
    assert place_tasks(tasks(1), lambda _: 0.1, TWO) == {}
    assert place_tasks(tasks(4), lambda _: 0.1, {"tcp://a": 4}) == {}
    assert place_tasks(tasks(4), lambda _: 0.1, {}) == {}


@given(st.lists(st.floats(0, 0.1), min_size=2, max_size=40), st.integers(2, 6))
def test_all_tasks_have_a_place_in_order(costs: list[float], num_workers: int) -> None:
    threads = {f"tcp://{number}": 1 for number in range(num_workers)}
    nodes = tasks(len(costs))
    placed = place_tasks(nodes, lambda one: costs[one.start], threads)
    assert list(placed) == nodes
    assert list(placed.values()) == sorted(placed.values())
