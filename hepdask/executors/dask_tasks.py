"""What a dask task calls on its worker: unpack, process or merge, and tell the run."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections import OrderedDict
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import cloudpickle
from dask.sizeof import sizeof
from dask.utils import format_bytes
from distributed import get_worker

from hepdask.allocator import freed_memory_kept
from hepdask.checkpoints import NodeKeys, find_stored
from hepdask.endpoints import process_health
from hepdask.errors import ProcessDiedError, RangeTimeoutError
from hepdask.executors.dask_endpoints import shared_endpoints
from hepdask.executors.dask_marks import Past, RunInfo, marked
from hepdask.executors.dask_monitor import WorkerMonitor
from hepdask.failures import build_failure
from hepdask.held import count_bytes, hand_on
from hepdask.isolation import child_runner
from hepdask.merging import Merging
from hepdask.partial import PartialResult
from hepdask.ranges import EntryRange
from hepdask.rescue import Sizes
from hepdask.task import (
    NodeTask,
    attempt_packed,
    late_failure,
    load_work,
    note_failed_replica,
    open_packed,
)
from hepdask.tree import arrange, merge_in_order
from hepdask.watch import TimeLimitReached, time_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from hepdask.attempt import Work
    from hepdask.checkpoints import Checkpoints
    from hepdask.failures import Failure
    from hepdask.held import Held
    from hepdask.tree import Shape

__all__ = [
    "call_packed",
    "merge_task",
    "pack_ranges",
    "process_task",
    "unpack_ranges",
]

#: Runs of which a worker process remembers what has run out of memory.
MAX_RUNS = 4


def pack_ranges(
    ranges: Sequence[EntryRange], identities: Mapping[tuple[str, str], bytes] | None = None
) -> bytes:
    """Pickle the ranges of a task: each file once, with its identity and the bounds of its ranges.

    Bytes, because dask looks into dataclasses and lists for tasks, one by one.

    Parameters
    ----------
    ranges : sequence of EntryRange
        In dataset order.
    identities : mapping or None
        Of the files, by dataset and path, if there is a store.
    """
    known = identities or {}
    files = [
        (
            file,
            known.get((file.dataset, file.file_path), b""),
            [(one.entry_start, one.entry_stop) for one in group],
        )
        for file, group in groupby(ranges, lambda one: one.file)
    ]
    return bytes(cloudpickle.dumps(files))


def unpack_ranges(packed: bytes) -> tuple[list[EntryRange], dict[tuple[str, str], bytes]]:
    """Undo `pack_ranges`: the ranges, and the identities of their files."""
    files = pickle.loads(packed)
    ranges = [EntryRange(file, *one) for file, _, bounds in files for one in bounds]
    return ranges, {(file.dataset, file.file_path): identity for file, identity, _ in files}


class _Saved:
    """What the store has of the nodes below a task.

    Parameters
    ----------
    ranges : list of EntryRange
        Of the task.
    identities : mapping
        Of their files.
    checkpoints : Checkpoints or None
        The store, if there is one.
    names : frozenset of str
        What was there when the run was begun.
    """

    def __init__(
        self,
        ranges: list[EntryRange],
        identities: Mapping[tuple[str, str], bytes],
        checkpoints: Checkpoints | None,
        names: frozenset[str],
    ) -> None:
        self._ranges = ranges
        self._checkpoints = checkpoints
        self.keys = None if checkpoints is None else NodeKeys(ranges, identities)
        self.names = names

    def count_done(self) -> int:
        """Look again: what the task has saved before it lost its worker, or its result, need not be done again."""
        if self._checkpoints is None or self.keys is None:
            return 0
        self.names = self._checkpoints.list_keys()
        return sum(map(len, find_stored(arrange(self._ranges), self.keys, self.names)))


def process_task(
    packed_work: bytes,
    packed_ranges: bytes,
    info: RunInfo,
    checkpoints: Checkpoints | None = None,
    stored: frozenset[str] = frozenset(),
    *,
    ends_dataset: bool = True,
    is_root: bool = False,
) -> PartialResult:
    """Process a node of the cut; in child processes of the worker if it is suspected to kill.

    Parameters
    ----------
    packed_work, packed_ranges : bytes
        What is done with which ranges.
    info : RunInfo
        Of the run.
    checkpoints : Checkpoints or None
        The store, if there is one.
    stored : frozenset of str
        Names of the nodes below this one that are in it.
    ends_dataset : bool
        True if the last range is the last of its dataset.
    is_root : bool
        True if the node is that of the whole run.
    """
    monitor = WorkerMonitor(info)
    work = load_work(packed_work)
    ranges, identities = unpack_ranges(packed_ranges)
    saved = _Saved(ranges, identities, checkpoints, stored)
    with freed_memory_kept(), marked(info, saved.count_done) as past:
        attempt = _isolated(packed_work, work, monitor.worker, past) if past.is_suspect else None
        task = NodeTask(
            ranges,
            work,
            monitor,
            attempt=attempt,
            on_hang=partial(_end_hung_worker, get_worker()),
            sizes=_sizes_of(info.run_id),
            checkpoints=checkpoints,
            is_perilous=past.is_perilous,
            keys=saved.keys,
            stored=saved.names,
            ends_dataset=ends_dataset,
            scratch_directory=get_worker().local_directory,
            find_following=partial(_find_following, get_worker(), info),
        )
        try:
            with shared_endpoints():
                result = task.run(is_root=is_root)
            return result if is_root else hand_on(result, get_worker().local_directory)
        finally:
            monitor.finish()


def _find_following(worker: Any, info: RunInfo) -> Sequence[EntryRange]:
    """Find the ranges of the task of this run that the worker has ready to be begun next, if it has one."""
    # dask changes all this in another thread, and has no public question for it (distributed 2026.8); it may be asked in vain
    with suppress(Exception):
        ready = [one for one in list(worker.state.tasks.values()) if one.state == "ready"]
        task = min(ready, key=lambda one: one.priority).run_spec
        _, packed_ranges, its_info, *_ = task.args
        if isinstance(its_info, RunInfo) and its_info.run_id == info.run_id:
            return unpack_ranges(packed_ranges)[0]
    return ()


_sizes: OrderedDict[str, Sizes] = OrderedDict()


def _sizes_of(run_id: str) -> Sizes:
    """Give what has run out of memory in this process and run; a few runs may go on at a time."""
    while len(_sizes) > MAX_RUNS:
        _sizes.popitem(last=False)
    return _sizes.setdefault(run_id, Sizes())


def _end_hung_worker(worker: Any) -> None:
    """End a worker process in which a range hangs: its nanny starts another one, and the task goes elsewhere."""
    # one without a nanny may be the user's own process, or all that a batch job has
    if worker.nanny:
        os.kill(os.getpid(), signal.SIGKILL)


def _isolated(
    packed_work: bytes, work: Work, worker: str, past: Past
) -> Callable[[EntryRange], PartialResult]:
    """Make the attempt that runs in a child process of this worker."""
    limit = get_worker().memory_manager.memory_limit

    def attempt(entry_range: EntryRange) -> PartialResult:
        try:
            result: PartialResult = child_runner().call(
                attempt_packed,
                packed_work,
                entry_range,
                worker,
                process_health().export(),
                memory_bytes=limit or None,
                timeout_seconds=work.recovery.max_range_seconds,
                what="this range kills its worker",
                first=(open_packed, packed_work, entry_range.file),
            )
        except ProcessDiedError as error:
            if error.timeout_seconds is not None:
                return late_failure(entry_range, work, worker, str(error))
            past.has_killed = True
            bounds = (entry_range.entry_start, entry_range.entry_stop)
            failure = build_failure(
                error,
                entry_range.file,
                bounds,
                worker=worker,
                skipped=work.skipped,
                kinds=work.recovery.kinds,
            )
            return PartialResult(failures=(failure,))
        for one in result.failures:
            note_failed_replica(one.replica, one.kind)
            # what is too much for a child process would be the end of the worker
            past.has_killed |= one.kind == "resources"
        return replace(result, failures=tuple(_with_limit(one, limit) for one in result.failures))

    return attempt


def _with_limit(failure: Failure, limit: int | None) -> Failure:
    """Say what a child process may allocate, as "can't allocate 8 MiB" alone says nothing."""
    if failure.kind != "resources" or not limit:
        return failure
    text = (
        f"{failure.message or 'out of memory'}; each range may allocate {format_bytes(limit)}, "
        "the memory_limit of its worker"
    )
    return replace(failure, message=text)


def merge_task(
    order: Shape,
    checkpoints: Checkpoints | None,
    keys: tuple[str, ...],
    is_root: bool,
    *inputs: PartialResult,
) -> PartialResult:
    """Merge the results of other tasks, in the order of the tree.

    Parameters
    ----------
    order : nested tuple of int
        The pairs, as positions in `inputs`.
    checkpoints : Checkpoints or None
        The store, if there is one.
    keys : tuple of str
        Names in it of the nodes that the pairs make, each after those that it is made of.
    is_root : bool
        True for the last merge of the run.
    *inputs : PartialResult
        In dataset order.
    """
    merging = Merging(get_worker().address, checkpoints)
    names = iter(keys)

    def merge(left: Held, right: Held) -> Held:
        results = merging.release(left), merging.release(right)
        return merging.merge(*results, is_own=left.is_own, key=next(names, ""))

    with freed_memory_kept():
        held = merge_in_order(order, [merging.hold(one) for one in inputs], merge)
        merged = merging.release(held)
        merged = replace(merged, metrics=merged.metrics + merging.costs.total())
        if checkpoints is not None:
            merged = checkpoints.offer(merged, is_last=is_root)
        return merged if is_root else hand_on(merged, get_worker().local_directory)


@sizeof.register(PartialResult)  # type: ignore[untyped-decorator]  # dask has no types
def _size_of(result: PartialResult) -> int:
    """Tell dask how large a result is, in memory or put aside: it merges where the data are."""
    return sys.getsizeof(result) + count_bytes(result.accumulator)


def call_packed(packed: bytes, info: RunInfo, max_seconds: float | None) -> list[Any]:
    """Call a pickled function with each of its pickled items; in a child process if its worker has died with them before.

    Parameters
    ----------
    packed : bytes
        The function, which takes a list of items, and some items.
    info : RunInfo
        Of the task.
    max_seconds : float or None
        How long an item may take.

    Returns
    -------
    list
        A result for each item; an exception for one that takes too long, or kills its process.
    """
    function, items = cloudpickle.loads(packed)
    with freed_memory_kept(), marked(info) as past, shared_endpoints():
        call = _call_in_child if past.is_suspect else _call_here
        return [call(function, item, max_seconds) for item in items]


def _call_here(function: Callable[[list[Any]], list[Any]], item: Any, seconds: float | None) -> Any:
    try:
        with time_limit(seconds, partial(_end_hung_worker, get_worker())):
            return function([item])[0]
    except TimeLimitReached:
        return _late_error(seconds)


def _call_in_child(
    function: Callable[[list[Any]], list[Any]], item: Any, seconds: float | None
) -> Any:
    try:
        return child_runner().call(
            function,
            [item],
            memory_bytes=get_worker().memory_manager.memory_limit or None,
            timeout_seconds=seconds,
            what="this file kills its worker",
        )[0]
    except ProcessDiedError as error:
        return error if error.timeout_seconds is None else _late_error(seconds)
    except MemoryError as error:
        return error


def _late_error(seconds: float | None) -> RangeTimeoutError:
    return RangeTimeoutError(
        f"the file took longer than {seconds or 0:g} s (RecoveryPolicy.max_range_seconds): a server or a disk that does not "
        "answer, or too little time"
    )
