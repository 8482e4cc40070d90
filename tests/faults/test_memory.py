"""Ranges that need more memory than their worker has, and code that never frees it: on workers that have a limit."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from datasets.sample import write_sample
from hepdask import DaskExecutor, LocalExecutor, RunError, Runner
from hepdask.executors import dask_watch
from tests import example_processors as examples
from tests.local import local_client

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from distributed import Client

    from tests.conftest import NanoFiles

NUM_EVENTS = 2_000
#: A worker that has read a range has about 200 MB.
LIMIT_BYTES = 400_000_000


@pytest.fixture(scope="module")
def fileset(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Events that are numbered from 1 on, in one file."""
    directory = tmp_path_factory.mktemp("sample")
    return write_sample(directory, num_events=NUM_EVENTS, num_files=1, num_events_per_cluster=50)


@pytest.fixture(scope="module")
def small_client() -> Iterator[Client]:
    """Run a cluster whose nannies end workers that need too much, and start new ones for the next test."""
    with local_client(memory_limit=LIMIT_BYTES) as client:
        yield client


def run(executor: Any, fileset: dict[str, Any], processor: Any, **options: Any) -> Any:
    options = {"chunksize": 1_000, "progress": False, "metadata_cache": False, **options}
    return Runner(executor, **options).run(fileset, "Events", processor)


def num_deaths(client: Client) -> int:
    """Count the workers that went away without saying so."""
    events = client.get_events("all")
    return sum(event.get("action") == "remove-worker" for _, event in events)


def read_calls(directory: Path) -> list[tuple[int, str, int, int]]:
    """Read what processors have written: process, file, first entry, and that after the last."""
    lines = (directory / "calls").read_text().splitlines()
    return [
        (int(pid), name, int(start), int(stop)) for pid, name, start, stop in map(str.split, lines)
    ]


def check_complete(result: Any) -> None:
    assert result.is_complete
    assert not result.failures
    assert result.output == {"entries": NUM_EVENTS, "sum": NUM_EVENTS * (NUM_EVENTS + 1) // 2}


def test_ranges_that_are_ten_times_too_large(
    small_client: Client, fileset: dict[str, Any], tmp_path: Path
) -> None:
    processor = examples.Hungry(10 * LIMIT_BYTES // 1_000, tmp_path)
    before = num_deaths(small_client)
    # one task, so that it is seen what its second range learns from the first
    result = run(DaskExecutor(small_client, max_ranges_per_task=2), fileset, processor)
    assert num_deaths(small_client) - before <= 3
    check_complete(result)
    sizes: dict[int, list[int]] = {0: [], 1_000: []}
    for _, _, start, stop in read_calls(tmp_path):
        sizes[start // 1_000 * 1_000].append(stop - start)
    # at once to be killed, then from the whole down to what fits; the second one starts with that
    assert sizes[0][:2] == [1_000, 1_000]
    assert max(sizes[1_000]) <= 63
    assert sum(sizes[1_000]) == 1_000


def test_a_failed_allocation_makes_the_ranges_of_its_file_smaller(
    client: Client, nano_files: NanoFiles, tmp_path: Path
) -> None:
    processor = examples.AsksTooMuch(20, tmp_path, files="nano_1")
    executor = DaskExecutor(client, max_ranges_per_task=20)
    result = run(executor, nano_files.fileset, processor, chunksize=50, align_clusters=True)
    assert result.is_complete
    assert result.output["entries"] == 289
    calls = read_calls(tmp_path)
    sizes = {
        name: [stop - start for _, one, start, stop in calls if one == name]
        for name in ("nano_0.root", "nano_1.root", "nano_2.root")
    }
    assert sizes["nano_0.root"] == [50, 50]
    assert sizes["nano_2.root"] == [40]
    # 150 entries: the first 50 show what fits, the others are not tried at that size
    assert sizes["nano_1.root"][:4] == [50, 25, 12, 13]
    assert max(sizes["nano_1.root"][4:]) <= 24


def test_one_event_that_allocates_until_it_is_killed(
    small_client: Client, fileset: dict[str, Any]
) -> None:
    processor = examples.DiesAt({777}, "allocate")
    before = num_deaths(small_client)
    executor = DaskExecutor(small_client)
    result = run(executor, fileset, processor, chunksize=200, skipbadfiles=MemoryError)
    assert num_deaths(small_client) - before == 1
    (failure,) = result.failures
    assert (failure.entry_start, failure.entry_stop) == (776, 777)
    assert failure.kind == "resources"
    assert "each range may allocate 381.47 MiB, the memory_limit of its worker" in failure.message
    assert result.output["entries"] == NUM_EVENTS - 1


def test_code_that_never_frees_its_memory(
    small_client: Client,
    fileset: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dask_watch, "LOOK_SECONDS", 0.5)
    monkeypatch.setattr(dask_watch, "PAUSED_SECONDS", 1.0)
    # 40 MB a range: workers are paused at 320 MB, as they would be for ever
    processor = examples.Leaky(400_000, tmp_path)
    executor = DaskExecutor(small_client, max_ranges_per_task=1)
    before = set(small_client.run(os.getpid).values())
    result = run(executor, fileset, processor, chunksize=100)
    after = set(small_client.run(os.getpid).values())
    check_complete(result)
    assert after != before
    # later ones run in children, which are replaced when they have kept half of the limit
    processes = {pid for pid, _, _, _ in read_calls(tmp_path)} - before - after
    assert len(processes) >= 1


def test_workers_that_are_full_for_ever_end_the_run(
    fileset: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_watch, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(dask_watch, "STUCK_SECONDS", 0.5)
    # so that what is known of the file is in the cache: to inspect it would be a task, too
    run(LocalExecutor(), fileset, examples.SlowSum(0.0), metadata_cache=True)
    # a worker in this process, which is larger already
    with local_client(1, processes=False, memory_limit=50_000_000) as client:
        wait_until_paused(client)
        with pytest.raises(RunError, match="paused all workers") as caught:
            run(DaskExecutor(client), fileset, examples.SlowSum(0.0), metadata_cache=True)
    total = caught.value.partial_result.completeness.total
    assert total.num_entries_not_reached == NUM_EVENTS


def wait_until_paused(client: Client) -> None:
    pause = threading.Event()
    end = time.monotonic() + 60
    while {one["status"] for one in client.scheduler_info()["workers"].values()} != {"paused"}:
        assert time.monotonic() < end
        pause.wait(0.1)
