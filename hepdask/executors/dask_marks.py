"""Marks of tasks at the scheduler: which have been begun, and with which workers have died."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distributed import get_worker
from distributed.utils import sync

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DIED", "MARKS", "Past", "RunInfo", "marked"]

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
    it kills a second worker. If it then does no harm to its child process, it was not to blame, and that is forgotten. Where
    several workers died with tasks that are not cleared, all tasks of the run are suspects: whatever kills is in many events.
    The marks cost three round trips, about 5 ms a task.

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
    return Past(before is not None, is_suspect)


async def _mark_ended(scheduler: Any, info: RunInfo, past: Past) -> None:
    """Mark a task as ended; say what became of a suspicion."""
    await scheduler.set_metadata(keys=[MARKS, info.run_id, "begun", info.key], value=False)
    if past.is_suspect:
        place = [MARKS, info.run_id, "died", info.place]
        if past.has_killed:
            await scheduler.set_metadata(keys=place, value=KILLS)
        elif await scheduler.get_metadata(keys=place, default=None) == DIED:
            await scheduler.set_metadata(keys=place, value=CLEARED)
