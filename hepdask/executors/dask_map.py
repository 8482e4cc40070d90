"""Functions over many items on a Dask cluster: files to inspect, mostly. What may happen to a run may happen to these, too."""

from __future__ import annotations

import queue
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import distributed
from dask.delayed import delayed

from hepdask.executors import FULL, INTERRUPTED, LOST, NotReached
from hepdask.executors.dask_clients import LOST_ERRORS, ask, is_under_way
from hepdask.executors.dask_graph import TaskOptions, pack
from hepdask.executors.dask_marks import MARKS, RunInfo
from hepdask.executors.dask_tasks import call_packed
from hepdask.executors.dask_watch import ClusterWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hepdask.executors import Interrupts
    from hepdask.recovery import RecoveryPolicy

__all__ = ["DaskMap", "warm_workers"]

T = TypeVar("T")
R = TypeVar("R")

#: Batches of a `map`: enough for a thousand workers, few enough for the scheduler.
MAX_BATCHES = 2_000
#: How often batches are sent out whose workers others have killed: dask itself has tried each on four workers.
MAX_LAUNCHES = 3
#: Workers that begin with a file before it is known what is in it: on a larger cluster few of them may be needed.
MAX_WARM_WORKERS = 4
#: How often the client looks for Ctrl-C while it waits.
POLL_SECONDS = 0.1
#: How long results may take to come here, at a time.
GATHER_SECONDS = 30.0
#: How long it may take to cancel what is not wanted any more.
CANCEL_SECONDS = 20.0


class DaskMap(Generic[T, R]):
    """One function over some items, on its way through a Dask cluster.

    Parameters
    ----------
    client : distributed.Client
        A synchronous one.
    function : callable
        Takes some items and returns a result for each.
    items : sequence
        In order.
    name : str
        Of the tasks.
    options : TaskOptions
        What they are told.
    recovery : RecoveryPolicy
        How long an item may take, and a worker be silent.
    renew : callable
        Called now and then.
    """

    def __init__(
        self,
        client: Any,
        function: Callable[[Sequence[T]], list[R]],
        items: Sequence[T],
        *,
        name: str,
        options: TaskOptions,
        recovery: RecoveryPolicy,
        renew: Callable[[], None],
    ) -> None:
        self._client = client
        self._renew = renew
        self._token = uuid.uuid4().hex[:12]
        size = max(1, len(items) // MAX_BATCHES)
        self._batches = [items[start : start + size] for start in range(0, len(items), size)]
        tasks = [
            self._task(
                f"{name}-{self._token}-{number:05d}",
                pack((function, batch), options.manifest),
                recovery,
            )
            for number, batch in enumerate(self._batches)
        ]
        self._futures = client.compute(
            tasks, retries=options.retries, priority=options.priority, optimize_graph=False
        )
        self._watch = ClusterWatch(client, recovery.max_silent_seconds)
        self._news: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._launches = [0] * len(self._batches)
        #: batches that were done, and are made again, as their results went with their worker
        self._remade: set[int] = set()
        self._done: dict[int, Sequence[R | BaseException]] = {}
        for number in range(len(self._batches)):
            self._listen(number)

    def _task(self, key: str, packed: bytes, recovery: RecoveryPolicy) -> Any:
        info = RunInfo(self._token, key, key)
        return delayed(call_packed, pure=False)(
            packed, info, recovery.max_range_seconds, dask_key_name=key
        )

    def wait(
        self, advance: Callable[[list[R]], None], interrupts: Interrupts
    ) -> list[R | BaseException]:
        """Wait until every batch is done or can't be; see `Executor.map`."""
        why = ""
        try:
            while len(self._done) < len(self._batches) and not why:
                why = self._look_around()
                self._take(self._next_news(), advance)
                why = INTERRUPTED if interrupts.count else why
        except KeyboardInterrupt:  # the second one
            why = INTERRUPTED
        with interrupts.held():
            self._let_go()
        rest = NotReached(why or LOST)
        results: list[R | BaseException] = []
        for number, batch in enumerate(self._batches):
            results.extend(self._done.get(number, [rest] * len(batch)))
        return results

    def _listen(self, number: int) -> None:
        self._launches[number] += 1
        self._futures[number].add_done_callback(lambda _: self._news.put(number))

    def _next_news(self) -> list[int]:
        """Take all news that there are, after waiting a little for the first."""
        news: list[int] = []
        with suppress(queue.Empty):
            news.append(self._news.get(timeout=POLL_SECONDS))
            while True:
                news.append(self._news.get_nowait())
        remade = {one for one in self._remade if not is_under_way(self._futures[one])}
        self._remade -= remade
        return [*news, *remade]

    def _look_around(self) -> str:
        """Look whether the scheduler is still there, and the workers are heard of; return why nothing more will come."""
        if self._client.status != "running":
            return LOST
        if self._watch.look(self._token) and self._watch.is_stuck():
            return FULL
        self._renew()
        return ""

    def _take(self, numbers: list[int], advance: Callable[[list[R]], None]) -> None:
        finished = [one for one in numbers if self._futures[one].status == "finished"]
        for number, result in self._gather(finished).items():
            self._done[number] = result
            advance([one for one in result if not isinstance(one, BaseException)])
        for number in set(numbers) - set(finished):
            self._take_error(number)

    def _gather(self, numbers: list[int]) -> dict[int, Any]:
        """Bring results here; those that were lost with their worker come later, when dask has made them again."""
        if not numbers:
            return {}
        futures = [self._futures[one] for one in numbers]
        try:
            results = self._client.sync(
                self._client._gather, futures, callback_timeout=GATHER_SECONDS
            )
        except LOST_ERRORS:
            # also while dask connects again: then they are cancelled, and that is news
            if self._client.status in ("running", "connecting"):
                self._remade.update(numbers)
            return {}
        return dict(zip(numbers, results, strict=True))

    def _take_error(self, number: int) -> None:
        future = self._futures[number]
        if is_under_way(future):
            self._remade.add(number)
            return
        error = future.exception() if future.status == "error" else NotReached(LOST)
        # its workers were killed by others: a batch that kills them itself runs in child processes
        if isinstance(error, distributed.KilledWorker) and self._launches[number] < MAX_LAUNCHES:
            with suppress(*LOST_ERRORS):
                self._client.retry([future])
                self._listen(number)
                return
        self._done[number] = [error] * len(self._batches[number])

    def _let_go(self) -> None:
        """Let the cluster forget these tasks, those that were not begun, too."""
        if self._client.status != "running":
            return
        with suppress(*LOST_ERRORS):
            if len(self._done) < len(self._batches):
                self._client.sync(
                    self._client._cancel, self._futures, callback_timeout=CANCEL_SECONDS
                )
            ask(self._client, "set_metadata", keys=[MARKS, self._token], value={})


def warm_workers(
    client: Any,
    function: Callable[[Sequence[T]], list[None]],
    items: Sequence[T],
    *,
    options: TaskOptions,
    recovery: RecoveryPolicy,
) -> None:
    """Call a function on each worker, if there are few, and don't wait for it; see `Executor.warm`.

    Parameters
    ----------
    client : distributed.Client
        A synchronous one.
    function, items, recovery
        As for `Executor.warm`.
    options : TaskOptions
        What tasks are told.
    """
    with suppress(*LOST_ERRORS):  # what is lost here is noticed by what needs it
        workers = list(ask(client, "ncores", workers=None))
        if not 1 < len(workers) <= MAX_WARM_WORKERS:
            return
        packed = pack((function, items), options.manifest)
        token = uuid.uuid4().hex[:12]
        for number, worker in enumerate(workers):
            key = f"warm-{token}-{number}"
            info = RunInfo(token, key, key)
            future = client.submit(
                call_packed,
                packed,
                info,
                recovery.max_range_seconds,
                key=key,
                workers=[worker],
                retries=0,
                priority=options.priority,
            )
            distributed.fire_and_forget(future)
