"""One job on its way through a Dask cluster: follow its tasks, do what is needed where they fail, take the root.

Tasks tell of their progress in dask events. Nothing depends on them but what can be done without: what was processed is in
the results.
"""

from __future__ import annotations

import math
import queue
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import distributed

from hepdask.executors import FULL, INTERRUPTED, LOST, Job, Outcome, cut_tree
from hepdask.executors.dask_clients import LOST_ERRORS, ask, is_under_way
from hepdask.executors.dask_events import Display, listen
from hepdask.executors.dask_graph import Graph, TaskOptions, node_at, place_of
from hepdask.executors.dask_marks import FULL_WORKER, MARKS, may_kill
from hepdask.executors.dask_monitor import SUMS, stop_run
from hepdask.executors.dask_placement import find_open, place_tasks
from hepdask.executors.dask_watch import ClusterWatch, Pace
from hepdask.failures import Failure
from hepdask.held import bring_back
from hepdask.partial import PartialResult, merge_results, process_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from hepdask.executors import Interrupts
    from hepdask.failures import FailureKind
    from hepdask.progress import Progress
    from hepdask.tree import Node

__all__ = ["DaskRun"]

#: How often the client looks for Ctrl-C while it waits.
POLL_SECONDS = 0.1
#: A run that was stopped waits for the ranges that have begun; not longer than this once there is no worker left.
NO_WORKERS_SECONDS = 5.0
#: How often the nodes whose workers died are sent out anew, each time in halves.
MAX_LAUNCHES = 12
#: Tasks that are tried on a second worker, as their first could not reach a server: if there are more, it is the server.
MAX_UNREACHABLE = 64
#: How long it may take to cancel what is not wanted any more.
CANCEL_SECONDS = 20.0
#: How long the result of a finished task may take to come here.
GATHER_SECONDS = 300.0


def _is_killed(future: Any) -> bool:
    return isinstance(future.exception(), distributed.KilledWorker)


@dataclass(frozen=True, slots=True)
class _Copy:
    """A second task for a node.

    Attributes
    ----------
    future : distributed.Future
        Of the task.
    is_second_try : bool
        True: its result replaces the first one, which could not reach a server. False: the first one is late, and
        whichever comes first counts.
    """

    future: Any
    is_second_try: bool = False


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
    renew : callable
        Called now and then.
    """

    def __init__(
        self, client: Any, job: Job, options: TaskOptions, renew: Callable[[], None]
    ) -> None:
        self._client = client
        self._renew = renew
        self._job = job
        self._run_id = uuid.uuid4().hex
        self._news: queue.SimpleQueue[tuple[Node, Any] | dict[str, Any]] = queue.SimpleQueue()
        self._graph = Graph(client, job, options, self._run_id, lambda *one: self._news.put(one))
        self._threads = _find_threads(client)
        self._cut = cut_tree(job, options.max_ranges_per_task, sum(self._threads.values()))
        self._watch = ClusterWatch(client, job.work.recovery.max_silent_seconds)
        self._pace = Pace()
        self._tally = job.tally()
        self._submitted = 0.0
        self._num_launches = 1
        self._num_unreachable = 0
        self._unsettled: set[Node] = set()
        self._copies: dict[Node, _Copy] = {}
        self._stopped_by = ""
        self._is_abandoned = False
        self._last_worker = self._last_look = time.monotonic()
        #: nodes that were done, and are made again, as their results went with their worker
        self._remade: dict[Node, Any] = {}

    def submit(self) -> None:
        """Pack everything, build the graph, and persist it."""
        with suppress(*LOST_ERRORS):  # if it is lost just now, `wait` says so
            self._client.get_task_stream(count=0)  # so that the scheduler records transfers
        self._submitted = time.time()
        job = self._job
        places = place_tasks(
            self._cut,
            job.expected_seconds,
            self._threads,
            lambda node: {one.file.file_path for one in job.ranges[node.start : node.stop]},
            lambda: find_open(self._client, list(self._threads)),
        )
        self._graph.submit(self._cut, places)
        self._unsettled.update(self._graph.futures)

    def wait(self, progress: Progress, interrupts: Interrupts) -> Outcome:
        """Wait until every task is done or can't be, and take the root."""
        display = Display(progress, self._job.num_entries, len(self._graph.inputs))
        with interrupts.held(), listen(self._client, self._run_id, self._news.put):
            try:
                with interrupts.raised():
                    self._follow_all(display, interrupts)
            except KeyboardInterrupt:
                self._abandon("interrupted twice")
            root = self._take_root()
            self._let_go()
        run_seconds = time.time() - self._submitted
        display.finish()
        return Outcome(
            root,
            self._stopped_by,
            num_tasks=self._graph.num_tasks,
            num_merges=len(self._graph.inputs),
            run_seconds=run_seconds,
            queue_seconds=max(0.0, (root.metrics.first_start or self._submitted) - self._submitted),
            transfer_seconds=self._transfer_seconds(),
            was_lost=self._stopped_by == LOST,
        )

    def _follow_all(self, display: Display, interrupts: Interrupts) -> None:
        self._follow(display, interrupts)
        while self._halve_killed():
            self._follow(display, interrupts)

    def _follow(self, display: Display, interrupts: Interrupts) -> None:
        while self._unsettled and not self._is_abandoned:
            if interrupts.count:
                self._stop(INTERRUPTED)
            news = None
            with suppress(queue.Empty):
                news = self._news.get(timeout=POLL_SECONDS)
            if isinstance(news, dict):
                self._take_report(news, display)
            elif news is not None:
                self._settle(*news, display)
            # on a large cluster, there are always news
            if time.monotonic() - self._last_look >= POLL_SECONDS:
                self._look_around()
                self._last_look = time.monotonic()

    def _take_report(self, report: dict[str, Any], display: Display) -> None:
        """Take note of what a task says of itself."""
        node = node_at(report["place"])
        own, copy = self._graph.futures.get(node), self._copies.get(node)
        if own is not None and report["key"] not in (own.key, copy and copy.future.key):
            return  # of a task that was replaced
        new = display.note(report)
        same = {name: count for name, count in new.items() if name not in SUMS}
        self._stop(report["fatal"])
        self._stop(self._tally.note(new["ranges"], new["failed_entries"], same))
        if report["is_done"]:
            self._pace.note(self._job.expected_seconds(node), report["seconds"])
            if report["unreachable"]:
                self._try_elsewhere(node, report["worker"])

    def _look_around(self) -> None:
        """Look whether the scheduler is still there, the workers are heard of, and no task is late."""
        for node, future in list(self._remade.items()):
            if not is_under_way(future):
                self._news.put((node, self._remade.pop(node)))
        if self._client.status != "running":
            self._abandon(LOST)
        elif self._stopped_by and self._has_lost_all_workers():
            self._is_abandoned = True
        elif self._watch.look(self._graph.token):
            self._count_full()
            if self._watch.is_stuck():
                self._abandon(self._stopped_by or FULL)
            elif not self._stopped_by:
                self._copy_late()
                self._renew()

    def _count_full(self) -> None:
        """Let workers that were full count as dead: if there are more, tasks run in child processes, which are replaced."""
        while self._watch.replaced:
            keys = [MARKS, self._run_id, "died", self._watch.replaced.pop()]
            with suppress(*LOST_ERRORS):
                ask(self._client, "set_metadata", keys=keys, value=FULL_WORKER)

    def _settle(self, node: Node, future: Any, display: Display) -> None:
        """Take note of a task that is done, or can't be run."""
        graph = self._graph
        copy = self._copies.get(node)
        if copy is not None and future is copy.future:
            self._settle_copy(node, copy)
        elif graph.futures.get(node) is future:
            self._settle_own(node, future, display)
        # else: it was replaced meanwhile, or the news of its parent came first
        self._unsettled &= set(graph.futures) | set(self._copies)

    def _settle_own(self, node: Node, future: Any, display: Display) -> None:
        if is_under_way(future):
            self._remade[node] = future
            return
        copy = self._copies.get(node)
        if copy is not None and not copy.is_second_try and future.status == "finished":
            self._tell_workers(str(copy.future.key))
            del self._copies[node]
        if node not in self._copies:
            self._unsettled.discard(node)
        if future.status == "finished":
            self._release(node, display)
        elif future.status != "error":
            self._abandon(self._stopped_by or LOST)
        elif not _is_killed(future):
            self._stop(f"task {future.key} could not be run")

    def _release(self, node: Node, display: Display) -> None:
        if node not in self._graph.inputs:
            return
        display.merged()
        # what a second try may replace is to be merged anew
        if not any(one.is_second_try and _contains(node, at) for at, one in self._copies.items()):
            self._graph.release_inputs(node)

    def _settle_copy(self, node: Node, copy: _Copy) -> None:
        del self._copies[node]
        own = self._graph.futures.get(node)
        if copy.future.status != "finished":
            if own is None or not is_under_way(own):
                self._unsettled.discard(node)
            return
        workers: list[str] = []
        if own is not None:
            self._tell_workers(str(own.key))
            workers = self._watch.others(self._watch.worker_of(own.key))
        self._graph.replace(node, copy.future, workers)
        self._await_pending()

    def _await_pending(self) -> None:
        pending = {one for one, held in self._graph.futures.items() if is_under_way(held)}
        # those that were done before have no more callbacks
        self._remade = {
            one: held for one, held in self._graph.futures.items() if held.status == "lost"
        }
        self._unsettled = pending | set(self._copies)

    def _try_elsewhere(self, node: Node, worker: str) -> None:
        """Let another worker try what this one could not reach."""
        others = self._watch.others(worker)
        if self._stopped_by or node in self._copies or node not in self._graph.futures:
            return
        self._num_unreachable += 1
        if not others or self._num_unreachable > MAX_UNREACHABLE:
            return
        copy = self._graph.copy(node, others, is_last_try=True)
        self._copies[node] = _Copy(copy, is_second_try=True)
        self._unsettled.add(node)

    def _copy_late(self) -> None:
        """Run tasks that take too long a second time, if workers are idle: the first result counts."""
        graph, watch = self._graph, self._watch
        running = [
            node
            for node in self._unsettled
            if node not in graph.inputs and node not in self._copies
        ]
        idle = watch.num_threads - watch.num_busy
        if not running or len(running) > watch.num_threads:
            return
        for node in sorted(running)[: max(0, idle)]:
            key = graph.futures[node].key
            expected = self._job.expected_seconds(node)
            if self._pace.is_late(expected, watch.seconds(key)):
                others = watch.others(watch.worker_of(key))
                if others:
                    self._copies[node] = _Copy(graph.copy(node, others, is_last_try=False))

    def _halve_killed(self) -> bool:
        """Run the nodes whose workers died too often again, in halves; each range in a child process, if they may be to blame.

        dask gives a task up after some workers died with it, whoever was to blame. What is finished stays as it is; if its
        result went with its worker, it is made again first. Returns True if there is something to follow.
        """
        graph = self._graph
        root = graph.futures.get(self._job.tree.root)
        if (
            self._stopped_by
            or self._is_abandoned
            or self._num_launches > MAX_LAUNCHES
            or (root and root.status == "finished")
        ):
            return False
        self._await_pending()
        if self._unsettled:
            return True  # results that went with their worker are made again
        killed = [
            node
            for node in graph.cut
            if node in graph.futures and graph.futures[node].status == "error"
        ]
        graph.halve(killed, self._find_suspects(killed))
        self._num_launches += 1
        self._await_pending()
        return True

    def _find_suspects(self, nodes: Collection[Node]) -> Collection[Node]:
        with suppress(*LOST_ERRORS):
            deaths = ask(
                self._client, "get_metadata", keys=[MARKS, self._run_id, "died"], default={}
            )
            return {node for node in nodes if may_kill(place_of(node), deaths)}
        return nodes

    def _stop(self, why: str) -> None:
        """Tell all workers to start no further range of this run; what is done is still merged."""
        if not why or self._stopped_by:
            return
        self._stopped_by = why
        self._tell_workers(self._run_id)

    def _abandon(self, why: str) -> None:
        """Wait for nothing any more."""
        self._stop(why)
        self._stopped_by = why
        self._is_abandoned = True

    def _tell_workers(self, name: str) -> None:
        def tell() -> None:
            # where the connection is gone, there is nobody left to tell
            with suppress(*LOST_ERRORS, AttributeError):
                self._client.run(stop_run, name, on_error="ignore")

        # in a thread, as a worker that hangs must not keep the others from being told
        if self._is_connected():
            threading.Thread(target=tell, daemon=True).start()

    def _has_lost_all_workers(self) -> bool:
        with suppress(*LOST_ERRORS):
            if ask(self._client, "identity", n_workers=1)["workers"]:
                self._last_worker = time.monotonic()
        return time.monotonic() - self._last_worker > NO_WORKERS_SECONDS

    def _is_connected(self) -> bool:
        return str(self._client.status) == "running"

    def _take_root(self) -> PartialResult:
        tree = self._job.tree
        if self._graph.is_finished(tree.root) and self._is_connected():
            with suppress(*LOST_ERRORS):
                return bring_back(self._graph.futures[tree.root].result())
        if not self._stopped_by and self._is_forgotten():
            self._stopped_by = LOST
        return self._merge_rest()

    def _is_forgotten(self) -> bool:
        """Return whether the connection was lost after the last news: dask then gives all results up."""
        return not self._is_connected() or any(
            one.status == "cancelled" for one in self._graph.futures.values()
        )

    def _merge_rest(self) -> PartialResult:
        """Merge here what is finished or in the store, as the tree says; make failures of the ranges of tasks that could not be run."""
        tree, stored = self._job.tree, self._job.stored
        if not self._is_abandoned:
            self._wait_for_lost()
        gathered = self._gather_finished()
        present = frozenset() if stored is None else stored.checkpoints.list_keys()
        errors = sorted(self._find_errors())

        def known(node: Node) -> PartialResult | None:
            if node in gathered:
                return gathered[node]
            if stored is None or not present:
                return None
            key = stored.keys.key(node)
            return stored.checkpoints.load(key) if key in present else None

        def leaf(node: Node) -> PartialResult:
            for failed, future in errors:
                if _contains(failed, node):
                    return self._build_failure(node, future)
            return PartialResult()  # not reached

        def merge(node: Node, left: PartialResult, right: PartialResult) -> PartialResult:
            if stored is None:
                return merge_results(left, right)
            key = stored.keys.key(node)
            return stored.checkpoints.merge(left, right, key=key, worker=process_name())

        root = tree.fold(tree.root, leaf, merge, known)
        self._cancel()
        return root

    def _gather_finished(self) -> dict[Node, PartialResult]:
        graph = self._graph
        if not self._is_connected():
            return {}
        nodes = [
            node
            for node in self._job.tree.frontier(graph.is_finished, graph.cut)
            if graph.is_finished(node)
        ]
        results: dict[Node, PartialResult] = {}
        for node in nodes:
            # one by one: what is lost with a worker costs itself alone
            with suppress(*LOST_ERRORS):
                results[node] = bring_back(graph.futures[node].result(timeout=GATHER_SECONDS))
        return results

    def _find_errors(self) -> Iterator[tuple[Node, Any]]:
        for node in self._graph.cut:
            future = self._graph.futures.get(node)
            if future is not None and future.status == "error":
                yield node, future

    def _cancel(self) -> None:
        held = [*self._graph.futures.values(), *(one.future for one in self._copies.values())]
        if self._is_connected():
            with suppress(*LOST_ERRORS):
                self._client.sync(self._client._cancel, held, callback_timeout=CANCEL_SECONDS)

    def _let_go(self) -> None:
        """Let the cluster forget the run, now and not when Python collects what refers to its futures."""
        self._graph.futures.clear()
        self._copies.clear()
        if self._is_connected():
            with suppress(*LOST_ERRORS):  # of no use any more
                ask(self._client, "set_metadata", keys=[MARKS, self._run_id], value={})

    def _wait_for_lost(self) -> None:
        """Wait for results that went with their worker: dask makes them again, though their futures had been done."""
        pause = threading.Event()
        while any(is_under_way(one) for one in self._graph.futures.values()):
            if not self._is_connected() or self._has_lost_all_workers():
                return
            if self._watch.look(self._graph.token) and self._watch.is_stuck():
                return
            pause.wait(POLL_SECONDS)

    def _build_failure(self, node: Node, future: Any) -> PartialResult:
        error = future.exception()
        kind: FailureKind = (
            "resources" if isinstance(error, distributed.KilledWorker | MemoryError) else "setup"
        )
        one = self._job.ranges[node.start]
        failure = Failure(
            dataset=one.file.dataset,
            file_path=one.file.file_path,
            treename=one.file.treename,
            entry_start=one.entry_start,
            entry_stop=one.entry_stop,
            kind=kind,
            exception_type=f"{type(error).__module__}.{type(error).__qualname__}",
            message=f"{error} (the task {future.key} could not be run)",
            exception=error,
        )
        return PartialResult(failures=(failure,))

    def _transfer_seconds(self) -> float:
        if not self._is_connected():
            return 0.0
        with suppress(*LOST_ERRORS):
            return math.fsum(
                step["stop"] - step["start"]
                for record in self._task_stream()
                if self._graph.token in str(record["key"])
                for step in record["startstops"]
                if step["action"] == "transfer"
            )
        return 0.0

    def _task_stream(self) -> Any:
        start = self._submitted - 1
        return ask(self._client, "get_task_stream", start=start, stop=None, count=None)


def _find_threads(client: Any) -> dict[str, int]:
    """Return the threads of each worker that there is now."""
    with suppress(*LOST_ERRORS):
        return dict(ask(client, "ncores", workers=None))
    return {}


def _contains(outer: Node, inner: Node) -> bool:
    return outer.start <= inner.start and inner.stop <= outer.stop
