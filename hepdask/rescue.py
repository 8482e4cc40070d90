"""Process one range as often, and in as many pieces, as the policy says."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from hepdask.metrics import PartialMetrics
from hepdask.partial import PartialResult, merge_results
from hepdask.recovery import Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from hepdask.failures import Failure
    from hepdask.ranges import EntryRange
    from hepdask.recovery import RecoveryPolicy

__all__ = ["Monitor", "Rescue", "Sizes"]


class Monitor(Protocol):
    """How a task speaks with the run that it belongs to."""

    worker: str
    """Name of this worker, for failures."""

    def is_stopped(self) -> bool:
        """Return whether the run is to end: no further range is started."""
        ...

    def range_done(self, num_entries: int, num_bytes: int, failure: Failure | None) -> None:
        """Take note of a range that was processed or has failed."""
        ...

    def node_loaded(self, num_entries: int) -> None:
        """Take note of ranges whose result came from the store."""
        ...

    def interrupt(self) -> None:
        """Take note of Ctrl-C in the middle of a range: the run is stopped."""
        ...


@dataclass(slots=True)
class _Size:
    largest_done: int = 0
    too_large: tuple[int, ...] = ()


@dataclass(slots=True)
class Sizes:
    """How large the ranges of a file may be, after some of them have run out of memory.

    The next range of the file is then halved before it is tried, and not after it has cost a worker. Threads of a worker
    share it.
    """

    _sizes: dict[tuple[str, str], _Size] = field(default_factory=dict)

    def note_done(self, entry_range: EntryRange) -> None:
        """Take note of a range that was done at once."""
        size = self._size_of(entry_range)
        size.largest_done = max(size.largest_done, entry_range.num_entries)

    def note_too_large(self, entry_range: EntryRange) -> None:
        """Take note of a range that could not be done at once, but in pieces."""
        size = self._size_of(entry_range)
        size.too_large = tuple({*size.too_large, entry_range.num_entries})

    def is_too_large(self, entry_range: EntryRange) -> bool:
        """Return whether a range of this size or a smaller one was too large, and none so large has ever been done."""
        size = self._size_of(entry_range)
        num_entries = entry_range.num_entries
        return any(size.largest_done < one <= num_entries for one in size.too_large)

    def _size_of(self, entry_range: EntryRange) -> _Size:
        file = entry_range.file
        return self._sizes.setdefault((file.dataset, file.file_path), _Size())


class Rescue:
    """Processes the ranges of a task.

    Parameters
    ----------
    once : callable
        Processes a range once; a failure is in the result.
    recovery : RecoveryPolicy
        What is done after failures.
    monitor : Monitor
        Is told of each range, and of each piece of one.
    sizes : Sizes
        What has run out of memory, in this process and run.
    """

    def __init__(
        self,
        once: Callable[[EntryRange], PartialResult],
        recovery: RecoveryPolicy,
        monitor: Monitor,
        sizes: Sizes,
    ) -> None:
        self._once = once
        self._recovery = recovery
        self._monitor = monitor
        self._sizes = sizes
        self._num_lost = 0

    def process(self, entry_range: EntryRange) -> PartialResult:
        """Process a range; what of it failed for good is in the result's failures."""
        self._num_lost = 0
        return self._process(entry_range)

    def _process(self, entry_range: EntryRange) -> PartialResult:
        may_split = (
            entry_range.num_entries > self._recovery.min_entries
            and self._num_lost < self._recovery.max_lost_pieces
        )
        if may_split and self._sizes.is_too_large(entry_range):
            return self._split(entry_range, PartialResult())
        spent = PartialMetrics()
        current = entry_range
        attempt = 1
        while True:
            result = self._once(current)
            step = self._decide(result, entry_range, attempt)
            if step.action == "split":
                return self._split(current, replace(result, metrics=spent + result.metrics))
            if step.action == "give up" or not self._wait(step.wait_seconds):
                break
            spent += result.metrics
            attempt += 1
            if step.next_replica:
                current = _next_replica(current, result.failures[0])
        if not result.failures:
            self._sizes.note_done(entry_range)
            if attempt == 1:
                self._report(entry_range, result, ())
                return result
        failures = tuple(replace(one, attempts=attempt) for one in result.failures)
        self._report(entry_range, result, failures)
        return replace(result, failures=failures, metrics=spent + result.metrics)

    def _split(self, entry_range: EntryRange, spent: PartialResult) -> PartialResult:
        left, right = map(self._process, _halves(entry_range))
        merged = merge_results(left, right, worker=self._monitor.worker)
        # a poisonous event fails at every size: that says nothing about its neighbours
        if not any(one.kind == "resources" for one in merged.failures):
            self._sizes.note_too_large(entry_range)
        return replace(
            merged,
            metrics=spent.metrics + merged.metrics,
            messages=spent.messages + merged.messages,
        )

    def _decide(self, result: PartialResult, entry_range: EntryRange, attempt: int) -> Step:
        if not result.failures:
            return Step("give up")  # there is nothing to recover
        return self._recovery.decide(
            result.failures[0],
            attempt=attempt,
            num_replicas=len(entry_range.file.replicas),
            num_lost_pieces=self._num_lost,
        )

    def _wait(self, seconds: float) -> bool:
        """Wait before the next attempt; return False if the run is stopped meanwhile."""
        end = time.monotonic() + seconds
        pause = threading.Event()
        while not self._monitor.is_stopped():
            left = end - time.monotonic()
            if left <= 0:
                return True
            pause.wait(min(left, 0.2))
        return False

    def _report(
        self, entry_range: EntryRange, result: PartialResult, failures: tuple[Failure, ...]
    ) -> None:
        self._num_lost += len(failures)
        num_bytes = sum(one.num_requested_bytes for one in result.metrics.files.values())
        self._monitor.range_done(
            entry_range.num_entries, num_bytes, failures[0] if failures else None
        )


def _halves(entry_range: EntryRange) -> tuple[EntryRange, EntryRange]:
    middle = (entry_range.entry_start + entry_range.entry_stop) // 2
    return (
        replace(entry_range, entry_stop=middle),
        replace(entry_range, entry_start=middle),
    )


def _next_replica(entry_range: EntryRange, failure: Failure) -> EntryRange:
    """Let another replica come first; a bad file is final for its replica."""
    file = entry_range.file
    others = tuple(one for one in file.replicas if one != failure.replica)
    if failure.replica not in file.replicas or not others:
        # opened from somewhere, but not the file that was asked for: its endpoint's health says so from now on
        return entry_range
    replicas = others if failure.kind == "input" else (*others, failure.replica)
    return replace(entry_range, file=replace(file, replicas=replicas))
