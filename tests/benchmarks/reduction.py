"""Memory and time of merging large accumulators: coffea's DaskExecutor and hepdask's, on workers of their own.

``python -m tests.benchmarks.reduction [ranges] [megabytes]`` runs it at full size: 1,000 ranges whose outputs are histograms of
64 MB, two workers with one thread. The peak is that of the resident memory of each worker process, sampled every few
milliseconds, above what it has before the run; the outputs must be equal. Each system has fresh workers, as the peak would
otherwise contain what the allocator has kept from the other one.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from distributed import Client

NUM_ENTRIES_PER_RANGE = 10
SAMPLE_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Cost:
    """What a system took."""

    system: str
    num_ranges: int
    num_accumulator_bytes: int
    seconds: float
    peak_bytes: int

    @property
    def num_accumulators(self) -> float:
        """Peak above the baseline at any worker, in accumulators."""
        return self.peak_bytes / self.num_accumulator_bytes

    def __str__(self) -> str:
        return (
            f"{self.num_ranges} accumulators of {self.num_accumulator_bytes / 1e6:.0f} MB, {self.system}: {self.seconds:.1f} s, "
            f"peak of a worker {self.peak_bytes / 1e6:.0f} MB above its baseline, {self.num_accumulators:.1f} accumulators"
        )


@dataclass(frozen=True, slots=True)
class Filler:
    """Fills a histogram of many bins."""

    num_bins: int

    def process(self, events: Any) -> dict[str, Any]:
        """Fill it at some of its bins."""
        import hist

        h = hist.Hist(hist.axis.Regular(self.num_bins, 0, 1, name="x", flow=False))
        start = events.metadata["entrystart"]
        h.view()[:] = 1.0  # every page of it is in use
        h.fill(np.arange(start, start + len(events)) % 97 / 97)
        return {"h": h}

    def postprocess(self, accumulator: Any) -> Any:
        """Leave it as it is."""
        return accumulator


@contextmanager
def sampled(client: Client) -> Iterator[Callable[[], int]]:
    """Sample the memory of the workers; yields what returns the largest growth of one."""
    import psutil

    processes = [psutil.Process(pid) for pid in client.run(_pid).values()]
    before = [one.memory_info().rss for one in processes]
    peaks = list(before)
    is_over = threading.Event()

    def sample() -> None:
        while not is_over.wait(SAMPLE_SECONDS):
            for number, one in enumerate(processes):
                peaks[number] = max(peaks[number], one.memory_info().rss)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield lambda: max(peak - base for peak, base in zip(peaks, before, strict=True))
    finally:
        is_over.set()
        thread.join()


def _pid() -> int:
    import os

    import hist  # noqa: F401  # in the baseline are the libraries

    return os.getpid()


def measure(system: str, num_ranges: int, num_bytes: int) -> tuple[Cost, Any]:
    """Run one system on fresh workers; returns its output, too."""
    from distributed import Client

    processor = Filler(num_bytes // 8)
    with (
        tempfile.TemporaryDirectory() as directory,
        Client(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=":0",
            memory_limit=0,
            set_as_default=False,
        ) as client,
    ):
        files = write_files(Path(directory), num_ranges)
        run = {"coffea": run_coffea, "hepdask": run_hepdask}[system](client, processor)
        run(write_files(Path(directory) / "warm", 2))
        with sampled(client) as peak:
            started = time.perf_counter()
            output = run(files)
            seconds = time.perf_counter() - started
        return Cost(system, num_ranges, num_bytes, seconds, peak()), output


def compare(num_ranges: int, num_bytes: int) -> list[Cost]:
    """Run both systems; their outputs must be equal."""
    costs, outputs = zip(
        *(measure(system, num_ranges, num_bytes) for system in ("coffea", "hepdask")), strict=True
    )
    first, second = (one["h"].view(flow=True) for one in outputs)
    if not np.array_equal(first, second):
        raise AssertionError("the outputs differ")
    return list(costs)


def write_files(directory: Path, num_ranges: int) -> dict[str, list[str]]:
    """Write the sample: one file with one branch."""
    import uproot

    directory.mkdir(exist_ok=True)
    path = directory / "events.root"
    with uproot.recreate(path) as file:
        file["Events"] = {"x": np.zeros(num_ranges * NUM_ENTRIES_PER_RANGE, dtype=np.float32)}
    return {"sample": [str(path)]}


def run_coffea(client: Client, filler: Filler) -> Callable[[Any], Any]:
    """Make coffea's run."""
    from coffea import processor
    from coffea.nanoevents import BaseSchema

    class Processor(processor.ProcessorABC):  # type: ignore[misc]  # coffea has no types
        def process(self, events: Any) -> Any:
            return filler.process(events)

        def postprocess(self, accumulator: Any) -> Any:
            return accumulator

    executor = processor.DaskExecutor(client=client, status=False, compression=None)
    run = processor.Runner(executor, schema=BaseSchema, chunksize=NUM_ENTRIES_PER_RANGE)
    return lambda files: run(files, Processor(), treename="Events")


def run_hepdask(client: Client, filler: Filler) -> Callable[[Any], Any]:
    """Make ours."""
    from coffea.nanoevents import BaseSchema

    from hepdask import DaskExecutor, Runner

    run = Runner(
        DaskExecutor(client),
        schema=BaseSchema,
        chunksize=NUM_ENTRIES_PER_RANGE,
        progress=False,
        align_clusters=False,
        metadata_cache=False,
    )
    return lambda files: run(files, filler, treename="Events")


def main() -> None:
    """Compare at full size, or at the size that is given."""
    given = [int(one) for one in sys.argv[1:3]]
    num_ranges, num_megabytes = (*given, *(1_000, 64)[len(given) :])
    for cost in compare(num_ranges, num_megabytes * 10**6):
        print(cost)


if __name__ == "__main__":
    main()
