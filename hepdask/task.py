"""What runs on workers: inspect files, process a node of the tree, merge two results. Imports no dask.

Exceptions become values here: a `PartialResult` says what was done, what failed and why, and a failed range keeps its
place in the tree as an empty leaf. So nothing is lost when a worker's result is merged, and nothing is counted twice
when dask runs a task again.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import MutableMapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from hepdask.accumulator import add
from hepdask.completeness import Span
from hepdask.errors import AccumulatorError, ExecutorError, FileReadError, ProcessorError
from hepdask.failures import Failure, build_failure
from hepdask.metadata import FileMetadata, read_file_metadata
from hepdask.metrics import Counters, PartialMetrics, count_peak_memory, host_name
from hepdask.tree import arrange

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hepdask.fileset import InputFile
    from hepdask.opening import ReadOptions
    from hepdask.processor import ProcessorCopies
    from hepdask.ranges import EntryRange
    from hepdask.readers import Reader
    from hepdask.readers.branches import RangeEvents

_PLAIN = frozenset({bool, int, float, str})

__all__ = [
    "Monitor",
    "PartialResult",
    "Work",
    "inspect_files",
    "merge_results",
    "process_node",
]


@dataclass(frozen=True, slots=True)
class Work:
    """What is done with each range: the same for a whole run, and sent once.

    Attributes
    ----------
    process : ProcessorCopies
        Calls the user's ``process(events)``.
    reader : Reader
        Gives the events.
    skipped : tuple of exception types
        What `skipbadfiles` lets pass.
    """

    process: ProcessorCopies
    reader: Reader
    skipped: tuple[type[BaseException], ...] = ()


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
    """
    return [_inspect_file(file, options, skipped) for file in files]


def _inspect_file(
    file: InputFile, options: ReadOptions, skipped: tuple[type[BaseException], ...]
) -> FileMetadata | Failure:
    try:
        return read_file_metadata(file, options)
    except Exception as error:  # noqa: BLE001  # whatever it is, it becomes a failure of this file
        return build_failure(error, file, None, worker=_process_name(), skipped=skipped)


def process_node(ranges: Sequence[EntryRange], work: Work, monitor: Monitor) -> PartialResult:
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
    """
    tree = arrange(ranges)

    def leaf(index: int) -> PartialResult:
        if monitor.is_stopped():
            return PartialResult()
        try:
            return _process_range(ranges[index], work, monitor)
        except KeyboardInterrupt:  # what is done already is kept
            monitor.interrupt()
            return PartialResult()

    return tree.fold(
        tree.root, leaf, lambda left, right: merge_results(left, right, worker=monitor.worker)
    )


def _process_range(entry_range: EntryRange, work: Work, monitor: Monitor) -> PartialResult:
    measure = _RangeMeasure(entry_range)
    file = entry_range.file
    try:
        accumulator = measure.process(work)
    except Exception as error:  # noqa: BLE001  # exceptions inside the map become values
        bounds = (entry_range.entry_start, entry_range.entry_stop)
        failure = build_failure(
            error,
            file,
            bounds,
            worker=monitor.worker,
            replica=measure.replica,
            skipped=work.skipped,
        )
        result = PartialResult(failures=(failure,), metrics=measure.metrics(0))
        monitor.range_done(entry_range.num_entries, measure.num_requested_bytes, failure)
        return result
    span = Span(
        file.dataset, file.file_path, file.treename, entry_range.entry_start, entry_range.entry_stop
    )
    result = PartialResult(accumulator, (span,), (), measure.metrics(entry_range.num_entries))
    monitor.range_done(entry_range.num_entries, measure.num_requested_bytes, None)
    return result


class _RangeMeasure:
    """Processes one range, and measures around the calls."""

    def __init__(self, entry_range: EntryRange) -> None:
        self._range = entry_range
        self._start = time.time()
        self._wall = time.perf_counter()
        self._cpu = time.thread_time()
        self._counters = Counters(num_ranges=1)
        self._columns: frozenset[str] = frozenset()
        self.replica = ""

    @property
    def num_requested_bytes(self) -> int:
        return self._counters.num_requested_bytes

    def process(self, work: Work) -> Any:
        with work.reader.read(self._range) as opened:
            self.replica = opened.handle.open_file.replica
            started = time.perf_counter()
            read_before = opened.tally.read_seconds
            try:
                return self._call(work.process, opened.events)
            finally:
                lazy_seconds = opened.tally.read_seconds - read_before
                self._note(opened, time.perf_counter() - started - lazy_seconds)

    def _call(self, process: Callable[[Any], Any], events: Any) -> Any:
        try:
            accumulator = process(events)
        except (FileReadError, ExecutorError):
            raise  # noticed when the processor touched the branch; or there is no processor
        except (Exception, SystemExit) as error:
            raise ProcessorError(f"process() raised {type(error).__name__}") from error
        if accumulator is None:
            raise ProcessorError(
                "process() returned None: return an accumulator, a dict of histograms say"
            )
        return materialize(accumulator)

    def _note(self, opened: RangeEvents, process_seconds: float) -> None:
        handle, tally = opened.handle, opened.tally
        self._columns = frozenset(tally.columns)
        self._counters = replace(
            self._counters,
            num_opens=0 if handle.was_kept else 1,
            open_seconds=handle.open_seconds,
            form_seconds=opened.form_seconds,
            read_seconds=tally.read_seconds,
            process_seconds=process_seconds,
            num_requested_bytes=opened.num_requested_bytes,
            num_compressed_bytes=tally.num_compressed_bytes,
            num_uncompressed_bytes=tally.num_uncompressed_bytes,
        )

    def metrics(self, num_entries: int) -> PartialMetrics:
        counters = replace(
            self._counters,
            num_entries=num_entries,
            wall_seconds=time.perf_counter() - self._wall,
            cpu_seconds=time.thread_time() - self._cpu,
        )
        host = host_name()
        return PartialMetrics(
            files={(self._range.file.dataset, self._range.file.file_path): counters},
            hosts={host: counters},
            peak_memory_bytes={host: count_peak_memory()},
            columns=self._columns,
            first_start=self._start,
        )


def materialize(accumulator: Any) -> Any:
    """Read what is still lazy in an output, as long as its file is open, and let go of the events it comes from.

    Awkward arrays in mappings, lists and tuples are looked for; everything else stays as it is.
    """
    if isinstance(accumulator, MutableMapping):
        for key, value in accumulator.items():
            made = materialize(value)
            if made is not value:
                accumulator[key] = made
    elif isinstance(accumulator, list):
        if not all(type(one) in _PLAIN for one in accumulator):
            accumulator[:] = map(materialize, accumulator)
    elif isinstance(accumulator, tuple):
        parts = map(materialize, accumulator)
        kind = type(accumulator)
        return kind(*parts) if hasattr(accumulator, "_fields") else kind(parts)
    elif "awkward" in sys.modules:
        return _materialize_array(accumulator)
    return accumulator


def _materialize_array(array: Any) -> Any:
    import awkward

    if not isinstance(array, awkward.Array):
        return array
    # attributes with an @ hold on to the whole range of events (awkward leaves them out of pickles for that)
    attributes = {name: value for name, value in array.attrs.items() if not name.startswith("@")}
    layout = awkward.materialize(array).layout
    return awkward.Array(layout, behavior=array.behavior, attrs=attributes)


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
