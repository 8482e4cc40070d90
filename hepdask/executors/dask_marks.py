"""Marks of tasks at the scheduler: which have been begun, and with which workers have died."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distributed import get_worker
from distributed.utils import sync

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["FULL_WORKER", "MARKS", "Past", "RunInfo", "is_suspect", "marked"]

#: Workers that die in a run before all its tasks are run in child processes: one more, as long as nothing was seen to kill.
MAX_DEATHS = 2
#: What is known of a place in the tree with which a worker has died: no more than that, that a second one has, that it has also
#: killed a child process, or that it did no harm then.
DIED, TWICE, KILLS, CLEARED = "died", "died twice", "kills", "cleared"
#: What is known of a worker that was replaced, as its memory was full for ever.
FULL_WORKER = "full"
#: Where the scheduler keeps the marks, in its metadata.
MARKS = "hepdask-tasks"


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
        True if it then has killed a child process.
    """

    has_begun: bool
    is_perilous: bool
    is_suspect: bool
    has_killed: bool = False


@contextmanager
def marked(info: RunInfo) -> Iterator[Past]:
    """Mark at the scheduler that a task has begun, until it ends.

    A task that finds its own mark has been begun by a worker that died. If it then does no harm, it was not to blame, and that is
    forgotten. See `is_suspect`. The marks cost three round trips, about 5 ms a task.

    Yields
    ------
    Past
        What is known of the task.
    """
    worker = get_worker()
    past: Past = sync(worker.loop, _mark_begun, worker.scheduler, info)
    try:
        yield past
    finally:
        sync(worker.loop, _mark_ended, worker.scheduler, info, past)


async def _mark_begun(scheduler: Any, info: RunInfo) -> Past:
    """Mark a task as begun; return what is known of it."""
    begun, died = [MARKS, info.run_id, "begun", info.key], [MARKS, info.run_id, "died"]
    before, deaths = await asyncio.gather(
        scheduler.get_metadata(keys=begun, default=None),
        scheduler.get_metadata(keys=died, default={}),
    )
    if before:
        known = TWICE if deaths.get(info.place) in (DIED, TWICE) else DIED
        await scheduler.set_metadata(keys=[*died, info.place], value=known)
        deaths = {**deaths, info.place: known}
    await scheduler.set_metadata(keys=begun, value=True)
    suspected = info.is_suspect or is_suspect(info.place, deaths)
    return Past(before is not None, bool(deaths), suspected)


def is_suspect(place: str, deaths: Mapping[str, str]) -> bool:
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
    """
    found = Counter(deaths.values())
    known = deaths.get(place)
    if found[FULL_WORKER] >= MAX_DEATHS or known in (TWICE, KILLS):
        return True
    if found[CLEARED] >= MAX_DEATHS and found[CLEARED] > found[KILLS]:
        return False
    num_blamed = found.total() - found[CLEARED]
    return (
        known == DIED or num_blamed > MAX_DEATHS or (num_blamed == MAX_DEATHS and found[KILLS] > 0)
    )


async def _mark_ended(scheduler: Any, info: RunInfo, past: Past) -> None:
    """Mark a task as ended; say what became of a suspicion."""
    await scheduler.set_metadata(keys=[MARKS, info.run_id, "begun", info.key], value=False)
    if past.is_suspect or past.has_begun:
        place = [MARKS, info.run_id, "died", info.place]
        if past.has_killed:
            await scheduler.set_metadata(keys=place, value=KILLS)
        elif await scheduler.get_metadata(keys=place, default=None) in (DIED, TWICE):
            await scheduler.set_metadata(keys=place, value=CLEARED)
