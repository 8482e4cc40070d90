"""While a cluster has no worker, say so, and what the batch system says."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hepdask.clusters.queues import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["announced_waiting"]

logger = logging.getLogger(__name__)

#: An idle batch system starts a worker in less.
FIRST_SECONDS = 8.0
#: How often it is asked, and how often the same is said again.
LOOK_SECONDS, REPEAT_SECONDS = 10.0, 300.0


@contextmanager
def announced_waiting(
    cluster: Any, count_workers: Callable[[], int], first_seconds: float = FIRST_SECONDS
) -> Iterator[None]:
    """Log, as long as the context is open, that there are no workers, and why.

    Parameters
    ----------
    cluster : cluster object or None
        Where it has a batch system, that is asked.
    count_workers : callable
        Returns how many there are.
    first_seconds : float
        How long nothing is said.
    """
    if count_workers():
        yield
        return
    ended = threading.Event()
    arguments = (cluster, count_workers, ended, first_seconds)
    thread = threading.Thread(target=_announce, args=arguments, name="hepdask-waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(1.0)


def _announce(
    cluster: Any,
    count_workers: Callable[[], int],
    ended: threading.Event,
    first_seconds: float,
) -> None:
    began = said_at = time.monotonic()
    said, pause, have_waited = "", first_seconds, False
    while not ended.wait(pause):
        pause = min(LOOK_SECONDS, max(first_seconds, 0.1))
        now = time.monotonic()
        if count_workers():
            if have_waited:
                logger.warning("the first worker is there, after %.0f s", now - began)
            return
        reason = explain(cluster)
        if not have_waited or reason != said or now - said_at > REPEAT_SECONDS:
            text = "no worker yet, after %.0f s%s"
            logger.warning(text, now - began, f"; {reason}" if reason else "")
            said, said_at, have_waited = reason, now, True
