"""One job on its way through a Dask cluster.

It becomes a graph of `dask.delayed` tasks: one that holds the work (processor and reader), pickled, so that it is
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
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cloudpickle
import dask
import distributed
from dask.delayed import delayed

from hepdask.errors import OptionError
from hepdask.executors import Job, Outcome, cut_tree
from hepdask.executors.dask_tasks import (
    MARKS,
    TOPIC,
    RunInfo,
    merge_task,
    pack_ranges,
    process_task,
    stop_run,
)
from hepdask.failures import Failure
from hepdask.task import PartialResult, merge_results

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hepdask.executors import Interrupts
    from hepdask.failures import FailureKind
    from hepdask.progress import Progress
    from hepdask.tree import Node

__all__ = ["DaskRun", "TaskOptions", "pack"]

#: How often the client looks for Ctrl-C while it waits.
POLL_SECONDS = 0.1
#: A run that was stopped waits for the ranges that have begun; not longer than this once there is no worker left.
NO_WORKERS_SECONDS = 5.0
#: How often the nodes whose workers died are sent out anew, each time in halves.
MAX_LAUNCHES = 12
_run_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """What `DaskExecutor` says of tasks."""

    retries: int
    priority: int
    resources: dict[str, float]
    split_every: int
    max_ranges_per_task: int | None


def pack(value: Any) -> bytes:
    """Pickle what workers shall have, the user's processor in it.

    Raises
    ------
    OptionError
        If that can't be pickled.
    """
    try:
        return bytes(cloudpickle.dumps(value))
    except Exception as error:
        raise OptionError(
            f"the processor can't be pickled, so it can't be sent to workers: {type(error).__name__}: {error}; "
            "LocalExecutor() runs it in this process"
        ) from error


def _is_killed(future: Any) -> bool:
    return isinstance(future.exception(), distributed.KilledWorker)


class DaskRun:
    """One job on its way through the cluster.

    Parameters
    ----------
    client : distributed.Client
        A synchronous one.
    job : Job
        What to do.
    options : TaskOptions
        What its tasks are told.
    """

    def __init__(self, client: Any, job: Job, options: TaskOptions) -> None:
        self._client = client
        self._job = job
        self._options = options
        self._cut = cut_tree(job, options.max_ranges_per_task)
        self._run_id = uuid.uuid4().hex
        self._token = ""
        self._work: Any = None
        self._submitted = 0.0
        self._num_launches = 0
        self._num_tasks = 0
        #: the nodes that each merge takes
        self._inputs: dict[Node, tuple[Node, ...]] = {}
        #: one for each node until its parent is done
        self._futures: dict[Node, Any] = {}
        self._unsettled: set[Node] = set()
        self._news: queue.SimpleQueue[Node | dict[str, Any]] = queue.SimpleQueue()
        self._stopped_by = ""
        self._is_abandoned = False
        self._last_worker = time.monotonic()

    def submit(self) -> None:
        """Pack everything, build the graph, and persist it."""
        packed_work = pack(self._job.work)
        packed = [pack_ranges(self._job.ranges[node.start : node.stop]) for node in self._cut]
        # the same job has the same keys in the same place of a session; two runs at a time never share a task, as
        # either may be stopped
        digest = hashlib.sha256(packed_work)
        for one in packed:
            digest.update(one)
        self._token = f"{digest.hexdigest()[:12]}-{next(_run_numbers)}"
        self._work = delayed(bytes, pure=False)(packed_work, dask_key_name=f"work-{self._token}")
        self._client.get_task_stream(count=0)  # so that the scheduler records transfers
        self._submitted = time.time()
        self._launch(dict(zip(self._cut, packed, strict=True)))

    def _launch(self, packed: dict[Node, bytes]) -> None:
        """Persist tasks for these nodes of the cut, and all merges above the cut."""
        with distributed.span(f"hepdask {self._job.name}"):
            tasks = self._build(packed)
        options = self._options
        persisted = self._client.persist(
            list(tasks.values()),
            optimize_graph=False,
            retries=options.retries,
            priority=options.priority,
        )
        for node, one in zip(tasks, persisted, strict=True):
            (self._futures[node],) = distributed.futures_of(one)
        self._unsettled.update(tasks)
        self._num_launches += 1
        for node in tasks:
            self._futures[node].add_done_callback(lambda _, node=node: self._news.put(node))

    def _build(self, packed: dict[Node, bytes]) -> dict[Node, Any]:
        suffix = f"-again{self._num_launches}" if self._num_launches else ""
        tasks: dict[Node, Any] = {}
        resources = self._options.resources
        with dask.annotate(resources=resources) if resources else nullcontext():
            for number, (node, ranges) in enumerate(packed.items()):
                key = f"process-{self._token}-{number:05d}{suffix}"
                info = RunInfo(self._run_id, key, is_suspect=bool(suffix))
                tasks[node] = delayed(process_task, pure=False)(
                    self._work, ranges, info, dask_key_name=key
                )
        for number, merge in enumerate(self._job.tree.merges(self._cut, self._options.split_every)):
            key = f"merge-{self._token}-{number:05d}{suffix}"
            inputs = [
                tasks[node] if node in tasks else self._futures[node] for node in merge.inputs
            ]
            self._inputs[merge.node] = merge.inputs
            tasks[merge.node] = delayed(merge_task, pure=False)(
                merge.order, *inputs, dask_key_name=key
            )
        self._num_tasks += len(packed)
        return tasks

    def wait(self, progress: Progress, interrupts: Interrupts) -> Outcome:
        """Wait until every task is done or can't be, and take the root."""
        display = _Display(progress, self._job.num_entries, len(self._inputs))
        with _listen(self._client, self._run_id, self._news.put):
            try:
                self._follow(display, interrupts)
                while self._relaunch():
                    self._follow(display, interrupts)
            except KeyboardInterrupt:
                self._stopped_by = "interrupted twice"
                self._is_abandoned = True
        root = self._take_root()
        with suppress(OSError):  # of no use any more
            self._client.set_metadata([MARKS, self._run_id], {})
        run_seconds = time.time() - self._submitted
        display.finish()
        return Outcome(
            root,
            self._stopped_by,
            num_tasks=self._num_tasks,
            num_merges=len(self._inputs),
            run_seconds=run_seconds,
            queue_seconds=max(0.0, (root.metrics.first_start or self._submitted) - self._submitted),
            transfer_seconds=self._transfer_seconds(),
        )

    def _follow(self, display: _Display, interrupts: Interrupts) -> None:
        while self._unsettled:
            if interrupts.count:
                self._stop("interrupted")
            try:
                news = self._news.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if self._stopped_by and self._has_lost_all_workers():
                    self._is_abandoned = True
                    return
                continue
            if isinstance(news, dict):
                display.note(news)
                self._stop(news["fatal"])
            else:
                self._settle(news, display)

    def _settle(self, node: Node, display: _Display) -> None:
        self._unsettled.discard(node)
        future = self._futures.get(node)
        if future is None:
            return  # the news of its parent came first
        if future.status != "finished":
            if future.status != "error" or not _is_killed(future):
                self._stop(f"task {future.key} could not be run")
        elif node in self._inputs:
            display.merged()
            for one in self._inputs[node]:
                self._futures.pop(one, None)

    def _relaunch(self) -> bool:
        """Run the nodes whose workers died too often again, in halves and each range in a child process.

        dask gives a task up after some workers died with it, whoever was to blame. What is finished stays as it is.
        """
        root = self._futures.get(self._job.tree.root)
        if (
            self._stopped_by
            or self._num_launches > MAX_LAUNCHES
            or (root and root.status == "finished")
        ):
            return False
        self._wait_for_lost()
        finished: list[Node] = []
        again: list[Node] = []
        for node in self._job.tree.frontier(self._is_finished, self._cut):
            (finished if self._is_finished(node) else again).append(node)
        halves = [half for node in again for half in self._job.tree.children(node) or (node,)]
        self._cut = sorted([*finished, *halves])
        kept = {node: self._futures[node] for node in finished}
        self._futures = kept
        self._launch(
            {node: pack_ranges(self._job.ranges[node.start : node.stop]) for node in halves}
        )
        return True

    def _stop(self, why: str) -> None:
        """Tell all workers to start no further range of this run; what is done is still merged."""
        if not why or self._stopped_by:
            return
        self._stopped_by = why
        # in a thread, as a worker that hangs must not keep the others from being told
        threading.Thread(target=self._tell_workers, daemon=True).start()

    def _tell_workers(self) -> None:
        # where the connection is gone, there is nobody left to tell
        with suppress(OSError, RuntimeError, asyncio.CancelledError):
            self._client.run(stop_run, self._run_id, on_error="ignore")

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
            self._wait_for_lost()
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

    def _wait_for_lost(self) -> None:
        """Wait for results that went with their worker: dask makes them again, though their futures had been done."""
        pending = [one for one in self._futures.values() if one.status == "pending"]
        with self._client.as_current():
            distributed.wait(pending)

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
