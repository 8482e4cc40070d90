"""Nannies of local clusters are kept while a run is on, and started again where they are gone nevertheless."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING, Any

import dask
import distributed

from hepdask.executors.dask_local import keeping_nannies, start_again
from tests.local import local_client

if TYPE_CHECKING:
    from distributed import Client

KEY = "distributed.deploy.lost-worker-timeout"


def test_nannies_are_kept_as_long_as_any_run_is_on(client: Client) -> None:
    before, barrier = dask.config.get(KEY), Barrier(2, timeout=10)
    found: list[Any] = []

    def run(seconds: float) -> None:
        with keeping_nannies(client):
            barrier.wait()
            time.sleep(seconds)
            found.append(dask.config.get(KEY))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, [0.0, 0.1]))
    assert found == ["1 day", "1 day"]
    assert dask.config.get(KEY) == before


def test_nothing_is_touched_elsewhere(client: Client) -> None:
    before = dask.config.get(KEY)
    with distributed.Client(client.scheduler.address, set_as_default=False) as other:
        with keeping_nannies(other):
            assert dask.config.get(KEY) == before
        assert start_again(other, set()) == set()


def test_a_nanny_that_has_ended_is_started_again() -> None:
    with local_client(1) as client:
        assert start_again(client, set()) == set()
        client.sync(client.cluster.workers[0].close)
        assert start_again(client, set()) == {0}
        client.wait_for_workers(1, timeout=30)
        end = time.monotonic() + 30
        while start_again(client, {0}):  # the cluster waits until the nanny has started, too
            assert time.monotonic() < end
            time.sleep(0.05)
