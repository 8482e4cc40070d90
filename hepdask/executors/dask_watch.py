"""Workers that are silent, full or gone, tasks that wait for these or take too long: what the scheduler doesn't see, or leaves as it is."""

from __future__ import annotations

import statistics
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cloudpickle

from hepdask.executors.dask_clients import LOST_ERRORS, ask
from hepdask.executors.dask_local import start_again

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["ClusterWatch", "Pace"]

#: How often the scheduler is asked when it last heard of its workers, and what these do.
LOOK_SECONDS = 2.0
#: A worker whose memory is nearly full is paused by dask, for ever if nothing is freed: what the user's code has kept
#: never is. After so long without running anything, it is replaced.
PAUSED_SECONDS = 10.0
#: How long it may take to move its results to other workers before.
MOVE_SECONDS = 60.0
#: A run ends when for so long all workers are paused and run nothing, and none can be replaced.
STUCK_SECONDS = 60.0
#: A task is run a second time on an idle worker when it takes so many times what its like have taken ...
MAX_RATIO = 2.0
#: ... and so much longer, as starting a copy costs a little, too.
MIN_LATE_SECONDS = 3.0


@dataclass(slots=True)
class Pace:
    """How long tasks take, over what they were expected to take."""

    _ratios: list[float] = field(default_factory=list)

    def note(self, expected_seconds: float, seconds: float) -> None:
        """Take note of a task that has ended."""
        self._ratios.append(seconds / expected_seconds)

    def is_late(self, expected_seconds: float, seconds: float) -> bool:
        """Return whether a task that has run for so long is late; never before another one has ended."""
        if not self._ratios:
            return False
        usual = statistics.median(self._ratios) * expected_seconds
        return seconds > MIN_LATE_SECONDS + MAX_RATIO * usual


class ClusterWatch:
    """Looks at a cluster now and then.

    Parameters
    ----------
    client : distributed.Client
        A synchronous one.
    max_silent_seconds : float or None
        How long a worker may be silent. None: as long as dask lets it.
    """

    def __init__(self, client: Any, max_silent_seconds: float | None) -> None:
        self._client = client
        self._max_silent_seconds = max_silent_seconds
        self._last_look = 0.0
        #: when each key was first seen to be with a worker, and with which
        self._seen: dict[str, tuple[float, str]] = {}
        #: what the scheduler says of its last news from each worker, and since when it says so
        self._heard: dict[str, tuple[float, float]] = {}
        #: since when workers are paused and run nothing
        self._paused: dict[str, float] = {}
        #: workers that were full
        self.replaced: set[str] = set()
        self._stuck_since: float | None = None
        #: names of workers of a local cluster that are being started anew
        self._missing: set[Any] = set()
        self.num_threads = 0
        self.num_busy = 0

    def look(self, token: str) -> bool:
        """Look, if the last time was long enough ago.

        Parameters
        ----------
        token : str
            Part of the keys of those tasks that are sent elsewhere if they wait for a worker that is gone.

        Returns
        -------
        bool
            True if there is something new to be known.
        """
        now = time.monotonic()
        if now - self._last_look < LOOK_SECONDS:
            return False
        self._last_look = now
        with suppress(*LOST_ERRORS):  # a scheduler that is lost is somebody else's business
            self._missing = start_again(self._client, self._missing)
            workers = ask(self._client, "identity", n_workers=-1)["workers"]
            processing = ask(self._client, "processing", workers=None)
            self._drop_silent(workers)
            self._replace_full(workers)
            self._note(workers, processing, now)
            if self.num_busy < self.num_threads:
                self._call_on_scheduler(_make_releaser(), token=token)
            return True
        return False

    def is_stuck(self) -> bool:
        """Return whether no worker will go on, as the memory of all is full."""
        since = self._stuck_since
        return since is not None and time.monotonic() - since > STUCK_SECONDS

    def worker_of(self, key: str) -> str:
        """Name the worker that has a task; empty if none was seen with it."""
        return self._seen.get(key, (0.0, ""))[1]

    def seconds(self, key: str) -> float:
        """Time since a task was first seen with its worker."""
        seen = self._seen.get(key)
        return 0.0 if seen is None else time.monotonic() - seen[0]

    def others(self, worker: str) -> list[str]:
        """List the workers but one."""
        with suppress(*LOST_ERRORS):
            workers = ask(self._client, "ncores", workers=None)
            return [one for one in workers if one != worker]
        return []

    def _note(
        self, workers: Mapping[str, Any], processing: Mapping[str, Iterable[Any]], now: float
    ) -> None:
        self.num_threads = sum(int(one["nthreads"]) for one in workers.values())
        current = {str(key): worker for worker, keys in processing.items() for key in keys}
        self.num_busy = sum(
            min(len(list(processing.get(name, ()))), int(one["nthreads"]))
            for name, one in workers.items()
        )
        self._seen = {
            key: (self._seen[key][0] if self.worker_of(key) == worker else now, worker)
            for key, worker in current.items()
        }

    def _drop_silent(self, workers: Mapping[str, Any]) -> None:
        limit = self._max_silent_seconds
        if limit is None:
            return
        now = time.monotonic()
        for name, one in workers.items():
            # the scheduler's clock may differ from ours: what counts is that it has heard something new
            if self._heard.get(name, (0.0, 0.0))[0] != one["last_seen"]:
                self._heard[name] = (one["last_seen"], now)
        silent = [name for name in workers if now - self._heard[name][1] > limit]
        if silent:
            self._call_on_scheduler(_make_dropper(), addresses=silent)

    def _replace_full(self, workers: Mapping[str, Any]) -> None:
        now = time.monotonic()
        stuck = [name for name, one in workers.items() if _is_stuck(one)]
        # one without a nanny would not come back
        idle = [name for name in stuck if workers[name]["nanny"]]
        is_all = bool(workers) and len(stuck) == len(workers) and not idle
        self._stuck_since = (self._stuck_since or now) if is_all else None
        self._paused = {name: self._paused.get(name, now) for name in idle}
        full = [name for name in idle if now - self._paused[name] > PAUSED_SECONDS]
        if full and all(one["status"] == "paused" for one in workers.values()):
            # nobody can take its results, so the one that has the least; it then takes those of the next
            full = [min(full, key=lambda name: _num_result_bytes(workers[name]))]
            self._paused.clear()
        if full:
            self._call_on_scheduler(_make_replacer(MOVE_SECONDS), addresses=full)
        self.replaced.update(full)

    def _call_on_scheduler(self, function: Any, **options: Any) -> None:
        ask(
            self._client,
            "run_function",
            function=cloudpickle.dumps(function),
            args=cloudpickle.dumps(()),
            kwargs=cloudpickle.dumps(options),
        )


def _is_stuck(worker: Mapping[str, Any]) -> bool:
    counts = worker["metrics"].get("task_counts", {})
    is_busy = counts.get("executing", 0) or counts.get("long-running", 0)
    return worker["status"] == "paused" and not is_busy


def _num_result_bytes(worker: Mapping[str, Any]) -> int:
    return int(worker["metrics"].get("managed_bytes", 0))


def _make_dropper() -> Any:
    """Make the function that removes workers from a scheduler, which need not have hepdask: so it is sent by value."""

    async def drop(dask_scheduler: Any, addresses: list[str]) -> None:
        import asyncio

        from distributed.core import rpc

        async def end(nanny: str) -> None:
            # a process that is stopped can't end itself, but its nanny can end it; if the network is lost, nobody can
            try:
                async with rpc(nanny, connection_args=dask_scheduler.connection_args) as remote:
                    await asyncio.wait_for(remote.kill(reason="hepdask: silent"), 30)
            except (TimeoutError, OSError):
                pass

        for address in addresses:
            state = dask_scheduler.workers.get(address)
            if state is None:
                continue
            # first of all its tasks go elsewhere; expected: they are not to blame
            await dask_scheduler.remove_worker(
                address, stimulus_id="hepdask-silent-worker", expected=True
            )
            if state.nanny:
                dask_scheduler._ongoing_background_tasks.call_soon(end, state.nanny)

    return drop


def _make_releaser() -> Any:
    """Make the function that sends tasks to the workers that there are, if those that they were meant for are gone.

    A task that may also run elsewhere does so if it becomes ready while its workers are gone and others are there. If none is
    there, not even those that come later are given it (`bulk_schedule_unrunnable_after_adding_worker`, distributed 2026.8).
    """

    def release(dask_scheduler: Any, token: str) -> None:
        if dask_scheduler.running:
            stranded = [
                one.key
                for one in dask_scheduler.unrunnable
                if one.loose_restrictions and one.worker_restrictions and token in str(one.key)
            ]
            dask_scheduler.set_restrictions(worker=dict.fromkeys(stranded))
            dask_scheduler.transitions(
                dict.fromkeys(stranded, "processing"), stimulus_id="hepdask-stranded"
            )

    return release


def _make_replacer(move_seconds: float) -> Any:
    """Make the function that lets nannies restart workers, after their results were moved if somebody can take them."""

    async def replace(dask_scheduler: Any, addresses: list[str]) -> None:
        import asyncio

        async def replace_one(address: str) -> None:
            try:
                retiring = dask_scheduler.retire_workers(workers=[address], remove=False)
                await asyncio.wait_for(retiring, move_seconds)
            except TimeoutError:
                pass
            await dask_scheduler.restart_workers(
                [address],
                timeout=30,
                wait_for_workers=False,
                on_error="return",
                stimulus_id="hepdask-full-worker",
            )

        for address in addresses:
            dask_scheduler._ongoing_background_tasks.call_soon(replace_one, address)

    return replace
