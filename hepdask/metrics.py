"""What ranges cost: timers and counters of a range, added up over files, hosts and endpoints.

Everything is measured around the calls, on the worker, and merged beside the results. `Counters` says what is in each
figure and what isn't; `hepdask.run_metrics` reports on the whole run.
"""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass, field, fields
from functools import cache
from operator import add, attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Counters",
    "MetricsSum",
    "PartialMetrics",
    "count_peak_memory",
    "host_name",
]

FileKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Counters:
    """Additive costs of some ranges.

    Attributes
    ----------
    num_ranges : int
        Ranges that went through the processor, failed ones included.
    num_entries : int
        Entries of the ranges that were processed without a failure, even if their output then did not fit to the others.
    num_opens : int
        Times that a file was opened for a range; one that is open already, as it was inspected or used before, is not counted.
    num_failed_opens : int
        Replicas that could not be opened before one of the same file could. Where none could, there is a failure instead.
    open_seconds : float
        Wall time of opening files and finding trees, over the network and in CPU; zero for kept files. Replicas that
        failed before are in it, and waiting where concurrent opens are limited.
    form_seconds : float
        Wall time of building the layout that the processor sees: awkward form, schema, the lazy events.
    read_seconds : float
        Wall time of reading branches: waiting for the bytes, decompressing, interpreting. With lazy events most of it
        happens inside `process`; it is counted here and not there.
    process_seconds : float
        Wall time of the user's `process`, without `read_seconds`.
    merge_seconds : float
        Wall time of adding accumulators.
    store_seconds : float
        Wall time of writing results to the store and of reading them from there.
    wall_seconds : float
        Wall time of the ranges on their workers, from open to the end of `process`: open + form + read + process and
        the little between them.
    cpu_seconds : float
        CPU time of the thread that did this work. Other threads, of a numba ``parallel=True`` say, are not in it.
    num_requested_bytes : int
        Bytes that were asked for from files or servers, headers and streamers included (coffea's ``bytesread``).
    num_compressed_bytes : int
        Bytes on disk of the baskets or pages of the branches that were read. A basket on the edge of two ranges counts in both.
    num_uncompressed_bytes : int
        Bytes in memory of the arrays of these branches, before the processor makes new ones.
    num_stored_ranges, num_stored_entries : int
        Ranges and entries whose results came from the store; they are in no other figure.
    """

    num_ranges: int = 0
    num_entries: int = 0
    num_opens: int = 0
    num_failed_opens: int = 0
    open_seconds: float = 0.0
    form_seconds: float = 0.0
    read_seconds: float = 0.0
    process_seconds: float = 0.0
    merge_seconds: float = 0.0
    store_seconds: float = 0.0
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    num_requested_bytes: int = 0
    num_compressed_bytes: int = 0
    num_uncompressed_bytes: int = 0
    num_stored_ranges: int = 0
    num_stored_entries: int = 0

    def __add__(self, other: Counters) -> Counters:
        return Counters(*map(add, _values_of(self), _values_of(other)))

    def to_dict(self) -> dict[str, float]:
        """Return the counters by name."""
        return {name: getattr(self, name) for name in _COUNTER_NAMES}


_COUNTER_NAMES = tuple(one.name for one in fields(Counters))
_values_of = attrgetter(*_COUNTER_NAMES)


@dataclass(frozen=True, slots=True)
class PartialMetrics:
    """The costs of a node of the tree.

    Attributes
    ----------
    files : mapping of (dataset, file_path) to Counters
        For each file that the node touched.
    hosts : mapping of str to Counters
        For each worker host.
    endpoints : mapping of str to Counters
        For each endpoint (``"root://host"``, ``"local"``) the ranges that it served, and as `num_failed_opens` the opens that
        failed there. Ranges whose file could not be opened, and merges, are in none.
    served : mapping of (dataset, file_path) to frozenset of str
        For files of which another replica than the first served ranges: the URLs of these others.
    peak_memory_bytes : mapping of str to int
        For each worker host, the largest resident size that a worker process ever had (not in this run alone: the
        operating system keeps no such figure).
    columns : frozenset of str
        Branches that were read.
    missed : frozenset of str
        Branches that a range needed though neither the trace nor the ranges before it, in the same process, had shown that: each
        cost a request of its own.
    first_start : float or None
        When the first range started: seconds since the epoch, by the clock of its worker.
    """

    files: Mapping[FileKey, Counters] = field(default_factory=dict)
    hosts: Mapping[str, Counters] = field(default_factory=dict)
    peak_memory_bytes: Mapping[str, int] = field(default_factory=dict)
    columns: frozenset[str] = frozenset()
    first_start: float | None = None
    endpoints: Mapping[str, Counters] = field(default_factory=dict)
    served: Mapping[FileKey, frozenset[str]] = field(default_factory=dict)
    missed: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return self.first_start is not None or any(map(len, _mappings_of(self)))

    def __add__(self, other: PartialMetrics) -> PartialMetrics:
        # nothing of it is ever changed, so the sum with nothing may be the same object
        if not other:
            return self
        if not self:
            return other
        starts = [start for start in (self.first_start, other.first_start) if start is not None]
        peaks = dict(self.peak_memory_bytes)
        for host, peak in other.peak_memory_bytes.items():
            peaks[host] = max(peak, peaks.get(host, 0))
        return PartialMetrics(
            files=_add_counters(self.files, other.files),
            hosts=_add_counters(self.hosts, other.hosts),
            peak_memory_bytes=peaks,
            columns=self.columns | other.columns,
            first_start=min(starts, default=None),
            endpoints=_add_counters(self.endpoints, other.endpoints),
            served=_join_served(self.served, other.served),
            missed=self.missed | other.missed,
        )


_mappings_of = attrgetter(
    "hosts", "files", "endpoints", "served", "peak_memory_bytes", "columns", "missed"
)


class MetricsSum:
    """Adds the costs of many ranges up in place, without an object for each sum: in a task, where nobody else sees it."""

    __slots__ = (
        "_columns",
        "_endpoints",
        "_files",
        "_first_start",
        "_hosts",
        "_missed",
        "_peaks",
        "_served",
    )

    def __init__(self) -> None:
        self._files: dict[FileKey, list[float]] = {}
        self._hosts: dict[str, list[float]] = {}
        self._endpoints: dict[str, list[float]] = {}
        self._peaks: dict[str, int] = {}
        self._served: dict[FileKey, frozenset[str]] = {}
        self._columns: frozenset[str] = frozenset()
        self._missed: frozenset[str] = frozenset()
        self._first_start: float | None = None

    def add(self, metrics: PartialMetrics) -> None:
        """Add the costs of a range."""
        _add_in_place(self._files, metrics.files)
        _add_in_place(self._hosts, metrics.hosts)
        _add_in_place(self._endpoints, metrics.endpoints)
        for host, peak in metrics.peak_memory_bytes.items():
            if peak > self._peaks.get(host, -1):
                self._peaks[host] = peak
        if metrics.served:
            self._served = _join_served(self._served, metrics.served)
        if not metrics.columns <= self._columns:
            self._columns |= metrics.columns
        self._missed |= metrics.missed
        start = metrics.first_start
        if start is not None and (self._first_start is None or start < self._first_start):
            self._first_start = start

    def add_merge(self, seconds: float) -> None:
        """Add the time of a merge on this host."""
        sums = self._hosts.setdefault(host_name(), [0] * len(_COUNTER_NAMES))
        sums[_MERGE_SECONDS] += seconds

    def total(self) -> PartialMetrics:
        """Return the sum."""
        return PartialMetrics(
            files=_as_counters(self._files),
            hosts=_as_counters(self._hosts),
            peak_memory_bytes=dict(self._peaks),
            columns=self._columns,
            missed=self._missed,
            first_start=self._first_start,
            endpoints=_as_counters(self._endpoints),
            served=dict(self._served),
        )


_MERGE_SECONDS = _COUNTER_NAMES.index("merge_seconds")


def _add_in_place(sums: dict[Any, list[float]], more: Mapping[Any, Counters]) -> None:
    for key, counters in more.items():
        known = sums.get(key)
        sums[key] = (
            list(_values_of(counters))
            if known is None
            else list(map(add, known, _values_of(counters)))
        )


def _as_counters(sums: Mapping[Any, list[float]]) -> dict[Any, Counters]:
    # counts stay integers: int + int
    return {key: Counters(*values) for key, values in sums.items()}  # type: ignore[arg-type]


def _add_counters(
    left: Mapping[Any, Counters], right: Mapping[Any, Counters]
) -> dict[Any, Counters]:
    merged = dict(left)
    for key, counters in right.items():
        merged[key] = merged[key] + counters if key in merged else counters
    return merged


def _join_served(
    left: Mapping[FileKey, frozenset[str]], right: Mapping[FileKey, frozenset[str]]
) -> dict[FileKey, frozenset[str]]:
    return {**left, **{key: left.get(key, frozenset()) | urls for key, urls in right.items()}}


@cache
def host_name() -> str:
    """Return the name of this machine, as it was when it was first asked for."""
    return socket.gethostname()


def count_peak_memory() -> int:
    """Return the largest resident size that this process ever had, in bytes."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (
        peak if sys.platform == "darwin" else peak * 1024
    )  # getrusage(2): kilobytes on Linux, bytes on macOS
