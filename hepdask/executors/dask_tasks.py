"""What a dask task calls on its worker: unpack, process or merge, and tell the run."""

from __future__ import annotations

import hashlib
import pickle
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import cloudpickle
from distributed import get_worker

from hepdask.ranges import EntryRange
from hepdask.task import PartialResult, Work, merge_results, process_node
from hepdask.tree import merge_in_order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hepdask.failures import Failure
    from hepdask.tree import Shape

__all__ = [
    "TOPIC",
    "RunInfo",
    "call_packed",
    "merge_task",
    "pack_ranges",
    "process_task",
    "stop_run",
    "unpack_ranges",
]

#: dask event topic of the progress of all runs
TOPIC = "hepdask-progress"
#: Least time between two events of a task: a scheduler takes thousands of events a second, but has other things to do.
FLUSH_SECONDS = 0.25
#: Works (processor and reader) that a worker process keeps unpickled, for the tasks of a run and for concurrent runs.
MAX_WORKS = 4


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a task knows of its run.

    Attributes
    ----------
    run_id : str
        Unique.
    key : str
        Of the task.
    """

    run_id: str
    key: str


def pack_ranges(ranges: Sequence[EntryRange]) -> bytes:
    """Pickle the ranges of a task: each file once, with the bounds of its ranges.

    Bytes, because dask looks into dataclasses and lists for tasks, one by one.
    """
    files = [
        (file, [(one.entry_start, one.entry_stop) for one in group])
        for file, group in groupby(ranges, lambda one: one.file)
    ]
    return bytes(cloudpickle.dumps(files))


def unpack_ranges(packed: bytes) -> list[EntryRange]:
    """Undo `pack_ranges`."""
    return [
        EntryRange(file, start, stop)
        for file, bounds in pickle.loads(packed)
        for start, stop in bounds
    ]


def process_task(packed_work: bytes, packed_ranges: bytes, info: RunInfo) -> PartialResult:
    """Process a node of the cut."""
    monitor = _WorkerMonitor(info)
    try:
        return process_node(unpack_ranges(packed_ranges), _load_work(packed_work), monitor)
    finally:
        monitor.flush()


def merge_task(order: Shape, *inputs: PartialResult) -> PartialResult:
    """Merge the results of other tasks, in the order of the tree."""
    worker = get_worker().address
    return merge_in_order(
        order, inputs, lambda left, right: merge_results(left, right, worker=worker)
    )


def call_packed(packed: bytes) -> Any:
    """Call a pickled function with its pickled arguments."""
    function, items = cloudpickle.loads(packed)
    return function(items)


_stopped_runs: set[str] = set()


def stop_run(run_id: str) -> None:
    """Tell the tasks of a run in this process, running and to come, to start no further range."""
    _stopped_runs.add(run_id)


class _WorkerMonitor:
    """Sends the progress of a task, as sums since its start: a task that runs again is not counted again."""

    def __init__(self, info: RunInfo) -> None:
        self._info = info
        self._worker = get_worker()
        self.worker = str(self._worker.address)
        self._sums = {"entries": 0, "bytes": 0, "failures": 0}
        self._fatal = ""
        self._last_flush = time.monotonic()
        self._flushed = True

    def is_stopped(self) -> bool:
        return bool(self._fatal) or self._info.run_id in _stopped_runs

    def interrupt(self) -> None:
        self._fatal = "interrupted"

    def range_done(self, num_entries: int, num_bytes: int, failure: Failure | None) -> None:
        self._sums["entries"] += num_entries
        self._sums["bytes"] += num_bytes
        self._flushed = False
        if failure is not None:
            self._sums["failures"] += 1
            self._fatal = self._fatal or ("" if failure.is_skipped else str(failure))
        if self._fatal or time.monotonic() - self._last_flush > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._flushed:
            return
        message = {
            "run": self._info.run_id,
            "key": self._info.key,
            "fatal": self._fatal,
            **self._sums,
        }
        self._worker.log_event(TOPIC, message)
        self._last_flush = time.monotonic()
        self._flushed = True


_works: OrderedDict[str, Work] = OrderedDict()
_works_lock = threading.Lock()


def _load_work(packed: bytes) -> Work:
    """Unpickle a run's work once in a process."""
    digest = hashlib.sha256(packed).hexdigest()
    with _works_lock:
        if digest not in _works:
            _works[digest] = cloudpickle.loads(packed)
        _works.move_to_end(digest)
        while len(_works) > MAX_WORKS:
            _works.popitem(last=False)
        return _works[digest]
