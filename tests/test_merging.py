from __future__ import annotations

from typing import Any

import numpy as np

from hepdask.completeness import Span
from hepdask.merging import Merging
from hepdask.metrics import host_name
from hepdask.partial import PartialResult, merge_results


def leaf(number: int, accumulator: Any) -> PartialResult:
    return PartialResult(
        accumulator, (Span("d", "f", "t", number, number + 1),), is_whole=True, unsaved_seconds=1.0
    )


def test_only_what_a_merge_here_has_made_is_changed() -> None:
    merging = Merging("w", None)
    leaves = [leaf(n, {"x": np.full(3, 0.1 * n)}) for n in range(4)]
    before = [one.accumulator["x"].copy() for one in leaves]
    first, second = merging.merge(*leaves[:2]), merging.merge(*leaves[2:])
    made = first.accumulator
    assert made is not leaves[0].accumulator
    merged = merging.merge(first, second)
    assert merged.accumulator is made
    assert all(
        np.array_equal(one.accumulator["x"], x) for one, x in zip(leaves, before, strict=True)
    )
    other = merge_results(merge_results(*leaves[:2]), merge_results(*leaves[2:]))
    assert merged.accumulator["x"].tobytes() == other.accumulator["x"].tobytes()
    assert merged.processed == other.processed
    assert merged.is_whole


def test_what_another_task_has_made_is_not_changed() -> None:
    made = Merging("w", None).merge(leaf(0, [1]), leaf(1, [2]))
    merged = Merging("w", None).merge(made, leaf(2, [3]))
    assert made.accumulator == [1, 2]
    assert merged.accumulator == [1, 2, 3]


def test_what_does_not_fit_is_left_out_and_what_stays_is_whose_it_was() -> None:
    merging = Merging("w", None)
    own = [1]
    merged = merging.merge(leaf(0, own), leaf(1, "text"))
    assert merged.accumulator is own
    assert [one.entry_start for one in merged.failures] == [1]
    merged = merging.merge(merged, leaf(2, [2]))
    assert merged.accumulator == [1, 2]
    assert own == [1]  # the processor may hold it
    # what was made here stays so, even if the next one does not fit
    kept = merging.merge(merged, leaf(3, "text")).accumulator
    assert kept is merged.accumulator


def test_failed_ranges_cost_nothing() -> None:
    merging = Merging("w", None)
    merged = merging.merge(merging.merge(leaf(0, [1]), PartialResult()), leaf(1, [2]))
    assert merged.accumulator == [1, 2]
    assert merging.merge(PartialResult(), PartialResult()).accumulator is None


def test_time_is_in_the_costs_and_not_in_the_results() -> None:
    merging = Merging("w", None)
    assert not merging.merge(leaf(0, [1]), leaf(1, [2])).metrics
    assert merging.costs.total().hosts[host_name()].merge_seconds > 0
