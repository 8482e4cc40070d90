"""A scheduler that is lost, a client that is closed: the run ends, says so, and the store has what was done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import distributed
import numpy as np
import pytest

from datasets.sample import write_sample
from hepdask import DaskExecutor, LocalExecutor, RunError, Runner
from tests import example_processors as examples
from tests.local import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from distributed import Client

NUM_EVENTS = 20_000
NUM_RANGES = 20


@pytest.fixture(scope="module")
def fileset(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Events that are numbered from 1 on, in one file."""
    directory = tmp_path_factory.mktemp("sample")
    return write_sample(directory, num_events=NUM_EVENTS, num_files=1, num_events_per_cluster=1_000)


@contextmanager
def separate_cluster(directory: Path) -> Iterator[tuple[Client, subprocess.Popen[bytes]]]:
    """Run a scheduler and two workers as processes of their own."""
    file = directory / "scheduler.json"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0"]
    with subprocess.Popen(
        [*command, "--no-dashboard", "--host", "127.0.0.1", "--scheduler-file", str(file)],
        stderr=subprocess.DEVNULL,
    ) as scheduler:
        wait_until(file.exists, "the scheduler says its address", 60)
        worker_command = [sys.executable, "-m", "distributed.cli.dask_worker", "--nthreads", "1"]
        worker = [*worker_command, "--no-dashboard", "--scheduler-file", str(file)]
        workers = [
            subprocess.Popen(
                [*worker, "--local-directory", str(directory), "--death-timeout", "10"],
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.getcwd()},  # noqa: PTH109
            )
            for _ in range(2)
        ]
        client = distributed.Client(scheduler_file=str(file), set_as_default=False, timeout=10)
        try:
            client.wait_for_workers(2, timeout=60)
            yield client, scheduler
        finally:
            for process in (*workers, scheduler):
                process.kill()
            client.close(timeout=1)
            for process in workers:
                process.wait()


def run(executor: Any, fileset: dict[str, Any], processor: Any, **options: Any) -> Any:
    options = {"chunksize": 1_000, "progress": False, "metadata_cache": False, **options}
    return Runner(executor, **options).run(fileset, processor)


def check_sum(result: Any, fileset: dict[str, Any]) -> None:
    reference = run(LocalExecutor(), fileset, examples.SlowSum(0.0))
    assert result.is_complete
    sums = [np.float64(one.output["sum"]).tobytes() for one in (result, reference)]
    assert sums[0] == sums[1]


@pytest.mark.parametrize("how", ["scheduler is killed", "client is closed"])
def test_what_was_done_is_in_the_error_and_in_the_store(
    fileset: dict[str, Any], tmp_path: Path, how: str
) -> None:
    log, store = tmp_path / "log", tmp_path / "store"
    log.mkdir()
    processor = examples.SlowSum(0.3, log_directory=log)
    with separate_cluster(tmp_path) as (client, scheduler), ThreadPoolExecutor(1) as pool:
        executor = DaskExecutor(client, max_ranges_per_task=1)
        running = pool.submit(run, executor, fileset, processor, store=store)
        wait_until(
            lambda: len(list(log.iterdir())) >= NUM_RANGES // 2, "half of the ranges have begun", 60
        )
        if how == "client is closed":
            client.close()
        else:
            scheduler.send_signal(signal.SIGKILL)
        with pytest.raises(RunError, match="scheduler was lost") as caught:
            running.result(timeout=60)
    partial = caught.value.partial_result
    total = partial.completeness.total
    assert total.num_entries_requested == NUM_EVENTS
    assert NUM_EVENTS // 4 <= total.num_entries_processed < NUM_EVENTS
    assert len(partial.output["starts"]) * 1_000 == total.num_entries_processed
    assert str(store) in str(caught.value)
    result = run(LocalExecutor(), fileset, processor, store=store)
    stored = result.metrics.total.num_stored_ranges
    assert stored >= total.num_entries_processed // 1_000
    assert result.metrics.total.num_ranges == NUM_RANGES - stored
    check_sum(result, fileset)


def test_without_a_store_the_run_ends_all_the_same(fileset: dict[str, Any], tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.mkdir()
    processor = examples.SlowSum(0.3, log_directory=log)
    with separate_cluster(tmp_path) as (client, scheduler), ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, DaskExecutor(client), fileset, processor)
        wait_until(lambda: len(list(log.iterdir())) >= 4, "four ranges have begun", 60)
        scheduler.send_signal(signal.SIGKILL)
        with pytest.raises(RunError, match="scheduler was lost") as caught:
            running.result(timeout=60)
    assert caught.value.partial_result.completeness.total.num_entries_processed < NUM_EVENTS
