"""Marks of tasks at the scheduler: which have been begun, and with which workers have died."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from distributed import get_worker
from distributed.utils import sync

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["FULL_WORKER", "MARKS", "SEEN", "Past", "RunInfo", "is_suspect", "marked", "may_kill"]

#: Workers that die in a run before all its tasks are run in child processes: one more, as long as nothing was seen to kill.
MAX_DEATHS = 2
#: A worker that has just replaced another one is as careful for so long, even after a single death: its first tasks are likely
#: to be like the one that killed. Counted from the import of this module, for the first task.
YOUNG_SECONDS = 2.0
_imported_seconds = time.monotonic()
#: What is known of a place in the tree with which a worker has died: the scheduler has seen it die, the task has been begun
#: again, a second one has died before it got any further, it has also killed a child process, or it did no harm then.
SEEN, DIED, TWICE, KILLS, CLEARED = "seen", "died", "died twice", "kills", "cleared"
#: What is known of a worker that was replaced, as its memory was full for ever.
FULL_WORKER = "full"
#: Where the scheduler keeps the marks, in its metadata.
MARKS = "hepdask-tasks"


class _Begun(NamedTuple):
    """Mark of a task that runs: how many of its ranges were done before, where it runs, and what it is in the tree.

    `dask_deaths` takes it apart at schedulers that need not have hepdask.
    """

    num_done: int
    worker: str
    place: str


#: Mark of a task that has ended.
_ENDED = _Begun(-1, "", "")


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
        True if the client knows already that it is to be run in a child process; else that is told by what has died by the
        time it begins, see `marked`.
    is_last_try : bool
        False: if a server can't be reached from this worker, another worker is to try.
    """

    run_id: str
    key: str
    place: str
    is_suspect: bool = False
    is_last_try: bool = False


@dataclass(slots=True)
class Past:
    """What is known of a task before it begins.

    Attributes
    ----------
    has_begun : bool
        True if it has been begun before.
    is_perilous : bool
        True if workers have died in the run.
    is_suspect : bool
        True if it may kill its worker.
    has_killed : bool
        True if it then has killed a child process, or would have needed more memory than a worker has.
    """

    has_begun: bool
    is_perilous: bool
    is_suspect: bool
    has_killed: bool = False


def _nothing() -> int:
    return 0


@contextmanager
def marked(info: RunInfo, count_done: Callable[[], int] = _nothing) -> Iterator[Past]:
    """Mark at the scheduler that a task has begun, until it ends.

    A task that finds its own mark has been begun by a worker that died. If it then does no harm, it was not to blame, and that is
    forgotten. See `is_suspect`; what others know before that, `dask_deaths` has marked. The marks cost three round trips,
    about 5 ms a task.

    Parameters
    ----------
    info : RunInfo
        Of the task.
    count_done : callable
        Counts the ranges of the task whose results are kept; called if it has been begun before. With a task that gets further
        each time, it is not the same event that kills.

    Yields
    ------
    Past
        What is known of the task.
    """
    worker = get_worker()
    before, deaths = sync(worker.loop, _ask_past, worker.scheduler, info)
    num_done = 0 if before is None else count_done()
    past: Past = sync(worker.loop, _mark_begun, worker, info, before, num_done, deaths)
    try:
        yield past
    finally:
        sync(worker.loop, _mark_ended, worker.scheduler, info, past)


async def _ask_past(scheduler: Any, info: RunInfo) -> tuple[_Begun | None, dict[str, str]]:
    """Ask for the mark of the task, if it was begun before, and with what workers have died."""
    before, deaths = await asyncio.gather(
        scheduler.get_metadata(keys=[MARKS, info.run_id, "begun", info.key], default=None),
        scheduler.get_metadata(keys=[MARKS, info.run_id, "died"], default={}),
    )
    return before and _Begun(*before), deaths


async def _mark_begun(
    worker: Any,
    info: RunInfo,
    before: _Begun | None,
    num_done: int,
    deaths: Mapping[str, str],
) -> Past:
    """Mark a task as begun; return what is known of it."""
    scheduler = worker.scheduler
    if before is not None and before != _ENDED:
        is_stuck = num_done <= before.num_done and deaths.get(info.place) in (DIED, TWICE)
        known = TWICE if is_stuck else DIED
        place = [MARKS, info.run_id, "died", info.place]
        await scheduler.set_metadata(keys=place, value=known)
        deaths = {**deaths, info.place: known}
    begun = [MARKS, info.run_id, "begun", info.key]
    await scheduler.set_metadata(keys=begun, value=_Begun(num_done, worker.address, info.place))
    is_young = time.monotonic() - _imported_seconds < YOUNG_SECONDS
    suspected = info.is_suspect or is_suspect(info.place, deaths, is_young=is_young)
    return Past(before is not None, bool(deaths), suspected)


def is_suspect(place: str, deaths: Mapping[str, str], *, is_young: bool) -> bool:
    """Tell whether a task is to be run in a child process of its worker.

    One with which a worker has died is. Where several workers died with tasks that are not cleared, all tasks of the run are:
    whatever kills is in many events. They are, too, where several workers were full: the code keeps what it has allocated. But
    where most of those that died were cleared, somebody else kills the workers, and a child process, which costs a new worker
    a second, is for tasks with which a second one has died.

    Parameters
    ----------
    place : str
        Of the task in the tree: a copy, as it takes so long in its child process, has not begun before, but is no better.
    deaths : mapping of str to str
        What is known of places with which workers have died, and of workers.
    is_young : bool
        True for a worker that has just replaced another one.
    """
    found = Counter(deaths.values())
    known = deaths.get(place)
    if found[FULL_WORKER] >= MAX_DEATHS or known in (TWICE, KILLS):
        return True
    if _do_others_kill(found):
        return False
    num_blamed = found.total() - found[CLEARED]
    return (
        known in (SEEN, DIED)
        or num_blamed > MAX_DEATHS
        or (num_blamed == MAX_DEATHS and found[KILLS] > 0)
        or (num_blamed > 0 and is_young)
    )


def may_kill(place: str, deaths: Mapping[str, str]) -> bool:
    """Tell whether a task that dask has given up is to be blamed, and not those who kill the workers.

    Parameters
    ----------
    place, deaths : str, mapping of str to str
        As for `is_suspect`.
    """
    is_blamed = deaths.get(place) in (SEEN, DIED, TWICE, KILLS)
    return is_blamed or not _do_others_kill(Counter(deaths.values()))


def _do_others_kill(found: Counter[str]) -> bool:
    return found[CLEARED] >= MAX_DEATHS and found[CLEARED] > found[KILLS]


async def _mark_ended(scheduler: Any, info: RunInfo, past: Past) -> None:
    """Mark a task as ended; say what became of a suspicion."""
    await scheduler.set_metadata(keys=[MARKS, info.run_id, "begun", info.key], value=_ENDED)
    if past.is_suspect or past.has_begun:
        place = [MARKS, info.run_id, "died", info.place]
        if past.has_killed:
            await scheduler.set_metadata(keys=place, value=KILLS)
        elif await scheduler.get_metadata(keys=place, default=None) in (SEEN, DIED, TWICE):
            await scheduler.set_metadata(keys=place, value=CLEARED)
