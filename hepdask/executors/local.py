"""Work in this process: for debugging, small jobs, and as the reference that every other executor must equal."""

from __future__ import annotations

import os
import tempfile
import time
from typing import TYPE_CHECKING, Any, TypeVar

from hepdask.doctor import ClusterFacts, Request, collect_facts
from hepdask.executors import (
    INTERRUPTED,
    Executor,
    Interrupts,
    Job,
    NotReached,
    Outcome,
    check_options,
    interruptible,
)
from hepdask.metrics import host_name
from hepdask.task import NodeTask
from hepdask.versions import LIBRARIES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hepdask.failures import Failure
    from hepdask.fileset import InputFile
    from hepdask.opening import ReadOptions
    from hepdask.progress import Progress
    from hepdask.recovery import RecoveryPolicy
    from hepdask.stopping import StopTally

__all__ = ["LocalExecutor"]

T = TypeVar("T")
R = TypeVar("R")


class LocalExecutor(Executor):
    """Runs everything in this process, in dataset order, and pickles nothing that is run.

    An exception in the processor ends the run where it happened, so that ``%debug``, ``pdb.pm()`` and breakpoints show
    the user's own frames.

    Parameters
    ----------
    status : bool
        False: no progress display, whatever the `Runner` says (coffea's word).

    Raises
    ------
    OptionError
        For an unknown option.
    """

    def __init__(self, *, status: bool = True, **unknown: Any) -> None:
        ignored = dict.fromkeys(
            ("desc", "unit", "function_name"), "the progress display names its own stages"
        )
        ignored["compression"] = "nothing is sent anywhere"
        check_options("LocalExecutor", unknown, ["status"], ignored=ignored, refused={})
        self.shows_progress = status

    def map(
        self,
        function: Callable[[Sequence[T]], list[R]],
        items: Sequence[T],
        *,
        name: str,  # noqa: ARG002  # of tasks, and there are none here
        advance: Callable[[list[R]], None],
        recovery: RecoveryPolicy | None = None,  # noqa: ARG002  # nothing that hangs here can be ended
    ) -> list[R | BaseException]:
        """Apply a function to the items, one after the other; see `Executor.map`."""
        results: list[R | BaseException] = []
        with interruptible() as interrupts, interrupts.held():
            for item in items:
                if interrupts.count:
                    break
                try:
                    with interrupts.raised():
                        batch = function([item])
                except KeyboardInterrupt:
                    break
                advance(batch)
                results.extend(batch)
        return results + [NotReached(INTERRUPTED)] * (len(items) - len(results))

    def examine(self, files: Sequence[InputFile], options: ReadOptions) -> ClusterFacts:
        """Find out what this process is and can; see `Executor.examine`."""
        request = Request(LIBRARIES, files=tuple(files), options=options)
        here = collect_facts(request, "this process", scratch=tempfile.gettempdir())
        return ClusterFacts(here, None, (here,))

    def reduce(self, job: Job, progress: Progress) -> Outcome:
        """Process a job here; see `Executor.reduce`."""
        started = time.perf_counter()
        with interruptible() as interrupts:
            monitor = _LocalMonitor(progress, interrupts, job.tally())
            progress.start("processing", job.num_entries, "events")
            stored = job.stored
            task = NodeTask(
                job.ranges,
                job.work,
                monitor,
                while_processing=interrupts.raised,
                checkpoints=None if stored is None else stored.checkpoints,
                keys=None if stored is None else stored.keys,
                stored=frozenset() if stored is None else stored.names_in(job.tree.root),
            )
            with interrupts.held():
                root = task.run(is_root=True)
            progress.finish("processing")
        return Outcome(
            root, monitor.stopped_by, num_tasks=1, run_seconds=time.perf_counter() - started
        )


class _LocalMonitor:
    """Passes on to the progress display what the one task does."""

    def __init__(self, progress: Progress, interrupts: Interrupts, tally: StopTally) -> None:
        self.worker = f"{host_name()}, process {os.getpid()}"
        self.stopped_by = ""
        self._progress = progress
        self._interrupts = interrupts
        self._tally = tally

    def is_stopped(self) -> bool:
        if self._interrupts.count and not self.stopped_by:
            self.stopped_by = INTERRUPTED
        return bool(self.stopped_by)

    def interrupt(self) -> None:
        self.stopped_by = "interrupted twice" if self._interrupts.count > 1 else "interrupted"

    def node_loaded(self, num_entries: int) -> None:
        self._progress.advance("processing", num_entries)

    def range_done(self, num_entries: int, num_bytes: int, failure: Failure | None) -> None:
        done, failed = (num_entries, 0) if failure is None else (0, 1)
        same: dict[str, int] = {}
        if failure is not None:
            if not failure.is_skipped:
                self.stopped_by = self.stopped_by or str(failure)
            if failure.kind in ("user", "setup"):
                same = {failure.signature: 1}
        why = self._tally.note(1 - failed, 0 if failure is None else num_entries, same)
        self.stopped_by = self.stopped_by or why
        self._progress.advance("processing", done, num_bytes=num_bytes, num_failures=failed)
