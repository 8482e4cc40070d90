"""From asking for a cluster to the first processed range: hepdask's word, and dask-jobqueue by hand.

``python -m tests.benchmarks.first_range`` starts SLURM on this machine (Debian's packages; as root), and takes each way in turn, five
times: one job with one worker; by hand a SLURMCluster, a client, and one task that reads and processes the same range. What is
imported here is imported before; the worker is new each time, and imports what it needs.
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

NUM_EVENTS = 1_000


@dataclass(frozen=True, slots=True)
class Comparison:
    """Seconds of each run."""

    hand_seconds: list[float]
    hepdask_seconds: list[float]

    def __str__(self) -> str:
        hand, ours = map(statistics.median, (self.hand_seconds, self.hepdask_seconds))
        return (
            f"first range on an idle SLURM: dask-jobqueue by hand {hand:.2f} s, hepdask {ours:.2f} s, "
            f"{ours - hand:+.2f} s (medians of {len(self.hepdask_seconds)})"
        )


class Stamps:
    """A processor that leaves the time at which it is done in a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def process(self, events: Any) -> dict[str, int]:
        """Count events, and leave the time."""
        output = {"entries": len(events.Muon.pt)}
        Path(self.path).write_text(repr(time.time()))
        return output


def process_by_hand(processor: Any, path: str) -> dict[str, int]:
    """Do what a task of dask does where nobody helps."""
    from coffea.nanoevents import NanoAODSchema, NanoEventsFactory

    factory = NanoEventsFactory.from_root(
        {path: "Events"}, schemaclass=NanoAODSchema, mode="virtual"
    )
    done: dict[str, int] = processor.process(factory.events())
    return done


def run_by_hand(options: dict[str, Any], path: str, processor: Any) -> None:
    """Write it out with dask-jobqueue."""
    from dask_jobqueue import SLURMCluster
    from distributed import Client

    with (
        SLURMCluster(
            cores=1,
            processes=1,
            memory="1GB",
            queue=options["queue"],
            interface=options["interface"],
            local_directory=options["scratch"],
            log_directory=options["log_directory"],
            job_script_prologue=[
                f"export {name}={value}" for name, value in options["environment"].items()
            ],
            scheduler_options={"dashboard_address": ":0"},
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        cluster.scale(1)
        output = client.submit(process_by_hand, processor, path).result()
        assert output == {"entries": NUM_EVENTS}


def run_hepdask(options: dict[str, Any], path: str, processor: Any) -> None:
    """Say one word."""
    from hepdask import DaskExecutor, Runner

    with DaskExecutor("slurm", workers=1, memory="1 GB", **options) as executor:
        run = Runner(executor, progress=False, metadata_cache=False)
        output = run({"sample": [path]}, "Events", processor_instance=processor)
        assert output == {"entries": NUM_EVENTS}


def compare(directory: Path, *, num_runs: int = 5) -> Comparison:
    """Take each way in turn; SLURM must run, with the partition ``short``."""
    import dask_jobqueue  # noqa: F401  # not to be counted

    from datasets.sample import write_sample
    from tests.servers import REPOSITORY

    fileset = write_sample(directory / "sample", num_events=NUM_EVENTS, num_files=1)
    (dataset,) = fileset.values()
    (path,) = map(str, dataset["files"])
    options = {
        "queue": "short",
        "interface": "lo",
        "scratch": str(directory),
        "log_directory": str(directory / "logs"),
        "environment": {"PYTHONPATH": str(REPOSITORY)},
    }
    ways: dict[str, Callable[[dict[str, Any], str, Any], None]] = {
        "hand": run_by_hand,
        "hepdask": run_hepdask,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    stamp = directory / "stamp"
    for _ in range(num_runs):
        for name, run in ways.items():
            started = time.time()
            run(options, path, Stamps(str(stamp)))
            seconds[name].append(float(stamp.read_text()) - started)
            stamp.unlink()
    return Comparison(seconds["hand"], seconds["hepdask"])


def main() -> None:
    """Compare at full size."""
    from tests.clusters.batch_servers import SlurmServer

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "slurm").mkdir()
        with SlurmServer(directory / "slurm"):
            print(compare(directory))


if __name__ == "__main__":
    main()
