from __future__ import annotations

import pytest

from hepdask.costs import FileLayout, Prediction, Rates, predict, weigh
from hepdask.executors import MAX_TASK_SECONDS, MIN_TASK_SECONDS, Job, cut_tree
from hepdask.fileset import InputFile
from hepdask.ranges import EntryRange
from hepdask.tree import TOLERANCE, arrange


def build_ranges(num_files: int, num_ranges: int, num_entries: int) -> tuple[EntryRange, ...]:
    files = [
        InputFile("d", f"{number}.root", "Events", (f"{number}.root",), {})
        for number in range(num_files)
    ]
    return tuple(
        EntryRange(file, number * num_entries, (number + 1) * num_entries)
        for file in files
        for number in range(num_ranges)
    )


def cut(ranges: tuple[EntryRange, ...], num_threads: int) -> list[float]:
    """Return what each task is expected to take."""
    job = Job("test", ranges, arrange(ranges), None)  # type: ignore[arg-type]  # the cut asks for no work
    return [job.expected_seconds(node) for node in cut_tree(job, None, num_threads)]


RATES = Rates(0.5, 0.01, 1e-4, 20.0, num_runs=3)


def test_weights_by_hand() -> None:
    ranges = build_ranges(2, 2, 1_000)
    layouts = {("0.root", "Events"): FileLayout("a"), ("1.root", "Events"): FileLayout("b", 100.0)}
    weights = weigh(ranges, layouts, {"a": RATES})
    # known: 0.5 s to open, 10 ms and 1,000 x 0.1 ms; not known: 50 ms, 2 ms and 1,000 x (2 us + 100 x 10 ns)
    assert list(weights) == pytest.approx([0.61, 0.11, 0.055, 0.005])


def test_branches_of_many_bytes_cost_more() -> None:
    ranges = build_ranges(1, 1, 1_000)
    few, many, unknown = (
        weigh(ranges, {("0.root", "Events"): FileLayout("", size)}, {})[0]
        for size in (8, 8_000, None)
    )
    assert few < unknown < many


def test_predictions_say_where_they_come_from() -> None:
    ranges = build_ranges(2, 2, 1_000)
    layouts = {("0.root", "Events"): FileLayout("a")}
    for rates, fraction, words in (
        ({}, 0.0, "no earlier run of this processor is known"),
        ({"a": RATES}, 0.5, "measured in 3 earlier runs for 50% of the events"),
        ({"a": RATES, "": RATES}, 1.0, "measured in 3 earlier runs)"),
    ):
        weights = weigh(ranges, layouts, rates)
        made = predict(ranges, weights, layouts, rates)
        assert made.busy_seconds == pytest.approx(sum(weights))
        assert made.measured_fraction == fraction
        assert words in str(made)
    assert made.num_bytes == 4_000 * 20
    assert predict((), (), {}, {}) == Prediction(0.0, 0)


def test_four_tasks_a_thread_and_smaller_ones_last() -> None:
    tasks = cut(build_ranges(1, 1_000, 100_000), 2)
    assert max(tasks) <= TOLERANCE * MAX_TASK_SECONDS
    tasks = cut(build_ranges(1, 64, 1_000), 2)
    assert 8 <= len(tasks) <= 24
    assert max(tasks[-4:]) <= max(tasks) / 2
    assert sum(tasks) == pytest.approx(sum(weigh(build_ranges(1, 64, 1_000), {}, {})))


def test_short_runs_are_not_cut_to_pieces() -> None:
    assert len(cut(build_ranges(1, 100, 1), 1_000)) <= 2 * 0.25 / MIN_TASK_SECONDS
    assert len(cut(build_ranges(1, 1, 10), 2)) == 1


def test_short_runs_are_spread_as_far_as_they_have_files() -> None:
    # as what is known of a session in which the files were open: they cost nothing
    for num_files, num_threads, num_tasks in (
        (2, 2, 2),
        (3, 2, 2),
        (2, 8, 2),
        (8, 8, 8),
        (1, 8, 1),
    ):
        ranges = build_ranges(num_files, 10, 10)
        weights = [1e-4] * len(ranges)
        job = Job("test", ranges, arrange(ranges), None, weights=weights)  # type: ignore[arg-type]
        tasks = cut_tree(job, None, num_threads)
        assert len(tasks) >= num_tasks
        assert (
            all(len({one.file for one in ranges[node.start : node.stop]}) == 1 for node in tasks)
            or num_files > num_threads
        )
    assert len(tasks) == 1


def test_a_cluster_without_workers_is_expected_to_get_some() -> None:
    assert len(cut(build_ranges(100, 10, 100_000), 0)) > 64


def test_more_threads_never_make_fewer_tasks() -> None:
    ranges = build_ranges(10, 20, 20_000)
    numbers = [len(cut(ranges, threads)) for threads in (1, 2, 8, 64, 1_000)]
    assert numbers == sorted(numbers)
