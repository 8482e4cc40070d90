"""INFN's way: a scheduler inside the batch system, reached through ``tls://localhost:PORT``."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from hepdask import DaskExecutor, LocalExecutor, Runner
from tests.clusters.batch_servers import wait_until
from tests.clusters.processors import CountsCalls
from tests.clusters.tunnel import Tunnel
from tests.example_processors import Weighted

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.conftest import NanoFiles
    from tests.servers import TlsCluster


def run(executor: Any, nano_files: NanoFiles, processor: Any, **options: Any) -> bytes:
    options = {"chunksize": 10, "progress": False, "metadata_cache": False, **options}
    result = Runner(executor, **options).run(nano_files.fileset, processor)
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
    expected = run(LocalExecutor(), nano_files, Weighted())
    port = int(tls_cluster.address.rpartition(":")[2])
    with Tunnel(port) as tunnel, ThreadPoolExecutor(1) as pool:
        word = f"tls://localhost:{tunnel.port}"
        with DaskExecutor(word, security=files_of(tls_cluster), max_ranges_per_task=1) as executor:
            processor = CountsCalls(tmp_path, 200)
            running = pool.submit(run, executor, nano_files, processor, store=tmp_path / "store")
            wait_until(lambda: len(list(tmp_path.glob("waits-*"))) >= 2, "two tasks wait")
            tunnel.cut()
            wait_until(lambda: executor._client().status != "running", "the client has noticed")
            assert not running.done()
            threading.Event().wait(0.5)
            tunnel.build()
            (tmp_path / "go").touch()
            assert running.result(timeout=120) == expected
            # the next run takes the same connection
            assert run(executor, nano_files, Weighted()) == expected
    assert "was lost, and is there again" in caplog.text
