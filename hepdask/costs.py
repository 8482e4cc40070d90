"""What ranges are expected to cost: from what earlier runs of the processor took, or else from documented defaults. Pure.

It decides how a tree is cut into tasks, when a task counts as late, and what ``hepdask plan`` predicts; never what comes out.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from hepdask.metrics import Counters
    from hepdask.ranges import EntryRange

__all__ = ["FileLayout", "Prediction", "Rates", "average_rates", "predict", "weigh"]

#: Opening a file: 5 ms for a small local one, 300 ms for NanoAOD with 1,500 branches, round trips for a remote one.
SECONDS_PER_OPEN = 50e-3
#: What a range costs whatever is in it: form, events, books.
SECONDS_PER_RANGE = 2e-3
#: Processing an event: 500 kHz a core.
SECONDS_PER_ENTRY = 2e-6
#: Reading, decompressing and processing a byte of the branches in use: 100 MB/s a core, uncompressed.
SECONDS_PER_BYTE = 1e-8
#: Bytes of the branches in use per event, where that is not known.
UNKNOWN_BYTES_PER_ENTRY = 800.0


@dataclass(frozen=True, slots=True)
class FileLayout:
    """What of a file's layout decides about its cost.

    Attributes
    ----------
    digest : str
        Of the names and types of its branches; empty if it is not known.
    bytes_per_entry : float or None
        Uncompressed bytes of the branches in use; None if that is not known.
    """

    digest: str = ""
    bytes_per_entry: float | None = None


@dataclass(frozen=True, slots=True)
class Rates:
    """What a layout cost in earlier runs of a processor.

    Attributes
    ----------
    seconds_per_open : float
        Of a file.
    seconds_per_range : float
        Beside opening, reading and processing.
    seconds_per_entry : float
        Reading and processing.
    requested_bytes_per_entry : float
        Asked for from files or servers.
    num_runs : int
        Runs that this comes from; 0: none, these are the defaults.
    """

    seconds_per_open: float
    seconds_per_range: float
    seconds_per_entry: float
    requested_bytes_per_entry: float
    num_runs: int = 0

    @classmethod
    def default(cls, bytes_per_entry: float | None) -> Rates:
        """Return the rates of a processor that has never run."""
        num_bytes = UNKNOWN_BYTES_PER_ENTRY if bytes_per_entry is None else bytes_per_entry
        seconds = SECONDS_PER_ENTRY + SECONDS_PER_BYTE * num_bytes
        return cls(SECONDS_PER_OPEN, SECONDS_PER_RANGE, seconds, num_bytes)


def average_rates(counters: Counters, num_runs: int) -> Rates | None:
    """Return what ranges have cost; None if there is too little to tell.

    Parameters
    ----------
    counters : Counters
        Sums over these ranges.
    num_runs : int
        Runs that they come from.
    """
    if not counters.num_ranges or not counters.num_entries:
        return None
    by_entry = counters.read_seconds + counters.process_seconds
    rest = counters.wall_seconds - counters.open_seconds - by_entry
    opens = counters.open_seconds / counters.num_opens if counters.num_opens else 0.0
    return Rates(
        opens,
        max(0.0, rest) / counters.num_ranges,
        by_entry / counters.num_entries,
        counters.num_requested_bytes / counters.num_entries,
        num_runs,
    )


def weigh(
    ranges: Sequence[EntryRange],
    layouts: Mapping[tuple[str, str], FileLayout],
    rates: Mapping[str, Rates],
) -> array[float]:
    """Return the seconds that each range is expected to take on one core.

    Parameters
    ----------
    ranges : sequence of EntryRange
        In dataset order; the first range of each file opens it.
    layouts : mapping of (file_path, treename) to FileLayout
        Of files of which it is known.
    rates : mapping of str to Rates
        By digest of the layout; from earlier runs.
    """
    weights = array("d")
    append = weights.append
    file, one = None, Rates.default(None)
    for entry_range in ranges:
        seconds = 0.0
        if entry_range.file is not file:
            file = entry_range.file
            one = _rates_of(layouts.get((file.file_path, file.treename)), rates)
            seconds = one.seconds_per_open
        num_entries = entry_range.entry_stop - entry_range.entry_start
        append(seconds + one.seconds_per_range + one.seconds_per_entry * num_entries)
    return weights


def _rates_of(layout: FileLayout | None, rates: Mapping[str, Rates]) -> Rates:
    digest = "" if layout is None else layout.digest
    return rates.get(digest) or Rates.default(None if layout is None else layout.bytes_per_entry)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a run is expected to take.

    Attributes
    ----------
    busy_seconds : float
        Of one core; divide by the number of cores for the time of the run, as long as there are enough ranges.
    num_bytes : int
        Requested from files or servers.
    measured_fraction : float
        Share of the entries whose layout earlier runs of this processor have seen; the rest comes from defaults.
    num_runs : int
        Earlier runs that it comes from, at most.
    """

    busy_seconds: float
    num_bytes: int
    measured_fraction: float = 0.0
    num_runs: int = 0

    def __str__(self) -> str:
        source = (
            "no earlier run of this processor is known: defaults"
            if not self.num_runs
            else f"measured in {self.num_runs} earlier run{'s' if self.num_runs > 1 else ''}"
        )
        if self.num_runs and self.measured_fraction < 1:
            source += (
                f" for {100 * self.measured_fraction:.0f}% of the events, defaults for the rest"
            )
        return f"about {self.busy_seconds:.3g} s of one core, {self.num_bytes / 1e6:,.3g} MB to read ({source})"


def predict(
    ranges: Iterable[EntryRange],
    weights: Iterable[float],
    layouts: Mapping[tuple[str, str], FileLayout],
    rates: Mapping[str, Rates],
) -> Prediction:
    """Predict what a run takes.

    Parameters
    ----------
    ranges, layouts, rates
        As for `weigh`.
    weights : iterable of float
        As `weigh` gives them.
    """
    entries: dict[tuple[str, str], int] = defaultdict(int)
    for one in ranges:
        entries[one.file.file_path, one.file.treename] += one.entry_stop - one.entry_start
    num_bytes, num_measured, num_runs = 0.0, 0, 0
    for key, num_entries in entries.items():
        found = _rates_of(layouts.get(key), rates)
        num_bytes += found.requested_bytes_per_entry * num_entries
        num_measured += num_entries if found.num_runs else 0
        num_runs = max(num_runs, found.num_runs)
    total = sum(entries.values())
    fraction = num_measured / total if total else 0.0
    return Prediction(sum(weights), int(num_bytes), fraction, num_runs)
