"""What a dask task calls on its worker: unpack, process or merge, and tell the run."""

from __future__ import annotations

import asyncio
import pickle
import time
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import cloudpickle
from distributed import get_worker
from distributed.utils import sync

from hepdask.errors import ProcessDiedError
from hepdask.failures import build_failure
from hepdask.isolation import child_runner
from hepdask.ranges import EntryRange
from hepdask.task import PartialResult, attempt_packed, load_work, merge_results, process_node
from hepdask.tree import merge_in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from hepdask.attempt import Work
    from hepdask.failures import Failure
    from hepdask.tree import Shape

__all__ = [
    "MARKS",
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
#: Workers that die in a run before all its tasks are run in child processes.
MAX_DEATHS = 2
#: Where the scheduler keeps the marks, in its metadata.
MARKS = "hepdask-tasks"


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a task knows of its run.

    Attributes
    ----------
    run_id : str
        Unique.
    key : str
        Of the task.
    is_suspect : bool
        True if workers have died with it: each range then runs in a child process.
    """

    run_id: str
    key: str
    is_suspect: bool = False


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
    """Process a node of the cut; in child processes of the worker if it is suspected to kill."""
    monitor = _WorkerMonitor(info)
    work = load_work(packed_work)
    with _marked(info) as is_suspect:
        attempt = _isolated(packed_work, work, monitor.worker) if is_suspect else None
        try:
            return process_node(unpack_ranges(packed_ranges), work, monitor, attempt)
        finally:
            monitor.flush()


@contextmanager
def _marked(info: RunInfo) -> Iterator[bool]:
    """Mark at the scheduler that a task has begun, until it ends.

    A task that finds its own mark has been begun by a worker that died. The first to know is so the task itself, before
    it kills a second worker. When `MAX_DEATHS` workers have died in a run, all its tasks are suspects: whatever kills is
    in many events. The marks cost three round trips, about 5 ms a task.

    Yields
    ------
    bool
        True if the task is a suspect.
    """
    worker = get_worker()
    has_died, num_deaths = sync(worker.loop, _mark_begun, worker.scheduler, info)
    try:
        yield info.is_suspect or has_died or num_deaths >= MAX_DEATHS
    finally:
        keys = [MARKS, info.run_id, "begun", info.key]
        sync(worker.loop, worker.scheduler.set_metadata, keys=keys, value=False)


async def _mark_begun(scheduler: Any, info: RunInfo) -> tuple[bool, int]:
    """Mark a task as begun; return whether it was so before, and how many workers have died in the run."""
    begun, died = [MARKS, info.run_id, "begun", info.key], [MARKS, info.run_id, "died"]
    has_died, deaths = await asyncio.gather(
        scheduler.get_metadata(keys=begun, default=False),
        scheduler.get_metadata(keys=died, default={}),
    )
    if has_died:
        await scheduler.set_metadata(keys=[*died, info.key], value=True)
    await scheduler.set_metadata(keys=begun, value=True)
    return has_died, len({*deaths, info.key} if has_died else deaths)


def _isolated(packed_work: bytes, work: Work, worker: str) -> Callable[[EntryRange], PartialResult]:
    """Make the attempt that runs in a child process of this worker."""
    limit = get_worker().memory_manager.memory_limit

    def attempt(entry_range: EntryRange) -> PartialResult:
        try:
            result: PartialResult = child_runner().call(
                attempt_packed,
                packed_work,
                entry_range,
                worker,
                memory_bytes=limit or None,
                what="this range kills its worker",
            )
        except ProcessDiedError as error:
            bounds = (entry_range.entry_start, entry_range.entry_stop)
            failure = build_failure(
                error, entry_range.file, bounds, worker=worker, skipped=work.skipped
            )
            return PartialResult(failures=(failure,))
        return result

    return attempt


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
        self._sums["entries"] += num_entries if failure is None else 0
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
