"""What happens before the first range is processed: files that hang or kill, a cluster that is lost, Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from hepdask import (
    DaskExecutor,
    LocalExecutor,
    ProcessDiedError,
    RangeTimeoutError,
    RecoveryPolicy,
    RunError,
    Runner,
)
from hepdask import watch as watch_module
from hepdask.executors import dask_watch
from hepdask.executors.dask_map import DaskMap
from hepdask.executors.dask_run import DaskRun
from hepdask.fileset import load_fileset
from hepdask.metadata import MetadataCache
from tests import example_processors as examples
from tests.faults.test_scheduler import separate_cluster
from tests.local import local_client, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from distributed import Client

    from hepdask import RunResult
    from hepdask.fileset import InputFile
    from tests.conftest import NanoFiles

NUM_EVENTS = 289


@pytest.fixture
def mortal_client() -> Iterator[Client]:
    """Run a cluster of its own, whose workers may die or hang: the next test needs two that do neither."""
    with local_client() as client:
        yield client


@pytest.fixture
def hanging(nano_files: NanoFiles, tmp_path: Path) -> dict[str, Any]:
    """Three good files, and one whose opening never ends: nobody writes into that pipe."""
    pipe = tmp_path / "pipe.root"
    os.mkfifo(pipe)
    first, *others = map(str, nano_files.paths)
    return {"nano": [first, str(pipe), *others]}


@contextmanager
def freed(fileset: dict[str, Any]) -> Iterator[None]:
    """Let whoever waits for the pipe go on, at last."""
    try:
        yield
    finally:
        writer = os.open(fileset["nano"][1], os.O_RDWR | os.O_NONBLOCK)
        threading.Event().wait(0.2)
        os.close(writer)


def run(executor: Any, fileset: Any, **options: Any) -> Any:
    options = {"chunksize": 50, "progress": False, "metadata_cache": False, **options}
    return Runner(executor, **options).run(fileset, "Events", examples.Weighted())


def num_deaths(client: Client) -> int:
    events = client.get_events("all")
    return sum(event.get("action") == "remove-worker" for _, event in events)


def test_a_file_whose_opening_hangs_costs_that_file(
    mortal_client: Client, hanging: dict[str, Any]
) -> None:
    mortal_client.run(set_grace, 0.2)
    before = num_deaths(mortal_client)
    result = run(
        DaskExecutor(mortal_client),
        hanging,
        recovery=RecoveryPolicy(max_range_seconds=2.0),
        skipbadfiles=RangeTimeoutError,
    )
    (failure,) = result.failures
    assert failure.file_path == hanging["nano"][1]
    assert (failure.kind, failure.entry_start) == ("transient", None)
    assert "max_range_seconds" in failure.message
    assert result.completeness.total.num_entries_processed == NUM_EVENTS
    # nothing but its end frees a process; the second time it hangs in a child process
    assert num_deaths(mortal_client) - before == 1


def set_grace(seconds: float) -> None:
    watch_module.GRACE_SECONDS = seconds


def die_at(items: Sequence[int]) -> list[int]:
    """Double numbers; two of them kill."""
    if {3, 17} & set(items):
        signal.raise_signal(signal.SIGSEGV)
    return [2 * one for one in items]


def test_what_kills_its_worker_costs_itself(mortal_client: Client) -> None:
    before = num_deaths(mortal_client)
    executor = DaskExecutor(mortal_client)
    results = executor.map(die_at, range(40), name="die", advance=lambda _: None)
    assert [one for one in results if not isinstance(one, BaseException)] == [
        2 * number for number in range(40) if number not in (3, 17)
    ]
    assert all(isinstance(results[one], ProcessDiedError) for one in (3, 17))
    assert "this file kills its worker" in str(results[3])
    assert num_deaths(mortal_client) - before <= 3


@pytest.mark.parametrize("kind", [DaskMap, DaskRun], ids=["files", "ranges"])
def test_results_that_are_lost_before_anybody_looks_are_made_again(
    mortal_client: Client, nano_files: NanoFiles, monkeypatch: pytest.MonkeyPatch, kind: type[Any]
) -> None:
    wait = kind.wait

    def wait_late(self: Any, *arguments: Any) -> Any:
        futures = self._futures if kind is DaskMap else list(self._graph.futures.values())
        wait_until(lambda: all(one.done() for one in futures), "all are done", 60)
        for pid in mortal_client.run(os.getpid).values():
            os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda: "finished" not in {one.status for one in futures}, "the results are lost", 60
        )
        assert "lost" in {one.status for one in futures}
        return wait(self, *arguments)

    monkeypatch.setattr(kind, "wait", wait_late)
    fileset = {"nano": [str(path) for path in nano_files.paths]}
    result = run(DaskExecutor(mortal_client), fileset)
    assert result.is_complete
    assert result.completeness.total.num_entries_processed == NUM_EVENTS


def test_a_worker_that_is_stopped_is_replaced(
    mortal_client: Client, hanging: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_watch, "LOOK_SECONDS", 0.3)
    policy = RecoveryPolicy(max_silent_seconds=2.0, max_range_seconds=6.0)
    pids = dict(mortal_client.run(os.getpid))
    with ThreadPoolExecutor(1) as pool:
        executor = DaskExecutor(mortal_client)
        running = pool.submit(
            run, executor, hanging, recovery=policy, skipbadfiles=RangeTimeoutError
        )
        os.kill(pids[wait_for_hanging(mortal_client)], signal.SIGSTOP)
        result = running.result(timeout=60)
    assert [one.file_path for one in result.failures] == [hanging["nano"][1]]
    assert result.completeness.total.num_entries_processed == NUM_EVENTS


def wait_for_hanging(client: Client) -> str:
    """Wait until there is nothing left to do but the file that hangs, and name its worker."""
    found: list[str] = []

    def is_alone() -> bool:
        processing = {one: keys for one, keys in client.processing().items() if keys}
        found[:] = processing
        keys = [key for some in processing.values() for key in some]
        return len(keys) == 1 and keys[0].startswith("inspect-")

    # a moment later, as tasks are not seen before they are sent out
    wait_until(
        lambda: is_alone() and not threading.Event().wait(0.3) and is_alone(),
        "one worker is left",
        60,
    )
    return found[0]


@pytest.mark.parametrize("how", ["scheduler is killed", "client is closed"])
def test_a_cluster_that_is_lost_ends_the_run(
    hanging: dict[str, Any], tmp_path: Path, how: str
) -> None:
    cache = tmp_path / "cache"
    with separate_cluster(tmp_path) as (client, scheduler), ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, DaskExecutor(client), hanging, metadata_cache=cache)
        wait_for_hanging(client)
        if how == "client is closed":
            client.close()
        else:
            scheduler.send_signal(signal.SIGKILL)
        with pytest.raises(RunError, match="scheduler was lost") as caught:
            running.result(timeout=60)
    check_known(caught.value.partial_result, hanging, cache)


def check_known(result: RunResult, hanging: dict[str, Any], cache: Path) -> None:
    """Check that the good files are known, and none of the four is reached."""
    total = result.completeness.total
    assert (total.num_files_not_reached, total.num_files_unknown) == (4, 1)
    assert total.num_entries_requested == total.num_entries_not_reached == NUM_EVENTS
    good = [hanging["nano"][0], *hanging["nano"][2:]]
    again = run(LocalExecutor(), {"nano": good}, metadata_cache=cache)
    assert again.is_complete
    assert again.metrics.total.num_entries == NUM_EVENTS
    assert len(MetadataCache(cache).lookup(load_files(good))) == 3


def load_files(paths: list[str]) -> list[InputFile]:
    return list(load_fileset({"nano": paths}, "Events").files)


@pytest.mark.parametrize("num_interrupts", [1, 2])
def test_ctrl_c_keeps_what_is_known(
    mortal_client: Client, hanging: dict[str, Any], tmp_path: Path, num_interrupts: int
) -> None:
    cache = tmp_path / "cache"

    def interrupt() -> None:
        wait_for_hanging(mortal_client)
        for _ in range(num_interrupts):
            os.kill(os.getpid(), signal.SIGINT)

    with freed(hanging), ThreadPoolExecutor(1) as pool:
        interrupting = pool.submit(interrupt)
        with pytest.raises(RunError, match="interrupted") as caught:
            run(DaskExecutor(mortal_client), hanging, metadata_cache=cache)
        interrupting.result(timeout=10)
    check_known(caught.value.partial_result, hanging, cache)


def test_ctrl_c_ends_an_inspection_here(hanging: dict[str, Any], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first, pipe, *others = hanging["nano"]
    hanging = {"nano": [first, *others, pipe]}
    timers = [
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)) for seconds in (1.5, 2.0)
    ]
    for timer in timers:
        timer.start()
    with pytest.raises(RunError, match="interrupted") as caught:
        run(LocalExecutor(), hanging, metadata_cache=cache)
    for timer in timers:
        timer.join()
    check_known(caught.value.partial_result, {"nano": [first, pipe, *others]}, cache)
