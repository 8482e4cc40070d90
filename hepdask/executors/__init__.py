"""Run a tree, hand back its root: one seam, one file for each way.

Nobody outside asks which executor it has. `Executor` says what all of them do; ``local`` works in this process, ``dask`` on
a cluster.
"""

from __future__ import annotations

import math
import signal
import threading
import warnings
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from hepdask.costs import Rates, weigh
from hepdask.errors import ExecutorError, OptionError, suggest
from hepdask.stopping import StopRules, StopTally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import FrameType

    from hepdask.attempt import Work
    from hepdask.checkpoints import StoredNodes
    from hepdask.doctor import ClusterFacts
    from hepdask.fileset import InputFile
    from hepdask.opening import ReadOptions
    from hepdask.partial import PartialResult
    from hepdask.progress import Progress
    from hepdask.ranges import EntryRange
    from hepdask.recovery import RecoveryPolicy
    from hepdask.shipping import Cargo
    from hepdask.tree import Node, ReductionTree

__all__ = [
    "FULL",
    "INTERRUPTED",
    "LOST",
    "Executor",
    "Job",
    "NotReached",
    "Outcome",
    "check_options",
    "check_reached",
    "cut_tree",
    "estimate_seconds",
    "find_lost",
    "interruptible",
]

T = TypeVar("T")
R = TypeVar("R")

#: What taking a node from the store is expected to cost.
SECONDS_PER_LOAD = 10e-3
#: Dask needs about 5 ms for a task with its marks and its merge: less than this is not worth one.
MIN_TASK_SECONDS = 0.05
#: A longer task makes dask's share no smaller, but a worker that comes or dies has more to wait for or to lose.
MAX_TASK_SECONDS = 4.0
#: Tasks for each thread: two balance worse, and more cost more.
TASKS_PER_THREAD = 4
#: ... and the last tasks are smaller by so much.
TAPER = 4
#: Where each worker is to have its part of a short run, one part may be larger than the others by so much.
UNEVEN = 1.5
#: Threads that a cluster is expected to get which has none yet.
EXPECTED_THREADS = 64
#: A library whose import makes Ctrl-C end the process at once.
_EXITS_AT_ONCE = "dask_jobqueue.runner"
#: So many Ctrl-C end a run even while it brings home what is done.
PATIENT_INTERRUPTS = 4
#: More tasks than this keep a scheduler busy for longer than they help to balance: four for each of 1,000 workers.
MAX_TASKS = 4_096
#: What a run ends with after Ctrl-C ...
INTERRUPTED = "interrupted"
#: ... when its scheduler does not answer any more, or has forgotten it ...
LOST = "the scheduler was lost, or has lost this run"
#: ... and when no worker will go on.
FULL = (
    "dask has paused all workers, as their memory is full, and they have no nannies that could restart them: give them a "
    "larger memory_limit, or let nothing else keep memory in their processes"
)


@dataclass(frozen=True, slots=True)
class Job:
    """A run as an executor sees it.

    Attributes
    ----------
    name : str
        Of the processor; for dashboards.
    ranges : tuple of EntryRange
        The leaves, in dataset order.
    tree : ReductionTree
        Over these ranges.
    work : Work
        What to do with each.
    stored : StoredNodes or None
        What the store has of it; None: there is no store.
    rules : StopRules
        What ends it early.
    num_entries_failed : int
        Entries, about, of files that failed before.
    weights : sequence of float, shape (number of ranges,)
        Seconds that each range is expected to take; by default without knowledge of earlier runs, and of layouts.
    """

    name: str
    ranges: tuple[EntryRange, ...]
    tree: ReductionTree
    work: Work
    stored: StoredNodes | None = None
    rules: StopRules = field(default_factory=StopRules)
    num_entries_failed: int = 0
    weights: Sequence[float] = ()

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.ranges):
            object.__setattr__(self, "weights", weigh(self.ranges, {}, {}))

    def expected_seconds(self, node: Node) -> float:
        """Return what a node is expected to take on one core."""
        return math.fsum(self.weights[node.start : node.stop])

    @property
    def num_entries(self) -> int:
        """Number of entries of all ranges."""
        return sum(entry_range.num_entries for entry_range in self.ranges)

    def tally(self) -> StopTally:
        """Make what counts its failures."""
        requested = self.num_entries + self.num_entries_failed
        return StopTally(self.rules, requested, self.num_entries_failed)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job.

    Attributes
    ----------
    root : PartialResult
        The root of the tree; ranges that were not reached are missing in it.
    stopped_by : str
        Why the run ended early, in words; empty if it did not.
    num_tasks, num_merges : int
        Tasks that processed ranges, and tasks that merged.
    run_seconds, queue_seconds, transfer_seconds : float
        As in `RunMetrics`.
    was_lost : bool
        True if it ended early because the connection to the cluster was lost.
    """

    root: PartialResult
    stopped_by: str = ""
    num_tasks: int = 0
    num_merges: int = 0
    run_seconds: float = 0.0
    queue_seconds: float = 0.0
    transfer_seconds: float = 0.0
    was_lost: bool = False


class NotReached(ExecutorError):
    """Stands for the result of an item to which a `map` did not come; its text says why."""


def find_lost(results: Sequence[object]) -> list[int]:
    """List the places of what a `map` did not come to as its scheduler was lost."""
    return [
        place
        for place, one in enumerate(results)
        if isinstance(one, NotReached) and str(one) == LOST
    ]


def check_reached(results: Iterable[object]) -> None:
    """Check that a `map` has come to all its items.

    Raises
    ------
    KeyboardInterrupt
        If it was interrupted before.
    ExecutorError
        If the cluster was lost before.
    """
    missed = next((one for one in results if isinstance(one, NotReached)), None)
    if missed is not None:
        raise KeyboardInterrupt if str(missed) == INTERRUPTED else missed


class Executor(ABC):
    """Runs functions and jobs somewhere."""

    shows_progress: bool = True
    """False if the user asked this executor for silence (coffea's ``status=False``)."""

    @abstractmethod
    def map(
        self,
        function: Callable[[Sequence[T]], list[R]],
        items: Sequence[T],
        *,
        name: str,
        advance: Callable[[list[R]], None],
        recovery: RecoveryPolicy | None = None,
    ) -> list[R | BaseException]:
        """Apply a function to all items, in batches, in parallel.

        Ctrl-C ends it, and so does a cluster that is lost and doesn't come back.

        Parameters
        ----------
        function : callable
            Takes some items and returns a result for each. It is pickled.
        items : sequence
            In order.
        name : str
            Of the tasks.
        advance : callable
            Is given the results of each batch as it is done, in any order.
        recovery : RecoveryPolicy or None
            How long an item may take, and a worker be silent; None: the default policy.

        Returns
        -------
        list
            A result for each item, in order; an exception for each item that could not be run, and `NotReached` for each to
            which it did not come.

        Raises
        ------
        ExecutorError
            If there is nothing to run on.
        """

    def warm(  # noqa: B027  # here, nobody would do it meanwhile
        self,
        function: Callable[[Sequence[T]], list[None]],
        items: Sequence[T],
        recovery: RecoveryPolicy,
    ) -> None:
        """Let the few workers of a small cluster begin with what each of them will need; nobody waits for it.

        Parameters
        ----------
        function : callable
            Takes some items. It raises nothing, and what it has done is found later in its process.
        items : sequence
            All of them for each worker.
        recovery : RecoveryPolicy
            How long an item may take.
        """

    @abstractmethod
    def reduce(self, job: Job, progress: Progress) -> Outcome:
        """Process all ranges of a job and merge the results as its tree says.

        A failure that isn't skipped, or Ctrl-C, stops the job: what is done is merged, the rest is not reached. The output
        is the same, to the last bit, for every executor, cut, and number of workers.

        Raises
        ------
        ExecutorError
            If there is nothing to run on.
        """

    def dispatch(self, function: Callable[[], R]) -> Any:
        """Call a function that uses this executor: here and now, unless the user's event loop is not to be blocked.

        Returns
        -------
        object or awaitable
            What `function` returns, or an awaitable of it.
        """
        return function()

    @contextmanager
    def carrying(self, load: Callable[[], Cargo] | None) -> Iterator[None]:  # noqa: ARG002  # here, all is where it is needed
        """See to it, as long as the context is open, that what runs finds the user's modules and data files.

        Parameters
        ----------
        load : callable or None
            Finds these; called when there is something to run elsewhere.
        """
        yield

    @abstractmethod
    def examine(self, files: Sequence[InputFile], options: ReadOptions) -> ClusterFacts:
        """Find out what the workers are and can, within `carrying`.

        Parameters
        ----------
        files : sequence of InputFile
            To be opened on each machine.
        options : ReadOptions
            How.
        """

    def reconnect(self) -> bool:
        """Come back to a cluster whose connection was lost, if there is one and it answers; Ctrl-C ends the waiting.

        Returns
        -------
        bool
            True if the job can be run again.
        """
        return False

    def close(self) -> None:  # noqa: B027  # most have nothing to close
        """Give back what this executor has opened by itself. Nothing that the user has opened is closed."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def estimate_seconds(num_entries: int | None, num_threads: int) -> float | None:
    """Estimate how long a run takes, to a factor of ten; None if nothing is known of it."""
    if not num_entries or not num_threads:
        return None
    return Rates.default(None).seconds_per_entry * num_entries / num_threads


def cut_tree(job: Job, max_ranges_per_task: int | None = None, num_threads: int = 0) -> list[Node]:
    """Cut a job's tree into tasks: enough to balance the load, few enough for the scheduler to be idle.

    As any cut gives the same bits, it may look at anything.

    Parameters
    ----------
    job : Job
        With its tree, and what its ranges are expected to cost.
    max_ranges_per_task : int or None
        The user's own cut.
    num_threads : int
        Threads that work on it now; 0: there are none yet. It is no more than a hint: tasks of a long run are short enough
        for a cluster that grows.
    """
    if max_ranges_per_task is not None:
        weights = _weigh_stored([1.0] * len(job.ranges), job, 1.0)
        return job.tree.cut(weights, max_ranges_per_task)
    weights = _weigh_stored(job.weights, job, SECONDS_PER_LOAD)
    total = sum(weights)
    least = max(MIN_TASK_SECONDS, total / MAX_TASKS)
    threads = num_threads or EXPECTED_THREADS
    if total < threads * least:
        # a file that one worker has open, another one opens anew: a short run is spread as far as it has files
        num_files = len({one.file.file_path for one in job.ranges})
        least = min(least, UNEVEN * total / max(1, min(num_files, threads)))
    most = max(least, min(MAX_TASK_SECONDS, total / (TASKS_PER_THREAD * threads)))
    return job.tree.cut(
        weights,
        most,
        min_weight=max(least, most / TAPER),
        num_lanes=TASKS_PER_THREAD * threads // 2,
    )


def _weigh_stored(given: Sequence[float], job: Job, weight: float) -> Sequence[float]:
    """Let each node that is in the store weigh so much, so that no cut goes through it."""
    nodes = () if job.stored is None else job.stored.nodes
    if not nodes:
        return given
    weights = list(given)
    for node in nodes:
        weights[node.start : node.stop] = [weight, *[0.0] * (len(node) - 1)]
    return weights


def check_options(
    owner: str,
    given: Mapping[str, Any],
    known: Sequence[str],
    *,
    ignored: Mapping[str, str],
    refused: Mapping[str, str],
) -> None:
    """Check keyword arguments that a class does not have: coffea's are explained, for others the nearest is named.

    Parameters
    ----------
    owner : str
        Name of the class.
    given : mapping
        The arguments that are left over.
    known : sequence of str
        The arguments that there are.
    ignored, refused : mapping of str to str
        coffea's arguments that make no difference here, and those whose effect would be missed, each with what to do.

    Raises
    ------
    OptionError
        For the first argument that isn't ignored.
    """
    for name in given:
        if name in ignored:
            warnings.warn(
                f"{owner} ignores coffea's option {name!r}: {ignored[name]}",
                UserWarning,
                stacklevel=3,
            )
        elif name in refused:
            raise OptionError(f"{owner} has no option {name!r}: {refused[name]}")
        else:
            raise OptionError(f"{owner} has no option {name!r}{suggest(name, known)}")


class Interrupts:
    """Counts Ctrl-C: after the first a run ends what it has begun, after the second it ends at once.

    Attributes
    ----------
    count : int
        How often so far.
    limit : int
        The next one after so many raises KeyboardInterrupt. It is one where that may be raised, and more where what is done
        is being brought home.
    """

    def __init__(self) -> None:
        self.count = 0
        self.limit = 1

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count > self.limit:
            raise KeyboardInterrupt

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Let the second one be raised in the ``with`` block."""
        before, self.limit = self.limit, 1
        try:
            yield
        finally:
            self.limit = before

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let nothing be raised in the ``with`` block, unless somebody insists."""
        before, self.limit = self.limit, PATIENT_INTERRUPTS
        try:
            yield
        finally:
            self.limit = before


@contextmanager
def interruptible() -> Iterator[Interrupts]:
    """Count Ctrl-C instead of raising, as long as the context is open; outside the main thread nothing changes."""
    interrupts = Interrupts()
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    # a handler of the user's own (a debugger, a notebook's) stays; that which `import dask_jobqueue` sets is nobody's wish
    is_default = before is signal.default_int_handler
    if not in_main or not (is_default or getattr(before, "__module__", "") == _EXITS_AT_ONCE):
        yield interrupts
        return
    signal.signal(signal.SIGINT, interrupts)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
