"""Workers that are told to leave: they end what they have begun and hand over what they hold, as far as there is time.

A batch system sends SIGTERM before it kills. Without this, dask's worker processes end at once, and results that no other worker
has are computed again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from contextlib import suppress
from typing import Any

import distributed
from distributed.core import Status

__all__ = ["HandOver", "WaitForHandOver"]

#: Batch systems give 30 s or more, as a rule.
GRACE_SECONDS = 25.0
#: What other workers need to fetch results.
MOVE_SECONDS = 5.0
POLL_SECONDS = 0.05
#: A worker with more of its memory in use was told by its own nanny: that one wants it to end now.
FULL_FRACTION = 0.9


class HandOver(distributed.WorkerPlugin):  # type: ignore[misc]  # dask has no types
    """In the worker's process: at SIGTERM take no more tasks, end those that run, let others fetch the results, and close."""

    name = "hepdask-hand-over"
    idempotent = True

    def setup(self, worker: Any) -> None:
        """Take over SIGTERM, where the process belongs to the worker alone."""
        # one without a nanny has the handler of `dask worker`, or is the user's own process
        if worker.nanny and threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGTERM, self._leave, worker)
            self._tasks: set[Any] = set()
            if worker.lifetime:
                # a little before dask's own time, which would not wait for what runs
                lead = min(GRACE_SECONDS, worker.lifetime / 4)
                worker.io_loop.call_later(worker.lifetime - lead, self._leave, worker)

    def teardown(self, worker: Any) -> None:  # noqa: ARG002
        """Give SIGTERM back."""
        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)

    def _leave(self, worker: Any) -> None:
        limit = worker.memory_manager.memory_limit
        if limit and worker.monitor.get_process_memory() > FULL_FRACTION * limit:
            os._exit(143)
        task = asyncio.get_running_loop().create_task(_hand_over(worker))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def __getstate__(self) -> dict[str, Any]:
        return {}


async def _hand_over(worker: Any) -> None:
    if worker.status not in (Status.running, Status.paused):
        return
    ends = time.monotonic() + GRACE_SECONDS - MOVE_SECONDS
    worker.status = Status.closing_gracefully  # no more tasks
    while worker.state.executing and time.monotonic() < ends:
        await asyncio.sleep(POLL_SECONDS)
    await asyncio.sleep(POLL_SECONDS)  # the news of the last result goes first
    retiring = worker.scheduler.retire_workers(
        workers=[worker.address],
        close_workers=False,
        remove=True,
        stimulus_id="hepdask-hand-over",
    )
    with suppress(TimeoutError, OSError):  # there is no time left, or no scheduler
        await asyncio.wait_for(retiring, MOVE_SECONDS)
    await worker.close(nanny=True, reason="hepdask-hand-over")


async def _do_nothing(reason: str = "") -> None:
    pass


class WaitForHandOver(distributed.NannyPlugin):  # type: ignore[misc]  # dask has no types
    """In the nanny's process: at SIGTERM let the worker hand over, before dask's own handler ends it."""

    name = "hepdask-wait-for-hand-over"
    idempotent = True  # a second one would not be told of SIGTERM
    restart = False

    def setup(self, nanny: Any) -> None:  # noqa: ARG002
        """Note SIGTERM, where `dask worker` waits for it."""
        self._was_told = False
        before = signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread() or not callable(before):
            return  # nannies of a local cluster live in the user's own process

        def note(number: int, frame: Any) -> None:
            self._was_told = True
            before(number, frame)

        if getattr(before, "__name__", "") != "note":
            signal.signal(signal.SIGTERM, note)

    async def teardown(self, nanny: Any) -> None:
        """Wait for the worker to end by itself, if SIGTERM is why the nanny closes."""
        if not self._was_told or nanny.process is None or nanny.process.pid is None:
            return
        pid = nanny.process.pid
        # it closes already, and need not do so once more when its worker says so
        nanny.handlers["close_gracefully"] = _do_nothing
        try:
            # where the batch system tells the first process of the job alone
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            return
        ends = time.monotonic() + GRACE_SECONDS
        while nanny.process is not None and nanny.process.is_alive() and time.monotonic() < ends:
            await asyncio.sleep(POLL_SECONDS)

    def __getstate__(self) -> dict[str, Any]:
        return {}
