"""Which worker begins with which task of a short run.

dask learns how long tasks take while they run, and moves them from busy to idle workers once a second. A run that is over by
then may find all of its tasks on one worker, with the work (the processor) that they depend on. So each worker of a short run is
offered a share of neighbouring tasks: they have files in common, and their results are merged. The worker that has these files
open, as it has inspected them or read them in the run before, is offered them first. dask may still move them.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from itertools import product
from typing import TYPE_CHECKING, Any

from hepdask.executors.dask_clients import LOST_ERRORS
from hepdask.readers.handles import list_kept

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from hepdask.tree import Node

__all__ = ["find_open", "place_tasks"]

#: Expected time of a run, on the threads that there are, up to which it is short: what is expected may be wrong by a factor.
SHORT_SECONDS = 4.0
#: Workers that are asked which files they have open, and how long they may take to answer.
MAX_ASKED_WORKERS, OPEN_SECONDS = 16, 0.5


def find_open(client: Any, workers: list[str]) -> dict[str, list[str]]:
    """Ask workers which files they have open.

    Parameters
    ----------
    client : distributed.Client
        A synchronous one.
    workers : list of str
        Their addresses.

    Returns
    -------
    dict of str to list of str
        The files by address; empty on a large cluster, and if one does not answer at once.
    """
    if len(workers) <= MAX_ASKED_WORKERS:
        with suppress(*LOST_ERRORS):
            answers = client.sync(
                client._run,
                list_kept,
                workers=workers,
                on_error="return",
                callback_timeout=OPEN_SECONDS,
            )
            return {worker: one for worker, one in answers.items() if isinstance(one, list)}
    return {}


def place_tasks(
    tasks: Sequence[Node],
    seconds: Callable[[Node], float],
    threads: Mapping[str, int],
    files: Callable[[Node], Collection[str]],
    ask_open: Callable[[], Mapping[str, Collection[str]]],
) -> dict[Node, str]:
    """Share the tasks of a short run out.

    Parameters
    ----------
    tasks : sequence of Node
        In dataset order.
    seconds : callable
        What a task is expected to take.
    threads : mapping of str to int
        Of each worker, by address.
    files : callable
        The files of a task.
    ask_open : callable
        Asks the workers which files they have open, by address; called for a short run only.

    Returns
    -------
    dict of Node to str
        The address of a worker for each task; empty for a long run, which dask balances better.
    """
    num_threads = sum(threads.values())
    costs = [max(seconds(one), 1e-9) for one in tasks]
    total = sum(costs)
    if len(threads) < 2 or len(tasks) < 2 or total > SHORT_SECONDS * num_threads:
        return {}
    shares: dict[str, list[Node]] = defaultdict(list)
    workers = iter(sorted(threads.items()))
    worker, share = next(workers)
    done, end = 0.0, total * share / num_threads
    for task, cost in zip(tasks, costs, strict=True):
        # the middle of a task decides whose it is
        while done + cost / 2 > end and (following := next(workers, None)) is not None:
            worker, share = following
            end += total * share / num_threads
        shares[worker].append(task)
        done += cost
    owners = _find_owners(shares, seconds, threads, files, ask_open())
    return {task: owners[worker] for worker, share in shares.items() for task in share}


def _find_owners(
    shares: Mapping[str, Sequence[Node]],
    seconds: Callable[[Node], float],
    threads: Mapping[str, int],
    files: Callable[[Node], Collection[str]],
    opened: Mapping[str, Collection[str]],
) -> dict[str, str]:
    """Say who gets the share that each worker would get: who has most of it open, of those with as many threads."""
    gains: dict[tuple[str, str], float] = defaultdict(float)
    for share, worker in product(shares, sorted(threads)):
        if threads[share] == threads[worker] and worker in opened:
            for task in shares[share]:
                its_files = files(task)
                found = sum(one in opened[worker] for one in its_files)
                gains[share, worker] += seconds(task) * found / max(1, len(its_files))
    owners: dict[str, str] = {}
    # ties in order, so that the same run has the same places
    for (share, worker), gain in sorted(gains.items(), key=lambda one: (-one[1], one[0])):
        if gain > 0 and share not in owners and worker not in owners.values():
            owners[share] = worker
    for share in shares:
        if share not in owners:
            free = [
                one
                for one in sorted(threads)
                if threads[one] == threads[share] and one not in owners.values()
            ]
            owners[share] = share if share in free else free[0]
    return owners
