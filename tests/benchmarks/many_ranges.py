"""What a range costs beside the processor: coffea's DaskExecutor and hepdask's, on the same workers and files.

``python -m tests.benchmarks.many_ranges`` runs it at full size: 400 ranges of 100 events of the generated sample, a
trivial processor, medians of five runs, each system in turn. A warm-up run of each comes first, so workers have their
libraries imported and hepdask its files open; coffea opens a file for each range by design.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from distributed import Client

NUM_ENTRIES_PER_RANGE = 100


@dataclass(frozen=True, slots=True)
class Comparison:
    """Seconds of each run."""

    coffea_seconds: list[float]
    hepdask_seconds: list[float]
    num_ranges: int

    @property
    def ratio(self) -> float:
        """Median of coffea over median of hepdask."""
        return statistics.median(self.coffea_seconds) / statistics.median(self.hepdask_seconds)

    def __str__(self) -> str:
        coffea, ours = (
            1e3 * statistics.median(seconds) / self.num_ranges
            for seconds in (self.coffea_seconds, self.hepdask_seconds)
        )
        return (
            f"{self.num_ranges} ranges: coffea {coffea:.2f} ms a range, hepdask {ours:.2f} ms a range, "
            f"ratio {self.ratio:.1f} (medians of {len(self.hepdask_seconds)})"
        )


def count(events: Any) -> dict[str, int]:
    """Count events: the trivial processor."""
    return {"entries": len(events)}


def compare(client: Client, num_ranges: int, *, num_runs: int = 5) -> Comparison:
    """Run both systems on one sample; their outputs must be equal."""
    with tempfile.TemporaryDirectory() as directory:
        files = write_files(Path(directory), num_ranges)
        runs = {"coffea": run_coffea(client, files), "hepdask": run_hepdask(client, files)}
        expected = {"entries": num_ranges * NUM_ENTRIES_PER_RANGE}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(num_runs + 1):
            for name, run in runs.items():
                started = time.perf_counter()
                output = run()
                if turn:
                    seconds[name].append(time.perf_counter() - started)
                if output != expected:
                    raise AssertionError(f"{name}: {output}, not {expected}")
    return Comparison(seconds["coffea"], seconds["hepdask"], num_ranges)


def write_files(directory: Path, num_ranges: int) -> dict[str, list[str]]:
    """Write the sample: two files."""
    from datasets.sample import write_sample

    fileset = write_sample(directory, num_events=num_ranges * NUM_ENTRIES_PER_RANGE, num_files=2)
    (files,) = (dataset["files"] for dataset in fileset.values())
    return {"sample": [str(file) for file in files]}


def run_coffea(client: Client, files: dict[str, list[str]]) -> Callable[[], Any]:
    """Make coffea's run."""
    from coffea import processor
    from coffea.nanoevents import BaseSchema

    executor = processor.DaskExecutor(client=client, status=False)
    run = processor.Runner(executor, schema=BaseSchema, chunksize=NUM_ENTRIES_PER_RANGE)
    return lambda: run(files, count, treename="Events")


def run_hepdask(client: Client, files: dict[str, list[str]]) -> Callable[[], Any]:
    """Make ours."""
    from coffea.nanoevents import BaseSchema

    from hepdask import DaskExecutor, Runner

    run = Runner(
        DaskExecutor(client),
        schema=BaseSchema,
        chunksize=NUM_ENTRIES_PER_RANGE,
        progress=False,
        align_clusters=False,
    )
    return lambda: run(files, count, treename="Events")


def main() -> None:
    """Compare at full size."""
    from distributed import Client

    with Client(n_workers=2, threads_per_worker=1, dashboard_address=":0") as client:
        print(compare(client, 400))


if __name__ == "__main__":
    main()
