"""Marks of tasks at the scheduler: which have been begun, and with which workers have died."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distributed import get_worker
from distributed.utils import sync

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["DIED", "MARKS", "Past", "RunInfo", "is_suspect", "marked"]

#: Workers that die in a run before all its tasks are run in child processes: one more, as long as nothing was seen to kill.
MAX_DEATHS = 2
#: A worker that replaces another one is as careful for so long: one that dies before its nanny knows that it has started is not
#: replaced again. Counted from the import of this module, for the first task.
YOUNG_SECONDS = 2.0
_imported_seconds = time.monotonic()
#: What is known of a place in the tree with which a worker has died: no more than that, that a second one has, that it has also
#: killed a child process, or that it did no harm then.
DIED, TWICE, KILLS, CLEARED = "died", "died twice", "kills", "cleared"
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
    is_suspect : bool
        True if it may kill its worker.
    has_killed : bool
        True if it then has killed a child process.
    """

    has_begun: bool
    is_suspect: bool
    has_killed: bool = False


@contextmanager
def marked(info: RunInfo) -> Iterator[Past]:
    """Mark at the scheduler that a task has begun, until it ends.

    A task that finds its own mark has been begun by a worker that died. The first to know is so the task itself, before
    it kills a second worker. If it then does no harm, it was not to blame, and that is forgotten. See `is_suspect`. The marks cost
    three round trips, about 5 ms a task.

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
    is_young = time.monotonic() - _imported_seconds < YOUNG_SECONDS
    suspected = info.is_suspect or is_suspect(info.place, deaths, is_young=is_young)
    return Past(before is not None, suspected)


def is_suspect(place: str, deaths: Mapping[str, str], *, is_young: bool) -> bool:
    """Tell whether a task is to be run in a child process of its worker.

    One with which a worker has died is. Where several workers died with tasks that are not cleared, all tasks of the run are: whatever
    kills is in many events. But where most of those that died were cleared, somebody else kills the workers, and a child process,
    which costs a new worker a second, is for tasks with which a second one has died.

    Parameters
    ----------
    place : str
        Of the task in the tree: a copy, as it takes so long in its child process, has not begun before, but is no better.
    deaths : mapping of str to str
        What is known of places with which workers have died.
    is_young : bool
        True for a worker that has just replaced another one.
    """
    found = Counter(deaths.values())
    if found[CLEARED] >= MAX_DEATHS and found[CLEARED] > found[KILLS]:
        return deaths.get(place) in (TWICE, KILLS)
    num_blamed = found.total() - found[CLEARED]
    return (
        deaths.get(place) in (DIED, TWICE, KILLS)
        or num_blamed > MAX_DEATHS
        or (num_blamed == MAX_DEATHS and found[KILLS] > 0)
        or (num_blamed > 0 and is_young)
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
