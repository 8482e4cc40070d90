"""Work on a Dask cluster."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import distributed

from hepdask.doctor import Request
from hepdask.errors import ExecutorError, OptionError
from hepdask.executors import (
    LOST,
    Executor,
    Job,
    NotReached,
    Outcome,
    check_options,
    find_lost,
    interruptible,
)
from hepdask.executors.dask_clients import (
    choose_given,
    is_asynchronous,
    open_client,
    prepare_cluster,
    reconnect,
    split_cluster_options,
    waiting_for_workers,
)
from hepdask.executors.dask_examine import check_first, examine_cluster, list_packages
from hepdask.executors.dask_graph import TaskOptions, pack
from hepdask.executors.dask_local import keeping_nannies
from hepdask.executors.dask_map import DaskMap, warm_workers
from hepdask.executors.dask_run import DaskRun
from hepdask.executors.dask_shipping import NoAnswerError, delivering
from hepdask.recovery import RecoveryPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from hepdask.doctor import ClusterFacts
    from hepdask.executors.dask_shipping import Delivery
    from hepdask.fileset import InputFile
    from hepdask.opening import ReadOptions
    from hepdask.progress import Progress
    from hepdask.shipping import Cargo, Manifest

__all__ = ["DaskExecutor"]

T = TypeVar("T")
R = TypeVar("R")

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
        self._opening = threading.Lock()
        #: what the run of this thread takes along
        self._own = threading.local()

    def __repr__(self) -> str:
        return f"DaskExecutor({self._opened or self._given!r})"

    def dispatch(self, function: Callable[[], R]) -> Any:
        """Call a function, in a thread if the client belongs to an event loop; see `Executor.dispatch`."""
        return asyncio.to_thread(function) if is_asynchronous(self._given) else function()

    @contextmanager
    def carrying(self, load: Callable[[], Cargo] | None) -> Iterator[None]:
        """Ship a cargo once there is a task; see `Executor.carrying`."""
        with delivering(load) as delivery:
            self._own.delivery = delivery
            try:
                yield
            finally:
                self._own.delivery = None

    def _delivery(self) -> Delivery | None:
        return getattr(self._own, "delivery", None)

    def _deliver(self, client: Any) -> Manifest | None:
        delivery = self._delivery()
        if delivery is None:
            return None
        try:
            manifest = delivery.deliver(client)
        except NoAnswerError:
            if not self.reconnect():
                raise
            manifest = delivery.deliver(client)
        cargo = delivery.cargo
        check_first(client, delivery.scheduler_id, lambda: pack(cargo.value, manifest), cargo.used)
        return manifest

    def _renew(self) -> None:
        delivery = self._delivery()
        if delivery is not None:
            delivery.renew()

    def examine(self, files: Sequence[InputFile], options: ReadOptions) -> ClusterFacts:
        """Find out what the workers are and can; see `Executor.examine`."""
        client, delivery = self._client(), self._own.delivery
        problem = ""
        try:
            delivery.deliver(client)
        except ExecutorError as error:
            problem = str(error)
        cargo = delivery.cargo
        packed = pack(cargo.value, cargo.manifest)
        request = Request(list_packages(cargo.used), packed, tuple(files), options)
        return replace(examine_cluster(client, request), delivery_problem=problem)

    def reconnect(self) -> bool:
        """Come back to a scheduler that runs elsewhere; see `Executor.reconnect`."""
        is_back, delivery = reconnect(self._given, self._opened), self._delivery()
        if is_back and delivery is not None:
            delivery.forget()
        return is_back

    def close(self) -> None:
        """Close the client (and local cluster) that this executor has opened by itself."""
        with self._opening:
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
        recovery: RecoveryPolicy | None = None,
    ) -> list[R | BaseException]:
        """Apply a function to batches of items; see `Executor.map`."""
        policy = recovery if recovery is not None else RecoveryPolicy()
        results: list[R | BaseException] = [NotReached(LOST)] * len(items)
        places = list(range(len(items)))
        while True:
            rest = [items[one] for one in places]
            found = self._map_once(function, rest, name, advance, policy)
            for place, one in zip(places, found, strict=True):
                results[place] = one
            # what is here is here; the scheduler has forgotten all else
            places = find_lost(results)
            if not places or not self.reconnect():
                return results

    def _map_once(
        self,
        function: Callable[[Sequence[T]], list[R]],
        items: Sequence[T],
        name: str,
        advance: Callable[[list[R]], None],
        policy: RecoveryPolicy,
    ) -> list[R | BaseException]:
        client = self._client()
        with interruptible() as interrupts:
            running: DaskMap[T, R] = DaskMap(
                client,
                function,
                items,
                name=name,
                options=replace(self._options, manifest=self._deliver(client)),
                recovery=policy,
                renew=self._renew,
            )
            with waiting_for_workers(client), keeping_nannies(client):
                return running.wait(advance, interrupts)

    def warm(
        self,
        function: Callable[[Sequence[T]], list[None]],
        items: Sequence[T],
        recovery: RecoveryPolicy,
    ) -> None:
        """Let each worker of a small cluster begin; see `Executor.warm`."""
        client = self._client()
        options = replace(self._options, manifest=self._deliver(client))
        warm_workers(client, function, items, options=options, recovery=recovery)

    def reduce(self, job: Job, progress: Progress) -> Outcome:
        """Process a job on the cluster; see `Executor.reduce`."""
        client = self._client()
        prepare_cluster(client)
        options = replace(self._options, manifest=self._deliver(client))
        run = DaskRun(client, job, options, self._renew)
        with interruptible() as interrupts, waiting_for_workers(client), keeping_nannies(client):
            run.submit()
            return run.wait(progress, interrupts)

    def _client(self) -> Any:
        given = self._given
        if isinstance(given, distributed.Client) and not given.asynchronous:
            return given
        # two runs at a time would open two clusters, and nobody would ever close the first
        with self._opening:
            if self._opened is None or self._opened.status == "closed":
                self._opened = open_client(given)
            return self._opened or distributed.default_client()
