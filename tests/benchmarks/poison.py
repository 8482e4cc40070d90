"""Events that kill their process: what is left of the run, and what the search costs.

``python -m tests.benchmarks.poison`` runs it at full size: 2,000,000 events in ranges of 50,000 on two workers of 1.5 GB. One
event, then ten, send SIGKILL, send SIGSEGV, or let their range allocate memory until it is killed; before, the same without
such an event, and at last coffea's DaskExecutor with one.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.example_processors import DiesAt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from distributed import Client

#: How an event kills; see `DiesAt`.
MODES = ("SIGKILL", "SIGSEGV", "allocate")
MEMORY_LIMIT_BYTES = 1_500_000_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run with poisonous events came to, beside one without.

    Attributes
    ----------
    mode : str
        How the events kill.
    num_events, num_processed : int
        In all, and in the output.
    bad_entries, lost_entries : list of (int, int)
        The half-open ranges that kill, and those that were reported.
    num_deaths : int
        Workers that died.
    healthy_seconds, poisoned_seconds : float
        Wall times of the two runs.
    """

    mode: str
    num_events: int
    num_processed: int
    bad_entries: list[tuple[int, int]]
    lost_entries: list[tuple[int, int]]
    num_deaths: int
    healthy_seconds: float
    poisoned_seconds: float

    def __str__(self) -> str:
        exactly = "exactly these" if self.lost_entries == self.bad_entries else "NOT these"
        return (
            f"{self.num_events:,} events, {len(self.bad_entries)} of which kill ({self.mode}): {self.num_processed:,} "
            f"processed, {exactly} reported, {self.num_deaths} worker death(s), {self.poisoned_seconds:.1f} s "
            f"({self.healthy_seconds:.1f} s without)"
        )


@contextmanager
def sample(num_events: int, num_entries_per_range: int) -> Iterator[dict[str, Any]]:
    """Write events that are numbered from 1 on, in one file."""
    from datasets.sample import write_sample

    with tempfile.TemporaryDirectory() as directory:
        yield write_sample(
            Path(directory),
            num_events=num_events,
            num_files=1,
            num_events_per_cluster=num_entries_per_range,
        )


def poisonous_events(num_events: int, num_poisons: int) -> set[int]:
    """Choose events all over the file, the first in its middle."""
    middle = num_events * 5 // 8
    return {
        (middle + number * num_events // num_poisons) % num_events + 1
        for number in range(num_poisons)
    }


def measure(
    client: Client,
    fileset: dict[str, Any],
    *,
    num_events: int,
    num_entries_per_range: int,
    num_poisons: int,
    mode: str,
) -> Outcome:
    """Run without poisonous events, and with them.

    Parameters
    ----------
    client : distributed.Client
        Of a cluster whose workers have nannies.
    fileset : dict
        As of `sample`.
    num_events, num_entries_per_range : int
        Of it.
    num_poisons : int
        Events that kill.
    mode : str
        One of `MODES`.
    """
    from hepdask import DaskExecutor, ProcessDiedError, Runner

    bad = poisonous_events(num_events, num_poisons)
    run = Runner(
        DaskExecutor(client),
        chunksize=num_entries_per_range,
        skipbadfiles=(ProcessDiedError, MemoryError),
        progress=False,
    )
    times = [time.perf_counter()]
    run.run(fileset, DiesAt(set(), mode))
    times.append(time.perf_counter())
    num_deaths = count_deaths(client)
    result = run.run(fileset, DiesAt(bad, mode))
    times.append(time.perf_counter())
    return Outcome(
        mode,
        num_events,
        result.output["entries"],
        [(event - 1, event) for event in sorted(bad)],
        [(one.entry_start, one.entry_stop) for one in result.failures],
        count_deaths(client) - num_deaths,
        times[1] - times[0],
        times[2] - times[1],
    )


def count_deaths(client: Client) -> int:
    """Count the workers that went away without saying so."""
    events = client.get_events("all")
    return sum(event.get("action") == "remove-worker" for _, event in events)


def run_coffea(
    client: Client,
    fileset: dict[str, Any],
    processor: Any,
    *,
    chunksize: int,
    count_events: Callable[[Any], int],
) -> str:
    """Run the peer, and say what it came to.

    Parameters
    ----------
    client : distributed.Client
        As for `measure`.
    fileset : dict
        As of `sample`.
    processor : object
        With a ``process`` for coffea, too.
    chunksize : int
        Events in a range.
    count_events : callable
        Tells from the output how many events were processed.
    """
    from coffea.nanoevents import NanoAODSchema

    from tests.benchmarks.systems import CoffeaRun

    files = {name: list(dataset["files"]) for name, dataset in fileset.items()}
    run = CoffeaRun(
        client,
        files,
        processor.process,
        schema=NanoAODSchema,
        chunksize=chunksize,
        skipbadfiles=True,
    )
    started = time.perf_counter()
    try:
        output = run()
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the peer's answer
        return f"raised {type(error).__name__} after {time.perf_counter() - started:.1f} s, nothing is left"
    return f"returned {count_events(output):,} events after {time.perf_counter() - started:.1f} s"


@contextmanager
def mortal_client(memory_limit_bytes: int) -> Iterator[Client]:
    """Run a cluster of its own, whose workers may die."""
    from distributed import Client

    with Client(
        n_workers=2,
        threads_per_worker=1,
        memory_limit=memory_limit_bytes,
        dashboard_address=":0",
        silence_logs=50,
        set_as_default=False,
    ) as client:
        yield client


def main() -> None:
    """Measure at full size."""
    size = {"num_events": 2_000_000, "num_entries_per_range": 50_000}
    with sample(*size.values()) as fileset:
        for mode in MODES:
            for num_poisons in (1, 10):
                with mortal_client(MEMORY_LIMIT_BYTES) as client:
                    outcome = measure(client, fileset, num_poisons=num_poisons, mode=mode, **size)
                    print(outcome, flush=True)
        with mortal_client(MEMORY_LIMIT_BYTES) as client:
            answer = run_coffea(
                client,
                fileset,
                DiesAt(poisonous_events(size["num_events"], 1), "SIGKILL"),
                chunksize=size["num_entries_per_range"],
                count_events=lambda output: int(output["entries"]),
            )
            print(f"coffea, 1 of which kills (SIGKILL): {answer}")


if __name__ == "__main__":
    main()
