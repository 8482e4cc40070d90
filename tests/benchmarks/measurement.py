"""What all comparisons share: runs of several systems in turn, equal outputs, rows of a table.

A case is a module with `measure`, which returns `Row`s, and `build_local_run`, which returns one run in this process for the
profiler; ``tests.benchmarks.CASES`` lists them. Only ratios of runs that took turns mean something: machines are shared.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import hist
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from distributed import Client

    from tests.benchmarks.samples import Samples

__all__ = [
    "OutputsDifferError",
    "Row",
    "Setting",
    "Target",
    "Turns",
    "check_equal",
    "geometric_mean",
    "take_turns",
]


@dataclass(frozen=True, slots=True)
class Setting:
    """How a case is run.

    Attributes
    ----------
    client : Client or None
        Of two workers with one thread each, see `tests.benchmarks.systems.two_workers`. None: nothing is measured, a run in this
        process is built.
    samples : Samples
        Where files are written and found again.
    is_full : bool
        False: the small size of the tests.
    num_repeats : int
        Timed runs of each system.
    """

    client: Client | None
    samples: Samples
    is_full: bool
    num_repeats: int

    def choose(self, full: Any, small: Any) -> Any:
        """Return what belongs to this size."""
        return full if self.is_full else small


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that has a bound.

    Attributes
    ----------
    what : str
        What the figure is, with its unit.
    value, bound : float
        What was measured, and what it should reach.
    is_upper : bool
        True: the bound is a maximum.
    """

    what: str
    value: float
    bound: float
    is_upper: bool = False

    @property
    def is_met(self) -> bool:
        """True if the value is on the right side of the bound."""
        return self.value <= self.bound if self.is_upper else self.value >= self.bound


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result.

    Attributes
    ----------
    case, what : str
        The case, and what of it this is.
    seconds : mapping of str to list of float
        Wall time of each run, by system. Empty for a summary of other rows.
    targets : tuple of Target
        Figures with bounds that follow.
    facts : mapping of str to float
        More figures, units in their names.
    cpu_seconds : mapping of str to list of float
        CPU time of each run, by system: of this process and of all workers. Other work on the machine lengthens it far less than
        the wall time.
    """

    case: str
    what: str
    seconds: Mapping[str, Sequence[float]] = field(default_factory=dict)
    targets: tuple[Target, ...] = ()
    facts: Mapping[str, float] = field(default_factory=dict)
    cpu_seconds: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def median(self, system: str) -> float:
        """Return the median wall time of a system, seconds."""
        return statistics.median(self.seconds[system])


@dataclass(frozen=True, slots=True)
class Turns:
    """Seconds of each run, by system.

    Attributes
    ----------
    seconds, cpu_seconds : dict of str to list of float
        Wall time, and CPU time of this process and the workers.
    """

    seconds: dict[str, list[float]]
    cpu_seconds: dict[str, list[float]]

    def ratio(self, above: str, below: str) -> float:
        """Return the median wall time of one system over that of another."""
        return statistics.median(self.seconds[above]) / statistics.median(self.seconds[below])

    def row(
        self,
        case: str,
        what: str,
        targets: Sequence[Target] = (),
        facts: Mapping[str, float] | None = None,
    ) -> Row:
        """Make a row of the result."""
        return Row(case, what, self.seconds, tuple(targets), facts or {}, self.cpu_seconds)


class OutputsDifferError(AssertionError):
    """Two systems made different outputs from the same files."""


def take_turns(
    runs: Mapping[str, Callable[[], Any]],
    num_repeats: int,
    *,
    client: Client | None = None,
    prepare: Callable[[str], None] | None = None,
    num_warm_ups: int = 1,
    max_moved: float = 0.0,
) -> Turns:
    """Run systems in turn, and compare their outputs each time.

    Parameters
    ----------
    runs : mapping of str to callable
        What is timed, by system; each returns an output.
    num_repeats : int
        Timed runs of each.
    client : Client or None
        Whose workers' CPU time counts.
    prepare : callable or None
        Called with the name of the system before each run, outside of the time.
    num_warm_ups : int
        Turns before that don't count.
    max_moved : float
        See `check_equal`.

    Returns
    -------
    Turns
        Seconds of each run.
    """
    turns = Turns({name: [] for name in runs}, {name: [] for name in runs})
    for turn in range(-num_warm_ups, num_repeats):
        outputs = {}
        for name, run in runs.items():
            if prepare is not None:
                prepare(name)
            cpu_before, started = _cpu_seconds(client), time.perf_counter()
            outputs[name] = run()
            seconds = time.perf_counter() - started
            if turn >= 0:
                turns.seconds[name].append(seconds)
                turns.cpu_seconds[name].append(_cpu_seconds(client) - cpu_before)
        check_equal(outputs, max_moved=max_moved)
    return turns


def _cpu_seconds(client: Client | None) -> float:
    workers = {} if client is None else client.run(time.process_time)
    return time.process_time() + sum(workers.values())


def check_equal(outputs: Mapping[str, Any], *, max_moved: float = 0.0) -> None:
    """Raise if outputs differ, in a bin or in an integral, flow bins included.

    Parameters
    ----------
    outputs : mapping of str to object
        By system: histograms, arrays, numbers, nested mappings of them.
    max_moved : float
        Share of a histogram's entries that may be in another bin (half of the summed differences over the integral), and by
        which integrals may differ: where one system computes in single precision and another in double, values at the edge of
        a bin, or of a cut, fall to either side. 0: every bin is equal.

    Raises
    ------
    OutputsDifferError
        Names the systems and the place.
    """
    names = list(outputs)
    first = _flatten(outputs[names[0]])
    for name in names[1:]:
        other = _flatten(outputs[name])
        if first.keys() != other.keys():
            raise OutputsDifferError(f"{names[0]} has {sorted(first)}, {name} has {sorted(other)}")
        for key, values in first.items():
            _check_bins(f"{key} of {names[0]} and {name}", values, other[key], max_moved)


def _check_bins(what: str, left: Any, right: Any, max_moved: float) -> None:
    if left.shape != right.shape:
        raise OutputsDifferError(f"{what}: shapes {left.shape} and {right.shape}")
    integral = float(left.sum())
    moved = float(np.abs(left - right).sum()) / 2
    lost = abs(integral - float(right.sum()))
    if max(moved, lost) > max_moved * abs(integral):
        where = np.argwhere(left != right)[:3].tolist()
        raise OutputsDifferError(
            f"{what}: integrals {integral:.10g} and {float(right.sum()):.10g}, {moved:g} entries in other bins, first at {where}"
        )


def _flatten(output: Any, path: str = "output") -> dict[str, Any]:
    if isinstance(output, Mapping):
        return {
            key: values
            for name, value in output.items()
            for key, values in _flatten(value, f"{path}.{name}").items()
        }
    is_histogram = isinstance(output, hist.BaseHist)
    return {path: np.asarray(output.values(flow=True) if is_histogram else output, np.float64)}


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean of positive numbers."""
    return math.exp(statistics.fmean(math.log(value) for value in values))
