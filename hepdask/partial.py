"""The result of a node of the tree, and how two neighbours are merged."""

from __future__ import annotations

import os
import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hepdask.accumulator import add
from hepdask.completeness import Span
from hepdask.errors import AccumulatorError
from hepdask.failures import Failure
from hepdask.inplace import add_into
from hepdask.messages import Messages
from hepdask.metrics import Counters, PartialMetrics, host_name

if TYPE_CHECKING:
    from hepdask.metrics import MetricsSum
    from hepdask.ranges import EntryRange

__all__ = ["PartialResult", "merge_results", "process_name", "span_of"]


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
    messages : Messages
        Warnings and log records of the processor.
    is_whole : bool
        True if every entry of the node is in it.
    key : str
        Name of the node in the store; empty where there is no store.
    unsaved_seconds : float
        Time that went into it, and that would be lost with it: what is in the store is not counted.
    """

    accumulator: Any = None
    processed: tuple[Span, ...] = ()
    failures: tuple[Failure, ...] = ()
    metrics: PartialMetrics = field(default_factory=PartialMetrics)
    messages: Messages = field(default_factory=Messages)
    is_whole: bool = False
    key: str = ""
    unsaved_seconds: float = 0.0

    @property
    def num_entries(self) -> int:
        """Number of entries processed."""
        return sum(span.entry_stop - span.entry_start for span in self.processed)


def span_of(entry_range: EntryRange) -> Span:
    """Return the span that a range is when it was processed."""
    file = entry_range.file
    return Span(
        file.dataset, file.file_path, file.treename, entry_range.entry_start, entry_range.entry_stop
    )


def merge_results(
    left: PartialResult,
    right: PartialResult,
    *,
    worker: str = "",
    costs: MetricsSum | None = None,
    may_change_left: bool = False,
) -> PartialResult:
    """Merge two neighbours; neither is changed, unless that is allowed.

    If their accumulators don't fit together, the one of more entries stays (the left of two equal ones), and the
    ranges of the other become failures.

    Parameters
    ----------
    left, right : PartialResult
        In dataset order.
    worker : str
        Name of this worker, for failures.
    costs : MetricsSum or None
        Where the time goes; None: into the metrics of the result.
    may_change_left : bool
        True if the accumulator of `left` was made by this function, and nobody else holds it: see `add_into`.
    """
    started = time.perf_counter()
    is_whole = left.is_whole and right.is_whole
    add_two = add_into if may_change_left else add
    try:
        accumulator = add_two(left.accumulator, right.accumulator)
    except Exception as error:  # noqa: BLE001  # the user's __add__ may raise anything
        is_whole = False
        if left.num_entries >= right.num_entries:
            right = _without_accumulator(right, error, worker)
            accumulator = left.accumulator
        else:
            left = _without_accumulator(left, error, worker)
            accumulator = right.accumulator
    seconds = time.perf_counter() - started
    metrics = left.metrics + right.metrics
    if costs is None:
        metrics += _merge_cost(seconds)
    else:
        costs.add_merge(seconds)
    return PartialResult(
        accumulator,
        _join_spans(left.processed, right.processed),
        left.failures + right.failures,
        metrics,
        left.messages + right.messages,
        is_whole,
        unsaved_seconds=left.unsaved_seconds + right.unsaved_seconds + seconds,
    )


def process_name() -> str:
    """Name this process, for failures that happen on no worker of a cluster."""
    return f"{host_name()}, process {os.getpid()}"


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
            worker=worker or process_name(),
            exception=error,
        )
        for span in result.processed
    )
    return PartialResult(
        None, (), (*result.failures, *lost), result.metrics, messages=result.messages
    )


def _join_spans(left: tuple[Span, ...], right: tuple[Span, ...]) -> tuple[Span, ...]:
    if not left or not right:
        return left or right
    last, first = left[-1], right[0]
    if last[:3] == first[:3] and last.entry_stop == first.entry_start:
        return (*left[:-1], last._replace(entry_stop=first.entry_stop), *right[1:])
    return left + right
