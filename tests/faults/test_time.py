"""What takes too long: ranges that hang, workers that are stopped, tasks that are late."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from datasets.sample import write_sample
from hepdask import (
    DaskExecutor,
    LocalExecutor,
    RangeTimeoutError,
    RecoveryPolicy,
    RunError,
    Runner,
)
from hepdask import watch as watch_module
from hepdask.executors import dask_run, dask_watch
from hepdask.tree import Node
from tests import example_processors as examples
from tests.local import local_client

if TYPE_CHECKING:
    from pathlib import Path

    from distributed import Client

NUM_EVENTS = 20_000
#: Long enough for ranges that do not hang, on a machine with other things to do.
HASTY = RecoveryPolicy(max_range_seconds=3.0, wait_seconds=0, max_wait_seconds=0)
UNREACHABLE = RecoveryPolicy(
    max_attempts=2, wait_seconds=0, kinds={ConnectionResetError: "transient"}
)


@pytest.fixture(scope="module")
def fileset(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Events that are numbered from 1 on, in one file."""
    directory = tmp_path_factory.mktemp("sample")
    return write_sample(directory, num_events=NUM_EVENTS, num_files=1, num_events_per_cluster=1_000)


def run(executor: Any, fileset: dict[str, Any], processor: Any, **options: Any) -> Any:
    options = {"chunksize": 1_000, "progress": False, "metadata_cache": False, **options}
    return Runner(executor, **options).run(fileset, processor)


def check_sum(result: Any, fileset: dict[str, Any]) -> None:
    reference = run(LocalExecutor(), fileset, examples.SlowSum(0.0))
    assert result.is_complete
    sums = [np.float64(one.output["sum"]).tobytes() for one in (result, reference)]
    assert sums[0] == sums[1]
    assert result.output["starts"] == reference.output["starts"]


def test_an_endless_loop_ends_here(fileset: dict[str, Any]) -> None:
    processor = examples.HangsAt(7_500, "loop")
    result = run(
        LocalExecutor(), fileset, processor, recovery=HASTY, skipbadfiles=RangeTimeoutError
    )
    check_late(result)


def test_an_endless_loop_costs_its_range(client: Client, fileset: dict[str, Any]) -> None:
    check_hanging(client, fileset, "loop")


def test_a_range_that_hangs_costs_that_range(fileset: dict[str, Any]) -> None:
    with local_client() as client:
        client.run(set_grace, 0.5)
        check_hanging(client, fileset, "lock")


def check_hanging(client: Client, fileset: dict[str, Any], how: str) -> None:
    executor = DaskExecutor(client, max_ranges_per_task=2)
    processor = examples.HangsAt(7_500, how)
    check_late(run(executor, fileset, processor, recovery=HASTY, skipbadfiles=RangeTimeoutError))


def set_grace(seconds: float) -> None:
    watch_module.GRACE_SECONDS = seconds


def check_late(result: Any) -> None:
    (failure,) = result.failures
    assert (failure.entry_start, failure.entry_stop) == (7_000, 8_000)
    assert failure.kind == "transient"
    assert "max_range_seconds" in failure.message
    assert result.completeness.total.num_entries_processed == NUM_EVENTS - 1_000
    assert result.output["entries"] == NUM_EVENTS - 1_000


def test_a_hang_that_is_not_skipped_ends_the_run(client: Client, fileset: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=r"entries 7000 to 8000 .*RangeTimeoutError"):
        run(DaskExecutor(client), fileset, examples.HangsAt(7_500, "loop"), recovery=HASTY)


def worker_pids(client: Client) -> dict[str, int]:
    return dict(client.run(os.getpid))


def test_a_worker_that_is_stopped_is_replaced(
    fileset: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_watch, "LOOK_SECONDS", 0.5)
    with local_client() as client, ThreadPoolExecutor(1) as pool:
        pids = worker_pids(client)
        processor = examples.SlowSum(0.05, log_directory=tmp_path)
        policy = RecoveryPolicy(max_silent_seconds=3)
        executor = DaskExecutor(client, max_ranges_per_task=1)
        running = pool.submit(run, executor, fileset, processor, recovery=policy)
        stopped = wait_for_log(tmp_path, 4)
        os.kill(stopped, signal.SIGSTOP)
        result = running.result(timeout=120)
        # its nanny has replaced it
        deadline = time.monotonic() + 60
        while set(worker_pids(client).values()) == set(pids.values()):
            assert time.monotonic() < deadline
            threading.Event().wait(0.2)
        assert stopped not in worker_pids(client).values()
    check_sum(result, fileset)


def wait_for_log(directory: Path, count: int) -> int:
    """Wait for so many calls of a processor, and name the process of the last one."""
    deadline = time.monotonic() + 60
    while len(found := list(directory.glob("*-*"))) < count:
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)
    return int(max(found, key=lambda path: path.stat().st_mtime_ns).name.split("-")[0])


class NeverQuiet(queue.SimpleQueue[Any]):
    """Between the news that matter, some of a task that was replaced, again and again: as if a large cluster always had some."""

    def get(self, *_: Any, **__: Any) -> Any:
        with suppress(queue.Empty):
            return self.get_nowait()
        threading.Event().wait(0.002)
        return Node(0, 0), object()


@pytest.mark.parametrize("news", [queue.SimpleQueue, NeverQuiet])
def test_a_late_task_is_run_a_second_time(
    client: Client,
    fileset: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    news: type,
) -> None:
    """One range waits for a file where it is tried first, and is quick elsewhere."""
    monkeypatch.setattr(dask_run, "queue", SimpleNamespace(SimpleQueue=news, Empty=queue.Empty))
    monkeypatch.setattr(dask_watch, "LOOK_SECONDS", 0.3)
    monkeypatch.setattr(dask_watch, "MIN_LATE_SECONDS", 1.0)
    processor = examples.LateOnce(7_000, tmp_path)
    result = run(DaskExecutor(client, max_ranges_per_task=1), fileset, processor)
    (tmp_path / "go").touch()
    assert len(list(tmp_path.glob("late-*"))) == 2
    assert result.metrics.total.num_ranges == 20
    check_sum(result, fileset)


def test_what_one_worker_cannot_reach_another_one_tries(
    client: Client, fileset: dict[str, Any], tmp_path: Path
) -> None:
    processor = examples.UnreachableFromFirst(7_000, tmp_path)
    executor = DaskExecutor(client, max_ranges_per_task=1)
    result = run(executor, fileset, processor, recovery=UNREACHABLE)
    pids = {path.name for path in tmp_path.glob("*")}
    assert len(pids) == 2
    check_sum(result, fileset)


def test_what_no_worker_can_reach_is_a_failure(client: Client, fileset: dict[str, Any]) -> None:
    processor = examples.RaisesAtEntry(7_000, ConnectionResetError)
    executor = DaskExecutor(client, max_ranges_per_task=4)
    with pytest.raises(RunError, match="entries 7000 to 8000") as caught:
        run(executor, fileset, processor, recovery=UNREACHABLE)
    (failure,) = caught.value.partial_result.failures
    assert failure.kind == "transient"
