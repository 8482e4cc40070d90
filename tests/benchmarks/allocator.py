"""What dask's setting of glibc's allocator costs in a worker, and what is left of that in tasks of hepdask.

``python -m tests.benchmarks.allocator`` runs it at full size: array code on 20,000 to 500,000 numbers at a time, and opening a file
of 1,499 branches with uproot, as a plain task of dask and as hepdask's tasks do (`hepdask.allocator`). Each in a new worker
process that a nanny has started; medians of five.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: Numbers that each measurement goes through, in arrays of different size.
NUM_VALUES = 2_000_000
NUMS_AT_A_TIME = (20_000, 100_000, 500_000)


@dataclass(frozen=True, slots=True)
class Seconds:
    """What one thing takes, as a task of dask and as one of hepdask."""

    what: str
    dask: list[float]
    hepdask: list[float]

    @property
    def ratio(self) -> float:
        """How many times longer it takes as a task of dask."""
        return statistics.median(self.dask) / statistics.median(self.hepdask)

    def __str__(self) -> str:
        dask, hepdask = (1e3 * statistics.median(one) for one in (self.dask, self.hepdask))
        return f"{self.what}: dask {dask:.1f} ms, hepdask {hepdask:.1f} ms, ratio {self.ratio:.2f}"


def measure(path: str, *, num_runs: int) -> list[Seconds]:
    """Run both in turn.

    Parameters
    ----------
    path : str
        A file with a tree ``Events``.
    num_runs : int
        Of each.
    """
    from distributed import Client

    seen: dict[str, tuple[list[float], list[float]]] = {}
    for turn in range(2 * num_runs):
        with Client(
            n_workers=1,
            threads_per_worker=1,
            dashboard_address=":0",
            silence_logs=50,
            set_as_default=False,
        ) as client:
            kept = bool(turn % 2)
            for what, seconds in client.submit(work, path, kept=kept).result().items():
                seen.setdefault(what, ([], []))[kept].append(seconds)
    return [Seconds(what, *both) for what, both in seen.items()]


def work(path: str, *, kept: bool) -> dict[str, float]:
    """Do it, on a worker; return the shortest of three times of each."""
    from contextlib import nullcontext

    from hepdask.allocator import freed_memory_kept

    with freed_memory_kept() if kept else nullcontext():
        seconds = {
            f"arrays of {number:,}": min(_compute(number) for _ in range(3))
            for number in NUMS_AT_A_TIME
        }
        seconds[f"open {Path(path).name}"] = min(_open(path) for _ in range(3))
    return seconds


def _compute(number: int) -> float:
    values = np.random.default_rng(1).normal(size=number)
    started = time.perf_counter()
    for _ in range(NUM_VALUES // number):
        energy = np.sqrt(values * values + 1.0) + values
        np.sum(energy[energy > 1])
    return time.perf_counter() - started


def _open(path: str) -> float:
    import uproot

    started = time.perf_counter()
    with uproot.open(path) as file:
        file["Events"]
    return time.perf_counter() - started


def main() -> None:
    """Run it at full size."""
    from tests.benchmarks.samples import Samples

    with tempfile.TemporaryDirectory() as directory:
        (path,) = Samples(Path(directory)).wide(10, 1, 10_000)
        for one in measure(path, num_runs=5):
            print(one, flush=True)


if __name__ == "__main__":
    main()
