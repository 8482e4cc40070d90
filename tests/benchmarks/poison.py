"""One event that kills its process: what is left of the run, and what the search costs.

``python -m tests.benchmarks.poison`` runs it at full size: 2,000,000 events in ranges of 50,000 on two workers, one event
sends SIGKILL; first without that event, then with it, then coffea's DaskExecutor with it.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.example_processors import DiesAt

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True, slots=True)
class Outcome:
    """What three runs came to."""

    num_events: int
    healthy_seconds: float
    poisoned_seconds: float
    num_processed: int
    lost_entries: list[tuple[int, int]]
    num_deaths: int
    peer: str

    def __str__(self) -> str:
        lost = ", ".join(f"{start} to {stop}" for start, stop in self.lost_entries)
        return (
            f"{self.num_events:,} events, one of which kills: hepdask processed {self.num_processed:,} and lost "
            f"entries {lost} at {self.num_deaths} worker death(s), in {self.poisoned_seconds:.1f} s "
            f"({self.healthy_seconds:.1f} s without the event); coffea: {self.peer}"
        )


def measure(
    client: Client, num_events: int, num_entries_per_range: int, *, with_peer: bool
) -> Outcome:
    """Run without the event, with it, and the peer with it."""
    from datasets.sample import write_sample
    from hepdask import DaskExecutor, ProcessDiedError, Runner

    bad = {num_events * 5 // 8}
    with tempfile.TemporaryDirectory() as directory:
        fileset = write_sample(
            Path(directory),
            num_events=num_events,
            num_files=1,
            num_events_per_cluster=num_entries_per_range,
        )
        run = Runner(
            DaskExecutor(client),
            chunksize=num_entries_per_range,
            skipbadfiles=ProcessDiedError,
            progress=False,
        )
        times = [time.perf_counter()]
        run.run(fileset, DiesAt(set(), "SIGKILL"))
        times.append(time.perf_counter())
        result = run.run(fileset, DiesAt(bad, "SIGKILL"))
        times.append(time.perf_counter())
        num_deaths = count_deaths(client)
        peer = _run_coffea(client, fileset, bad, num_entries_per_range) if with_peer else "not run"
    return Outcome(
        num_events,
        times[1] - times[0],
        times[2] - times[1],
        result.output["entries"],
        [(one.entry_start, one.entry_stop) for one in result.failures],
        num_deaths,
        peer,
    )


def count_deaths(client: Client) -> int:
    """Count the workers that went away without saying so."""
    events = client.get_events("all")
    return sum(event.get("action") == "remove-worker" for _, event in events)


def _run_coffea(client: Client, fileset: dict[str, Any], bad: set[int], chunksize: int) -> str:
    from coffea import processor

    files = {name: list(dataset["files"]) for name, dataset in fileset.items()}
    run = processor.Runner(
        processor.DaskExecutor(client=client, status=False), chunksize=chunksize, skipbadfiles=True
    )
    started = time.perf_counter()
    try:
        output = run(files, DiesAt(bad, "SIGKILL").process, treename="Events")
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the peer's answer
        return f"raised {type(error).__name__} after {time.perf_counter() - started:.1f} s, nothing is left"
    return f"returned {output['entries']:,} events after {time.perf_counter() - started:.1f} s"


def main() -> None:
    """Measure at full size."""
    from distributed import Client

    with Client(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50
    ) as client:
        print(measure(client, 2_000_000, 50_000, with_peer=True))


if __name__ == "__main__":
    main()
