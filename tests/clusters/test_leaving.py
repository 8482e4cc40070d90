"""What SIGTERM does to workers of `dask worker`; `test_slurm` has the same with a real batch system."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import distributed
import pytest

from hepdask.executors.dask_clients import prepare_cluster
from tests.local import wait_until
from tests.servers import REPOSITORY, stop_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def worker_process(address: str, directory: Path, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1"]
    with subprocess.Popen(
        [*command, "--no-dashboard", "--local-directory", str(directory), *flags],
        cwd=REPOSITORY,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield process
        finally:
            stop_process(process)


@pytest.fixture
def client() -> Iterator[distributed.Client]:
    """A client of a scheduler without workers; it knows the address alone."""
    options = {"processes": False, "dashboard_address": ":0", "n_workers": 0}
    with (
        distributed.LocalCluster(protocol="tcp://", **options) as cluster,
        distributed.Client(cluster.scheduler_address, set_as_default=False) as made,
    ):
        prepare_cluster(made)
        yield made


@pytest.mark.parametrize("told", ["the nanny", "the worker", "nobody, its time is over"])
def test_results_are_handed_over(told: str, client: distributed.Client, tmp_path: Path) -> None:
    address = client.scheduler.address
    flags = ("--lifetime", "8s") if told.startswith("nobody") else ()
    with worker_process(address, tmp_path, "--name", "stays"):
        client.wait_for_workers(1, timeout=60)
        with worker_process(address, tmp_path, "--name", "leaves", *flags) as leaving:
            client.wait_for_workers(2, timeout=60)
            held = client.submit(
                os.getpid, pure=False, workers=["leaves"], allow_other_workers=True
            )
            pid = held.result(timeout=60)
            names = {one["id"]: name for name, one in client.scheduler_info()["workers"].items()}
            assert client.who_has(held)[held.key] == (names["leaves"],)
            if not flags:
                os.kill(leaving.pid if told == "the nanny" else pid, signal.SIGTERM)
            leaving.wait(60)
            wait_until(lambda: len(client.ncores()) == 1, "it is gone")
            # it was not computed again: that would give another process
            assert held.result(timeout=60) == pid
