"""Dask clients and local clusters that hepdask opens by itself."""

from __future__ import annotations

import asyncio
import signal
import threading
import weakref
from typing import Any

import dask
import distributed
from distributed.client import ClosedClientError

from hepdask.errors import ExecutorError

__all__ = [
    "LOST_ERRORS",
    "ask",
    "is_asynchronous",
    "open_client",
    "open_local_cluster",
    "shield_workers",
]

#: What a client raises whose scheduler or workers are gone, or that was closed.
LOST_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    asyncio.CancelledError,
    TimeoutError,
    ClosedClientError,
)
#: How long an answer of the scheduler may take. Without a limit, a client that is closed by somebody else waits for ever.
ASK_SECONDS = 20.0

#: A terminal sends Ctrl-C to the worker processes, too: these shall finish what they have begun.
_IGNORE_INTERRUPTS = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"


def ask(client: Any, question: str, **options: Any) -> Any:
    """Ask the scheduler of a client, but don't wait for ever.

    Parameters
    ----------
    client : distributed.Client
        A synchronous one.
    question : str
        Name of the scheduler's handler.
    **options
        Its arguments.

    Raises
    ------
    one of LOST_ERRORS
        If the scheduler doesn't answer.
    """
    scheduler = client.scheduler
    if scheduler is None:
        raise ConnectionError("the client is closed")
    return client.sync(getattr(scheduler, question), callback_timeout=ASK_SECONDS, **options)


def open_local_cluster(n_workers: int | None = None, **options: Any) -> distributed.LocalCluster:
    """Start worker processes with one thread each on this machine.

    Parameters
    ----------
    n_workers : int or None
        How many; None: one for each CPU.
    **options
        Passed to `distributed.LocalCluster`.
    """
    defaults = {"threads_per_worker": 1, "processes": True, "preload": [_IGNORE_INTERRUPTS]}
    return distributed.LocalCluster(
        n_workers=n_workers or dask.system.CPU_COUNT, **{**defaults, **options}
    )


class _ClientOfCluster(distributed.Client):  # type: ignore[misc]  # dask has no types
    """A client that closes its cluster, as ``Client()`` does with the one it makes."""

    def __init__(self, cluster: distributed.LocalCluster) -> None:
        super().__init__(cluster)
        self._owned_cluster = cluster

    def close(self, *arguments: Any, **options: Any) -> Any:
        closed = super().close(*arguments, **options)
        self._owned_cluster.close()
        return closed


class _IgnoreInterrupts(distributed.WorkerPlugin):  # type: ignore[misc]  # dask has no types
    """Lets Ctrl-C pass in worker processes, those that come later, too."""

    name = "hepdask-interrupts"
    idempotent = True

    def setup(self, worker: Any) -> None:
        # one without a nanny may live in the user's own process
        if worker.nanny and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)


_shielded: weakref.WeakSet[Any] = weakref.WeakSet()


def shield_workers(client: Any) -> None:
    """Keep Ctrl-C from the workers of a cluster that the user has started on this machine.

    A terminal, or the stop button of a notebook, interrupts these processes, too, and dask then ends them, with the results that
    they hold.
    """
    if isinstance(client.cluster, distributed.LocalCluster) and client not in _shielded:
        _shielded.add(client)
        client.register_plugin(_IgnoreInterrupts())


def is_asynchronous(given: Any) -> bool:
    """Return whether a client or cluster belongs to the user's event loop."""
    return bool(getattr(given, "asynchronous", False))


def open_client(given: Any) -> Any:
    """Open a client; None if this session has one already."""
    if given is None:
        try:
            distributed.default_client()
        except ValueError:
            if dask.config.get("scheduler-address", None):
                return distributed.Client()
            return _ClientOfCluster(open_local_cluster())
        return None
    if callable(given):
        return _ClientOfCluster(given())
    try:
        if isinstance(given, distributed.Client):
            # an asynchronous client is driven by the user's event loop, this one by a thread of its own
            return distributed.Client(
                given.scheduler.address, security=given.security, set_as_default=False
            )
        if is_asynchronous(given):
            return distributed.Client(
                given.scheduler_address, security=given.security, set_as_default=False
            )
        return distributed.Client(given, set_as_default=False)
    except OSError as error:
        raise ExecutorError(
            f"no Dask scheduler answers at {given!r} ({error}): is it running, and does the address start with tls:// "
            "where it uses certificates?"
        ) from error
