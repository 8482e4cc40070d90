"""Workers killed at random: what that costs, and whether it changes a bit.

``python -m tests.benchmarks.random_kills`` runs it at full size: some 60 s of work on two workers, first undisturbed, then with
SIGKILL for one of the workers, chosen at random, every 2 s. Nannies start new ones, as batch systems do. At last coffea's
DaskExecutor has the same work, and as many kills.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.benchmarks import poison
from tests.example_processors import SlowSum

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Client

NUM_EVENTS_PER_RANGE = 1_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What both runs came to."""

    healthy_seconds: float
    disturbed_seconds: float
    num_kills: int
    seconds_per_restart: float
    is_complete: bool
    has_same_bits: bool

    def __str__(self) -> str:
        state = "complete" if self.is_complete else "INCOMPLETE"
        bits = "the same bits" if self.has_same_bits else "OTHER BITS"
        ratio = self.disturbed_seconds / self.healthy_seconds
        # two workers
        restart_seconds = self.num_kills * self.seconds_per_restart / 2
        rest = (self.disturbed_seconds - restart_seconds) / self.healthy_seconds
        return (
            f"{self.num_kills} workers killed at random: {state}, {bits}; {self.disturbed_seconds:.1f} s instead of "
            f"{self.healthy_seconds:.1f} s (ratio {ratio:.2f}); restarts took {restart_seconds:.1f} s of it (each "
            f"{self.seconds_per_restart:.2f} s of one of two workers); without: ratio {rest:.2f}"
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
        Of a local cluster, whose workers have nannies.
    num_ranges : int
        Of `NUM_EVENTS_PER_RANGE` events each.
    seconds_per_range : float
        That the processor waits.
    kill_seconds : float
        From one kill to the next.
    seed : int
        Chooses the victims.
    """
    from hepdask import DaskExecutor, Runner
    from hepdask.executors.dask_local import keeping_nannies

    with (
        poison.sample(NUM_EVENTS_PER_RANGE * num_ranges, NUM_EVENTS_PER_RANGE) as fileset,
        tempfile.TemporaryDirectory() as directory,
    ):
        processor = SlowSum(seconds_per_range)
        executor = DaskExecutor(client, max_ranges_per_task=4)

        def run_once(store: str) -> Any:
            # what a worker has done is lost with it, so it is kept where the others find it
            place = Path(directory) / store
            runner = Runner(executor, chunksize=NUM_EVENTS_PER_RANGE, progress=False, store=place)
            return runner.run(fileset, processor)

        started = time.perf_counter()
        healthy = run_once("healthy")
        healthy_seconds = time.perf_counter() - started
        with keeping_nannies(client):
            seconds_per_restart = statistics.median(_measure_restart(client) for _ in range(3))
        started = time.perf_counter()
        with _kill_at_random(client, kill_seconds, seed) as kills:
            disturbed = run_once("disturbed")
        disturbed_seconds = time.perf_counter() - started
    sums = [np.float64(one.output["sum"]).tobytes() for one in (healthy, disturbed)]
    has_same_bits = sums[0] == sums[1] and healthy.output["starts"] == disturbed.output["starts"]
    return Outcome(
        healthy_seconds,
        disturbed_seconds,
        kills.count,
        seconds_per_restart,
        disturbed.is_complete,
        has_same_bits,
    )


def run_coffea(
    client: Client,
    *,
    num_ranges: int,
    seconds_per_range: float,
    kill_seconds: float,
    seed: int = 1,
) -> str:
    """Run the peer with kills, and say what it came to; see `measure`."""
    with (
        poison.sample(NUM_EVENTS_PER_RANGE * num_ranges, NUM_EVENTS_PER_RANGE) as fileset,
        _kill_at_random(client, kill_seconds, seed),
    ):
        return poison.run_coffea(
            client,
            fileset,
            SlowSum(seconds_per_range),
            chunksize=NUM_EVENTS_PER_RANGE,
            count_events=lambda output: NUM_EVENTS_PER_RANGE * len(output["starts"]),
        )


def _measure_restart(client: Client) -> float:
    """Kill a worker that has nothing to do; return how long it takes until the next one knows what tasks need."""
    before = set(client.nthreads())
    started = time.perf_counter()
    assert _kill_one(client, random.Random(1))
    while not (new := set(client.nthreads()) - before):
        time.sleep(0.01)
    client.submit(_import_libraries, workers=list(new), pure=False).result()
    return time.perf_counter() - started


def _import_libraries() -> None:
    import hepdask.executors.dask_tasks
    import hepdask.readers.nanoevents  # noqa: F401


@dataclass(slots=True)
class _Kills:
    count: int = 0


@contextmanager
def _kill_at_random(client: Client, seconds: float, seed: int) -> Iterator[_Kills]:
    """Kill workers as long as the context is open; yield how many."""
    randomly = random.Random(seed)
    ended = threading.Event()
    kills = _Kills()

    def kill() -> None:
        while not ended.wait(seconds):
            kills.count += _kill_one(client, randomly)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield kills
    finally:
        ended.set()
        thread.join()


def _kill_one(client: Client, randomly: random.Random) -> int:
    # one that has not started yet would be a longer restart, not another one
    nannies = [one for one in client.cluster.workers.values() if _has_started(one)]
    if not nannies:
        return 0
    with suppress(ProcessLookupError):
        os.kill(randomly.choice(nannies).pid, signal.SIGKILL)
    return 1


def _has_started(nanny: Any) -> bool:
    return nanny.process is not None and nanny.process.status.name == "running"


def main() -> None:
    """Measure at full size."""
    from distributed import Client

    with Client(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50
    ) as client:
        print(measure(client, num_ranges=600, seconds_per_range=0.2, kill_seconds=2.0), flush=True)
        print(
            f"coffea: {run_coffea(client, num_ranges=600, seconds_per_range=0.2, kill_seconds=2.0)}"
        )


if __name__ == "__main__":
    main()
