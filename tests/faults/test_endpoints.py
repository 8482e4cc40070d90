"""Replicas on servers of which one is dead: what a whole cluster knows of them, and how many files it opens at once."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from hepdask import DaskExecutor, RecoveryPolicy, Runner
from tests import example_processors as examples
from tests.local import local_client
from tests.servers import XrdServer, require_xrootd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from distributed import Client

    from tests.conftest import NanoFiles

NUM_FILES = 8
HASTY = RecoveryPolicy(max_attempts=2, wait_seconds=0)


@pytest.fixture
def servers(served_path: Path, nano_files: NanoFiles) -> Iterator[list[XrdServer]]:
    """Two servers with the same files."""
    require_xrootd()
    data = served_path / "data"
    data.mkdir()
    for number in range(NUM_FILES):
        shutil.copy(nano_files.paths[0], data / f"copy_{number}.root")
    with (
        XrdServer(data, served_path / "one") as first,
        XrdServer(data, served_path / "two") as second,
    ):
        yield [first, second]


@pytest.fixture
def fresh_client() -> Iterator[Client]:
    """Two workers that know nothing of any server."""
    with local_client() as client:
        yield client


def fileset(servers: list[XrdServer]) -> dict[str, Any]:
    names = [f"copy_{number}.root" for number in range(NUM_FILES)]
    return {"nano": {"files": [[one.url(name) for one in servers] for name in names]}}


def test_a_dead_server_is_tried_once_a_worker(
    servers: list[XrdServer], fresh_client: Client
) -> None:
    first, second = servers
    executor = DaskExecutor(fresh_client, max_ranges_per_task=1)
    runner = Runner(executor, progress=False, metadata_cache=False, recovery=HASTY, chunksize=50)
    first.kill()
    result = runner.run(fileset(servers), "Events", examples.Weighted())
    assert result.is_complete
    endpoints = result.metrics.endpoints
    dead, alive = (one.url("").split("//")[1].rstrip("/") for one in (first, second))
    by_server = {name.split("//")[1]: counters for name, counters in endpoints.items()}
    assert by_server[alive].num_entries == NUM_FILES * 100
    # each worker has found out by itself at most, while files were inspected or when its first range was read
    assert by_server.get(dead) is None or by_server[dead].num_failed_opens <= 2
    assert len(result.metrics.served) == NUM_FILES
    assert alive in result.report()


def test_what_one_worker_knows_the_others_learn(
    servers: list[XrdServer], fresh_client: Client
) -> None:
    first, _ = servers
    first.kill()
    addresses = list(fresh_client.nthreads())
    executor = DaskExecutor(fresh_client, max_ranges_per_task=1)
    runner = Runner(executor, progress=False, metadata_cache=False, recovery=HASTY, chunksize=50)
    runner.run(fileset(servers), "Events", examples.Weighted())
    known = fresh_client.get_metadata(["hepdask-health"])
    assert set(known) <= set(addresses)
    assert any(first.url("").split("//")[1].rstrip("/") in str(one) for one in known.values())


def test_opens_are_limited_over_all_workers(servers: list[XrdServer], fresh_client: Client) -> None:
    executor = DaskExecutor(fresh_client, max_ranges_per_task=1)
    runner = Runner(
        executor, progress=False, metadata_cache=False, chunksize=50, max_opens_per_endpoint=1
    )
    result = runner.run(fileset(servers), "Events", examples.Weighted())
    assert result.is_complete
    assert result.completeness["nano"].num_entries_processed == NUM_FILES * 100
    semaphores = fresh_client.run_on_scheduler(_list_semaphores)
    assert any(name.startswith("hepdask-opens-root://") for name in semaphores)
    assert all(limit == 1 for limit in semaphores.values())


def _list_semaphores(dask_scheduler: Any) -> dict[str, int]:
    return dict(dask_scheduler.extensions["semaphores"].max_leases)
