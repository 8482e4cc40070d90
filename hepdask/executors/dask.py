"""Work on a Dask cluster.

A job becomes a graph of `dask.delayed` tasks: one that holds the work (processor and reader), pickled, so that it is
shipped once to each worker; one for each node of the cut (``process-...``), which is sent its packed ranges; one for each
merge above the cut (``merge-...``). The graph is persisted as a whole, and a future is held for every node until its
parent is done: a task that can't be run costs its own path to the root, and nothing else.

Tasks tell of their progress in dask events. Nothing depends on them: what was processed is in the results.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
import queue
import threading
import time
import uuid
import weakref
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import cloudpickle
import dask
import distributed
from dask.delayed import delayed

from hepdask.errors import ExecutorError, OptionError
from hepdask.executors import Executor, Job, Outcome, check_options, cut_tree, interruptible
from hepdask.executors.dask_tasks import (
    TOPIC,
    RunInfo,
    call_packed,
    merge_task,
    pack_ranges,
    process_task,
    stop_run,
)
from hepdask.failures import Failure
from hepdask.task import PartialResult, merge_results

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from hepdask.executors import Interrupts
    from hepdask.failures import FailureKind
    from hepdask.progress import Progress
    from hepdask.tree import Node

__all__ = ["DaskExecutor", "open_local_cluster"]

T = TypeVar("T")
R = TypeVar("R")

#: Batches of a `map` (files to inspect, mostly): enough for a thousand workers, few enough for the scheduler.
MAX_BATCHES = 2_000
#: How often the client looks for Ctrl-C while it waits.
POLL_SECONDS = 0.1
#: A run that was stopped waits for the ranges that have begun; not longer than this once there is no worker left.
NO_WORKERS_SECONDS = 5.0
#: A terminal sends Ctrl-C to the worker processes, too: these shall finish what they have begun.
_IGNORE_INTERRUPTS = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"

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
_run_numbers = itertools.count(1)


class DaskExecutor(Executor):
    """Runs jobs on a Dask cluster.

    It may have no workers yet, get more, and lose some; nothing is sized from those that are there.

    Parameters
    ----------
    client : distributed.Client, cluster, str, or None
        A client (also an asynchronous one: then calling the `Runner` gives an awaitable), a cluster object, or the
        address of a scheduler. None: what dask users expect of ``Client()``: the client of this session, else the address in dask's
        configuration, else a local cluster with one thread a worker. What is opened here is kept for the next run, and closed
        by `close`; what was given is never closed.
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
        self._given = client
        self._retries = retries
        self._priority = priority
        self._resources = dict(resources or {})
        self._split_every = split_every
        self._max_ranges_per_task = max_ranges_per_task
        self._opened: Any = None

    def __repr__(self) -> str:
        return f"DaskExecutor({self._opened or self._given!r})"

    def dispatch(self, function: Callable[[], R]) -> Any:
        """Call a function, in a thread if the client belongs to an event loop; see `Executor.dispatch`."""
        return asyncio.to_thread(function) if _is_asynchronous(self._given) else function()

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
                _pack((function, batch)), dask_key_name=f"{name}-{token}-{number:05d}"
            )
            for number, batch in enumerate(batches)
        ]
        futures = client.compute(
            tasks, retries=self._retries, priority=self._priority, optimize_graph=False
        )
        done: dict[str, list[R] | BaseException] = {}
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
        results: list[R | BaseException] = []
        for future, batch in zip(futures, batches, strict=True):
            outcome = done[future.key]
            results.extend(
                [outcome] * len(batch) if isinstance(outcome, BaseException) else outcome
            )
        return results

    def reduce(self, job: Job, progress: Progress) -> Outcome:
        """Process a job on the cluster; see `Executor.reduce`."""
        run = _Run(self._client(), job, self._split_every, self._max_ranges_per_task)
        with interruptible() as interrupts:
            run.submit(retries=self._retries, priority=self._priority, resources=self._resources)
            return run.wait(progress, interrupts)

    def _client(self) -> Any:
        given = self._given
        if isinstance(given, distributed.Client) and not given.asynchronous:
            return given
        if self._opened is None or self._opened.status == "closed":
            self._opened = _open_client(given)
        return self._opened or distributed.default_client()


def open_local_cluster(n_workers: int | None = None, **options: Any) -> distributed.LocalCluster:
    """Start worker processes with one thread each on this machine.

    Parameters
    ----------
    n_workers : int or None
        How many; None: one for each CPU.
    **options
        Passed to `distributed.LocalCluster`.
    """
    defaults = {"threads_per_worker": 1, "processes": True, "preload": [_IGNORE_INTERRUPTS]}
    return distributed.LocalCluster(
        n_workers=n_workers or dask.system.CPU_COUNT, **{**defaults, **options}
    )


class _ClientOfCluster(distributed.Client):  # type: ignore[misc]  # dask has no types
    """A client that closes its cluster, as ``Client()`` does with the one it makes."""

    def __init__(self, cluster: distributed.LocalCluster) -> None:
        super().__init__(cluster)
        self._owned_cluster = cluster

    def close(self, *arguments: Any, **options: Any) -> Any:
        closed = super().close(*arguments, **options)
        self._owned_cluster.close()
        return closed


def _is_asynchronous(given: Any) -> bool:
    return bool(getattr(given, "asynchronous", False))


def _open_client(given: Any) -> Any:
    """Open a client; None if this session has one already."""
    if given is None:
        try:
            distributed.default_client()
        except ValueError:
            if dask.config.get("scheduler-address", None):
                return distributed.Client()
            return _ClientOfCluster(open_local_cluster())
        return None
    try:
        if isinstance(given, distributed.Client):
            # an asynchronous client is driven by the user's event loop, this one by a thread of its own
            return distributed.Client(
                given.scheduler.address, security=given.security, set_as_default=False
            )
        if _is_asynchronous(given):
            return distributed.Client(
                given.scheduler_address, security=given.security, set_as_default=False
            )
        return distributed.Client(given, set_as_default=False)
    except OSError as error:
        raise ExecutorError(
            f"no Dask scheduler answers at {given!r} ({error}): is it running, and does the address start with tls:// "
            "where it uses certificates?"
        ) from error


def _pack(value: Any) -> bytes:
    try:
        return bytes(cloudpickle.dumps(value))
    except Exception as error:
        raise OptionError(
            f"the processor can't be pickled, so it can't be sent to workers: {type(error).__name__}: {error}; "
            "LocalExecutor() runs it in this process"
        ) from error


class _Run:
    """One job on its way through the cluster."""

    def __init__(
        self, client: Any, job: Job, split_every: int, max_ranges_per_task: int | None
    ) -> None:
        self._client = client
        self._job = job
        self._cut = cut_tree(job, max_ranges_per_task)
        self._merges = job.tree.merges(self._cut, split_every)
        self._run_id = uuid.uuid4().hex
        self._futures: dict[Node, Any] = {}
        self._settled: queue.SimpleQueue[Node | dict[str, Any]] = queue.SimpleQueue()
        self._stopped_by = ""
        self._is_abandoned = False
        self._last_worker = time.monotonic()
        self._submitted = 0.0
        self._token = ""

    def submit(self, *, retries: int, priority: int, resources: dict[str, float]) -> None:
        """Build the graph, and persist it."""
        with distributed.span(f"hepdask {self._job.name}"):
            nodes = self._build(resources)
        self._client.get_task_stream(count=0)  # so that the scheduler records transfers
        self._submitted = time.time()
        persisted = self._client.persist(
            list(nodes.values()), optimize_graph=False, retries=retries, priority=priority
        )
        for node, one in zip(nodes, persisted, strict=True):
            (future,) = distributed.futures_of(one)
            self._futures[node] = future
        for node, future in self._futures.items():
            future.add_done_callback(lambda _, node=node: self._settled.put(node))

    def _build(self, resources: dict[str, float]) -> dict[Node, Any]:
        work = _pack(self._job.work)
        packed = [pack_ranges(self._job.ranges[node.start : node.stop]) for node in self._cut]
        # the same job has the same keys in the same place of a session; two runs at a time never share a task, as
        # either may be stopped
        digest = hashlib.sha256(work)
        for one in packed:
            digest.update(one)
        self._token = f"{digest.hexdigest()[:12]}-{next(_run_numbers)}"
        work_task = delayed(bytes, pure=False)(work, dask_key_name=f"work-{self._token}")
        tasks: dict[Node, Any] = {}
        with dask.annotate(resources=resources) if resources else nullcontext():
            for number, (node, ranges) in enumerate(zip(self._cut, packed, strict=True)):
                key = f"process-{self._token}-{number:05d}"
                info = RunInfo(self._run_id, key)
                tasks[node] = delayed(process_task, pure=False)(
                    work_task, ranges, info, dask_key_name=key
                )
        for number, merge in enumerate(self._merges):
            key = f"merge-{self._token}-{number:05d}"
            inputs = [tasks[node] for node in merge.inputs]
            tasks[merge.node] = delayed(merge_task, pure=False)(
                merge.order, *inputs, dask_key_name=key
            )
        return tasks

    def wait(self, progress: Progress, interrupts: Interrupts) -> Outcome:
        """Wait until every task is done or can't be, and take the root."""
        display = _Display(progress, self._job.num_entries, len(self._merges))
        inputs = {merge.node: merge.inputs for merge in self._merges}
        with _listen(self._client, self._run_id, self._settled.put):
            try:
                self._follow(display, inputs, interrupts)
            except KeyboardInterrupt:
                self._stopped_by = "interrupted twice"
                self._is_abandoned = True
        root = self._take_root()
        run_seconds = time.time() - self._submitted
        display.finish()
        return Outcome(
            root,
            self._stopped_by,
            num_tasks=len(self._cut),
            num_merges=len(self._merges),
            run_seconds=run_seconds,
            queue_seconds=max(0.0, (root.metrics.first_start or self._submitted) - self._submitted),
            transfer_seconds=self._transfer_seconds(),
        )

    def _follow(
        self, display: _Display, inputs: dict[Node, tuple[Node, ...]], interrupts: Interrupts
    ) -> None:
        unsettled = set(self._futures)
        while unsettled:
            if interrupts.count:
                self._stop("interrupted")
            try:
                news = self._settled.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if self._stopped_by and self._has_lost_all_workers():
                    self._is_abandoned = True
                    return
                continue
            if isinstance(news, dict):
                display.note(news)
                self._stop(news["fatal"])
                continue
            unsettled.discard(news)
            future = self._futures.get(news)
            if future is None:
                continue  # the news of its parent came first
            if future.status != "finished":
                self._stop(f"task {future.key} could not be run")
            elif news in inputs:
                display.merged()
                for node in inputs[news]:
                    del self._futures[node]

    def _stop(self, why: str) -> None:
        """Tell all workers to start no further range of this run; what is done is still merged."""
        if not why or self._stopped_by:
            return
        self._stopped_by = why
        # in a thread, as a worker that hangs must not keep the others from being told
        threading.Thread(
            target=lambda: self._client.run(stop_run, self._run_id, on_error="ignore"), daemon=True
        ).start()

    def _has_lost_all_workers(self) -> bool:
        if self._client.scheduler_info(n_workers=1)["workers"]:
            self._last_worker = time.monotonic()
        return time.monotonic() - self._last_worker > NO_WORKERS_SECONDS

    def _take_root(self) -> PartialResult:
        tree = self._job.tree
        root = self._futures.get(tree.root)
        if root is not None and root.status == "finished":
            result: PartialResult = root.result()
            return result
        return self._merge_rest()

    def _merge_rest(self) -> PartialResult:
        """Merge here what is finished, as the tree says, and make failures of the ranges of tasks that could not be run."""
        tree = self._job.tree
        if not self._is_abandoned:
            # a result that went with its worker is made again, though its future had been done before
            with self._client.as_current():
                distributed.wait([one for one in self._futures.values() if one.status == "pending"])
        nodes = list(tree.frontier(self._is_finished, self._cut))
        finished = [node for node in nodes if self._is_finished(node)]
        futures = [self._futures[node] for node in finished]
        known: dict[Node, PartialResult] = dict(
            zip(finished, self._client.gather(futures), strict=True)
        )
        for node in nodes:
            if node not in known:
                known[node] = self._build_failures(node)
        self._client.cancel(list(self._futures.values()))

        def result(node: Node) -> PartialResult:
            if node in known:
                return known[node]
            left, right = tree.children(node)
            return merge_results(result(left), result(right))

        return result(tree.root)

    def _is_finished(self, node: Node) -> bool:
        return node in self._futures and self._futures[node].status == "finished"

    def _build_failures(self, node: Node) -> PartialResult:
        future = self._futures.get(node)
        if future is None or future.status != "error":
            return (
                PartialResult()
            )  # cancelled, or not begun, or lost with a merge that can't be made: not reached
        error = future.exception()
        kind: FailureKind = (
            "resources" if isinstance(error, distributed.KilledWorker | MemoryError) else "setup"
        )
        failures = tuple(
            Failure(
                dataset=one.file.dataset,
                file_path=one.file.file_path,
                treename=one.file.treename,
                entry_start=one.entry_start,
                entry_stop=one.entry_stop,
                kind=kind,
                exception_type=f"{type(error).__module__}.{type(error).__qualname__}",
                message=f"{error} (the task {future.key} of {len(node)} ranges could not be run)",
                exception=error,
            )
            for one in self._job.ranges[node.start : node.stop]
        )
        return PartialResult(failures=failures)

    def _transfer_seconds(self) -> float:
        records = self._client.get_task_stream(start=self._submitted - 1)
        return math.fsum(
            step["stop"] - step["start"]
            for record in records
            if self._token in str(record["key"])
            for step in record["startstops"]
            if step["action"] == "transfer"
        )


class _Display:
    """Turns the sums that tasks report into progress."""

    def __init__(self, progress: Progress, num_entries: int, num_merges: int) -> None:
        self._progress = progress
        self._sums: dict[str, dict[str, int]] = {}
        self._num_merges = num_merges
        progress.start("processing", num_entries, "events")
        if num_merges:
            progress.start("merging", num_merges, "merges")

    def note(self, news: dict[str, Any]) -> None:
        """Take the sums of one task: a task that runs again starts at zero again, and nothing is counted twice."""
        before = self._sums.setdefault(news["key"], {"entries": 0, "bytes": 0, "failures": 0})
        more = {name: max(0, news[name] - before[name]) for name in before}
        for name, amount in more.items():
            before[name] += amount
        self._progress.advance(
            "processing", more["entries"], num_bytes=more["bytes"], num_failures=more["failures"]
        )

    def merged(self) -> None:
        """Take note of a merge."""
        self._progress.advance("merging", 1)

    def finish(self) -> None:
        """End both stages."""
        self._progress.finish("processing")
        if self._num_merges:
            self._progress.finish("merging")


_handlers: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
_handlers_lock = threading.Lock()


@contextmanager
def _listen(client: Any, run_id: str, handler: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Receive the events of one run; a client has one handler for a topic, and may have several runs."""
    with _handlers_lock:
        handlers = _handlers.setdefault(client, {})
        if not handlers:
            client.subscribe_topic(TOPIC, lambda event: _pass_on(handlers, event))
        handlers[run_id] = handler
    try:
        yield
    finally:
        with _handlers_lock:
            del handlers[run_id]
            if not handlers:
                client.unsubscribe_topic(TOPIC)


def _pass_on(handlers: dict[str, Any], event: tuple[float, dict[str, Any]]) -> None:
    _, message = event
    handler = handlers.get(message["run"])
    if handler is not None:
        handler(message)
