"""What runs on workers: inspect files, process a node of the tree, merge two results. Imports no dask.

Exceptions become values here: a `PartialResult` says what was done, what failed and why, and a failed range keeps its
place in the tree as an empty leaf. So nothing is lost when a worker's result is merged, and nothing is counted twice
when dask runs a task again.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
import traceback
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import cloudpickle

from hepdask.accumulator import add
from hepdask.attempt import Attempt
from hepdask.completeness import Span
from hepdask.errors import AccumulatorError
from hepdask.failures import Failure, build_failure
from hepdask.metadata import FileMetadata, read_file_metadata
from hepdask.metrics import Counters, PartialMetrics, host_name
from hepdask.recovery import RecoveryPolicy, Step
from hepdask.tree import arrange

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hepdask.attempt import Work
    from hepdask.fileset import InputFile
    from hepdask.opening import ReadOptions
    from hepdask.ranges import EntryRange

__all__ = [
    "Monitor",
    "PartialResult",
    "attempt_packed",
    "attempt_range",
    "inspect_files",
    "load_work",
    "merge_results",
    "process_node",
]

#: Works (processor and reader) that a process keeps unpickled, for the tasks of a run and for concurrent runs.
MAX_WORKS = 4


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

    def interrupt(self) -> None:
        """Take note of Ctrl-C in the middle of a range: the run is stopped."""
        ...


@dataclass(frozen=True, slots=True)
class PartialResult:
    """The result of a node of the tree.

    Attributes
    ----------
    accumulator : object or None
        What the processor returned, added up in dataset order; None if there is nothing.
    processed : tuple of Span
        The entries that are in it, in dataset order; neighbours are joined.
    failures : tuple of Failure
        In dataset order.
    metrics : PartialMetrics
        What it cost.
    """

    accumulator: Any = None
    processed: tuple[Span, ...] = ()
    failures: tuple[Failure, ...] = ()
    metrics: PartialMetrics = field(default_factory=PartialMetrics)

    @property
    def num_entries(self) -> int:
        """Number of entries processed."""
        return sum(span.entry_stop - span.entry_start for span in self.processed)


def inspect_files(
    files: Sequence[InputFile],
    *,
    options: ReadOptions,
    skipped: tuple[type[BaseException], ...] = (),
    recovery: RecoveryPolicy | None = None,
) -> list[FileMetadata | Failure]:
    """Read what is to be known of some files, a failure for each that can't be read.

    Parameters
    ----------
    files : sequence of InputFile
        They are opened one after the other.
    options : ReadOptions
        How.
    skipped : tuple of exception types
        What `skipbadfiles` lets pass.
    recovery : RecoveryPolicy or None
        How often a file is tried whose server does not answer; None: the default policy.
    """
    return [_inspect_file(file, options, skipped, recovery or RecoveryPolicy()) for file in files]


def _inspect_file(
    file: InputFile,
    options: ReadOptions,
    skipped: tuple[type[BaseException], ...],
    recovery: RecoveryPolicy,
) -> FileMetadata | Failure:
    attempt = 1
    while True:
        try:
            return read_file_metadata(file, options)
        except Exception as error:  # noqa: BLE001  # whatever it is, it becomes a failure of this file
            failure = build_failure(error, file, None, worker=_process_name(), skipped=skipped)
        # opening has tried all replicas
        step = recovery.decide(
            failure.kind, attempt=attempt, num_replicas=1, num_entries=0, seed=file.file_path
        )
        if step.action != "retry":
            return replace(failure, attempts=attempt)
        threading.Event().wait(step.wait_seconds)
        attempt += 1


def process_node(
    ranges: Sequence[EntryRange],
    work: Work,
    monitor: Monitor,
    attempt: Callable[[EntryRange], PartialResult] | None = None,
) -> PartialResult:
    """Process the ranges of a node in order, and merge them as the whole tree would.

    Parameters
    ----------
    ranges : sequence of EntryRange
        The leaves below the node.
    work : Work
        What to do with each.
    monitor : Monitor
        Is told of each range. Once it says that the run is stopped, the remaining ranges are not reached: they are in
        neither `processed` nor `failures`.
    attempt : callable or None
        Processes a range once; None: here, by `attempt_range`.
    """
    tree = arrange(ranges)
    once = attempt or (lambda entry_range: attempt_range(entry_range, work, monitor.worker))

    def leaf(index: int) -> PartialResult:
        if monitor.is_stopped():
            return PartialResult()
        try:
            return _process_range(ranges[index], once, work.recovery, monitor, _Lost())
        except KeyboardInterrupt:  # what is done already is kept
            monitor.interrupt()
            return PartialResult()

    return tree.fold(
        tree.root, leaf, lambda left, right: merge_results(left, right, worker=monitor.worker)
    )


def attempt_range(entry_range: EntryRange, work: Work, worker: str) -> PartialResult:
    """Process a range once; a failure is in the result.

    Parameters
    ----------
    entry_range : EntryRange
        What to process.
    work : Work
        What to do with it.
    worker : str
        Name of this worker, for failures.
    """
    attempt = Attempt(entry_range)
    file = entry_range.file
    bounds = (entry_range.entry_start, entry_range.entry_stop)
    try:
        accumulator = attempt.process(work)
    except Exception as error:  # noqa: BLE001  # exceptions inside the map become values
        failure = build_failure(
            error, file, bounds, worker=worker, replica=attempt.replica, skipped=work.skipped
        )
        return PartialResult(failures=(failure,), metrics=attempt.metrics(0))
    span = Span(file.dataset, file.file_path, file.treename, *bounds)
    return PartialResult(accumulator, (span,), (), attempt.metrics(entry_range.num_entries))


def attempt_packed(packed_work: bytes, entry_range: EntryRange, worker: str) -> PartialResult:
    """Process a range once, in a process that knows nothing yet; see `attempt_range`."""
    return attempt_range(entry_range, load_work(packed_work), worker)


_works: OrderedDict[str, Work] = OrderedDict()
_works_lock = threading.Lock()


def load_work(packed: bytes) -> Work:
    """Unpickle a run's work, once in a process."""
    digest = hashlib.sha256(packed).hexdigest()
    with _works_lock:
        if digest not in _works:
            _works[digest] = cloudpickle.loads(packed)
        _works.move_to_end(digest)
        while len(_works) > MAX_WORKS:
            _works.popitem(last=False)
        return _works[digest]


@dataclass(slots=True)
class _Lost:
    """Counts the pieces of one range that have failed for good."""

    count: int = 0


def _process_range(
    entry_range: EntryRange,
    once: Callable[[EntryRange], PartialResult],
    recovery: RecoveryPolicy,
    monitor: Monitor,
    lost: _Lost,
) -> PartialResult:
    """Process a range, as often and in as many pieces as the policy says."""
    spent = PartialMetrics()
    current = entry_range
    attempt = 1
    while True:
        result = once(current)
        step = _decide(result, current, attempt, recovery, lost)
        if step.action == "split":
            cost = PartialResult(metrics=spent + result.metrics)
            left, right = (
                _process_range(half, once, recovery, monitor, lost) for half in _halves(current)
            )
            return merge_results(cost, merge_results(left, right, worker=monitor.worker))
        if step.action == "give up" or not _wait(step.wait_seconds, monitor):
            break
        spent += result.metrics
        attempt += 1
        if step.next_replica:
            current = _with_next_replica(current)
    failures = tuple(replace(one, attempts=attempt) for one in result.failures)
    lost.count += len(failures)
    num_bytes = sum(one.num_requested_bytes for one in result.metrics.files.values())
    monitor.range_done(entry_range.num_entries, num_bytes, failures[0] if failures else None)
    return replace(result, failures=failures, metrics=spent + result.metrics)


def _decide(
    result: PartialResult,
    entry_range: EntryRange,
    attempt: int,
    recovery: RecoveryPolicy,
    lost: _Lost,
) -> Step:
    if not result.failures:
        return Step("give up")  # there is nothing to recover
    return recovery.decide(
        result.failures[0].kind,
        attempt=attempt,
        num_replicas=len(entry_range.file.replicas),
        num_entries=entry_range.num_entries,
        seed=f"{entry_range.file.file_path}/{entry_range.entry_start}",
        num_lost_pieces=lost.count,
    )


def _wait(seconds: float, monitor: Monitor) -> bool:
    """Wait before the next attempt; return False if the run is stopped meanwhile."""
    end = time.monotonic() + seconds
    pause = threading.Event()
    while not monitor.is_stopped():
        left = end - time.monotonic()
        if left <= 0:
            return True
        pause.wait(min(left, 0.2))
    return False


def _halves(entry_range: EntryRange) -> tuple[EntryRange, EntryRange]:
    middle = (entry_range.entry_start + entry_range.entry_stop) // 2
    return (
        replace(entry_range, entry_stop=middle),
        replace(entry_range, entry_start=middle),
    )


def _with_next_replica(entry_range: EntryRange) -> EntryRange:
    file = entry_range.file
    return replace(entry_range, file=replace(file, replicas=(*file.replicas[1:], file.replicas[0])))


def merge_results(left: PartialResult, right: PartialResult, *, worker: str = "") -> PartialResult:
    """Merge two neighbours; neither is changed.

    If their accumulators don't fit together, the one of more entries stays (the left of two equal ones), and the
    ranges of the other become failures.
    """
    started = time.perf_counter()
    try:
        accumulator = add(left.accumulator, right.accumulator)
    except Exception as error:  # noqa: BLE001  # the user's __add__ may raise anything
        if left.num_entries >= right.num_entries:
            right = _without_accumulator(right, error, worker)
            accumulator = left.accumulator
        else:
            left = _without_accumulator(left, error, worker)
            accumulator = right.accumulator
    return PartialResult(
        accumulator,
        _join_spans(left.processed, right.processed),
        left.failures + right.failures,
        left.metrics + right.metrics + _merge_cost(time.perf_counter() - started),
    )


def _merge_cost(seconds: float) -> PartialMetrics:
    return PartialMetrics(hosts={host_name(): Counters(merge_seconds=seconds)})


def _without_accumulator(result: PartialResult, error: Exception, worker: str) -> PartialResult:
    text = (
        str(error)
        if isinstance(error, AccumulatorError)
        else f"adding two outputs raised {type(error).__name__}: {error}"
    )
    lost = tuple(
        Failure(
            **span._asdict(),
            kind="user",
            exception_type="hepdask.errors.AccumulatorError",
            message=f"{text} (all other outputs fit together; this one was left out)",
            traceback="".join(traceback.format_exception(error)),
            worker=worker or _process_name(),
            exception=error,
        )
        for span in result.processed
    )
    return PartialResult(None, (), (*result.failures, *lost), result.metrics)


def _join_spans(left: tuple[Span, ...], right: tuple[Span, ...]) -> tuple[Span, ...]:
    if not left or not right:
        return left or right
    last, first = left[-1], right[0]
    if last[:3] == first[:3] and last.entry_stop == first.entry_start:
        return (*left[:-1], last._replace(entry_stop=first.entry_stop), *right[1:])
    return left + right


def _process_name() -> str:
    return f"{host_name()}, process {os.getpid()}"
