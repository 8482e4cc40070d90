"""What runs on workers: inspect files, process a node of the tree. Imports no dask.

Exceptions become values here: a `PartialResult` says what was done, what failed and why, and a failed range keeps its
place in the tree as an empty leaf. So nothing is lost when a worker's result is merged, and nothing is counted twice
when dask runs a task again.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections import OrderedDict
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import cloudpickle

from hepdask.attempt import Attempt
from hepdask.checkpoints import CHECKPOINT_SECONDS, MIN_UNSAVED_SECONDS
from hepdask.endpoints import endpoint_of, process_health
from hepdask.errors import RangeTimeoutError
from hepdask.failures import Failure, build_failure
from hepdask.merging import Merging
from hepdask.metadata import FileMetadata, read_file_metadata
from hepdask.metrics import PartialMetrics
from hepdask.partial import PartialResult, process_name, span_of
from hepdask.ranges import EntryRange
from hepdask.readers.handles import drop_ahead, lease, lend_to_forks
from hepdask.recording import record_messages
from hepdask.recovery import RecoveryPolicy
from hepdask.rescue import Monitor, Rescue, Sizes
from hepdask.shipping.arrival import generation
from hepdask.tree import Node, arrange
from hepdask.watch import TimeLimitReached, time_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from hepdask.attempt import Work
    from hepdask.checkpoints import Checkpoints, NodeKeys
    from hepdask.failures import FailureKind
    from hepdask.fileset import InputFile
    from hepdask.held import Held
    from hepdask.opening import OpenFile, ReadOptions
    from hepdask.readers import Reader

__all__ = [
    "NodeTask",
    "attempt_packed",
    "attempt_range",
    "inspect_files",
    "late_failure",
    "load_work",
    "note_failed_replica",
    "open_packed",
    "warm_files",
]

#: Works (processor and reader) that a process keeps unpickled, for the tasks of a run and for concurrent runs.
MAX_WORKS = 4
#: Ranges whose bytes are requested ahead, as long as these bytes are few: small ranges are done long before one round trip.
NUM_UPCOMING = 8
_NO_COSTS = PartialMetrics()


def inspect_files(
    files: Sequence[InputFile],
    *,
    options: ReadOptions,
    skipped: tuple[type[BaseException], ...] = (),
    recovery: RecoveryPolicy | None = None,
) -> list[FileMetadata | Failure]:
    """Read what is to be known of some files, a failure for each that can't be read.

    Parameters
    ----------
    files : sequence of InputFile
        They are opened one after the other.
    options : ReadOptions
        How.
    skipped : tuple of exception types
        What `skipbadfiles` lets pass.
    recovery : RecoveryPolicy or None
        How often a file is tried whose server does not answer; None: the default policy.
    """
    return [_inspect_file(file, options, skipped, recovery or RecoveryPolicy()) for file in files]


def warm_files(files: Sequence[InputFile], *, reader: Reader) -> list[None]:
    """Open files that ranges of will come, and find out their layout, as long as there is nothing else to do.

    Parameters
    ----------
    files : sequence of InputFile
        What is wrong with one is said by those who need it.
    reader : Reader
        Keeps them open.
    """
    for file in files:
        with suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with reader.read(EntryRange(file, 0, 0)):
                pass
    return [None] * len(files)


def _inspect_file(
    file: InputFile,
    options: ReadOptions,
    skipped: tuple[type[BaseException], ...],
    recovery: RecoveryPolicy,
) -> FileMetadata | Failure:
    attempt = 1
    while True:
        try:
            return read_file_metadata(file, options, _lease_file)
        except Exception as error:  # noqa: BLE001  # whatever it is, it becomes a failure of this file
            failure = build_failure(
                error, file, None, worker=process_name(), skipped=skipped, kinds=recovery.kinds
            )
        # opening has tried all replicas
        step = recovery.decide(failure, attempt=attempt, num_replicas=1)
        if step.action != "retry":
            return replace(failure, attempts=attempt)
        threading.Event().wait(step.wait_seconds)
        attempt += 1


@contextmanager
def _lease_file(file: InputFile, options: ReadOptions) -> Iterator[OpenFile]:
    with lease(file, options) as handle:
        yield handle.open_file


@dataclass(frozen=True, slots=True)
class NodeTask:
    """Process a node of the tree: its ranges in order, merged as the whole tree would merge them.

    Attributes
    ----------
    ranges : sequence of EntryRange
        The leaves below the node.
    work : Work
        What to do with each.
    monitor : Monitor
        Is told of each range. Once it says that the run is stopped, the remaining ranges are not reached: they are in
        neither `processed` nor `failures`.
    attempt : callable or None
        Processes a range once; None: here, by `attempt_range`, within the policy's time limit.
    on_hang : callable or None
        Called, from another thread, if a range hangs where no exception can reach it.
    sizes : Sizes
        What has run out of memory before.
    checkpoints : Checkpoints or None
        The store; None: there is none.
    is_perilous : bool
        True where workers have died: what is done is written there oftener.
    keys : NodeKeys or None
        Names of the nodes in it.
    stored : frozenset of str
        Those of these names that are there.
    ends_dataset : bool
        True if the last range is the last of its dataset.
    scratch_directory : str or None
        For large results that wait for their neighbours; None: where the system has temporary files.
    while_processing : callable
        Makes the context of each attempt to process a range.
    find_following : callable
        Tells, near the end, which ranges this process will be given after these.
    """

    ranges: Sequence[EntryRange]
    work: Work
    monitor: Monitor
    attempt: Callable[[EntryRange], PartialResult] | None = None
    on_hang: Callable[[], None] | None = None
    sizes: Sizes = field(default_factory=Sizes)
    checkpoints: Checkpoints | None = None
    is_perilous: bool = False
    keys: NodeKeys | None = None
    stored: frozenset[str] = frozenset()
    ends_dataset: bool = True
    scratch_directory: str | None = None
    while_processing: Callable[[], AbstractContextManager[object]] = nullcontext
    find_following: Callable[[], Sequence[EntryRange]] = tuple

    def run(self, *, is_root: bool = False) -> PartialResult:
        """Process the node, which may be that of the whole run."""
        tree = arrange(self.ranges)
        places = {_end_of(one): index for index, one in enumerate(self.ranges)}
        once = self.attempt or (
            lambda one: self._attempt(one, self._find_upcoming(places.get(_end_of(one))))
        )
        rescue = Rescue(once, self.work.recovery, self.monitor, self.sizes)
        stops = set(tree.dataset_stops[: None if self.ends_dataset else -1])
        merging = Merging(self.monitor.worker, self.checkpoints, self.scratch_directory)
        try:
            held = tree.fold(
                tree.root,
                lambda node: self._leaf(rescue, node, merging),
                lambda node, left, right: self._merge(
                    merging, node, left, right, is_edge=node.stop in stops
                ),
                lambda node: self._load(node, merging),
            )
        finally:
            drop_ahead(lambda: {url for one in self.find_following() for url in one.file.replicas})
        result = merging.release(held)
        result = replace(result, metrics=merging.costs.total() + result.metrics)
        if self.checkpoints is None:
            return result
        return self.checkpoints.offer(result, is_last=is_root)

    def _leaf(self, rescue: Rescue, node: Node, merging: Merging) -> Held:
        if self.monitor.is_stopped():
            return merging.hold(PartialResult())
        merging.make_room()
        try:
            result = rescue.process(self.ranges[node.start])
        except KeyboardInterrupt:  # what is done already is kept
            self.monitor.interrupt()
            return merging.hold(PartialResult())
        # costs are added up beside the tree: a sum for each node of it would cost more than the nodes
        merging.costs.add(result.metrics)
        result = replace(result, metrics=_NO_COSTS, key=self._key(node))
        return merging.hold(self._keep(result))

    def _merge(
        self, merging: Merging, node: Node, first: Held, second: Held, *, is_edge: bool
    ) -> Held:
        right, left = merging.release(second), merging.release(first)
        if self.checkpoints is None:
            return merging.merge(left, right, is_own=first.is_own)
        if (
            is_edge
        ):  # when a file is appended, this node is another one, but its left part is the same
            left = self.checkpoints.offer(left)
        held = merging.merge(left, right, is_own=first.is_own, key=self._key(node))
        return merging.hold(self._keep(merging.release(held)), is_own=held.is_own)

    def _keep(self, result: PartialResult) -> PartialResult:
        """Keep what has been done so far, now and then."""
        if self.checkpoints is None:
            return result
        seconds = MIN_UNSAVED_SECONDS if self.is_perilous else CHECKPOINT_SECONDS
        return self.checkpoints.offer(result, min_seconds=seconds)

    def _load(self, node: Node, merging: Merging) -> Held | None:
        if self.checkpoints is None or not self.stored:
            return None
        key = self._key(node)
        result = self.checkpoints.load(key) if key in self.stored else None
        if result is not None:
            self.monitor.node_loaded(result.num_entries)
        return None if result is None else merging.hold(result)

    def _key(self, node: Node) -> str:
        return "" if self.keys is None else self.keys.key(node)

    def _find_upcoming(self, index: int | None) -> Iterator[EntryRange]:
        """Tell what comes after a range, or after the last piece of one that was halved."""
        if index is None:
            return
        own = self.ranges[index + 1 : index + 1 + NUM_UPCOMING]
        yield from own
        if len(own) < NUM_UPCOMING:
            yield from self.find_following()[: NUM_UPCOMING - len(own)]

    def _attempt(self, entry_range: EntryRange, upcoming: Iterable[EntryRange]) -> PartialResult:
        limit = self.work.recovery.max_range_seconds
        try:
            with self.while_processing(), time_limit(limit, self.on_hang):
                return attempt_range(entry_range, self.work, self.monitor.worker, upcoming)
        except TimeLimitReached:
            text = f"the range took longer than {limit:g} s"
            return late_failure(entry_range, self.work, self.monitor.worker, text)


def _end_of(entry_range: EntryRange) -> tuple[str, str, int]:
    return entry_range.file.dataset, entry_range.file.file_path, entry_range.entry_stop


def late_failure(entry_range: EntryRange, work: Work, worker: str, text: str) -> PartialResult:
    """Make the result of a range whose time was up."""
    error = RangeTimeoutError(
        f"{text} (RecoveryPolicy.max_range_seconds): a server that does not answer, an endless loop, or too little time"
    )
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


def attempt_range(
    entry_range: EntryRange, work: Work, worker: str, upcoming: Iterable[EntryRange] = ()
) -> PartialResult:
    """Process a range once; a failure is in the result.

    Parameters
    ----------
    entry_range : EntryRange
        What to process.
    work : Work
        What to do with it.
    worker : str
        Name of this worker, for failures.
    upcoming : iterable of EntryRange
        What comes next, as far as that is known; taken if that can be made use of.
    """
    attempt = Attempt(entry_range, upcoming)
    with record_messages(entry_range, worker=worker) as recorder:
        try:
            accumulator = attempt.process(work)
        except Exception as error:  # noqa: BLE001  # exceptions inside the map become values
            result = _failed(error, attempt, entry_range, work, worker)
        else:
            metrics = attempt.metrics(entry_range.num_entries)
            result = PartialResult(
                accumulator,
                (span_of(entry_range),),
                (),
                metrics,
                is_whole=True,
                unsaved_seconds=sum(one.wall_seconds for one in metrics.hosts.values()),
            )
    messages = recorder.messages
    return replace(result, messages=messages) if messages or messages.num_dropped else result


def _failed(
    error: Exception, attempt: Attempt, entry_range: EntryRange, work: Work, worker: str
) -> PartialResult:
    failure = build_failure(
        error,
        entry_range.file,
        (entry_range.entry_start, entry_range.entry_stop),
        worker=worker,
        replica=attempt.replica,
        skipped=work.skipped,
        kinds=work.recovery.kinds,
    )
    return PartialResult(failures=(failure,), metrics=attempt.metrics(0))


def attempt_packed(
    packed_work: bytes,
    entry_range: EntryRange,
    worker: str,
    health: Mapping[str, Mapping[str, Any]],
) -> PartialResult:
    """Process a range once, in a process that knows nothing yet; see `attempt_range`.

    Parameters
    ----------
    packed_work : bytes
        The pickled work.
    entry_range, worker
        As for `attempt_range`.
    health : mapping
        What is known of endpoints, as `Health.export` gives it.
    """
    process_health().merge(health)
    return attempt_range(entry_range, load_work(packed_work), worker)


def open_packed(packed_work: bytes, file: InputFile) -> None:
    """Do what `attempt_packed` does first, for processes that are forked from this one: unpickle the work, open the file.

    Parameters
    ----------
    packed_work : bytes
        The pickled work.
    file : InputFile
        Of the ranges to come.
    """
    warm_files([file], reader=load_work(packed_work).reader)
    lend_to_forks()


def note_failed_replica(replica: str, kind: FailureKind) -> None:
    """Take note, in this process, that reading a replica has failed in another one."""
    if replica and kind == "transient":
        process_health().note_failure(endpoint_of(replica))
    elif replica and kind == "input":
        process_health().note_damage(replica)


_works: OrderedDict[tuple[str, int], Work] = OrderedDict()
_works_lock = threading.Lock()


def load_work(packed: bytes) -> Work:
    """Unpickle a run's work, once in a process."""
    digest = hashlib.sha256(packed).hexdigest()
    with _works_lock:
        # what was unpickled before modules were replaced would go on with the old ones
        work = _works.pop((digest, generation()), None)
        if work is None:
            work = cloudpickle.loads(packed)
        _works[digest, generation()] = work
        while len(_works) > MAX_WORKS:
            _works.popitem(last=False)
        return work
