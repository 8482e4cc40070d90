"""What shipping a package costs: the client one upload, however many workers there are; a late worker, how long; the doctor, too.

``python -m tests.benchmarks.shipping`` runs it at full size: a package of 1 MB that can't be compressed, 100 workers in one process
that is not the client's, all over TCP. What the client sends is counted at its connections, not timed.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import distributed
from distributed.comm.tcp import TCP

from hepdask import DaskExecutor, Runner, Shipping
from hepdask.executors.dask_shipping import Delivery
from hepdask.shipping import load_cargo, seal
from tests.sites import Site, make_caller

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "shipped_in_benchmark"


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured."""

    num_workers: int
    num_package_bytes: int
    num_sent_bytes: int
    """By the client, in all, to bring the package to all workers."""
    num_sent_again_bytes: int
    """... when it is there already."""
    ship_seconds: float
    ready_seconds: float
    """From the registration of a late worker until it has run a task that imports the package."""
    again_seconds: float
    """What is asked and told when all is there: the cost in a warm run."""
    doctor_seconds: float
    """The shortest of five: others may use the machine."""
    doctor_cpu_seconds: float
    """Of client, scheduler and the workers in one process together; the least of five."""

    def __str__(self) -> str:
        return (
            f"{self.num_package_bytes / 1e6:.2f} MB to {self.num_workers} workers: the client sends "
            f"{self.num_sent_bytes / 1e6:.2f} MB in {self.ship_seconds:.2f} s, and {self.num_sent_again_bytes / 1e3:.1f} kB "
            f"in {self.again_seconds * 1e3:.1f} ms when it is there; a late worker is ready {self.ready_seconds:.2f} s after "
            f"it has registered; doctor {self.doctor_seconds:.2f} s, of which {self.doctor_cpu_seconds:.2f} s CPU"
        )


async def be_farm(num_workers: int, directory: str) -> None:
    """Be a scheduler with many workers, until the standard input ends."""
    async with distributed.Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
        workers = [
            distributed.Worker(
                scheduler.address, nthreads=1, local_directory=directory, name=f"w{number}"
            )
            for number in range(num_workers)
        ]
        await asyncio.gather(*workers)
        print(scheduler.address, flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await asyncio.gather(*(one.close() for one in workers))


@contextmanager
def farm(num_workers: int, directory: Path) -> Iterator[str]:
    """Run `be_farm` in another process."""
    arguments = [str(num_workers), str(directory)]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.shipping", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


@contextmanager
def counted() -> Iterator[list[int]]:
    """Count the bytes that this process sends by dask's connections."""
    sent: list[int] = []
    write = TCP.write

    async def count(self: Any, *arguments: Any, **options: Any) -> Any:
        number = await write(self, *arguments, **options)
        sent.append(number)
        return number

    TCP.write = count
    try:
        yield sent
    finally:
        TCP.write = write


@contextmanager
def package(directory: Path, num_bytes: int) -> Iterator[Any]:
    """Write and import a package with so many bytes of data."""
    (directory / PACKAGE).mkdir()
    (directory / PACKAGE / "__init__.py").write_text("ANSWER = 42\n")
    (directory / PACKAGE / "data.bin").write_bytes(os.urandom(num_bytes))
    sys.path.insert(0, str(directory))
    importlib.invalidate_caches()
    try:
        yield importlib.import_module(PACKAGE)
    finally:
        sys.path.remove(str(directory))
        sys.modules.pop(PACKAGE, None)


def measure(num_workers: int, num_bytes: int, fileset: Any) -> Figures:
    """Ship a package to a farm, and again; let a worker join; ask the doctor."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with (
            package(directory, num_bytes) as module,
            farm(num_workers, directory) as address,
            distributed.Client(address, set_as_default=False) as client,
            ExitStack() as stack,
        ):
            site = Site(directory, client, stack)
            return _measure(site, module, num_workers, num_bytes, fileset)


def _measure(site: Site, module: Any, num_workers: int, num_bytes: int, fileset: Any) -> Figures:
    client = site.client

    def answer(_: Any) -> Any:
        return module.ANSWER, time.time()

    cargo = load_cargo(answer, Shipping(credentials=False), {})
    with counted() as sent:
        started = time.perf_counter()
        manifest = Delivery(lambda: cargo).deliver(client)
        ship_seconds = time.perf_counter() - started
    packed = cloudpickle.dumps((cloudpickle.loads, seal(manifest, cloudpickle.dumps(answer))))
    assert client.submit(make_caller(), packed).result()(0)[0] == module.ANSWER
    again_seconds = []
    for _ in range(5):
        with counted() as again:
            started = time.perf_counter()
            delivery = Delivery(partial(load_cargo, answer, Shipping(credentials=False), {}))
            delivery.deliver(client)
            delivery.close()
            again_seconds.append(time.perf_counter() - started)
    ready_seconds = _join_late(site, answer, manifest)
    runner = Runner(DaskExecutor(client), schema=None, metadata_cache=False)
    doctor_seconds, doctor_cpu_seconds = [], []
    for _ in range(5):
        cpu = client.run_on_scheduler(time.process_time) + time.process_time()
        started = time.perf_counter()
        checkup = runner.check(fileset, answer)
        doctor_seconds.append(time.perf_counter() - started)
        after = client.run_on_scheduler(time.process_time) + time.process_time()
        doctor_cpu_seconds.append(after - cpu)
        assert len(checkup.facts.workers) == num_workers + 1
    return Figures(
        num_workers,
        num_bytes,
        sum(sent),
        sum(again),
        ship_seconds,
        ready_seconds,
        statistics.median(again_seconds),
        min(doctor_seconds),
        min(doctor_cpu_seconds),
    )


def _join_late(site: Site, answer: Any, manifest: Any) -> float:
    """Let a worker process join, for which a task waits already."""

    def call(_: Any) -> Any:
        return answer(0)

    task = seal(manifest, cloudpickle.dumps((call, None)))
    future = site.client.submit(make_caller(), task, resources={"LATE": 1}, pure=False)
    site.start_worker("late", "--resources", "LATE=1")
    _, done = future.result(timeout=120)
    # the scheduler's clock is this one
    events = site.client.get_events("all")
    added = [when for when, event in events if event.get("action") == "add-worker"]
    return float(done - max(added))


def main() -> None:
    """Print the figures at full size."""
    from datasets.sample import write_sample

    with tempfile.TemporaryDirectory() as directory:
        fileset = write_sample(directory, num_events=10_000)
        print(measure(100, 1_000_000, fileset))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        asyncio.run(be_farm(int(sys.argv[1]), sys.argv[2]))
    else:
        main()
