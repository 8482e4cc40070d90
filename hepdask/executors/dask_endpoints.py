"""What the workers of a cluster share about the endpoints that they read from: health, and slots for opens."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from distributed import Semaphore, get_worker
from distributed.utils import sync

from hepdask.endpoints import process_health, slots_from

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ClusterSlots", "shared_endpoints"]

#: Where the scheduler keeps, in its metadata, what each worker knows of the health of endpoints.
HEALTH = "hepdask-health"
#: How long a wait for a slot takes at a time.
SLOT_SECONDS = 0.5


@contextmanager
def shared_endpoints() -> Iterator[None]:
    """Learn what other workers know of the health of endpoints, tell them what becomes known, and share slots."""
    worker = get_worker()
    known = sync(worker.loop, worker.scheduler.get_metadata, keys=[HEALTH], default={})
    for exported in known.values():
        process_health().merge(exported)
    version = process_health().version
    try:
        with slots_from(ClusterSlots()):
            yield
    finally:
        if process_health().version != version:
            keys, value = [HEALTH, worker.address], process_health().export()
            sync(worker.loop, worker.scheduler.set_metadata, keys=keys, value=value)


class ClusterSlots:
    """Limits how many files all workers together open at an endpoint at a time."""

    @contextmanager
    def slot(self, endpoint: str, limit: int) -> Iterator[None]:
        """Take a slot; see `SlotProvider`."""
        semaphore = Semaphore(max_leases=limit, name=f"hepdask-opens-{endpoint}-{limit}")
        # in short steps: a time limit can't end a wait in C
        while not semaphore.acquire(timeout=SLOT_SECONDS):
            continue
        try:
            yield
        finally:
            semaphore.release()
