"""Dask clients and local clusters that hepdask opens by itself."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
import weakref
from contextlib import suppress
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import dask
import distributed
from distributed.client import ClosedClientError

from hepdask.clusters import (
    WORDS,
    Choice,
    Endpoint,
    HandOver,
    WaitForHandOver,
    announced_waiting,
    choose_cluster,
    configured_word,
    describe_plain_text,
    open_local_cluster,
    warn_of_threads,
)
from hepdask.errors import ExecutorError, OptionError
from hepdask.executors import interruptible
from hepdask.executors.dask_deaths import make_death_plugin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

__all__ = [
    "LOST_ERRORS",
    "ask",
    "choose_given",
    "is_asynchronous",
    "is_under_way",
    "open_client",
    "prepare_cluster",
    "reconnect",
    "split_cluster_options",
    "waiting_for_workers",
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
#: How long a scheduler elsewhere may be away in the middle of a run, and how often it is looked for.
RECONNECT_SECONDS, RECONNECT_POLL_SECONDS = 300.0, 0.2

logger = logging.getLogger(__name__)


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


def is_under_way(future: Any) -> bool:
    """Tell whether a future will have a result: it was not done yet, or is made again, as it went with its worker.

    A future that was done is "lost" then, and dask would call no callback when it is done again, but one that is added
    meanwhile at once: look again later.
    """
    return future.status in ("pending", "lost")


class _ClientOfCluster(distributed.Client):  # type: ignore[misc]  # dask has no types
    """A client that closes its cluster, as ``Client()`` does with the one it makes."""

    def __init__(self, cluster: Any, **options: Any) -> None:
        super().__init__(cluster, **options)
        self._owned_cluster = cluster

    def close(self, *arguments: Any, **options: Any) -> Any:
        closed = super().close(*arguments, **options)
        # once: dask closes clients again when Python ends, and a KubeCluster that is closed twice then waits for ever
        status = getattr(self._owned_cluster, "status", None)
        if getattr(status, "name", status) != "closed":
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


_prepared: weakref.WeakSet[Any] = weakref.WeakSet()
#: Clients of clusters that a word stands for.
_chosen: weakref.WeakSet[Any] = weakref.WeakSet()


def prepare_cluster(client: Any) -> None:
    """Let the workers of a cluster be told to stop without a loss, those that come later, too, and their deaths cost little.

    On this machine a terminal, or the stop button of a notebook, interrupts the worker processes, too, and dask then ends them,
    with the results that they hold. Elsewhere a batch system tells them to leave.
    """
    if client in _prepared:
        return
    _prepared.add(client)
    _warn_of_what_was_given(client)
    is_local = isinstance(client.cluster, distributed.LocalCluster)
    stops = [_IgnoreInterrupts()] if is_local else [HandOver(), WaitForHandOver()]
    for plugin in [*stops, make_death_plugin()]:
        # the scheduler has it for those that come. One that leaves just now needs none; one that has no hepdask can't take it,
        # and the look at the first run says so; a scheduler that takes no code does what dask does
        with suppress(Exception):
            client.register_plugin(plugin)


def _warn_of_what_was_given(client: Any) -> None:
    """Say what is better not so in a cluster that the user has made: in others it has been said when they were opened."""
    if client in _chosen:
        return
    with suppress(*LOST_ERRORS):
        workers = ask(client, "identity", n_workers=10)["workers"].values()
        warn_of_threads(max((int(one["nthreads"]) for one in workers), default=1))
    # it is there already: no warning for which a program may have decided to end
    risk = describe_plain_text(str(client.scheduler.address))
    if risk:
        logger.warning("%s", risk)


def waiting_for_workers(client: Any) -> AbstractContextManager[None]:
    """Let the user know, in a ``with`` block, that a client's cluster has no workers yet, and what its batch system says."""

    def count() -> int:
        with suppress(*LOST_ERRORS):
            return len(ask(client, "identity", n_workers=1)["workers"])
        return 1  # a lost scheduler is somebody else's business

    return announced_waiting(client.cluster, count)


def is_asynchronous(given: Any) -> bool:
    """Return whether a client or cluster belongs to the user's event loop."""
    return bool(getattr(given, "asynchronous", False))


def split_cluster_options(
    given: Any, options: Mapping[str, Any], known: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split keyword arguments into those that describe a cluster and all others.

    Parameters
    ----------
    given : object
        What was given as client.
    options : mapping
        The arguments that are left over.
    known : sequence of str
        The arguments that an executor has: with a word, what is near none of these is an option of the cluster, right or wrong.
    """
    cluster = {
        name: value
        for name, value in options.items()
        if name in WORDS or (isinstance(given, str) and not get_close_matches(name, known))
    }
    return cluster, {name: value for name, value in options.items() if name not in cluster}


def choose_given(given: Any, options: Mapping[str, Any]) -> Any:
    """Find the cluster that a word and options describe; what is no word stays as it is.

    Raises
    ------
    OptionError
        If the word or an option is wrong, or options describe a cluster that is there already.
    """
    if isinstance(given, str):
        return choose_cluster(given, options)
    if options and given is None:
        return choose_cluster(configured_word() or "local", options)
    if options:
        raise OptionError(
            f"{next(iter(options))} describes a cluster that is to be made, and client is one that is there: "
            f"DaskExecutor('slurm', {next(iter(options))}=...)"
        )
    return given


def open_client(given: Any) -> Any:
    """Open a client; None if this session has one already."""
    if given is None:
        try:
            distributed.default_client()
        except ValueError:
            word = configured_word()
            if word is not None:
                return _open_choice(choose_cluster(word))
            if dask.config.get("scheduler-address", None):
                return distributed.Client()
            return _ClientOfCluster(open_local_cluster())
        return None
    if isinstance(given, Choice):
        return _open_choice(given)
    if callable(given):
        return _ClientOfCluster(given())
    if isinstance(given, distributed.Client):
        # an asynchronous client is driven by the user's event loop, this one by a thread of its own
        return _connect(given.scheduler.address, given.security)
    if is_asynchronous(given):
        return _connect(given.scheduler_address, given.security)
    return _connect(given, None)


def reconnect(given: Any, client: Any) -> bool:
    """Wait for a client to have its scheduler again: after a tunnel that broke, or a night in which this machine slept.

    Parameters
    ----------
    given : object
        What the user gave: only a word for a scheduler elsewhere can be gone back to. Where a cluster was made here, its scheduler
        has died with it.
    client : distributed.Client
        Opened here. dask itself tries to connect again, for as long as `RECONNECT_SECONDS` here.

    Returns
    -------
    bool
        True if it has.
    """
    if not isinstance(given, Choice) or client is None or client.cluster is not None:
        return False
    began = time.monotonic()
    pause = threading.Event()
    is_told = False
    with interruptible() as interrupts:
        while client.status != "closed" and time.monotonic() - began < RECONNECT_SECONDS:
            if _answers(client):
                # it may be another one, that was started meanwhile
                _prepared.discard(client)
                logger.warning(
                    "the connection to %s was lost, and is there again after %.0f s: the run goes on",
                    given.word,
                    time.monotonic() - began,
                )
                return True
            if interrupts.count:
                break
            if not is_told:
                is_told = True
                logger.warning(
                    "the connection to %s is lost: waiting up to %.0f s for it; Ctrl-C ends the run with what is done",
                    given.word,
                    RECONNECT_SECONDS,
                )
            pause.wait(RECONNECT_POLL_SECONDS)
    return False


def _answers(client: Any) -> bool:
    if client.status != "running":
        return False
    with suppress(*LOST_ERRORS):
        ask(client, "identity", n_workers=0)
        return True
    return False


def _open_choice(choice: Choice) -> Any:
    made = choice.open()
    if isinstance(made, Endpoint):
        client = _connect(made.address, made.security)
        # not only for as long as the first connection may take
        client._timeout = RECONNECT_SECONDS
    else:
        client = _ClientOfCluster(made, set_as_default=False)
    _chosen.add(client)
    return client


def _connect(address: Any, security: Any) -> Any:
    try:
        return distributed.Client(address, security=security, set_as_default=False)
    except OSError as error:
        raise ExecutorError(
            f"no Dask scheduler answers at {address!r} ({error}): is it running, and does the address start with tls:// "
            "where it uses certificates?"
        ) from error
