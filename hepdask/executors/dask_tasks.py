"""What a dask task calls on its worker: unpack, process or merge, and tell the run."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
import time
from collections import Counter, OrderedDict
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import cloudpickle
from dask.sizeof import sizeof
from dask.utils import format_bytes
from distributed import Semaphore, get_worker
from distributed.utils import sync

from hepdask.checkpoints import NodeKeys
from hepdask.endpoints import process_health, slots_from
from hepdask.errors import ProcessDiedError, RangeTimeoutError
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
)
from hepdask.tree import merge_in_order
from hepdask.watch import TimeLimitReached, time_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from hepdask.attempt import Work
    from hepdask.checkpoints import Checkpoints
    from hepdask.failures import Failure
    from hepdask.held import Held
    from hepdask.tree import Shape

__all__ = [
    "DIED",
    "MARKS",
    "SUMS",
    "TOPIC",
    "RunInfo",
    "call_packed",
    "merge_task",
    "pack_ranges",
    "process_task",
    "stop_run",
    "unpack_ranges",
]

#: dask event topic of the progress of all runs
TOPIC = "hepdask-progress"
#: Least time between two events of a task: a scheduler takes thousands of events a second, but has other things to do.
FLUSH_SECONDS = 0.25
#: Workers that die in a run before all its tasks are run in child processes: one more, as long as nothing was seen to kill.
MAX_DEATHS = 2
#: A worker that replaces another one is as careful for so long: one that dies before its nanny knows that it has started is not
#: replaced again. Counted from the import of this module, for the first task.
YOUNG_SECONDS = 2.0
_imported_seconds = time.monotonic()
#: What is known of a place in the tree with which a worker has died: no more than that, that it has also killed a child
#: process, or that it did no harm there.
DIED, KILLS, CLEARED = "died", "kills", "cleared"
#: Where the scheduler keeps the marks, in its metadata.
MARKS = "hepdask-tasks"
#: ... and what each worker knows of the health of endpoints.
HEALTH = "hepdask-health"
#: How long a wait for a slot takes at a time.
SLOT_SECONDS = 0.5
#: Runs of which a worker process remembers what has run out of memory.
MAX_RUNS = 4
#: What a task counts.
SUMS = ("entries", "bytes", "ranges", "failures", "failed_entries")


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a task knows of its run.

    Attributes
    ----------
    run_id : str
        Unique.
    key : str
        Of the task.
    place : str
        Of its node in the tree: a copy of the task has the same, under another key.
    is_suspect : bool
        True if workers have died with it: each range then runs in a child process.
    is_last_try : bool
        False: if a server can't be reached from this worker, another worker is to try.
    """

    run_id: str
    key: str
    place: str
    is_suspect: bool = False
    is_last_try: bool = False


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
    monitor = _WorkerMonitor(info)
    work = load_work(packed_work)
    ranges, identities = unpack_ranges(packed_ranges)
    with _marked(info) as past:
        if checkpoints is not None and past.has_begun:
            # what it has saved before need not be done again: its worker died, or its result was lost with another one
            stored = checkpoints.list_keys()
        attempt = _isolated(packed_work, work, monitor.worker, past) if past.is_suspect else None
        task = NodeTask(
            ranges,
            work,
            monitor,
            attempt=attempt,
            on_hang=partial(_end_hung_worker, get_worker()),
            sizes=_sizes_of(info.run_id),
            checkpoints=checkpoints,
            keys=None if checkpoints is None else NodeKeys(ranges, identities),
            stored=stored,
            ends_dataset=ends_dataset,
            scratch_directory=get_worker().local_directory,
            find_following=partial(_find_following, get_worker(), info),
        )
        try:
            with _shared_endpoints():
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


@dataclass(slots=True)
class _Past:
    """What is known of a task before it begins.

    Attributes
    ----------
    has_begun : bool
        True if it has been begun before.
    is_suspect : bool
        True if it may kill its worker.
    has_killed : bool
        True if it then has killed a child process.
    """

    has_begun: bool
    is_suspect: bool
    has_killed: bool = False


@contextmanager
def _marked(info: RunInfo) -> Iterator[_Past]:
    """Mark at the scheduler that a task has begun, until it ends.

    A task that finds its own mark has been begun by a worker that died. The first to know is so the task itself, before
    it kills a second worker. If it then does no harm to its child process, it was not to blame, and that is forgotten. Where
    several workers died with tasks that are not cleared, all tasks of the run are suspects: whatever kills is in many events.
    The marks cost three round trips, about 5 ms a task.

    Yields
    ------
    _Past
        What is known of the task.
    """
    worker = get_worker()
    past: _Past = sync(worker.loop, _mark_begun, worker.scheduler, info)
    try:
        yield past
    finally:
        sync(worker.loop, _mark_ended, worker.scheduler, info, past)


@contextmanager
def _shared_endpoints() -> Iterator[None]:
    """Learn what other workers know of the health of endpoints, tell them what becomes known, and share slots."""
    worker = get_worker()
    known = sync(worker.loop, worker.scheduler.get_metadata, keys=[HEALTH], default={})
    for exported in known.values():
        process_health().merge(exported)
    version = process_health().version
    try:
        with slots_from(ClusterSlots()):
            yield
    finally:
        if process_health().version != version:
            keys, value = [HEALTH, worker.address], process_health().export()
            sync(worker.loop, worker.scheduler.set_metadata, keys=keys, value=value)


async def _mark_begun(scheduler: Any, info: RunInfo) -> _Past:
    """Mark a task as begun; return what is known of it."""
    begun, died = [MARKS, info.run_id, "begun", info.key], [MARKS, info.run_id, "died"]
    before, deaths = await asyncio.gather(
        scheduler.get_metadata(keys=begun, default=None),
        scheduler.get_metadata(keys=died, default={}),
    )
    if before:
        await scheduler.set_metadata(keys=[*died, info.place], value=DIED)
        deaths = {**deaths, info.place: DIED}
    await scheduler.set_metadata(keys=begun, value=True)
    blamed = [one for one in deaths.values() if one in (DIED, KILLS)]
    is_suspect = (
        info.is_suspect
        # a copy, as the task takes so long in its child process, has not begun before, but is no better
        or deaths.get(info.place) in (DIED, KILLS)
        or (len(blamed) >= MAX_DEATHS and KILLS in blamed)
        or len(blamed) > MAX_DEATHS
        or (bool(deaths) and time.monotonic() - _imported_seconds < YOUNG_SECONDS)
    )
    return _Past(before is not None, is_suspect)


async def _mark_ended(scheduler: Any, info: RunInfo, past: _Past) -> None:
    """Mark a task as ended; say what became of a suspicion."""
    await scheduler.set_metadata(keys=[MARKS, info.run_id, "begun", info.key], value=False)
    if past.is_suspect:
        place = [MARKS, info.run_id, "died", info.place]
        if past.has_killed:
            await scheduler.set_metadata(keys=place, value=KILLS)
        elif await scheduler.get_metadata(keys=place, default=None) == DIED:
            await scheduler.set_metadata(keys=place, value=CLEARED)


class ClusterSlots:
    """Limits how many files all workers together open at an endpoint at a time."""

    @contextmanager
    def slot(self, endpoint: str, limit: int) -> Iterator[None]:
        """Take a slot; see `SlotProvider`."""
        semaphore = Semaphore(max_leases=limit, name=f"hepdask-opens-{endpoint}-{limit}")
        # in short steps: a time limit can't end a wait in C
        while not semaphore.acquire(timeout=SLOT_SECONDS):
            continue
        try:
            yield
        finally:
            semaphore.release()


def _isolated(
    packed_work: bytes, work: Work, worker: str, past: _Past
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

    merged = merging.release(merge_in_order(order, [merging.hold(one) for one in inputs], merge))
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
    with _marked(info) as past, _shared_endpoints():
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


_stopped: set[str] = set()


def stop_run(name: str) -> None:
    """Tell the tasks of a run in this process, running and to come, to start no further range.

    Parameters
    ----------
    name : str
        Of the run, or the key of one task of it.
    """
    _stopped.add(name)


class _WorkerMonitor:
    """Sends the progress of a task, as sums since its start: a task that runs again is not counted again."""

    def __init__(self, info: RunInfo) -> None:
        self._info = info
        self._worker = get_worker()
        self.worker = str(self._worker.address)
        self._start = time.monotonic()
        self._sums = dict.fromkeys(SUMS, 0)
        self._same: Counter[str] = Counter()
        self._num_unreachable = 0
        self._fatal = ""
        self._last_flush = time.monotonic()
        self._is_flushed = True

    def is_stopped(self) -> bool:
        return bool(self._fatal) or not _stopped.isdisjoint((self._info.run_id, self._info.key))

    def interrupt(self) -> None:
        self._fatal = "interrupted"

    def node_loaded(self, num_entries: int) -> None:
        self._sums["entries"] += num_entries
        self._is_flushed = False

    def range_done(self, num_entries: int, num_bytes: int, failure: Failure | None) -> None:
        self._sums["bytes"] += num_bytes
        self._is_flushed = False
        if failure is None:
            self._sums["ranges"] += 1
            self._sums["entries"] += num_entries
        else:
            self._sums["failures"] += 1
            self._sums["failed_entries"] += num_entries
            self._note(failure)
        if self._fatal or time.monotonic() - self._last_flush > FLUSH_SECONDS:
            self.flush()

    def _note(self, failure: Failure) -> None:
        if failure.kind in ("user", "setup"):
            self._same[failure.signature] += 1
        if failure.kind == "transient" and not failure.is_late and not self._info.is_last_try:
            self._num_unreachable += 1
        elif not failure.is_skipped:
            self._fatal = self._fatal or str(failure)

    def flush(self) -> None:
        if self._is_flushed:
            return
        self._send(is_done=False)

    def finish(self) -> None:
        """Tell that the task has ended."""
        self._send(is_done=True)

    def _send(self, *, is_done: bool) -> None:
        message = {
            "run": self._info.run_id,
            "key": self._info.key,
            "place": self._info.place,
            "worker": self.worker,
            "fatal": self._fatal,
            "unreachable": self._num_unreachable,
            "same": dict(self._same),
            "seconds": time.monotonic() - self._start,
            "is_done": is_done,
            **self._sums,
        }
        self._worker.log_event(TOPIC, message)
        self._last_flush = time.monotonic()
        self._is_flushed = True
