"""Work on a Dask cluster."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any, TypeVar

import distributed
from dask.delayed import delayed

from hepdask.errors import OptionError
from hepdask.executors import Executor, Job, Outcome, check_options, interruptible
from hepdask.executors.dask_clients import (
    choose_given,
    is_asynchronous,
    open_client,
    prepare_workers,
    reconnect,
    split_cluster_options,
    waiting_for_workers,
)
from hepdask.executors.dask_graph import TaskOptions, pack
from hepdask.executors.dask_run import DaskRun
from hepdask.executors.dask_tasks import call_packed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from hepdask.progress import Progress

__all__ = ["DaskExecutor"]

T = TypeVar("T")
R = TypeVar("R")

#: Batches of a `map` (files to inspect, mostly): enough for a thousand workers, few enough for the scheduler.
MAX_BATCHES = 2_000
#: How often batches of a `map` whose workers died are sent out: dask itself has tried each on four workers.
MAX_MAP_LAUNCHES = 3

_IGNORED = {
    **dict.fromkeys(("desc", "unit", "function_name"), "the progress display names its own stages"),
    **dict.fromkeys(
        ("worker_affinity", "compression", "heavy_input"),
        "the processor is shipped once in any case",
    ),
}
_REFUSED = {
    "use_dataframes": "return arrays in the accumulator instead",
    "treereduction": "say split_every=..., which never changes the result",
}


class DaskExecutor(Executor):
    """Runs jobs on a Dask cluster.

    It may have no workers yet, get more, and lose some; nothing is sized from those that are there.

    Parameters
    ----------
    client : distributed.Client, cluster, str, callable, or None
        A word: a system ("local", "slurm", "htcondor", ...), the name of a facility, or the address of a scheduler
        ("tls://host:8786"); ``hepdask cluster ls`` lists them. Or a client (also an asynchronous one: then calling the `Runner`
        gives an awaitable), a cluster object, or a function that makes a cluster, which is called when there is a task. None: what
        dask users expect of ``Client()``: the client of this session, else the word or address in dask's configuration
        (``hepdask.cluster``, ``scheduler-address``), else a local cluster with one thread a worker. What is opened here is kept
        for the next run, and closed by `close`; what was given is never closed.
    retries : int
        How often dask tries a task again that could not be run: exceptions in the processor are not among these.
    priority : int
        Of this executor's tasks; higher ones run first.
    resources : mapping of str to float, or None
        What each task that processes ranges needs of its worker, ``{"GPU": 1}`` say.
    split_every : int
        Results that a merge task takes, at most. More makes fewer tasks; the output is the same to the last bit.
    max_ranges_per_task : int or None
        Ranges in a task, at most; None lets hepdask choose. The output is the same to the last bit.
    status : bool
        False: no progress display, whatever the `Runner` says (coffea's word).
    **unknown
        Of the cluster that a word stands for: ``workers``, ``cores``, ``memory``, ``queue``, ``walltime``, ...; each system has those
        that `hepdask.clusters.WORDS` lists and that it can do.

    Raises
    ------
    OptionError
        For an unknown option, or a wrong value.
    """

    def __init__(
        self,
        client: Any = None,
        *,
        retries: int = 3,
        priority: int = 0,
        resources: Mapping[str, float] | None = None,
        split_every: int = 2,
        max_ranges_per_task: int | None = None,
        status: bool = True,
        **unknown: Any,
    ) -> None:
        known = [
            "client",
            "retries",
            "priority",
            "resources",
            "split_every",
            "max_ranges_per_task",
            "status",
        ]
        names = [*known, *_IGNORED, *_REFUSED]
        cluster_options, unknown = split_cluster_options(client, unknown, names)
        check_options("DaskExecutor", unknown, known, ignored=_IGNORED, refused=_REFUSED)
        if retries < 0:
            raise OptionError(f"retries is {retries}: give 0 or more")
        if split_every < 2:
            raise OptionError(f"split_every is {split_every}: a merge takes at least 2 inputs")
        if max_ranges_per_task is not None and max_ranges_per_task < 1:
            raise OptionError(
                f"max_ranges_per_task is {max_ranges_per_task}: give 1 or more, or None"
            )
        self.shows_progress = status
        self._given = choose_given(client, cluster_options)
        self._options = TaskOptions(
            retries, priority, dict(resources or {}), split_every, max_ranges_per_task
        )
        self._opened: Any = None

    def __repr__(self) -> str:
        return f"DaskExecutor({self._opened or self._given!r})"

    def dispatch(self, function: Callable[[], R]) -> Any:
        """Call a function, in a thread if the client belongs to an event loop; see `Executor.dispatch`."""
        return asyncio.to_thread(function) if is_asynchronous(self._given) else function()

    def reconnect(self) -> bool:
        """Come back to a scheduler that runs elsewhere; see `Executor.reconnect`."""
        return reconnect(self._given, self._opened)

    def close(self) -> None:
        """Close the client (and local cluster) that this executor has opened by itself."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    def map(
        self,
        function: Callable[[Sequence[T]], list[R]],
        items: Sequence[T],
        *,
        name: str,
        advance: Callable[[list[R]], None],
    ) -> list[R | BaseException]:
        """Apply a function to batches of items; see `Executor.map`."""
        client = self._client()
        size = max(1, len(items) // MAX_BATCHES)
        batches = [items[start : start + size] for start in range(0, len(items), size)]
        token = uuid.uuid4().hex[:12]
        tasks = [
            delayed(call_packed, pure=False)(
                pack((function, batch)), dask_key_name=f"{name}-{token}-{number:05d}"
            )
            for number, batch in enumerate(batches)
        ]
        futures = client.compute(
            tasks,
            retries=self._options.retries,
            priority=self._options.priority,
            optimize_graph=False,
        )
        done: dict[str, list[R] | BaseException] = {}
        again = futures
        for _ in range(MAX_MAP_LAUNCHES):
            with waiting_for_workers(client):
                self._collect(client, again, done, advance)
            # a batch whose workers were killed by others is tried again; one that kills them ends here
            again = [one for one in futures if isinstance(done[one.key], distributed.KilledWorker)]
            if not again:
                break
            client.retry(again)
        results: list[R | BaseException] = []
        for future, batch in zip(futures, batches, strict=True):
            outcome = done[future.key]
            results.extend(
                [outcome] * len(batch) if isinstance(outcome, BaseException) else outcome
            )
        return results

    def _collect(
        self,
        client: Any,
        futures: list[Any],
        done: dict[str, Any],
        advance: Callable[[list[R]], None],
    ) -> None:
        # the client's own loop: this client need not be the session's default
        waiting = distributed.as_completed(
            futures, loop=client.loop, with_results=True, raise_errors=False
        )
        for future, result in waiting:
            if future.status == "finished":
                advance(result)
                done[future.key] = result
            else:
                done[future.key] = future.exception()

    def reduce(self, job: Job, progress: Progress) -> Outcome:
        """Process a job on the cluster; see `Executor.reduce`."""
        client = self._client()
        prepare_workers(client)
        run = DaskRun(client, job, self._options)
        with interruptible() as interrupts, waiting_for_workers(client):
            run.submit()
            return run.wait(progress, interrupts)

    def _client(self) -> Any:
        given = self._given
        if isinstance(given, distributed.Client) and not given.asynchronous:
            return given
        if self._opened is None or self._opened.status == "closed":
            self._opened = open_client(given)
        return self._opened or distributed.default_client()
