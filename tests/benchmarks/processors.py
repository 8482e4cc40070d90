"""What processors compute, without reading: `processors` against the same with arrays of objects.

``python -m tests.benchmarks.processors`` runs it at full size: the eight ADL queries and the dimuon spectrum on ranges of
100, 100,000 and 500,000 events whose columns are in memory, medians of nine, each way in turn. Then how long the first
range takes in processes that start at the same time with an empty cache of machine code, and in one that starts later.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from processors import adl, dimuon
from tests.benchmarks.object_processors import OBJECT_PROCESSORS

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[2]
PROCESSORS = {**adl.QUERIES, "DimuonSpectrum": dimuon.DimuonSpectrum}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Seconds of each call of ``process`` with one range."""

    name: str
    num_events: int
    object_seconds: list[float]
    our_seconds: list[float]

    @property
    def ratio(self) -> float:
        """Median of objects over median of ours."""
        return statistics.median(self.object_seconds) / statistics.median(self.our_seconds)

    def __str__(self) -> str:
        objects, ours = (
            1e3 * statistics.median(one) for one in (self.object_seconds, self.our_seconds)
        )
        return (
            f"{self.name}, {self.num_events:,} events: objects {objects:.2f} ms, ours {ours:.3f} ms, "
            f"ratio {self.ratio:.1f} (medians of {len(self.our_seconds)})"
        )


@dataclass(frozen=True, slots=True)
class Start:
    """The first range of a process."""

    first_seconds: float
    """CPU time of the first call of ``process``, beyond that of the second one."""
    num_compiled: int
    """Functions that this process compiled, since no other had."""
    num_found: int
    """Functions whose machine code was on disk."""

    def __str__(self) -> str:
        return f"{self.first_seconds:.2f} s ({self.num_compiled} compiled, {self.num_found} found)"


def compare(
    num_events: int, *, num_runs: int = 9, names: tuple[str, ...] = tuple(PROCESSORS)
) -> Iterator[Comparison]:
    """Process one range both ways, in turn; the outputs must be equal."""
    from datasets.sample import write_sample

    with tempfile.TemporaryDirectory() as directory:
        write_sample(directory, num_events=num_events, num_files=1, num_events_per_cluster=50_000)
        events = open_events(Path(directory, "SingleMu_0.root"))
        for name in names:
            ways = [OBJECT_PROCESSORS[name](), PROCESSORS[name]()]
            # both have their columns in memory and their code compiled from now on
            if ways[0].process(events) != ways[1].process(events):
                raise AssertionError(f"{name}: the outputs differ")
            seconds: list[list[float]] = [[], []]
            for _ in range(num_runs):
                for way, measured in zip(ways, seconds, strict=True):
                    started = time.perf_counter()
                    way.process(events)
                    measured.append(time.perf_counter() - started)
            yield Comparison(name, num_events, *seconds)


def open_events(path: Path) -> Any:
    """Open the sample with coffea alone."""
    import warnings

    from coffea.nanoevents import NanoAODSchema, NanoEventsFactory

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # what the layout of 2012 lacks
        return NanoEventsFactory.from_root(
            {str(path): "Events"},
            schemaclass=NanoAODSchema,
            mode="virtual",
            metadata={"dataset": "SingleMu"},
        ).events()


def measure_starts(name: str, *, num_processes: int = 2) -> tuple[list[Start], Start]:
    """Start processes at the same time, none of which finds machine code; then one more."""
    from datasets.sample import write_sample

    with tempfile.TemporaryDirectory() as directory:
        write_sample(directory, num_events=100, num_files=1)
        command = [sys.executable, "-m", __spec__.name if __spec__ else __name__]
        command += ["start", name, str(Path(directory, "SingleMu_0.root"))]
        environment = os.environ | {"NUMBA_CACHE_DIR": str(Path(directory, "numba"))}

        def start() -> Any:
            return subprocess.Popen(
                command, stdout=subprocess.PIPE, text=True, env=environment, cwd=REPOSITORY
            )

        running = [start() for _ in range(num_processes)]
        cold = [finish(one) for one in running]
        return cold, finish(start())


def finish(process: Any) -> Start:
    """Wait for what `start` prints."""
    output, _ = process.communicate(timeout=120)
    return Start(*json.loads(output))


def start(name: str, path: Path) -> None:
    """Process a range twice, in a process that was made for it."""
    events, seconds = open_events(path), []
    for _ in range(2):
        started = time.process_time()
        PROCESSORS[name]().process(events)
        seconds.append(time.process_time() - started)
    module = sys.modules[PROCESSORS[name].__module__]
    stats = [one.stats for one in vars(module).values() if hasattr(one, "stats")]
    compiled = sum(sum(one.cache_misses.values()) for one in stats)
    found = sum(sum(one.cache_hits.values()) for one in stats)
    print(json.dumps([seconds[0] - seconds[1], compiled, found]))


def main() -> None:
    """Measure at full size."""
    if sys.argv[1:2] == ["start"]:
        start(sys.argv[2], Path(sys.argv[3]))
        return
    for num_events in (100, 100_000, 500_000):
        for comparison in compare(num_events):
            print(comparison, flush=True)
    for name in ("Q1", "Q5", "Q6", "Q7", "Q8", "DimuonSpectrum"):
        cold, later = measure_starts(name)
        print(f"{name}, first range: {', '.join(map(str, cold))}; later: {later}", flush=True)


if __name__ == "__main__":
    main()
