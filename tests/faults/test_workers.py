"""Workers that die, by the processor or by others: what is lost, and who is blamed."""

from __future__ import annotations

import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import dask
import distributed
import numpy as np
import pytest

from datasets.sample import write_sample
from hepdask import DaskExecutor, LocalExecutor, ProcessDiedError, RunError, Runner
from hepdask.executors import dask_watch
from tests import example_processors as examples
from tests.local import local_client, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Client

NUM_EVENTS = 20_000


@pytest.fixture(scope="module")
def fileset(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Events that are numbered from 1 on, in one file."""
    directory = tmp_path_factory.mktemp("sample")
    return write_sample(directory, num_events=NUM_EVENTS, num_files=1, num_events_per_cluster=1_000)


@pytest.fixture(scope="module")
def client_of_all() -> Iterator[Client]:
    """Run a cluster whose workers may die; their nannies start new ones."""
    with local_client() as client:
        yield client


@pytest.fixture
def mortal_client(client_of_all: Client) -> Client:
    """Wait until two workers are there again, and their nannies know it: else they don't come back after the next death."""
    cluster = client_of_all.cluster
    cluster.scale(2)  # dask may have given some up
    wait_until(
        lambda: sum(has_started(one) for one in cluster.workers.values()) == 2, "two workers"
    )
    return client_of_all


def set_status(status: str, dask_worker: Any) -> None:
    dask_worker.status = distributed.core.Status[status]


def has_running(address: str, dask_scheduler: Any) -> bool:
    return dask_scheduler.workers[address] in dask_scheduler.running


def has_stranded(dask_scheduler: Any) -> bool:
    return any(one.loose_restrictions for one in dask_scheduler.unrunnable)


def has_started(nanny: Any) -> bool:
    return nanny.process is not None and nanny.process.status.name == "running"


def run(executor: Any, fileset: dict[str, Any], processor: Any, **options: Any) -> Any:
    options = {"chunksize": 1_000, "progress": False, "metadata_cache": False, **options}
    return Runner(executor, **options).run(fileset, processor)


@contextmanager
def at_most_deaths(client: Client, count: int) -> Iterator[None]:
    """Check how many workers go away without saying so."""
    before = num_deaths(client)
    yield
    assert num_deaths(client) - before <= count


def num_deaths(client: Client) -> int:
    events = client.get_events("all")
    return sum(event.get("action") == "remove-worker" for _, event in events)


@pytest.mark.parametrize("how", ["SIGSEGV", "exit"])
def test_one_poisonous_event_costs_that_event(
    mortal_client: Client, fileset: dict[str, Any], how: str
) -> None:
    processor = examples.DiesAt({NUM_EVENTS // 3}, how)
    executor = DaskExecutor(mortal_client)
    with at_most_deaths(mortal_client, 1):
        result = run(executor, fileset, processor, skipbadfiles=ProcessDiedError)
    check_lost(result, 1)


def test_ten_poisonous_events_cost_ten_events(
    mortal_client: Client, fileset: dict[str, Any]
) -> None:
    bad = {int(event) for event in np.linspace(5, NUM_EVENTS - 5, 10)}
    processor = examples.DiesAt(bad, "SIGKILL")
    executor = DaskExecutor(mortal_client, max_ranges_per_task=1)
    with at_most_deaths(mortal_client, 3):
        result = run(executor, fileset, processor, skipbadfiles=ProcessDiedError)
    check_lost(result, 10)


def check_lost(result: Any, num_lost: int) -> None:
    total = result.completeness.total
    assert len(result.failures) == num_lost
    assert all(failure.num_entries == 1 for failure in result.failures)
    assert {failure.kind for failure in result.failures} == {"resources"}
    assert total.num_entries_failed == num_lost
    assert total.num_entries_processed == NUM_EVENTS - num_lost
    assert result.output["entries"] == NUM_EVENTS - num_lost
    assert total.num_entries_not_reached == 0


def test_without_leave_to_skip_the_event_is_named(
    mortal_client: Client, fileset: dict[str, Any]
) -> None:
    with pytest.raises(RunError, match=r"entries \d+ to \d+ .*SIGKILL") as caught:
        run(DaskExecutor(mortal_client), fileset, examples.DiesAt({777}, "SIGKILL"))
    result = caught.value.partial_result
    assert [failure.num_entries for failure in result.failures] == [1]
    result.completeness.check()


def test_workers_that_are_killed_at_random_change_no_bit(
    mortal_client: Client, fileset: dict[str, Any]
) -> None:
    reference = run(LocalExecutor(), fileset, examples.SlowSum(0.0))
    randomly = random.Random(1)
    with ThreadPoolExecutor(1) as pool:
        executor = DaskExecutor(mortal_client, max_ranges_per_task=2)
        running = pool.submit(run, executor, fileset, examples.SlowSum(0.2))
        pause = threading.Event()
        for _ in range(4):
            pause.wait(randomly.uniform(0.5, 1.5))
            pids = list(mortal_client.run(os.getpid, on_error="ignore").values())
            if pids and not running.done():
                os.kill(randomly.choice(pids), signal.SIGKILL)
        result = running.result(timeout=200)
    assert result.is_complete
    assert (
        np.float64(result.output["sum"]).tobytes() == np.float64(reference.output["sum"]).tobytes()
    )
    assert result.output["starts"] == reference.output["starts"]


def test_tasks_that_were_meant_for_a_worker_that_is_gone_go_to_another_one(
    fileset: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_watch, "LOOK_SECONDS", 0.5)
    with (
        # without a limit of memory: a worker's own look at it would end the pause
        local_client(processes=False, memory_limit=0) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        executor = DaskExecutor(client, max_ranges_per_task=1)
        running = pool.submit(run, executor, fileset, examples.SlowSum(0.3))
        first, second = client.cluster.workers.values()
        wait_until(lambda: any("process" in key for key in list(first.data)), "a result")
        # full, when the other one ends: no worker that runs is left
        client.run(set_status, "paused", workers=[first.address])
        wait_until(lambda: not client.run_on_scheduler(has_running, first.address), "it is paused")
        client.sync(second.close)
        wait_until(lambda: client.run_on_scheduler(has_stranded), "tasks that nobody takes")
        client.run(set_status, "running", workers=[first.address])
        result = running.result(timeout=50)
    assert result.is_complete


def test_local_workers_whose_nannies_have_given_up_come_back(
    fileset: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    # how long dask waits for a nanny: shorter than any process takes to start
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "10 ms"}),
        local_client(1) as client,
    ):
        workers = client.cluster.workers
        os.kill(next(iter(workers.values())).pid, signal.SIGKILL)
        wait_until(lambda: not workers, "no worker is left")
        result = run(DaskExecutor(client), fileset, examples.SlowSum(0.0))
    assert result.is_complete
    assert "1 local workers did not come back" in caplog.text
