from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepdask.executors import dask_placement
from hepdask.executors.dask_placement import SHORT_SECONDS, find_open
from hepdask.fileset import InputFile
from hepdask.opening import ReadOptions
from hepdask.readers.handles import close_all, lease
from hepdask.tree import Node

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from distributed import Client

    from tests.conftest import NanoFiles

TWO = {"tcp://b": 1, "tcp://a": 1}


def tasks(number: int) -> list[Node]:
    return [Node(index, index + 1) for index in range(number)]


def place_tasks(
    nodes: Sequence[Node],
    seconds: Callable[[Node], float],
    threads: Mapping[str, int],
    **opened: str,
) -> dict[Node, str]:
    """Place tasks of files a, b, c, ...; of workers, too, only the last letter is given."""
    by_address = {f"tcp://{worker}": files.split() for worker, files in opened.items()}
    return dask_placement.place_tasks(
        nodes, seconds, threads, lambda one: {chr(ord("a") + one.start)}, lambda: by_address
    )


def test_each_worker_has_half_of_equal_tasks() -> None:
    placed = place_tasks(tasks(4), lambda _: 0.1, TWO)
    assert list(placed.values()) == ["tcp://a"] * 2 + ["tcp://b"] * 2


def test_what_counts_is_time() -> None:
    placed = place_tasks(tasks(4), lambda one: 3.0 if one.start == 0 else 1.0, TWO)
    assert list(placed.values()) == ["tcp://a"] + ["tcp://b"] * 3


def test_a_worker_of_two_threads_has_twice_as_much() -> None:
    placed = place_tasks(tasks(6), lambda _: 0.1, {"tcp://a": 2, "tcp://b": 1})
    assert list(placed.values()) == ["tcp://a"] * 4 + ["tcp://b"] * 2


def open_only(path: str) -> None:
    close_all()
    if path:
        with lease(InputFile("nano", path, "Events", (path,), {}), ReadOptions()):
            pass


def test_workers_say_which_files_they_have_open(client: Client, nano_files: NanoFiles) -> None:
    first, second = client.nthreads()
    path = str(nano_files.paths[0])
    client.run(open_only, "", workers=[first])
    client.run(open_only, path, workers=[second])
    assert find_open(client, [first, second]) == {first: [], second: [path]}
    assert find_open(client, [first, second] * 10) == {}
    silent: Any = "tcp://127.0.0.1:1"
    assert find_open(client, [second, silent]) in ({}, {second: [path]})


@pytest.mark.parametrize(
    ("opened", "expected"),
    [
        ({"a": "c d", "b": "a b"}, "bbaa"),
        ({"b": "a"}, "bbaa"),
        ({"a": "d"}, "bbaa"),
        ({"a": "a d", "b": "d"}, "aabb"),
        ({"a": "x", "b": ""}, "aabb"),
        ({"c": "a b"}, "aabb"),
    ],
)
def test_files_are_read_where_they_are_open(opened: dict[str, str], expected: str) -> None:
    placed = place_tasks(tasks(4), lambda _: 0.1, TWO, **opened)
    assert "".join(worker[-1] for worker in placed.values()) == expected


def test_a_share_goes_to_a_worker_of_its_size() -> None:
    three = {"tcp://a": 2, "tcp://b": 1, "tcp://c": 1}
    placed = place_tasks(tasks(4), lambda _: 0.1, three, a="c d", b="d", c="c")
    assert "".join(worker[-1] for worker in placed.values()) == "aacb"


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
