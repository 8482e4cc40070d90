"""What a whole run cost: the sums over its ranges, and the rates that people quote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hepdask.endpoints import LOCAL
from hepdask.metrics import Counters
from hepdask.tables import Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hepdask.metrics import FileKey, PartialMetrics

__all__ = ["RunMetrics"]

#: Endpoints that a table shows one by one.
MAX_ENDPOINT_ROWS = 8


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
