"""Local clusters: keep the nannies that start dead workers again.

A cluster of one machine looks at each place of a worker some time after a death there, and ends the nanny if its worker is away
just then: as it is when the next one has died (`SpecCluster._update_worker_status`, distributed 2026.8). A run whose workers die
again and again would so lose all of them in the end, and wait for ever.
"""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import dask
import distributed

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["keeping_nannies", "start_again"]

#: How long after a death dask looks, by default 15 s: longer than runs on one machine take.
LOOK_AFTER = {"distributed.deploy.lost-worker-timeout": "1 day"}

#: What becomes of a nanny that will not start any worker.
ENDED = ("failed", "closed")

logger = logging.getLogger(__name__)


class _Held:
    """dask's configuration, changed as long as any thread needs it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._changed: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._count:
                self._changed = dask.config.set(LOOK_AFTER)
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._count -= 1
            if not self._count:
                self._changed.__exit__(None, None, None)


_held = _Held()


@contextmanager
def keeping_nannies(client: Any) -> Iterator[None]:
    """Let a local cluster keep its nannies as long as the context is open; no other cluster is touched.

    Parameters
    ----------
    client : distributed.Client
        Of any cluster.
    """
    if isinstance(client.cluster, distributed.LocalCluster):
        with _held:
            yield
    else:
        yield


def start_again(client: Any, known: set[Any]) -> set[Any]:
    """Start workers of a local cluster anew whose nannies are gone nevertheless.

    Parameters
    ----------
    client : distributed.Client
        Of any cluster.
    known : set
        Names of workers of which was said before that they are started.

    Returns
    -------
    set
        Names of the workers that are missing.
    """
    cluster = client.cluster
    if not isinstance(cluster, distributed.LocalCluster) or cluster.status.name != "running":
        return set()
    # one that could not start, for example as the last one of its name was not gone yet, stays there (distributed 2026.8)
    for name, nanny in list(cluster.workers.items()):
        if nanny.status.name in ENDED:
            cluster.workers.pop(name)
    missing = set(cluster.worker_spec) - set(cluster.workers)
    if missing:
        if not missing <= known:
            logger.warning("%d local workers did not come back: started anew", len(missing))
        cluster.scale(len(cluster.worker_spec))
    return missing
