"""The tasks of a run: how nodes of the tree become `dask.delayed`, and which futures stand for them.

One task holds the work (processor and reader), pickled, so that it is shipped once to each worker; one for each node of the
cut (``process-...``) is sent its packed ranges; one for each merge above the cut is ``merge-...``. They are persisted
together, and a future is held for every node until its parent is done: a task that can't be run costs its own path to the
root, and nothing else. A node may get another task later: in halves, or a copy elsewhere. Then the merges above it are made anew.
"""

from __future__ import annotations

import hashlib
import itertools
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cloudpickle
import dask
import distributed
from dask.delayed import delayed

from hepdask.errors import OptionError
from hepdask.executors.dask_deaths import DONE_AGAIN
from hepdask.executors.dask_marks import RunInfo
from hepdask.executors.dask_tasks import merge_task, pack_ranges, process_task
from hepdask.shipping import seal
from hepdask.tree import Node

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from hepdask.executors import Job
    from hepdask.shipping import Manifest
    from hepdask.tree import Merge

__all__ = ["Graph", "TaskOptions", "node_at", "pack", "place_of"]

#: The last task of a run has a priority that is less than its first one's by so much, and one that is done again once more: the next
#: lower integer is lower still.
PRIORITY_SPAN = 0.5
_run_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """What `DaskExecutor` says of tasks."""

    retries: int
    priority: int
    resources: dict[str, float]
    split_every: int
    max_ranges_per_task: int | None
    manifest: Manifest | None = None


def pack(value: Any, manifest: Manifest | None = None) -> bytes:
    """Pickle what workers shall have, the user's processor in it, and what of the user's modules it needs there.

    Raises
    ------
    OptionError
        If that can't be pickled.
    """
    try:
        return seal(manifest, bytes(cloudpickle.dumps(value)))
    except Exception as error:
        raise OptionError(
            f"the processor can't be pickled, so it can't be sent to workers: {type(error).__name__}: {error}; "
            "LocalExecutor() runs it in this process"
        ) from error


class Graph:
    """The tasks of one run.

    Parameters
    ----------
    client : distributed.Client
        A synchronous one.
    job : Job
        What to do.
    options : TaskOptions
        What its tasks are told.
    run_id : str
        Unique.
    settled : callable
        Called, from another thread, with a node and its future when that is done, or can't be.
    """

    def __init__(
        self,
        client: Any,
        job: Job,
        options: TaskOptions,
        run_id: str,
        settled: Callable[[Node, Any], None],
    ) -> None:
        self._client = client
        self._job = job
        self._options = options
        self._run_id = run_id
        self._settled = settled
        self._dataset_stops = frozenset(job.tree.dataset_stops)
        self._token = ""
        self._work: Any = None
        self._task_numbers = itertools.count()
        self._merge_numbers = itertools.count()
        #: the nodes that are tasks
        self.cut: list[Node] = []
        #: the nodes that each merge takes
        self.inputs: dict[Node, tuple[Node, ...]] = {}
        #: one for each node until its parent is done
        self.futures: dict[Node, Any] = {}
        self.num_tasks = 0

    @property
    def token(self) -> str:
        """What all keys of this run have in them."""
        return self._token

    def submit(self, cut: list[Node], places: Mapping[Node, str]) -> None:
        """Pack everything, and persist the tasks of a cut.

        Parameters
        ----------
        cut : list of Node
            The nodes that are tasks.
        places : mapping of Node to str
            Where some of them begin, by the address of a worker; dask may move them.
        """
        packed_work = pack(self._job.work, self._options.manifest)
        packed = {node: self._pack(node) for node in cut}
        # the same job has the same keys in the same place of a session; two runs at a time never share a task, as
        # either may be stopped
        digest = hashlib.sha256(packed_work)
        for one in packed.values():
            digest.update(one)
        self._token = f"{digest.hexdigest()[:12]}-{next(_run_numbers)}"
        self._work = delayed(bytes, pure=False)(packed_work, dask_key_name=f"work-{self._token}")
        self.cut = cut
        self._persist(packed, places=places)

    def replace(self, node: Node, future: Any, workers: Sequence[str]) -> None:
        """Let a copy stand for a node from now on; merges that don't have it yet are made anew.

        Parameters
        ----------
        node : Node
            Of the cut.
        future : distributed.Future
            Of the copy.
        workers : sequence of str
            Where merges go: not to the worker that is late.
        """
        self._keep_frontier(lambda one: not (one.start <= node.start and node.stop <= one.stop))
        self.futures[node] = future
        self._persist({}, workers=workers)

    def halve(self, nodes: Iterable[Node], suspects: Collection[Node]) -> None:
        """Run nodes that could not be run anew, in halves.

        Parameters
        ----------
        nodes : iterable of Node
            Of the cut.
        suspects : collection of Node
            Those whose ranges are run in child processes.
        """
        self._keep_frontier(lambda _: True)
        again = set(nodes)
        halves = {
            half: node in suspects
            for node in again
            for half in self._job.tree.children(node) or (node,)
        }
        for node in again:
            self.futures.pop(node, None)
        self.cut = sorted([*(node for node in self.cut if node not in again), *halves])
        suspected = {half for half, is_suspect in halves.items() if is_suspect}
        self._persist({node: self._pack(node) for node in halves}, suspects=suspected)

    def copy(self, node: Node, workers: Sequence[str], *, is_last_try: bool) -> Any:
        """Run a node a second time, on one of these workers if they are still there.

        Returns
        -------
        distributed.Future
            Of the copy; the node keeps its own until `replace`.
        """
        with distributed.span(f"hepdask {self._job.name}"):
            task = self._process(node, self._pack(node), is_last_try=is_last_try)
        future = self._send([task], workers)[0]
        self._listen(node, future)
        return future

    def is_finished(self, node: Node) -> bool:
        """Return whether the result of a node is there."""
        return node in self.futures and self.futures[node].status == "finished"

    def release_inputs(self, node: Node) -> None:
        """Let go of what a merge has merged."""
        for one in self.inputs[node]:
            self.futures.pop(one, None)

    def _keep_frontier(self, may_keep: Callable[[Node], bool]) -> None:
        """Make the largest nodes that are done, and those of the cut that are not, the new cut; let go of all others."""

        def is_kept(node: Node) -> bool:
            # a merge that has let go of its inputs is made again by dask, if its result was lost
            inputs = self.inputs.get(node, ())
            has_released = bool(inputs) and not any(one in self.futures for one in inputs)
            return may_keep(node) and (
                self.is_finished(node) or (node in self.futures and has_released)
            )

        self.cut = list(self._job.tree.frontier(is_kept, self.cut))
        self.futures = {node: self.futures[node] for node in self.cut if node in self.futures}
        self.inputs = {}

    def _pack(self, node: Node) -> bytes:
        stored = self._job.stored
        identities = None if stored is None else stored.identities
        return pack_ranges(self._job.ranges[node.start : node.stop], identities)

    def _persist(
        self,
        packed: dict[Node, bytes],
        *,
        suspects: Collection[Node] = (),
        workers: Sequence[str] = (),
        places: Mapping[Node, str] | None = None,
    ) -> None:
        """Persist tasks for these nodes, and all merges above the cut."""
        with distributed.span(f"hepdask {self._job.name}"):
            tasks = {
                node: self._process(
                    node, ranges, is_suspect=node in suspects, worker=(places or {}).get(node)
                )
                for node, ranges in packed.items()
            }
            for merge in self._job.tree.merges(self.cut, self._options.split_every):
                self.inputs[merge.node] = merge.inputs
                inputs = [
                    tasks[node] if node in tasks else self.futures[node] for node in merge.inputs
                ]
                tasks[merge.node] = self._merge(merge, inputs)
        futures = self._send(list(tasks.values()), workers)
        self.num_tasks += len(packed)
        for node, future in zip(tasks, futures, strict=True):
            self.futures[node] = future
            self._listen(node, future)

    def _send(self, tasks: list[Any], workers: Sequence[str]) -> list[Any]:
        # others than these only if none of them is left
        where = {"workers": list(workers), "allow_other_workers": True} if workers else {}
        persisted = self._client.persist(
            tasks,
            optimize_graph=False,
            retries=self._options.retries,
            priority=self._options.priority,
            **where,
        )
        return [distributed.futures_of(one)[0] for one in persisted]

    def _listen(self, node: Node, future: Any) -> None:
        future.add_done_callback(lambda one: self._settled(node, one))

    def _process(
        self,
        node: Node,
        ranges: bytes,
        *,
        is_suspect: bool = False,
        is_last_try: bool = False,
        worker: str | None = None,
    ) -> Any:
        key = f"process-{self._token}-{next(self._task_numbers):05d}"
        info = RunInfo(self._run_id, key, place_of(node), is_suspect, is_last_try)
        stored = self._job.stored
        with self._annotated(node.start, worker), dask.annotate(**{DONE_AGAIN: PRIORITY_SPAN}):
            return delayed(process_task, pure=False)(
                self._work,
                ranges,
                info,
                None if stored is None else stored.checkpoints,
                frozenset() if stored is None else stored.names_in(node),
                ends_dataset=node.stop in self._dataset_stops,
                is_root=node == self._job.tree.root,
                dask_key_name=key,
            )

    def _merge(self, merge: Merge, inputs: list[Any]) -> Any:
        key = f"merge-{self._token}-{next(self._merge_numbers):05d}"
        stored = self._job.stored
        with self._annotated(merge.node.stop - 1):
            return delayed(merge_task, pure=False)(
                merge.order,
                None if stored is None else stored.checkpoints,
                () if stored is None else self._pair_keys(merge.node, set(merge.inputs)),
                merge.node == self._job.tree.root,
                *inputs,
                dask_key_name=key,
            )

    def _pair_keys(self, node: Node, inputs: set[Node]) -> tuple[str, ...]:
        if node in inputs or self._job.stored is None:
            return ()
        left, right = self._job.tree.children(node)
        key = self._job.stored.keys.key(node)
        return (*self._pair_keys(left, inputs), *self._pair_keys(right, inputs), key)

    @contextmanager
    def _annotated(self, leaf: int, worker: str | None = None) -> Iterator[None]:
        """Say of a task when it is its turn, by the leaf of the tree that it has to wait for, and where.

        Tasks run in the order of the tree, the small ones of the cut last, and merges as soon as they can: dask's own order goes
        through a reduction from its end (2026.8). Two runs share a cluster, each at its own pace.
        """
        priority = self._options.priority - PRIORITY_SPAN * leaf / len(self._job.ranges)
        annotations: dict[str, Any] = {"priority": priority}
        if self._options.resources:
            annotations["resources"] = self._options.resources
        elif worker is not None:
            annotations |= {"workers": [worker], "allow_other_workers": True}
        with dask.annotate(**annotations):
            yield


def place_of(node: Node) -> str:
    """Name a node in what tasks tell of themselves."""
    return f"{node.start}-{node.stop}"


def node_at(place: str) -> Node:
    """Undo `place_of`."""
    start, _, stop = place.partition("-")
    return Node(int(start), int(stop))
