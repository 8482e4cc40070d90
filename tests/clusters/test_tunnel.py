"""INFN's way: a scheduler inside the batch system, reached through ``tls://localhost:PORT``."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from distributed import Client

from hepdask import DaskExecutor, LocalExecutor, RunError, Runner
from hepdask.progress import RecordingProgress
from tests.clusters.analysis import bits_of, hash_of
from tests.clusters.processors import CountsCalls
from tests.clusters.sleeper import run_asleep
from tests.clusters.tunnel import Tunnel
from tests.example_processors import Weighted
from tests.local import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import NanoFiles
    from tests.servers import TlsCluster


def run(executor: Any, fileset: Any, processor: Any, **options: Any) -> bytes:
    options = {"chunksize": 10, "progress": False, "metadata_cache": False, **options}
    result = Runner(executor, **options).run(fileset, processor)
    return bytes(result.output["pt"].view(flow=True).tobytes())


def files_of(cluster: TlsCluster) -> dict[str, str]:
    directory = cluster.certificates_directory
    return {name: str(directory / f"{name}.pem") for name in ("ca", "cert", "key")}


def test_a_run_goes_on_when_the_tunnel_is_built_again(
    tls_cluster: TlsCluster,
    nano_files: NanoFiles,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = run(LocalExecutor(), nano_files.fileset, Weighted())
    port = int(tls_cluster.address.rpartition(":")[2])
    with Tunnel(port) as tunnel, ThreadPoolExecutor(1) as pool:
        word = f"tls://localhost:{tunnel.port}"
        with DaskExecutor(word, security=files_of(tls_cluster), max_ranges_per_task=1) as executor:
            processor = CountsCalls(tmp_path, 200)
            running = pool.submit(
                run, executor, nano_files.fileset, processor, store=tmp_path / "store"
            )
            wait_until(lambda: len(list(tmp_path.glob("waits-*"))) >= 2, "two tasks wait")
            tunnel.cut()
            wait_until(lambda: executor._client().status != "running", "the client has noticed")
            assert not running.done()
            threading.Event().wait(0.5)
            tunnel.build()
            (tmp_path / "go").touch()
            assert running.result(timeout=120) == expected
            # the next run takes the same connection
            assert run(executor, nano_files.fileset, Weighted()) == expected
    assert "was lost, and is there again" in caplog.text


def test_an_inspection_goes_on_when_the_tunnel_is_built_again(
    tls_cluster: TlsCluster,
    nano_files: NanoFiles,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    copies = [tmp_path / path.name for path in nano_files.paths]
    for path, copied in zip(nano_files.paths, copies, strict=True):
        shutil.copy(path, copied)
    fileset = {"nano": dict.fromkeys(map(str, copies), "Events")}
    expected = run(LocalExecutor(), fileset, Weighted())
    copies[1].replace(tmp_path / "aside")
    os.mkfifo(copies[1])  # its opening hangs
    port = int(tls_cluster.address.rpartition(":")[2])
    progress = RecordingProgress()
    with (
        Tunnel(port) as tunnel,
        ThreadPoolExecutor(1) as pool,
        DaskExecutor(f"tls://localhost:{tunnel.port}", security=files_of(tls_cluster)) as executor,
        Client(
            tls_cluster.address, security=tls_cluster.security, set_as_default=False
        ) as observer,
    ):
        before = count_inspections(observer)
        running = pool.submit(run, executor, fileset, Weighted(), progress=progress)
        wait_until(lambda: progress.sum_advances("inspecting")[0] == 2, "two files are known")
        tunnel.cut()
        wait_until(lambda: executor._client().status != "running", "the client has noticed")
        writer = os.open(copies[1], os.O_RDWR | os.O_NONBLOCK)
        (tmp_path / "aside").replace(copies[1])
        os.close(writer)  # whoever hung reads its end
        assert not running.done()
        tunnel.build()
        assert running.result(timeout=120) == expected
        # each file once: what was here when the connection broke was kept
        assert count_inspections(observer) - before == len(copies)
    assert progress.sum_advances("inspecting")[0] == len(copies)
    assert "was lost, and is there again" in caplog.text


def test_ctrl_c_ends_the_waiting_for_a_tunnel(
    tls_cluster: TlsCluster,
    nano_files: NanoFiles,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = int(tls_cluster.address.rpartition(":")[2])
    with (
        Tunnel(port) as tunnel,
        ThreadPoolExecutor(1) as pool,
        DaskExecutor(f"tls://localhost:{tunnel.port}", security=files_of(tls_cluster)) as executor,
    ):

        def lose() -> None:
            wait_until(lambda: list(tmp_path.glob("waits-*")), "a range waits")
            tunnel.cut()
            wait_until(lambda: "is lost: waiting up to 300 s" in caplog.text, "it is waited for")
            os.kill(os.getpid(), signal.SIGINT)

        losing = pool.submit(lose)
        with pytest.raises(RunError, match="the scheduler was lost") as caught:
            run(executor, nano_files.fileset, CountsCalls(tmp_path, 0))
        losing.result(timeout=10)
        (tmp_path / "go").touch()
    assert caught.value.partial_result.completeness.total.num_entries_not_reached == 289


def count_inspections(observer: Client) -> int:
    """Return how many tasks that inspect files have come to a result."""

    def count(dask_scheduler: Any) -> int:
        return sum(
            str(key).startswith("inspect-") and finish == "memory"
            for key, _, finish, *_ in dask_scheduler.transition_log
        )

    return int(observer.run_on_scheduler(count))


def test_a_client_that_went_to_sleep_goes_on(
    tls_cluster: TlsCluster, nano_files: NanoFiles, tmp_path: Path
) -> None:
    local = Runner(LocalExecutor(), chunksize=10, progress=False, metadata_cache=False)
    expected = hash_of(bits_of(local(nano_files.fileset, processor_instance=Weighted())))
    certificates = tls_cluster.certificates_directory
    with Tunnel(int(tls_cluster.address.rpartition(":")[2])) as tunnel:
        found, said = run_asleep(
            *([], f"tls://localhost:{tunnel.port}", certificates, tmp_path, nano_files.paths),
            # as the far end of a tunnel does when the near one is silent
            fall_asleep=tunnel.cut,
            wake_up=tunnel.build,
            scheduler_log=certificates / "scheduler.log",
        )
    assert found == expected
    assert "was lost, and is there again" in said
