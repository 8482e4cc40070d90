"""What a run cost: timers and counters of a range, of a file, of a run.

Everything is measured around the calls, on the worker, and merged beside the results. `Counters` says what is in each
figure and what isn't; `RunMetrics` gives the rates that people quote.
"""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass, field, fields
from functools import cache
from operator import add, attrgetter
from typing import TYPE_CHECKING, Any

from hepdask.endpoints import LOCAL
from hepdask.tables import Table

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Counters",
    "MetricsSum",
    "PartialMetrics",
    "RunMetrics",
    "count_peak_memory",
    "host_name",
]

FileKey = tuple[str, str]

#: Endpoints that a table shows one by one.
MAX_ENDPOINT_ROWS = 8


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


@dataclass(frozen=True)
class RunMetrics:
    """What a whole run cost.

    Attributes
    ----------
    partial : PartialMetrics
        The sums over all ranges, by file and by host.
    num_tasks, num_merges : int
        Tasks that processed ranges, and tasks that merged results of others.
    inspect_seconds : float
        Wall time of reading what is to be known of the files before they are split; near zero if it was cached.
    run_seconds : float
        Wall time from the submission of the first task to the last result, here at the client.
    queue_seconds : float
        From the submission to the start of the first range on a worker: waiting for workers, and for the scheduler.
        It compares two clocks if the worker is another machine.
    transfer_seconds : float
        Time that workers spent on fetching results of others to merge them, as the scheduler recorded it, summed.
    merge_seconds : float
        Wall time of adding accumulators, on workers and here, summed.
    predicted_busy_seconds : float
        What `wall_seconds` of all ranges was expected to be, from earlier runs of the processor or from defaults. 0: nothing
        was expected.
    predicted_num_bytes : int
        What `num_requested_bytes` was expected to be.
    """

    partial: PartialMetrics
    num_tasks: int = 0
    num_merges: int = 0
    inspect_seconds: float = 0.0
    run_seconds: float = 0.0
    queue_seconds: float = 0.0
    transfer_seconds: float = 0.0
    predicted_busy_seconds: float = 0.0
    predicted_num_bytes: int = 0

    @property
    def total(self) -> Counters:
        """Sum over all files."""
        return sum(self.partial.hosts.values(), Counters())

    @property
    def datasets(self) -> dict[str, Counters]:
        """Sums over the files of each dataset."""
        sums: dict[str, Counters] = {}
        for (dataset, _), counters in self.partial.files.items():
            sums[dataset] = sums.get(dataset, Counters()) + counters
        return sums

    @property
    def files(self) -> Mapping[FileKey, Counters]:
        """For each ``(dataset, file_path)``."""
        return self.partial.files

    @property
    def hosts(self) -> Mapping[str, Counters]:
        """For each worker host."""
        return self.partial.hosts

    @property
    def endpoints(self) -> Mapping[str, Counters]:
        """For each endpoint that files were read from, ``"root://host"`` or ``"local"``."""
        return self.partial.endpoints

    @property
    def served(self) -> Mapping[FileKey, frozenset[str]]:
        """For each ``(dataset, file_path)`` that was not only read from its first replica: the URLs of the others."""
        return self.partial.served

    @property
    def missed(self) -> frozenset[str]:
        """Branches that were used unexpectedly, so that each was a request of its own; see `PartialMetrics`."""
        return self.partial.missed

    @property
    def merge_seconds(self) -> float:
        """Wall time of adding accumulators, summed over all workers."""
        return self.total.merge_seconds

    @property
    def event_rate_khz(self) -> float:
        """Thousand entries processed per second of `run_seconds`: what the user waited for, queue included."""
        return _ratio(self.total.num_entries / 1e3, self.run_seconds)

    @property
    def event_rate_khz_per_core(self) -> float:
        """Thousand entries processed per second that a worker thread was busy with ranges."""
        return _ratio(self.total.num_entries / 1e3, self.total.wall_seconds)

    @property
    def data_rate_gbps(self) -> float:
        """Requested bytes per second of `run_seconds`, in 1e9 bit/s."""
        return _ratio(self.total.num_requested_bytes * 8 / 1e9, self.run_seconds)

    def to_dict(self) -> dict[str, Any]:
        """Return everything in one dictionary, coffea's keys first.

        Returns
        -------
        dict
            coffea's ``bytesread`` (requested bytes), ``columns`` (branches read, sorted), ``entries``, ``processtime``
            (seconds in `process`, lazy reading included, summed over workers) and ``chunks`` (ranges); then the
            attributes of this class and of `Counters` under their own names; ``datasets``, ``files`` (by dataset, then
            file), ``endpoints`` and ``hosts`` with the counters of each, hosts with ``peak_memory_bytes``; ``served`` (by
            dataset, then file) with sorted lists.
        """
        total = self.total
        files: dict[str, dict[str, dict[str, float]]] = {}
        for (dataset, file_path), counters in self.files.items():
            files.setdefault(dataset, {})[file_path] = counters.to_dict()
        served: dict[str, dict[str, list[str]]] = {}
        for (dataset, file_path), urls in self.served.items():
            served.setdefault(dataset, {})[file_path] = sorted(urls)
        return {
            "bytesread": total.num_requested_bytes,
            "columns": sorted(self.partial.columns),
            "entries": total.num_entries,
            "processtime": total.process_seconds + total.read_seconds,
            "chunks": total.num_ranges,
            "missed": sorted(self.missed),
            **total.to_dict(),
            "num_tasks": self.num_tasks,
            "num_merges": self.num_merges,
            "inspect_seconds": self.inspect_seconds,
            "run_seconds": self.run_seconds,
            "queue_seconds": self.queue_seconds,
            "transfer_seconds": self.transfer_seconds,
            "predicted_busy_seconds": self.predicted_busy_seconds,
            "predicted_num_bytes": self.predicted_num_bytes,
            "peak_memory_bytes": max(self.partial.peak_memory_bytes.values(), default=0),
            "event_rate_khz": self.event_rate_khz,
            "event_rate_khz_per_core": self.event_rate_khz_per_core,
            "data_rate_gbps": self.data_rate_gbps,
            "datasets": {name: counters.to_dict() for name, counters in self.datasets.items()},
            "files": files,
            "served": served,
            "endpoints": {name: counters.to_dict() for name, counters in self.endpoints.items()},
            "hosts": {
                host: {
                    **counters.to_dict(),
                    "peak_memory_bytes": self.partial.peak_memory_bytes.get(host, 0),
                }
                for host, counters in self.hosts.items()
            },
        }

    def to_table(self) -> Table:
        """Return the figures that one looks at first."""
        total = self.total
        busy = total.wall_seconds
        rows = [
            (
                "run",
                f"{self.run_seconds:.2f} s",
                f"after {self.inspect_seconds:.2f} s of inspecting files",
            ),
            (
                "events",
                f"{total.num_entries:,}",
                f"in {_count(total.num_ranges, 'range')}, {_count(self.num_tasks, 'task')}",
            ),
            (
                "event rate",
                f"{self.event_rate_khz:.1f} kHz",
                f"{self.event_rate_khz_per_core:.1f} kHz per busy core",
            ),
            (
                "data rate",
                f"{self.data_rate_gbps:.3f} Gbps",
                f"{total.num_requested_bytes / 1e6:.1f} MB requested",
            ),
            (
                "branches",
                f"{len(self.partial.columns)}",
                f"{total.num_uncompressed_bytes / 1e6:.1f} MB in memory",
            ),
            *_missed_row(self.missed),
            *(
                _share(name, getattr(total, f"{name}_seconds"), busy)
                for name in ("open", "form", "read", "process")
            ),
            ("merge", f"{total.merge_seconds:.2f} s", f"transfer {self.transfer_seconds:.2f} s"),
            *_store_row(total),
            (
                "CPU",
                f"{total.cpu_seconds:.2f} s",
                f"{100 * _ratio(total.cpu_seconds, busy):.0f}% of busy time",
            ),
            ("queue", f"{self.queue_seconds:.2f} s", "from submission to the first range"),
            *self._prediction_row(),
            (
                "peak memory",
                f"{max(self.partial.peak_memory_bytes.values(), default=0) / 1e6:.0f} MB",
                f"largest worker process, {_count(len(self.hosts), 'host')}",
            ),
            *self._endpoint_rows(),
        ]
        return Table("Metrics", ("what", "figure", "of which"), tuple(rows))

    def _prediction_row(self) -> list[tuple[str, str, str]]:
        """Say what was expected of the ranges, and what came."""
        if not self.predicted_busy_seconds:
            return []
        total = self.total
        expected, came = self.predicted_num_bytes / 1e6, total.num_requested_bytes / 1e6
        return [
            (
                "predicted",
                f"{self.predicted_busy_seconds:.2f} s busy",
                f"it was {total.wall_seconds:.2f} s; {expected:.1f} MB, it was {came:.1f} MB",
            )
        ]

    def _endpoint_rows(self) -> list[tuple[str, str, str]]:
        """Say who served what, those who served most first; nothing if all files are local."""
        if not self.endpoints.keys() - {LOCAL}:
            return []
        shown = sorted(
            self.endpoints.items(), key=lambda item: (-item[1].num_requested_bytes, item[0])
        )
        rows = [_endpoint_row(name, counters) for name, counters in shown[:MAX_ENDPOINT_ROWS]]
        if len(shown) > MAX_ENDPOINT_ROWS:
            rest = sum((one for _, one in shown[MAX_ENDPOINT_ROWS:]), Counters())
            others = _count(len(shown) - MAX_ENDPOINT_ROWS, "other server")
            rows.append((f"from {others}", f"{rest.num_requested_bytes / 1e6:.1f} MB", ""))
        if self.served:
            files = _count(len(self.served), "file")
            rows.append(("other replicas", files, "read from another replica than the first"))
        return rows

    def _repr_html_(self) -> str:
        return self.to_table()._repr_html_()


def _endpoint_row(name: str, counters: Counters) -> tuple[str, str, str]:
    ranges, opens = _count(counters.num_ranges, "range"), _count(counters.num_opens, "open")
    failed = f", {counters.num_failed_opens:,} failed" if counters.num_failed_opens else ""
    return (
        f"from {name}",
        f"{counters.num_requested_bytes / 1e6:.1f} MB",
        f"in {ranges}, {opens}{failed}",
    )


def _missed_row(missed: frozenset[str]) -> list[tuple[str, str, str]]:
    if not missed:
        return []
    names = sorted(missed)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [("unforeseen", f"{len(names)}", f"{', '.join(names[:3])}{more}: read one by one")]


def _store_row(total: Counters) -> list[tuple[str, str, str]]:
    if not total.store_seconds:
        return []
    ranges = _count(total.num_stored_ranges, "range")
    return [
        (
            "store",
            f"{total.store_seconds:.2f} s",
            f"{total.num_stored_entries:,} events in {ranges} from there",
        )
    ]


def _share(name: str, seconds: float, busy_seconds: float) -> tuple[str, str, str]:
    return name, f"{seconds:.2f} s", f"{100 * _ratio(seconds, busy_seconds):.0f}% of busy time"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun if number == 1 else noun + 's'}"


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else 0.0


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
