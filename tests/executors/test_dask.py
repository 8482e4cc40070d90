"""What only a cluster can do: come late, leave early, be shared, be asynchronous."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dask
import distributed
import numpy as np
import pytest

from hepdask import DaskExecutor, ExecutorError, LocalExecutor, OptionError, RunError, Runner
from hepdask.executors.dask_deaths import DONE_AGAIN
from hepdask.executors.dask_tasks import _find_following
from tests import example_processors as examples

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from distributed import Client, LocalCluster

    from tests.conftest import NanoFiles


def run(executor: Any, nano_files: NanoFiles, processor: Any, **options: Any) -> Any:
    options = {"chunksize": 10, "progress": False, "metadata_cache": False, **options}
    return Runner(executor, **options).run(nano_files.fileset, processor)


@contextmanager
def small_cluster(n_workers: int, **options: Any) -> Iterator[tuple[LocalCluster, Client]]:
    """Run a cluster of its own, whose workers a test may kill."""
    with (
        distributed.LocalCluster(
            n_workers=n_workers, threads_per_worker=1, dashboard_address=":0", **options
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield cluster, client


@pytest.fixture(scope="module")
def reference(nano_files: NanoFiles) -> bytes:
    return pt_bytes(run(LocalExecutor(), nano_files, examples.Weighted()))


def pt_bytes(result: Any) -> bytes:
    return bytes(np.ascontiguousarray(result.output["pt"].view(flow=True)).tobytes())


def test_workers_may_come_late_and_leave(
    nano_files: NanoFiles, reference: bytes, tmp_path: Path
) -> None:
    with small_cluster(0) as (cluster, client), ThreadPoolExecutor(1) as pool:
        executor = DaskExecutor(client, max_ranges_per_task=2)
        running = pool.submit(run, executor, nano_files, examples.WaitsForFile(tmp_path))
        cluster.scale(1)
        while not list(tmp_path.glob("begun-*")):
            assert not running.done(), running.result()
            threading.Event().wait(0.02)
        cluster.scale(2)  # joins in the middle of the run
        client.wait_for_workers(2)
        (tmp_path / "go").touch()
        assert pt_bytes(running.result(timeout=120)) == reference


def test_adaptive_clusters(nano_files: NanoFiles, reference: bytes) -> None:
    with small_cluster(0) as (cluster, client):
        cluster.adapt(minimum=0, maximum=2, interval="100ms", wait_count=1)
        for _ in range(2):
            assert pt_bytes(run(DaskExecutor(client), nano_files, examples.Weighted())) == reference


def test_one_client_runs_several_at_a_time(
    client: Client, nano_files: NanoFiles, reference: bytes
) -> None:
    executor = DaskExecutor(client, max_ranges_per_task=3)
    with ThreadPoolExecutor(3) as pool:
        good = [pool.submit(run, executor, nano_files, examples.Weighted()) for _ in range(2)]
        bad = pool.submit(run, executor, nano_files, examples.RaisesAt(42))
        for one in good:  # the run that is stopped does not stop its neighbours
            assert pt_bytes(one.result(timeout=120)) == reference
        with pytest.raises(RunError, match="event 42"):
            bad.result(timeout=120)


def test_clusters_and_addresses_are_as_good_as_clients(
    cluster: LocalCluster, nano_files: NanoFiles, reference: bytes
) -> None:
    for given in (cluster, cluster.scheduler_address):
        with DaskExecutor(given) as executor:
            assert pt_bytes(run(executor, nano_files, examples.Weighted())) == reference
            assert pt_bytes(run(executor, nano_files, examples.Weighted())) == reference


def test_runs_that_begin_at_a_time_make_one_cluster(
    nano_files: NanoFiles, reference: bytes
) -> None:
    both_make_one = threading.Barrier(2)
    made_two = threading.Event()

    def make() -> LocalCluster:
        with suppress(threading.BrokenBarrierError):
            both_make_one.wait(timeout=0.5)
            made_two.set()
        return distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0")

    with DaskExecutor(make) as executor, ThreadPoolExecutor(2) as pool:
        running = [pool.submit(run, executor, nano_files, examples.Weighted()) for _ in range(2)]
        for one in running:
            assert pt_bytes(one.result(timeout=120)) == reference
    assert not made_two.is_set()


def test_without_a_client_that_of_the_session_is_used(
    client: Client, nano_files: NanoFiles, reference: bytes
) -> None:
    executor = DaskExecutor()
    with client.as_current():
        assert pt_bytes(run(executor, nano_files, examples.Weighted())) == reference
    executor.close()
    assert client.status == "running"


def test_an_address_in_the_configuration_is_used(
    cluster: LocalCluster, nano_files: NanoFiles, reference: bytes
) -> None:
    with (
        dask.config.set({"scheduler-address": cluster.scheduler_address}),
        DaskExecutor() as executor,
    ):
        assert pt_bytes(run(executor, nano_files, examples.Weighted())) == reference


def test_an_asynchronous_client_gives_an_awaitable(
    cluster: LocalCluster, nano_files: NanoFiles, reference: bytes
) -> None:
    async def session() -> Any:
        async with distributed.Client(
            cluster.scheduler_address, asynchronous=True, set_as_default=False
        ) as client:
            with DaskExecutor(client) as executor:
                runner = Runner(
                    executor, chunksize=10, progress=False, metadata_cache=False, savemetrics=True
                )
                output, metrics = await runner(nano_files.fileset, examples.Weighted())
                assert metrics["entries"] == 289
                return output

    output = asyncio.run(session())
    assert output["pt"].view(flow=True).tobytes() == reference


def test_an_asynchronous_cluster_in_the_same_event_loop(
    nano_files: NanoFiles, reference: bytes
) -> None:
    async def session() -> Any:
        async with (
            distributed.LocalCluster(
                n_workers=1, threads_per_worker=1, dashboard_address=":0", asynchronous=True
            ) as cluster,
            distributed.Client(cluster, asynchronous=True, set_as_default=False) as client,
        ):
            executor = DaskExecutor(client)
            runner = Runner(executor, chunksize=10, progress=False, metadata_cache=False)
            output = await runner(nano_files.fileset, examples.Weighted())
            await asyncio.to_thread(executor.close)
            return output

    assert asyncio.run(session())["pt"].view(flow=True).tobytes() == reference


def test_resources_reach_the_tasks(nano_files: NanoFiles) -> None:
    workers = {
        "plain": {"cls": distributed.Nanny, "options": {"nthreads": 1}},
        "gpu": {"cls": distributed.Nanny, "options": {"nthreads": 1, "resources": {"GPU": 1}}},
    }
    scheduler = {"cls": distributed.Scheduler, "options": {"dashboard_address": ":0", "port": 0}}
    with (
        distributed.SpecCluster(workers=workers, scheduler=scheduler) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        executor = DaskExecutor(client, resources={"GPU": 1}, max_ranges_per_task=1)
        assert run(executor, nano_files, examples.NamesResources()).output == {"workers": {"gpu"}}


def _describe_tasks(dask_scheduler: Any) -> dict[str, Any]:
    return {
        str(key): (state.priority, state.retries, (state.annotations or {}).get(DONE_AGAIN))
        for key, state in dask_scheduler.tasks.items()
    }


def test_tasks_have_readable_keys_retries_and_priority(
    client: Client, nano_files: NanoFiles, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(1) as pool:
        executor = DaskExecutor(client, retries=7, priority=5, max_ranges_per_task=5)
        running = pool.submit(run, executor, nano_files, examples.WaitsForFile(tmp_path))
        while not list(tmp_path.glob("begun-*")):
            assert not running.done(), running.result()
            threading.Event().wait(0.02)
        tasks = client.run_on_scheduler(_describe_tasks)
        plugins = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.plugins))
        (tmp_path / "go").touch()
        running.result(timeout=120)
    # tasks that have inspected files may not be forgotten yet
    prefixes = {key.split("-")[0] for key in tasks} - {"inspect"}
    assert prefixes == {"work", "process", "merge"}
    waiting = {key: state for key, state in tasks.items() if key.startswith("process")}
    assert len(waiting) > 3
    # in the order of the tree, and none before anything of the next higher priority
    priorities = [state[0] for _, state in sorted(waiting.items())]
    assert priorities == sorted(priorities)
    assert all(-5 <= priority[0] < -4.4 for priority in priorities)
    assert tasks[next(key for key in tasks if key.startswith("work"))][0][0] == -5
    assert {retries for _, retries, _ in waiting.values()} == {7}
    # done again, they come after these, and before anything of the next lower priority
    assert {less for *_, less in waiting.values()} == {0.5}
    assert "hepdask-deaths" in plugins


def test_a_task_knows_the_ranges_of_the_next_one(
    client: Client, nano_files: NanoFiles, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(1) as pool:
        executor = DaskExecutor(client, max_ranges_per_task=1)
        running = pool.submit(run, executor, nano_files, examples.WaitsForFile(tmp_path))
        while len(begun := list(tmp_path.glob("begun-*"))) < len(client.nthreads()):
            assert not running.done(), running.result()
            threading.Event().wait(0.02)
        found = client.run(_look_for_following)
        (tmp_path / "go").touch()
        running.result(timeout=120)
    starts = {f"begun-{one.file.file_path[-11:-5]}-{one.entry_start}" for one, *_ in found.values()}
    assert len(starts) == len(client.nthreads())
    assert starts.isdisjoint(path.name for path in begun)
    assert [len(ranges) for ranges in found.values()] == [1] * len(found)


def _look_for_following(dask_worker: Any) -> Any:
    (running,) = [one for one in dask_worker.state.tasks.values() if one.state == "executing"]
    info = running.run_spec.args[2]
    assert _find_following(dask_worker, replace(info, run_id="another")) == ()
    return _find_following(dask_worker, info)


def test_tasks_that_dask_gives_up_are_run_again_in_child_processes(nano_files: NanoFiles) -> None:
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        small_cluster(2) as (_, client),
    ):
        executor = DaskExecutor(client, max_ranges_per_task=4, retries=0)
        with pytest.raises(RunError, match=r"entries 41 to 42 .*SIGKILL") as caught:
            run(executor, nano_files, examples.KillsWorkerAt(42))
    result = caught.value.partial_result
    result.completeness.check()
    (failure,) = result.failures
    assert (failure.kind, failure.entry_start, failure.entry_stop) == ("resources", 41, 42)
    assert result.output["entries"]["nano"] == result.completeness.total.num_entries_processed


def test_a_processor_that_does_not_pickle_is_named(client: Client, nano_files: NanoFiles) -> None:
    lock = threading.Lock()
    with pytest.raises(OptionError, match=r"can't be pickled.*LocalExecutor"):
        run(
            DaskExecutor(client),
            nano_files,
            lambda events: {"n": len(events), "lock": lock is None},
        )


def test_a_processor_that_does_not_unpickle_fails_everywhere(
    client: Client, nano_files: NanoFiles
) -> None:
    with pytest.raises(RunError, match="my_corrections") as caught:
        run(DaskExecutor(client, retries=0), nano_files, examples.FailsToUnpickle())
    result = caught.value.partial_result
    assert {failure.kind for failure in result.failures} == {"setup"}
    assert result.completeness["nano"].num_entries_processed == 0


def test_nobody_at_an_address() -> None:
    executor = DaskExecutor("tcp://127.0.0.1:9")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(ExecutorError, match=r"no Dask scheduler answers at 'tcp://127.0.0.1:9'"),
    ):
        Runner(executor, progress=False).run(
            {"a": {"files": {"a.root": "Events"}}}, examples.Weighted()
        )


@pytest.mark.parametrize("executor_name", ["local", "dask"])
def test_ctrl_c_keeps_what_is_done(
    executor_name: str, request: pytest.FixtureRequest, nano_files: NanoFiles, tmp_path: Path
) -> None:
    executor = (
        LocalExecutor()
        if executor_name == "local"
        else DaskExecutor(request.getfixturevalue("client"), max_ranges_per_task=1)
    )

    def interrupt() -> None:
        while not list(tmp_path.glob("begun-*")):
            threading.Event().wait(0.02)
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(0.5)
        (tmp_path / "go").touch()

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(RunError, match="interrupted") as caught:
        run(executor, nano_files, examples.WaitsForFile(tmp_path))
    interrupting.join()
    result = caught.value.partial_result
    total = result.completeness.total
    assert 0 < total.num_entries_processed < 289
    assert total.num_entries_not_reached == 289 - total.num_entries_processed
    finished = result.resume()
    assert finished.is_complete
    assert finished.output["entries"] == {"nano": 289}


def test_wrong_options_are_named() -> None:
    with pytest.raises(OptionError, match="did you mean 'retries'"):
        DaskExecutor(retrys=1)
    with pytest.raises(OptionError, match="split_every is 1"):
        DaskExecutor(split_every=1)
    with pytest.raises(OptionError, match=r"treereduction.*split_every"):
        DaskExecutor(treereduction=20)
    with pytest.warns(UserWarning, match="ignores coffea's option 'compression'"):
        DaskExecutor(compression=1)


def test_a_cluster_whose_workers_have_threads_is_warned_of_once(
    nano_files: NanoFiles, reference: bytes
) -> None:
    options = {"n_workers": 1, "threads_per_worker": 2, "dashboard_address": ":0"}
    with (
        distributed.LocalCluster(**options) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        executor = DaskExecutor(client)
        with pytest.warns(UserWarning, match="workers with 2 threads"):
            assert pt_bytes(run(executor, nano_files, examples.Weighted())) == reference
        assert pt_bytes(run(executor, nano_files, examples.Weighted())) == reference
