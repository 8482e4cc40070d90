"""What is computed a second time: after a run was stopped at 90%, after it was finished, after a file was appended.

``python -m tests.benchmarks.resume`` runs it at full size: 200 ranges of 0.1 s on two workers for the first two, 1,001
small files for the third. What counts is the CPU time of the ranges on the workers (`Counters.cpu_seconds`): the two runs
that are compared come one after the other, and a busy machine makes wall times of one of them longer. Medians of three,
each with a new store.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from distributed import Client

NUM_EVENTS_PER_RANGE = 100


class Sums:
    """Computes for a while, and adds floats; raises after some ranges, as long as there is a directory to count them.

    Parameters
    ----------
    num_loops : int
        How long it computes: about 3 ms each.
    counted : path
        The directory.
    max_ranges : int
        How many come through.
    """

    def __init__(self, num_loops: int, counted: Path, max_ranges: int = 0) -> None:
        self.num_loops = num_loops
        self.counted = counted
        self.max_ranges = max_ranges

    def process(self, events: Any) -> dict[str, Any]:
        if self.counted.exists():
            if len(list(self.counted.iterdir())) >= self.max_ranges:
                raise RuntimeError("stopped here")
            Path(self.counted, str(events.metadata["entrystart"])).touch()
        met = np.asarray(events.MET.pt, dtype=np.float64)
        smeared = np.resize(met, 100_000)
        for _ in range(self.num_loops):
            smeared = np.sort(np.hypot(smeared, 1.0))[::-1] + np.sin(smeared) ** 2
        return {"sum": float(met.sum() / 3), "smeared": float(smeared.sum()), "entries": len(met)}


@dataclass(frozen=True, slots=True)
class Resumed:
    """What three runs after the first took.

    Attributes
    ----------
    processed : list of float
        Share of the entries that the stopped run processed.
    resumed : list of float
        CPU time of the run that went on from there, over that of a run from the beginning.
    rerun_seconds : list of float
        Wall time of running it once more.
    num_tasks : int
        Tasks in these, all together.
    num_ranges : int
        Of the run.
    """

    processed: list[float]
    resumed: list[float]
    rerun_seconds: list[float]
    num_tasks: int
    num_ranges: int

    def __str__(self) -> str:
        return (
            f"{self.num_ranges} ranges, stopped when {statistics.median(self.processed):.1%} were processed: going on takes "
            f"{statistics.median(self.resumed):.1%} of the full run's processing time; a finished one again "
            f"{statistics.median(self.rerun_seconds):.2f} s, {self.num_tasks} tasks (medians of {len(self.resumed)})"
        )


@dataclass(frozen=True, slots=True)
class Appended:
    """What one more file took.

    Attributes
    ----------
    shares : list of float
        CPU time of the run with one file more, over that of the run before.
    num_ranges : list of int
        Ranges that were processed for it.
    num_files : int
        Before.
    """

    shares: list[float]
    num_ranges: list[int]
    num_files: int

    def __str__(self) -> str:
        return (
            f"one file appended to {self.num_files:,}: {statistics.median(self.shares):.2%} of the processing time, "
            f"{statistics.median(self.num_ranges):.0f} ranges (medians of {len(self.shares)})"
        )


def measure_resume(
    client: Client, num_ranges: int, num_loops: int, *, num_runs: int = 3
) -> Resumed:
    """Stop runs at 90%, go on, and run them again; the outputs must be equal to the last bit."""
    from datasets.sample import write_sample
    from hepdask import DaskExecutor, RunError, Runner

    found = Resumed([], [], [], 0, num_ranges)
    num_tasks = 0
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        fileset = write_sample(
            directory,
            num_events=num_ranges * NUM_EVENTS_PER_RANGE,
            num_files=1,
            num_events_per_cluster=NUM_EVENTS_PER_RANGE,
        )
        processor = Sums(num_loops, directory / "counted", num_ranges * 9 // 10)
        options: dict[str, Any] = {"chunksize": NUM_EVENTS_PER_RANGE, "progress": False}
        full = Runner(DaskExecutor(client), **options).run(fileset, processor)
        for turn in range(num_runs):
            run = Runner(DaskExecutor(client), store=directory / f"store-{turn}", **options)
            processor.counted.mkdir()
            try:
                run.run(fileset, processor)
            except RunError as error:
                done = error.partial_result.completeness.total.num_entries_processed
            else:
                raise AssertionError("the run was not stopped")
            shutil.rmtree(processor.counted)
            resumed = run.run(fileset, processor)
            started = time.perf_counter()
            again = run.run(fileset, processor)
            found.rerun_seconds.append(time.perf_counter() - started)
            found.processed.append(done / full.output["entries"])
            found.resumed.append(resumed.metrics.total.cpu_seconds / full.metrics.total.cpu_seconds)
            num_tasks += again.metrics.num_tasks + again.metrics.num_merges
            if not full.output == resumed.output == again.output:
                raise AssertionError("the outputs differ")
    return Resumed(found.processed, found.resumed, found.rerun_seconds, num_tasks, num_ranges)


def measure_append(
    client: Client, num_files: int, num_loops: int, *, num_runs: int = 3
) -> Appended:
    """Run over small files, and again with one more."""
    from datasets.sample import write_sample
    from hepdask import DaskExecutor, Runner

    found = Appended([], [], num_files)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (sample,) = write_sample(directory, num_events=NUM_EVENTS_PER_RANGE, num_files=1).values()
        (first,) = sample["files"]
        paths = [directory / f"{number:04d}.root" for number in range(num_files + 1)]
        for path in paths:
            shutil.copy(first, path)
        before, after = ({"a": list(map(str, paths[:stop]))} for stop in (-1, None))
        processor = Sums(num_loops, directory / "counted")
        for turn in range(num_runs):
            run = Runner(
                DaskExecutor(client),
                store=directory / f"store-{turn}",
                metadata_cache=directory / "cache",
                chunksize=NUM_EVENTS_PER_RANGE,
                progress=False,
            )
            all_of_them = run.run(before, "Events", processor)
            one_more = run.run(after, "Events", processor)
            ours, theirs = one_more.metrics.total, all_of_them.metrics.total
            found.shares.append(ours.cpu_seconds / theirs.cpu_seconds)
            found.num_ranges.append(ours.num_ranges)
            if one_more.output["entries"] != len(paths) * NUM_EVENTS_PER_RANGE:
                raise AssertionError(f"{one_more.output['entries']} entries")
    return found


def main() -> None:
    """Measure at full size."""
    from distributed import Client

    with Client(n_workers=2, threads_per_worker=1, dashboard_address=":0") as client:
        print(f"load {os.getloadavg()[0]:.1f}")
        print(measure_resume(client, 200, 35), flush=True)
        print(measure_append(client, 1_000, 1), flush=True)


if __name__ == "__main__":
    main()
