"""Real SLURM: workers that come late, are preempted, and die with their node."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import dask
import pytest

from hepdask import DaskExecutor, LocalExecutor, Runner
from hepdask.clusters.queues import explain
from tests import example_processors as examples
from tests.clusters.batch_servers import say
from tests.clusters.processors import CountsCalls
from tests.local import wait_until
from tests.servers import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.clusters.batch_servers import SlurmServer
    from tests.conftest import NanoFiles

pytest.importorskip("dask_jobqueue", reason="pip install 'hepdask[jobqueue]'")


@contextmanager
def on_slurm(directory: Path, **options: Any) -> Iterator[DaskExecutor]:
    chosen = {
        "queue": "short",
        "walltime": "00:10:00",
        "memory": "1 GB",
        "interface": "lo",
        "scratch": str(directory),
        "log_directory": str(directory / "logs"),
        "environment": {"PYTHONPATH": str(REPOSITORY)},
        "max_ranges_per_task": 1,
        **options,
    }
    with DaskExecutor("slurm", **chosen) as executor:
        yield executor


def run(executor: Any, nano_files: NanoFiles, processor: Any) -> Any:
    runner = Runner(executor, chunksize=10, progress=False, metadata_cache=False)
    return runner.run(nano_files.fileset, processor)


def bits(result: Any) -> bytes:
    return bytes(result.output["pt"].view(flow=True).tobytes())


@pytest.fixture(scope="module")
def reference(nano_files: NanoFiles) -> bytes:
    return bits(run(LocalExecutor(), nano_files, examples.Weighted()))


def workers_of(executor: DaskExecutor) -> list[str]:
    return list(executor._client().scheduler_info(n_workers=-1)["workers"])


def test_workers_that_come_late(
    slurm: SlurmServer, nano_files: NanoFiles, reference: bytes, tmp_path: Path
) -> None:
    for node in ("n1", "n2"):
        slurm.set_node(node, "drain")
    with on_slurm(tmp_path, workers=1) as executor, ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, executor, nano_files, examples.Weighted())
        try:
            wait_until(lambda: slurm.jobs("PD"), "a job is pending")
            wait_until(lambda: "pending (" in explain(executor._client().cluster), "SLURM says why")
            assert not running.done()
        finally:
            for node in ("n1", "n2"):
                slurm.set_node(node, "resume")
        assert bits(running.result(timeout=120)) == reference


def test_as_many_as_there_is_work_for(
    slurm: SlurmServer, nano_files: NanoFiles, reference: bytes, tmp_path: Path
) -> None:
    certificates = {"security": "temporary", "shared_directory": str(tmp_path / "certificates")}
    with on_slurm(tmp_path, minimum=0, maximum=2, cores=2, **certificates) as executor:
        assert bits(run(executor, nano_files, examples.Weighted())) == reference
        wait_until(lambda: len(workers_of(executor)) == 2, "both workers of one job")
        assert all(one.startswith("tls://") for one in workers_of(executor))
        files = list((tmp_path / "certificates").iterdir())
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert not list((tmp_path / "certificates").iterdir())


def test_a_job_that_is_preempted_is_replaced(
    slurm: SlurmServer, nano_files: NanoFiles, reference: bytes, tmp_path: Path
) -> None:
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}),
        on_slurm(tmp_path, workers=2) as executor,
        ThreadPoolExecutor(1) as pool,
    ):
        running = pool.submit(run, executor, nano_files, examples.WaitsForFile(tmp_path))
        wait_until(lambda: len(list(tmp_path.glob("begun-*"))) >= 2, "two tasks have begun")
        preempted, _ = slurm.jobs("R")
        say("scancel", preempted)
        (tmp_path / "go").touch()
        result = running.result(timeout=120)
        assert bits(result) == reference
        assert result.is_complete
        wait_until(
            lambda: len(set(slurm.jobs("R")) - {preempted}) == 2, "another job was asked for"
        )


def test_a_job_that_is_told_to_leave_hands_over_what_is_done(
    slurm: SlurmServer, nano_files: NanoFiles, reference: bytes, tmp_path: Path
) -> None:
    with on_slurm(tmp_path, workers=2) as executor, ThreadPoolExecutor(1) as pool:
        executor._client().wait_for_workers(2, timeout=60)
        running = pool.submit(run, executor, nano_files, CountsCalls(tmp_path, 200))
        # both are in the middle of a range, and hold the results of others
        wait_until(lambda: len(list(tmp_path.glob("waits-*"))) == 2, "two tasks wait")
        scancelled = slurm.jobs("R")[0]
        say("scancel", scancelled)
        wait_until(lambda: scancelled in slurm.jobs("CG"), "it was told")
        (tmp_path / "go").touch()
        assert bits(running.result(timeout=120)) == reference
    calls = Counter(path.name.partition(".")[0] for path in tmp_path.glob("call-*"))
    assert len(calls) == 29
    assert set(calls.values()) == {1}, "a range was processed twice"


def test_a_node_that_goes_down(
    slurm: SlurmServer, nano_files: NanoFiles, reference: bytes, tmp_path: Path
) -> None:
    # of this size, a node has one
    with on_slurm(tmp_path, workers=2, memory="5 GB") as executor, ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, executor, nano_files, examples.WaitsForFile(tmp_path))
        wait_until(lambda: len(list(tmp_path.glob("begun-*"))) >= 2, "two tasks have begun")
        slurm.set_node("n2", "down")
        try:
            wait_until(lambda: len(slurm.jobs("R")) == 1, "its job is gone")
            (tmp_path / "go").touch()
            assert bits(running.result(timeout=120)) == reference
        finally:
            slurm.set_node("n2", "resume")
