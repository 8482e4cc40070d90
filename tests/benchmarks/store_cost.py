"""What a store costs a run whose accumulators are 10 MB: the same run with a store and without, in turn.

``python -m tests.benchmarks.store_cost`` runs it at full size: 120 ranges that compute for half a second each, on two
workers, and fill histograms of 10 MB; once with random numbers in all bins, which LZ4 can't compress, and once with the
few bins that the events fill. Medians of three, each with a new store.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hist
import numpy as np

if TYPE_CHECKING:
    from distributed import Client

NUM_EVENTS_PER_RANGE = 1_000


class Spectrum:
    """Computes for a while, and fills a large histogram.

    Parameters
    ----------
    num_loops : int
        How long it computes: about 3 ms each.
    num_bins : int
        Of each of the two axes; a bin takes 16 bytes.
    is_random : bool
        True: random numbers in all bins. False: the events alone.
    """

    def __init__(self, num_loops: int, num_bins: int, *, is_random: bool) -> None:
        self.num_loops = num_loops
        self.num_bins = num_bins
        self.is_random = is_random

    def process(self, events: Any) -> dict[str, Any]:
        met = np.asarray(events.MET.pt, dtype=np.float64)
        smeared = np.resize(met, 100_000)
        for _ in range(self.num_loops):
            smeared = np.sort(np.hypot(smeared, 1.0))[::-1] + np.sin(smeared) ** 2
        axis = hist.axis.Regular(self.num_bins, 0, 200)
        plane = hist.Hist(axis, axis, storage=hist.storage.Weight())
        plane.fill(met, np.resize(smeared, len(met)), weight=np.cos(met))
        if self.is_random:
            random = np.random.default_rng(events.metadata["entrystart"])
            view = plane.view(flow=True)
            for field in ("value", "variance"):
                view[field] += random.random(view.shape)
        return {"plane": plane, "entries": len(events)}


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of each run, and what was written."""

    what: str
    without_seconds: list[float]
    with_seconds: list[float]
    store_seconds: float
    process_seconds: float
    num_objects: int
    num_bytes: int

    @property
    def ratio(self) -> float:
        """Median with a store over median without."""
        return statistics.median(self.with_seconds) / statistics.median(self.without_seconds)

    def __str__(self) -> str:
        return (
            f"{self.what}: {statistics.median(self.without_seconds):.2f} s without a store, "
            f"{statistics.median(self.with_seconds):.2f} s with one, ratio {self.ratio:.3f} (medians of "
            f"{len(self.with_seconds)}); {self.process_seconds:.1f} s of processing, {self.store_seconds:.2f} s of writing, "
            f"{self.num_objects} objects, {self.num_bytes / 1e6:.0f} MB"
        )


def measure(
    client: Client, processor: Spectrum, num_ranges: int, *, num_runs: int = 3, what: str = ""
) -> Cost:
    """Run with a store and without, in turn; the outputs must be equal to the last bit."""
    from datasets.sample import write_sample
    from hepdask import DaskExecutor, Runner, Store

    times: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as name:
        fileset = write_sample(
            Path(name),
            num_events=num_ranges * NUM_EVENTS_PER_RANGE,
            num_files=2,
            num_events_per_cluster=NUM_EVENTS_PER_RANGE,
        )
        options: dict[str, Any] = {"chunksize": NUM_EVENTS_PER_RANGE, "progress": False}
        # libraries are imported, and files inspected
        Runner(DaskExecutor(client), **options).run(fileset, Spectrum(0, 2, is_random=False))
        for turn in range(num_runs):
            outputs = set()
            for with_store in (False, True) if turn % 2 else (True, False):
                store = Store(Path(name, f"store-{turn}")) if with_store else None
                started = time.perf_counter()
                result = Runner(DaskExecutor(client), store=store, **options).run(
                    fileset, processor
                )
                times[with_store].append(time.perf_counter() - started)
                outputs.add(result.output["plane"].view(flow=True).tobytes())
                if store is not None:
                    total = result.metrics.total
                    (section,) = store.sections()
            if len(outputs) > 1:
                raise AssertionError("the outputs differ")
    return Cost(
        what,
        times[False],
        times[True],
        total.store_seconds,
        total.wall_seconds,
        section.num_objects,
        section.num_bytes,
    )


def main() -> None:
    """Measure at full size."""
    from distributed import Client

    with Client(n_workers=2, threads_per_worker=1, dashboard_address=":0") as client:
        for is_random in (True, False):
            what = "10 MB, random" if is_random else "10 MB, sparse"
            processor = Spectrum(180, 790, is_random=is_random)
            print(measure(client, processor, 120, what=what), flush=True)


if __name__ == "__main__":
    main()
