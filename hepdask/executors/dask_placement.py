"""Which worker begins with which task of a short run.

dask learns how long tasks take while they run, and moves them from busy to idle workers once a second. A run that is over by
then may find all of its tasks on one worker, with the work (the processor) that they depend on. So each worker of a short run is
offered a share of neighbouring tasks: they have files in common, and their results are merged. dask may still move them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from hepdask.tree import Node

__all__ = ["place_tasks"]

#: Expected time of a run, on the threads that there are, up to which it is short: what is expected may be wrong by a factor.
SHORT_SECONDS = 4.0


def place_tasks(
    tasks: Sequence[Node], seconds: Callable[[Node], float], threads: Mapping[str, int]
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
    places: dict[Node, str] = {}
    workers = iter(sorted(threads.items()))
    worker, share = next(workers)
    done, end = 0.0, total * share / num_threads
    for task, cost in zip(tasks, costs, strict=True):
        # the middle of a task decides whose it is
        while done + cost / 2 > end and (following := next(workers, None)) is not None:
            worker, share = following
            end += total * share / num_threads
        places[task] = worker
        done += cost
    return places
