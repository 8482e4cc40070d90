"""Servers: what this process knows of their health, and how many files are opened on each at once.

An endpoint is what fails as a whole: a scheme with a host and a port. `Health` remembers which endpoints failed lately,
so that a dead server costs its time limit once and not once a file, and which single replicas are bad. What is known
of endpoints can be shared: `Health.export` on one worker, `Health.merge` on the others.

A suspicion ends by itself, so that a server that came back is used again::

    failures in a row   1    2    4    16 or more
    half-lives          1    2    ~3   5            until the endpoint is tried in its turn again
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import re
import threading
import time
from collections import Counter, OrderedDict
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from hepdask.paths import canonical_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

__all__ = [
    "HALF_LIFE_SECONDS",
    "LOCAL",
    "EndpointRecord",
    "Health",
    "ProcessSlots",
    "SlotProvider",
    "endpoint_of",
    "open_slot",
    "process_health",
    "slots_from",
]

#: The endpoint of every local path.
LOCAL = "local"
#: How long one failure counts. Servers that are restarted are back within half a minute, and asking a dead one costs
#: its time limit, often a minute: five keep that small, and bring a server back while its run still goes on.
HALF_LIFE_SECONDS = 300.0
#: More failures than this make no suspicion longer.
MAX_WEIGHT = 16.0
#: Bad replicas that a process remembers.
MAX_DAMAGED = 4096
#: How long a thread that waits for a slot takes no notice of anything else.
WAIT_SECONDS = 0.2

# the last server of a chain such as simplecache::root://host, but the first of root://cache//root://origin
_SERVER = re.compile(r"(?:^|::)([a-z][a-z0-9+.-]*)://((?:\[[^\]]*\]|(?!::)[^/?#])*)", re.IGNORECASE)


@lru_cache(maxsize=4_096)
def endpoint_of(url: str) -> str:
    """Give the server of a URL.

    Parameters
    ----------
    url : str
        A path or URL.

    Returns
    -------
    str
        ``"root://host"``, ``"https://host:8443"``: lower case, without a default port and without a user; ``"local"``
        for a path. Behind a redirector or a cache it is their name, since nothing else is known.
    """
    servers = _SERVER.findall(url)
    if not servers:
        return LOCAL
    scheme, host = servers[-1]
    if scheme.lower() in {"file", "local"}:
        return LOCAL
    # it is shown in reports, where no password belongs
    return canonical_path(f"{scheme}://{host.rpartition('@')[2]}")


@dataclass(frozen=True, slots=True)
class EndpointRecord:
    """What was seen of an endpoint. Times are seconds since the epoch, 0 for never.

    Attributes
    ----------
    failed_at : float
        When an open or a read last failed there.
    suspect_until : float
        How long that counts.
    opened_at : float
        When a file was last opened there.
    open_seconds : float
        How long that took.
    """

    failed_at: float = 0.0
    suspect_until: float = 0.0
    opened_at: float = 0.0
    open_seconds: float = 0.0

    @property
    def is_failing(self) -> bool:
        """True if nothing was opened since the last failure."""
        return self.failed_at > self.opened_at

    def join(self, other: EndpointRecord) -> EndpointRecord:
        """Take the newer failure and the newer success of two records, in whatever order they come."""
        failed = max((one.failed_at, one.suspect_until) for one in (self, other))
        opened = max((one.opened_at, one.open_seconds) for one in (self, other))
        return EndpointRecord(*failed, *opened)


class Health:
    """What is known of the health of endpoints, and of replicas that are bad themselves.

    What this process saw counts more than what others report: their successes end the suspicions that they have
    reported, and not its own, since a server may be out of reach from here alone.

    Parameters
    ----------
    clock : callable
        Gives seconds since the epoch. The clocks of machines that share should agree within seconds.
    half_life_seconds : float
        How long one failure counts.
    patience : float
        Suspicions last so many times longer here, at least 1. If it differs from process to process, one of them tries a
        server again and tells the others, instead of all at once.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        *,
        half_life_seconds: float = HALF_LIFE_SECONDS,
        patience: float = 1.0,
    ) -> None:
        self._clock = clock
        self._half_life_seconds = half_life_seconds
        self._patience = patience
        self._lock = threading.Lock()
        # `_all` has what this process saw, too
        self._own: dict[str, EndpointRecord] = {}
        self._all: dict[str, EndpointRecord] = {}
        self._damaged: OrderedDict[str, float] = OrderedDict()
        self._version = 0

    @property
    def version(self) -> int:
        """Grows when this process has seen something that others should know: a failure, or the end of failures."""
        return self._version

    def note_success(self, endpoint: str, open_seconds: float) -> None:
        """Take note of a file that was opened; it ends the suspicion.

        Parameters
        ----------
        endpoint : str
            See `endpoint_of`.
        open_seconds : float
            Wall time that it took.
        """
        with self._lock:
            known = self._all.get(endpoint, EndpointRecord())
            own = self._own.get(endpoint, EndpointRecord())
            self._version += known.is_failing or own.is_failing
            # later than what it ends, even if that was told by a machine whose clock is ahead
            opened_at = _stamp(self._clock(), known.failed_at)
            self._keep(endpoint, replace(own, opened_at=opened_at, open_seconds=open_seconds))

    def note_failure(self, endpoint: str) -> None:
        """Take note of a server that did not answer in time, or whose connection was lost.

        Parameters
        ----------
        endpoint : str
            See `endpoint_of`.
        """
        with self._lock:
            known = self._all.get(endpoint, EndpointRecord())
            own = self._own.get(endpoint, EndpointRecord())
            failed_at = _stamp(self._clock(), known.opened_at)
            weight = self._weight(endpoint, failed_at) + 1.0
            # then it has decayed to one half
            suspect_until = failed_at + self._half_life_seconds * math.log2(2.0 * weight)
            self._version += 1
            self._keep(endpoint, replace(own, failed_at=failed_at, suspect_until=suspect_until))

    def note_damage(self, replica: str) -> None:
        """Take note of one replica that is missing, damaged or denied: it says nothing of the others there.

        Parameters
        ----------
        replica : str
            Its URL. For as long as one failure of an endpoint counts, it goes last.
        """
        with self._lock:
            self._damaged[replica] = self._clock() + self._half_life_seconds
            self._damaged.move_to_end(replica)
            while len(self._damaged) > MAX_DAMAGED:
                self._damaged.popitem(last=False)

    def is_suspect(self, endpoint: str) -> bool:
        """Tell whether an endpoint has failed lately."""
        return self._suspect_until(endpoint) > self._clock()

    def order(self, replicas: Sequence[str]) -> tuple[str, ...]:
        """Sort replicas by health; those that are as good as each other stay in their order.

        Parameters
        ----------
        replicas : sequence of str
            URLs of one file, in the order of preference.

        Returns
        -------
        tuple of str
            First those of which nothing bad is known, then those on suspect endpoints, the one that is trusted again first
            in front, then those that are bad themselves.
        """
        now = self._clock()
        return tuple(sorted(replicas, key=lambda replica: self._standing(replica, now)))

    def is_as_good(self, replica: str, replicas: Sequence[str]) -> bool:
        """Tell whether none of some replicas is in better health than one of them."""
        now = self._clock()
        return self._standing(replica, now) <= min(self._standing(one, now) for one in replicas)

    def export(self) -> dict[str, dict[str, float]]:
        """Write what is known of endpoints, by this process and by those that were merged.

        Returns
        -------
        dict
            For each endpoint the attributes of `EndpointRecord`: plain values, for JSON or msgpack.
        """
        # no lock: a fork exports what its parent knew, whose lock may be held for ever
        return {endpoint: asdict(record) for endpoint, record in list(self._all.items())}

    def merge(self, exported: Mapping[str, Mapping[str, Any]]) -> bool:
        """Learn what others know; the order does not matter, and neither does a repetition.

        Parameters
        ----------
        exported : mapping
            From `export`.

        Returns
        -------
        bool
            True if it was news.
        """
        with self._lock:
            before = dict(self._all)
            for endpoint, values in exported.items():
                record = EndpointRecord(**values)
                self._all[endpoint] = record.join(self._all.get(endpoint, EndpointRecord()))
            return self._all != before

    def _keep(self, endpoint: str, record: EndpointRecord) -> None:
        self._own[endpoint] = record
        self._all[endpoint] = record.join(self._all.get(endpoint, EndpointRecord()))

    def _suspect_until(self, endpoint: str) -> float:
        records = (self._own.get(endpoint), self._all.get(endpoint))
        return max(
            (
                one.failed_at + self._patience * (one.suspect_until - one.failed_at)
                for one in records
                if one is not None and one.is_failing
            ),
            default=0.0,
        )

    def _weight(self, endpoint: str, now: float) -> float:
        """Return the number of recent failures, each halved every half-life."""
        records = (self._own.get(endpoint), self._all.get(endpoint))
        ends = [one.suspect_until for one in records if one is not None and one.is_failing]
        half_lives = (max(ends, default=-math.inf) - now) / self._half_life_seconds
        return 0.5 * math.exp2(min(half_lives, math.log2(2.0 * (MAX_WEIGHT - 1.0))))

    def _standing(self, replica: str, now: float) -> tuple[float, float]:
        ends = self._damaged.get(replica, 0.0), self._suspect_until(endpoint_of(replica))
        damaged_until, suspect_until = (end if end > now else 0.0 for end in ends)
        return damaged_until, suspect_until


def _stamp(now: float, earlier: float) -> float:
    return max(now, math.nextafter(earlier, math.inf))


class SlotProvider(Protocol):
    """Limits how many files are opened on an endpoint at once."""

    def slot(self, endpoint: str, limit: int) -> AbstractContextManager[object]:
        """Wait until fewer than `limit` files are being opened there, and count as one inside the ``with`` block."""
        ...


class ProcessSlots:
    """Slots for the threads of one process."""

    def __init__(self) -> None:
        self._freed = threading.Condition()
        self._num_taken: Counter[str] = Counter()

    @contextlib.contextmanager
    def slot(self, endpoint: str, limit: int) -> Iterator[None]:
        """Take a slot; see `SlotProvider`."""
        is_taken = False
        try:
            with self._freed:
                # in short waits, so that a time limit or Ctrl-C gets in between
                while not self._freed.wait_for(
                    lambda: self._num_taken[endpoint] < limit, WAIT_SECONDS
                ):
                    pass
                self._num_taken[endpoint] += 1
                is_taken = True
            yield
        finally:
            if is_taken:
                with self._freed:
                    self._num_taken[endpoint] -= 1
                    self._freed.notify_all()


# of this context, so that two runs on one worker can have slots from different places
_provider: ContextVar[SlotProvider | None] = ContextVar("hepdask_slots", default=None)


@contextlib.contextmanager
def slots_from(provider: SlotProvider) -> Iterator[None]:
    """Take slots from somewhere else inside the ``with`` block, such as the scheduler of a cluster.

    Parameters
    ----------
    provider : SlotProvider
        Asked in this thread only: one that is started inside the block does not see it.
    """
    token = _provider.set(provider)
    try:
        yield
    finally:
        _provider.reset(token)


def open_slot(endpoint: str, limit: int | None) -> AbstractContextManager[object]:
    """Take a slot of an endpoint, for the time that a file is opened there.

    Parameters
    ----------
    endpoint : str
        See `endpoint_of`; local files need none.
    limit : int or None
        Files that may be opened there at once; None: any number.
    """
    if limit is None or endpoint == LOCAL:
        return contextlib.nullcontext()
    return (_provider.get() or _slots).slot(endpoint, limit)


def _new_health() -> Health:
    return Health(patience=random.uniform(1.0, 1.5))


_health = _new_health()
_slots = ProcessSlots()


def process_health() -> Health:
    """Return what this process knows."""
    return _health


def _start_anew() -> None:
    """Begin a fork with its parent's knowledge, but not with locks and slots that nobody here would give back."""
    global _health, _slots  # noqa: PLW0603  (one of each for a process is the point)
    known = _health.export()
    _health = _new_health()
    _health.merge(known)
    _slots = ProcessSlots()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_anew)
