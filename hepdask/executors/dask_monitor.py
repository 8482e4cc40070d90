"""A task tells of its progress, and is told to stop."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from distributed import get_worker

if TYPE_CHECKING:
    from hepdask.executors.dask_marks import RunInfo
    from hepdask.failures import Failure

__all__ = ["SUMS", "TOPIC", "WorkerMonitor", "stop_run"]

#: dask event topic of the progress of all runs
TOPIC = "hepdask-progress"
#: Least time between two events of a task: a scheduler takes thousands of events a second, but has other things to do.
FLUSH_SECONDS = 0.25
#: What a task counts.
SUMS = ("entries", "bytes", "ranges", "failures", "failed_entries")

_stopped: set[str] = set()


def stop_run(name: str) -> None:
    """Tell the tasks of a run in this process, running and to come, to start no further range.

    Parameters
    ----------
    name : str
        Of the run, or the key of one task of it.
    """
    _stopped.add(name)


class WorkerMonitor:
    """Sends the progress of a task, as sums since its start: a task that runs again is not counted again."""

    def __init__(self, info: RunInfo) -> None:
        self._info = info
        self._worker = get_worker()
        self.worker = str(self._worker.address)
        self._start = time.monotonic()
        self._sums = dict.fromkeys(SUMS, 0)
        self._same: Counter[str] = Counter()
        self._num_unreachable = 0
        self._fatal = ""
        self._last_flush = time.monotonic()
        self._is_flushed = True

    def is_stopped(self) -> bool:
        return bool(self._fatal) or not _stopped.isdisjoint((self._info.run_id, self._info.key))

    def interrupt(self) -> None:
        self._fatal = "interrupted"

    def node_loaded(self, num_entries: int) -> None:
        self._sums["entries"] += num_entries
        self._is_flushed = False

    def range_done(self, num_entries: int, num_bytes: int, failure: Failure | None) -> None:
        self._sums["bytes"] += num_bytes
        self._is_flushed = False
        if failure is None:
            self._sums["ranges"] += 1
            self._sums["entries"] += num_entries
        else:
            self._sums["failures"] += 1
            self._sums["failed_entries"] += num_entries
            self._note(failure)
        if self._fatal or time.monotonic() - self._last_flush > FLUSH_SECONDS:
            self.flush()

    def _note(self, failure: Failure) -> None:
        if failure.kind in ("user", "setup"):
            self._same[failure.signature] += 1
        if failure.kind == "transient" and not failure.is_late and not self._info.is_last_try:
            self._num_unreachable += 1
        elif not failure.is_skipped:
            self._fatal = self._fatal or str(failure)

    def flush(self) -> None:
        if self._is_flushed:
            return
        self._send(is_done=False)

    def finish(self) -> None:
        """Tell that the task has ended."""
        self._send(is_done=True)

    def _send(self, *, is_done: bool) -> None:
        message = {
            "run": self._info.run_id,
            "key": self._info.key,
            "place": self._info.place,
            "worker": self.worker,
            "fatal": self._fatal,
            "unreachable": self._num_unreachable,
            "same": dict(self._same),
            "seconds": time.monotonic() - self._start,
            "is_done": is_done,
            **self._sums,
        }
        self._worker.log_event(TOPIC, message)
        self._last_flush = time.monotonic()
        self._is_flushed = True
