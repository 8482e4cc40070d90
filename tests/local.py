"""Local clusters of a test's own, whose workers may die; and waiting for what a server or cluster does by itself."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import distributed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["local_client", "wait_until"]


@contextmanager
def local_client(num_workers: int = 2, **options: Any) -> Iterator[distributed.Client]:
    """Run a cluster of workers with one thread each, and give a client of it: its ``cluster`` is the cluster.

    Parameters
    ----------
    num_workers : int
        Processes, by default.
    **options
        Of `distributed.LocalCluster`.
    """
    given = {"threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": 50, **options}
    with (
        distributed.LocalCluster(n_workers=num_workers, **given) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


def wait_until(is_true: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    """Wait for something to become true; fail with what it was after a time that is never needed."""
    deadline = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not after {seconds:.0f} s: {what}")
        time.sleep(0.01)
