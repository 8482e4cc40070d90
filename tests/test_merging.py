from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hepdask import held as held_results
from hepdask.completeness import Span
from hepdask.merging import Merging
from hepdask.metrics import host_name
from hepdask.partial import PartialResult, merge_results

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from hepdask.held import Held


def leaf(number: int, accumulator: Any) -> PartialResult:
    return PartialResult(
        accumulator, (Span("d", "f", "t", number, number + 1),), is_whole=True, unsaved_seconds=1.0
    )


def merge(merging: Merging, first: Held, second: Held) -> Held:
    right, left = merging.release(second), merging.release(first)
    return merging.merge(left, right, is_own=first.is_own)


def merge_all(merging: Merging, *accumulators: Any) -> PartialResult:
    """Merge them one after the other, from the left."""
    held = merging.hold(leaf(0, accumulators[0]))
    for number, one in enumerate(accumulators[1:], 1):
        held = merge(merging, held, merging.hold(leaf(number, one)))
    return merging.release(held)


def test_only_what_a_merge_here_has_made_is_changed() -> None:
    merging = Merging("w", None)
    leaves = [leaf(n, {"x": np.full(3, 0.1 * n)}) for n in range(4)]
    before = [one.accumulator["x"].copy() for one in leaves]
    first = merge(merging, *map(merging.hold, leaves[:2]))
    second = merge(merging, *map(merging.hold, leaves[2:]))
    assert first.is_own
    merged = merging.release(merge(merging, first, second))
    for one, x in zip(leaves, before, strict=True):
        assert np.array_equal(one.accumulator["x"], x)
    other = merge_results(merge_results(*leaves[:2]), merge_results(*leaves[2:]))
    assert merged.accumulator["x"].tobytes() == other.accumulator["x"].tobytes()
    assert merged.processed == other.processed
    assert merged.is_whole


def test_what_was_made_here_grows_where_it_is() -> None:
    merging = Merging("w", None)
    held = merge(merging, merging.hold(leaf(0, [1])), merging.hold(leaf(1, [2])))
    made = merging.release(held)
    merged = merging.merge(made, leaf(2, [3]), is_own=held.is_own)
    assert merging.release(merged).accumulator is made.accumulator


def test_what_another_task_has_made_is_not_changed() -> None:
    made = merge_all(Merging("w", None), [1], [2])
    merging = Merging("w", None)
    merged = merging.release(merge(merging, merging.hold(made), merging.hold(leaf(2, [3]))))
    assert made.accumulator == [1, 2]
    assert merged.accumulator == [1, 2, 3]


def test_what_does_not_fit_is_left_out_and_what_stays_is_whose_it_was() -> None:
    merging = Merging("w", None)
    own = [1]
    held = merge(merging, merging.hold(leaf(0, own)), merging.hold(leaf(1, "text")))
    assert not held.is_own  # the processor may hold it
    held = merge(merging, held, merging.hold(leaf(2, [2])))
    assert held.is_own
    held = merge(merging, held, merging.hold(leaf(3, "text")))
    assert held.is_own
    merged = merging.release(held)
    assert merged.accumulator == [1, 2]
    assert own == [1]
    assert [one.entry_start for one in merged.failures] == [1, 3]


def test_failed_ranges_cost_nothing() -> None:
    assert merge_all(Merging("w", None), [1], None, [2]).accumulator == [1, 2]
    assert merge_all(Merging("w", None), None, None).accumulator is None


def test_time_is_in_the_costs_and_not_in_the_results() -> None:
    merging = Merging("w", None)
    assert not merge_all(merging, [1], [2]).metrics
    assert merging.costs.total().hosts[host_name()].merge_seconds > 0


def test_large_results_that_wait_for_long_are_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_results, "MIN_BYTES", 100)
    merging = Merging("w", None, str(tmp_path))
    held = [merging.hold(leaf(n, np.full(100, 0.1 * n))) for n in range(5)]
    small = merging.hold(leaf(5, 1))
    merging.make_room()
    assert [one.is_in_memory for one in held] == [False] * 3 + [True] * 2
    assert small.is_in_memory
    taken = [merging.release(one) for one in held]
    assert [one.accumulator[0] for one in taken] == [0.1 * n for n in range(5)]
    assert [one.is_own for one in held] == [True] * 3 + [False] * 2
    assert list(tmp_path.iterdir()) == []
