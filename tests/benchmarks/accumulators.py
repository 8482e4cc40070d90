"""Many large accumulators: 1,000 of 64 MB, one for each range. How much memory a worker needs at once, and how long it takes.

The bins are counts, as in a histogram that is mostly filled: coffea's LZ4 makes a seventh of them. Peak memory is the largest
resident size of any worker process in the run above that after a run with accumulators of one bin, in accumulators.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.benchmarks.measurement import Target, take_turns
from tests.benchmarks.systems import CoffeaRun, HepdaskRun, forget_everything

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.measurement import Row, Setting

__all__ = ["build_local_run", "measure"]

CASE = "accumulators"
NUM_ENTRIES_PER_RANGE = 10
MAX_ACCUMULATORS = 6.0
PATTERN_BINS = 131_072  # 1 MB: longer than what LZ4 looks back at


@dataclass(frozen=True)
class LargeCounts:
    """Makes one large array of counts for each range.

    Attributes
    ----------
    num_bytes : int
        Its size, a multiple of 8.
    """

    num_bytes: int

    def __call__(self, events: Any) -> dict[str, Any]:
        """Return counts that depend on the range."""
        start = events.metadata["entrystart"]
        pattern = np.random.default_rng(start).poisson(0.3, PATTERN_BINS).astype(np.float64)
        return {"counts": np.resize(pattern, self.num_bytes // 8)}


def measure(setting: Setting) -> list[Row]:
    """Run both with all accumulators; at full size the time again with fewer of them, as often as other cases."""
    what, num_bytes = _what(setting, setting.choose(1_000, 20)), _num_bytes(setting)
    rows = [_measure(setting, what, num_bytes, num_repeats=1)]
    if setting.is_full:
        rows.append(_measure(setting, _what(setting, 100), num_bytes, setting.num_repeats))
    return rows


def _measure(setting: Setting, what: dict[str, Any], num_bytes: int, num_repeats: int) -> Row:
    hepdask = HepdaskRun(setting.client, **what, align_clusters=False)
    runs = {"coffea": CoffeaRun(setting.client, **what), "hepdask": hepdask}
    peaks: dict[str, list[float]] = {name: [] for name in runs}

    def watched(name: str) -> Callable[[], Any]:
        def run() -> Any:
            output = runs[name]()
            peaks[name].append(_peak_accumulators(setting, num_bytes))
            return output

        return run

    small = HepdaskRun(
        setting.client, **{**what, "processor": LargeCounts(8)}, align_clusters=False
    )

    def prepare(name: str) -> None:
        if setting.is_full:
            forget_everything(setting.client)
        # the baseline is a worker that has done all of it, with accumulators of one bin
        small()
        setting.client.run(_reset_peak)

    turns = take_turns(
        {name: watched(name) for name in runs},
        num_repeats,
        client=setting.client,
        prepare=prepare,
        num_warm_ups=0,
    )
    facts = {f"{name}_peak_accumulators": max(values) for name, values in peaks.items()}
    num_ranges = hepdask.result.metrics.total.num_ranges
    targets = [
        Target(
            "hepdask, accumulators at a worker",
            facts["hepdask_peak_accumulators"],
            MAX_ACCUMULATORS,
            is_upper=True,
        ),
        Target("coffea / hepdask", turns.ratio("coffea", "hepdask"), 1.0),
    ]
    what_text = f"{num_ranges:,} of {num_bytes / 1e6:.0f} MB"
    return turns.row(CASE, what_text, targets, {**facts, **hepdask.facts})


def _peak_accumulators(setting: Setting, num_bytes: int) -> float:
    return max(setting.client.run(_peak_above_baseline).values()) / num_bytes


def _reset_peak() -> None:
    """Begin a new peak here, and keep what the process has now."""
    # Linux: 5 resets VmHWM; ru_maxrss can't be reset, and a new process has it from the one that started it
    Path("/proc/self/clear_refs").write_text("5")
    global _baseline  # noqa: PLW0603  (of this worker process)
    _baseline = _status_bytes("VmRSS")


def _peak_above_baseline() -> int:
    return _status_bytes("VmHWM") - _baseline


_baseline = 0


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def build_local_run(setting: Setting) -> Callable[[], Any]:
    """Return hepdask's run of 100 accumulators in this process."""
    from hepdask import LocalExecutor

    return HepdaskRun(
        LocalExecutor(), **_what(setting, setting.choose(100, 20)), align_clusters=False
    )


def _num_bytes(setting: Setting) -> int:
    return setting.choose(64_000_000, 1_000_000)


def _what(setting: Setting, num_ranges: int) -> dict[str, Any]:
    from coffea.nanoevents import NanoAODSchema

    return {
        "fileset": {"narrow": setting.samples.narrow(num_ranges * NUM_ENTRIES_PER_RANGE, 1)},
        "processor": LargeCounts(_num_bytes(setting)),
        "schema": NanoAODSchema,
        "chunksize": NUM_ENTRIES_PER_RANGE,
    }
