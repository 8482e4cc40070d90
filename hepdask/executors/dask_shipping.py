"""Bring a run's cargo to a cluster: ask the scheduler what it has, send what is new, once.

What is sent becomes a plugin of workers. The scheduler keeps it, unopened, and gives it to each worker that is there or that comes
later. Its name has the hash of its content, so that what is there needn't be sent again, by whichever client.

The scheduler also has the books of which run needs what. A module that a run needs is never replaced under its hands.
"""

from __future__ import annotations

import ipaddress
import logging
import time
import uuid
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import cloudpickle
import distributed

from hepdask.errors import ExecutorError
from hepdask.executors.dask_clients import LOST_ERRORS, ask
from hepdask.shipping.arrival import process_token
from hepdask.shipping.credentials import find_credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from hepdask.shipping import Cargo, Manifest

__all__ = ["Delivery", "NoAnswerError", "call_on_scheduler", "delivering", "find_plain_address"]

logger = logging.getLogger(__name__)

#: How long workers may take to unpack what they get; one that hangs must not keep the others waiting.
SEND_SECONDS = 20.0
#: How often it is looked whether a proxy or token was renewed: they live for hours, the shortest for some minutes.
RENEW_SECONDS = 15.0
#: Schemes whose connections nobody else can read.
_PRIVATE_SCHEMES = frozenset({"inproc", "tls", "wss"})
_FILES = frozenset({"module", "resource"})


class NoAnswerError(ExecutorError):
    """Says that a scheduler does not answer: it may do so when its connection is there again."""


@dataclass(frozen=True, slots=True)
class _Parcel:
    """What becomes one plugin."""

    what: str  # "module analysis": a new one replaces the old one
    digest: str
    kind: str
    name: str
    cargo: Any  # a Unit, a Credential, or variables

    @property
    def plugin_name(self) -> str:
        return f"hepdask {self.what} {self.digest}"

    def open(self) -> Any:
        if self.kind in _FILES:
            return self.cargo.pack()
        return self.cargo.content if self.kind == "credential" else self.cargo


class Delivery:
    """What is to be brought to the cluster of one run.

    Parameters
    ----------
    load : callable
        Finds all of it.

    Attributes
    ----------
    cargo : Cargo
        What it has found, when it was first needed.
    scheduler_id : str
        Of the scheduler that it was brought to.
    """

    def __init__(self, load: Callable[[], Cargo]) -> None:
        self._load = load
        self.scheduler_id = ""
        self._run_id = uuid.uuid4().hex
        self._client: Any = None
        self._last_look = 0.0
        #: digests of what was new at the last look
        self._seen: set[str] = set()

    @cached_property
    def cargo(self) -> Cargo:
        return self._load()

    def deliver(self, client: Any) -> Manifest:
        """Bring everything to the workers, those that are there and those that will come; once.

        Returns
        -------
        Manifest
            For the tasks.

        Raises
        ------
        ExecutorError
            If another run needs another version of a module now, or a worker can't take what it gets.
        """
        if self._client is not client:
            self._bring(client, self.cargo)
            self._last_look = time.monotonic()
        return self.cargo.manifest

    def renew(self) -> None:
        """Bring a proxy or token that was renewed since, if the last look was long enough ago; for whoever waits for the run."""
        client, now = self._client, time.monotonic()
        if client is None or now - self._last_look < RENEW_SECONDS:
            return
        self._last_look = now
        if not self.cargo.options.credentials:
            return
        known = {one.variable: one for one in self.cargo.credentials}
        found = [one for one in find_credentials() if one != known.get(one.variable)]
        # what is new at two looks has been written to its end
        settled = {one.variable: one for one in found if one.digest in self._seen}
        self._seen = {one.digest for one in found}
        if settled:
            cargo = replace(self.cargo, credentials=tuple({**known, **settled}.values()))
            try:
                self._bring(client, cargo)
            # a warning is an error for some users: not here, where a run is waited for
            except (ExecutorError, UserWarning) as error:
                names = " and ".join(settled)
                logger.warning("the new %s has not come to all workers: %s", names, error)
            else:
                self.cargo = cargo

    def _bring(self, client: Any, cargo: Cargo) -> None:
        parcels = list(_wrap(cargo))
        found = self._claim(client, parcels)
        if found["conflict"]:
            raise ExecutorError(_explain_conflict(*found["conflict"]))
        self._client, self.scheduler_id = client, found["id"]
        if any(one.kind == "credential" for one in parcels):
            plain = _find_plain([client.scheduler.address, *found["places"]])
            if not _may_send_credentials(cargo, plain):
                parcels = [one for one in parcels if one.kind != "credential"]
        for parcel in parcels:
            if parcel.plugin_name in found["missing"]:
                _send(client, parcel)
        for name in found["outdated"]:
            with suppress(*LOST_ERRORS):
                ask(client, "unregister_worker_plugin", name=name)

    def forget(self) -> None:
        """Let the next `deliver` look again what there is: behind a connection that was lost may be another scheduler."""
        self._client = None

    def close(self) -> None:
        """Let others replace what this run has used."""
        client, self._client = self._client, None
        if client is not None and client.status == "running":
            with suppress(*LOST_ERRORS):
                call_on_scheduler(client, _make_releaser(), run_id=self._run_id)

    def _claim(self, client: Any, parcels: list[_Parcel]) -> dict[str, Any]:
        manifest = self.cargo.manifest
        fixed = {f"module {name}": digest for name, digest in manifest.modules}
        fixed.update({f"resource {name}": digest for name, digest in manifest.resources})
        answer: dict[str, Any] = call_on_scheduler(
            client,
            _make_claimer(),
            run_id=self._run_id,
            client_id=client.id,
            fixed=fixed,
            wanted={one.plugin_name: one.what for one in parcels},
        )
        return answer


def call_on_scheduler(client: Any, function: Any, **arguments: Any) -> Any:
    """Call a function on the scheduler, which need not have hepdask: give one that is pickled by value.

    Raises
    ------
    NoAnswerError
        If the scheduler does not answer.
    ExecutorError
        If it can't call it.
    """
    try:
        answer = ask(
            client,
            "run_function",
            function=cloudpickle.dumps(function),
            args=cloudpickle.dumps(()),
            kwargs=cloudpickle.dumps(arguments),
        )
    except LOST_ERRORS as error:
        raise NoAnswerError(f"the scheduler does not answer: {error}") from error
    if answer["status"] != "OK":
        raise ExecutorError(f"the scheduler answers: {answer['exception_text']}")
    return answer["result"]


def _wrap(cargo: Cargo) -> Iterator[_Parcel]:
    for unit in cargo.modules:
        yield _Parcel(f"module {unit.name}", unit.digest, "module", unit.name, unit)
    for unit in cargo.resources:
        yield _Parcel(f"resource {unit.name}", unit.digest, "resource", unit.name, unit)
    if cargo.variables:
        digest = uuid.uuid5(uuid.NAMESPACE_OID, repr(sorted(cargo.variables.items()))).hex
        yield _Parcel("environment", digest, "environment", "", dict(cargo.variables))
    for one in cargo.credentials:
        what = f"credential {one.variable}"
        yield _Parcel(what, one.digest, "credential", one.variable, one)


def _send(client: Any, parcel: _Parcel) -> None:
    """Make a parcel a plugin of all workers."""
    plugin = cloudpickle.dumps(
        _make_plugin((parcel.kind, parcel.name, parcel.digest, parcel.open()), process_token())
    )
    if parcel.kind in _FILES:
        logger.info(
            "sending %s to the workers: %s, packed %d kB",
            parcel.what,
            parcel.cargo.describe(),
            len(plugin) // 1000,
        )
    try:
        answers = client.sync(
            client.scheduler.register_worker_plugin,
            plugin=plugin,
            name=parcel.plugin_name,
            idempotent=False,
            callback_timeout=SEND_SECONDS,
        )
    except LOST_ERRORS:
        # a worker that hangs, or dies just now: the scheduler has it, and the others get it
        logger.warning("some worker did not confirm that it has got %s", parcel.what)
        return
    for address, answer in answers.items():
        if answer["status"] == "error":
            _, error, _ = distributed.core.clean_exception(answer["exception"], answer["traceback"])
            raise ExecutorError(
                f"the worker {address} can't take {parcel.what}: {type(error).__name__}: {error}; is its scratch directory "
                "full, or not to be written to?"
            ) from error


def _make_plugin(parcel: tuple[str, str, str, Any], home: str) -> Any:
    """Make a plugin whose class is pickled by value: a worker without hepdask must be able to start, too."""

    class Arrival(distributed.WorkerPlugin):  # type: ignore[misc]  # dask has no types
        parcel: Any = None
        home = ""

        async def setup(self, worker: Any) -> None:
            import asyncio

            try:
                from hepdask.shipping.arrival import receive
            except ImportError:
                return
            (kind, name, digest, payload), self.parcel = self.parcel, None
            scratch, home = worker.local_directory, self.home
            await asyncio.to_thread(receive, kind, name, digest, payload, scratch, home)

    plugin = Arrival()
    # as attributes: what a method named would be pickled with the class
    plugin.parcel, plugin.home = parcel, home
    return plugin


def _make_claimer() -> Any:
    """Make the function by which a scheduler books what a run needs."""

    def claim(
        dask_scheduler: Any, run_id: str, client_id: str, fixed: Any, wanted: Any
    ) -> dict[str, Any]:
        books = dask_scheduler.extensions.setdefault("hepdask-shipping", {})
        for other, (owner, *_) in list(books.items()):
            if owner not in dask_scheduler.clients:  # it has ended without a word
                del books[other]
        for owner, used, _ in books.values():
            for what, digest in fixed.items():
                if used.get(what, digest) != digest:
                    return {"conflict": (what, owner == client_id)}
        books[run_id] = client_id, fixed, frozenset(wanted)
        # of a proxy or token the newest is the right one: a worker that comes must not get two
        for name in list(dask_scheduler.worker_plugins):
            for wanted_name, what in wanted.items():
                is_same = what.startswith("credential ") and name.startswith(f"hepdask {what} ")
                if is_same and name != wanted_name:
                    dask_scheduler.worker_plugins.pop(name, None)
        needed = {name for _, _, names in books.values() for name in names}
        # a module's new version replaces the old one; two resources may have one name
        replaced = [f"hepdask {what} " for what in wanted.values()]
        return {
            "conflict": None,
            "id": dask_scheduler.id,
            # without ports: thousands of workers are on few machines
            "places": {
                one.rpartition(":")[0] for one in (dask_scheduler.address, *dask_scheduler.workers)
            },
            "missing": [name for name in wanted if name not in dask_scheduler.worker_plugins],
            "outdated": [
                name
                for name in dask_scheduler.worker_plugins
                if name not in needed and any(name.startswith(one) for one in replaced)
            ],
        }

    return claim


def _make_releaser() -> Any:
    def release(dask_scheduler: Any, run_id: str) -> None:
        dask_scheduler.extensions.get("hepdask-shipping", {}).pop(run_id, None)

    return release


def _explain_conflict(what: str, is_own: bool) -> str:
    who = "another run of this session" if is_own else "a run of another session"
    return (
        f"{who} on this cluster uses another version of the {what} now, and a worker can't have two: wait until it has ended, or "
        "use another cluster, or another name"
    )


_warned: set[str] = set()


def _may_send_credentials(cargo: Cargo, plain: str | None) -> bool:
    """Return whether nobody can read along; warn, once for each scheduler, if somebody could."""
    if plain is None or cargo.options.allow_plain_credentials:
        return True
    if plain not in _warned:
        _warned.add(plain)
        names = " and ".join(f"{one.variable} ({one.source})" for one in cargo.credentials)
        warnings.warn(
            f"{names} is not sent to the workers: the connection to {plain} is not encrypted, and whoever can read along could "
            "use it; start the cluster with TLS (tls://...), or name a file that workers can read in their environment, or say "
            "Runner(shipping=Shipping(credentials=False)) if no file needs it, or Shipping(allow_plain_credentials=True)",
            UserWarning,
            stacklevel=2,
        )
    return False


def find_plain_address(client: Any) -> str | None:
    """Return an address of a cluster that leaves its machine without encryption; None if there is none.

    A tunnel's end may be on this machine while the scheduler speaks to its workers over a network: all addresses count.
    """
    identity = ask(client, "identity", n_workers=-1)
    return _find_plain([client.scheduler.address, identity["address"], *identity["workers"]])


def _find_plain(addresses: Iterable[str]) -> str | None:
    return next((one for one in addresses if not _is_private(one)), None)


def _is_private(address: str) -> bool:
    parts = urlsplit(address)
    if parts.scheme in _PRIVATE_SCHEMES:
        return True
    host = parts.hostname or ""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


@contextmanager
def delivering(load: Callable[[], Cargo] | None) -> Iterator[Delivery | None]:
    """Give the delivery of a run, which ends with the ``with`` block."""
    delivery = None if load is None else Delivery(load)
    try:
        yield delivery
    finally:
        if delivery is not None:
            delivery.close()
