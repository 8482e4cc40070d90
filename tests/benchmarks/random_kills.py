"""Workers killed at random: what that costs, and whether it changes a bit.

``python -m tests.benchmarks.random_kills`` runs it at full size: some 60 s of work on two workers, first undisturbed, then with
SIGKILL for one of the workers, chosen at random, every 2 s. Nannies start new ones, as batch systems do.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tests.example_processors import SlowSum

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Client


@dataclass(frozen=True, slots=True)
class Outcome:
    """What both runs came to."""

    healthy_seconds: float
    disturbed_seconds: float
    num_kills: int
    restart_seconds: float
    is_complete: bool
    has_same_bits: bool

    def __str__(self) -> str:
        state = "complete" if self.is_complete else "INCOMPLETE"
        bits = "the same bits" if self.has_same_bits else "OTHER BITS"
        ratio = self.disturbed_seconds / self.healthy_seconds
        return (
            f"{self.num_kills} workers killed at random: {state}, {bits}; {self.disturbed_seconds:.1f} s instead of "
            f"{self.healthy_seconds:.1f} s (ratio {ratio:.2f}); {self.restart_seconds:.1f} s of a worker were spent on restarts"
        )


def measure(
    client: Client,
    *,
    num_ranges: int,
    seconds_per_range: float,
    kill_seconds: float,
    seed: int = 1,
) -> Outcome:
    """Run undisturbed, and with kills.

    Parameters
    ----------
    client : distributed.Client
        Of workers with nannies.
    num_ranges : int
        Of 1,000 events each.
    seconds_per_range : float
        That the processor waits.
    kill_seconds : float
        From the return of one worker to the next kill.
    seed : int
        Chooses the victims.
    """
    from datasets.sample import write_sample
    from hepdask import DaskExecutor, Runner

    with tempfile.TemporaryDirectory() as directory:
        fileset = write_sample(
            Path(directory),
            num_events=1_000 * num_ranges,
            num_files=1,
            num_events_per_cluster=1_000,
        )
        run = Runner(DaskExecutor(client, max_ranges_per_task=2), chunksize=1_000, progress=False)
        processor = SlowSum(seconds_per_range)
        times = [time.perf_counter()]
        healthy = run.run(fileset, processor)
        times.append(time.perf_counter())
        with _kill_at_random(client, kill_seconds, seed) as kills:
            disturbed = run.run(fileset, processor)
        times.append(time.perf_counter())
    sums = [np.float64(one.output["sum"]).tobytes() for one in (healthy, disturbed)]
    has_same_bits = sums[0] == sums[1] and healthy.output["starts"] == disturbed.output["starts"]
    return Outcome(
        times[1] - times[0],
        times[2] - times[1],
        len(kills),
        sum(kills),
        disturbed.is_complete,
        has_same_bits,
    )


@contextmanager
def _kill_at_random(client: Client, seconds: float, seed: int) -> Iterator[list[float]]:
    """Kill workers as long as the context is open; yield how long each was away."""
    randomly = random.Random(seed)
    ended = threading.Event()
    away: list[float] = []
    num_workers = len(client.nthreads())

    def kill() -> None:
        while not ended.wait(seconds):
            # those that have registered: a nanny gives up if its worker dies before
            pids = [one for one in client.run(os.getpid, on_error="ignore").values() if one]
            if len(pids) < num_workers:
                continue
            with suppress(ProcessLookupError):
                os.kill(randomly.choice(pids), signal.SIGKILL)
            away.append(_wait_for_workers(client, num_workers, ended))

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield away
    finally:
        ended.set()
        thread.join()


def _wait_for_workers(client: Client, num_workers: int, ended: threading.Event) -> float:
    started = time.perf_counter()
    ended.wait(0.2)  # for the scheduler to see it
    while len(client.nthreads()) < num_workers and not ended.wait(0.05):
        pass
    return time.perf_counter() - started


def main() -> None:
    """Measure at full size."""
    from distributed import Client

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50
        ) as cluster,
        Client(cluster) as client,
    ):
        print(measure(cluster, client, num_ranges=600, seconds_per_range=0.2, kill_seconds=2.0))


if __name__ == "__main__":
    main()
