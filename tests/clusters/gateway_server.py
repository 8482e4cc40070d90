"""A real Dask Gateway with its local backend: schedulers and workers are processes of this user."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.local import wait_until
from tests.servers import REPOSITORY, free_port, stop_process

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["run_gateway"]

PASSWORD = "not a secret"  # of a server that lives for a test
_CONFIG = """\
c.DaskGateway.backend_class = "dask_gateway_server.backends.local.UnsafeLocalBackend"
c.DaskGateway.address = "127.0.0.1:{api}"
c.Proxy.address = "127.0.0.1:{web}"
c.Proxy.tcp_address = "127.0.0.1:{tcp}"
c.Proxy.api_token = "{token}"
c.DaskGateway.authenticator_class = "dask_gateway_server.auth.SimpleAuthenticator"
c.SimpleAuthenticator.password = "{password}"
c.UnsafeLocalBackend.clusters_directory = "{directory}/clusters"
c.UnsafeLocalBackend.db_url = "sqlite:///:memory:"
c.UnsafeLocalBackend.sigint_timeout = 2
c.ClusterConfig.worker_cores = 1
c.ClusterConfig.scheduler_cmd = ["{dask}", "scheduler"]
c.ClusterConfig.worker_cmd = ["{dask}", "worker"]

from dask_gateway_server.options import Float, Mapping, Options

c.Backend.cluster_options = Options(
    Float("worker_memory", default=1.0, min=0.1, max=4.0),
    Mapping("environment", default={{}}),
    handler=lambda options: {{
        "worker_memory": "%f G" % options.worker_memory,
        "environment": options.environment,
    }},
)
"""


@contextmanager
def run_gateway(directory: Path) -> Iterator[dict[str, Any]]:
    """Run a gateway.

    Yields
    ------
    dict
        The options that find it: address, proxy_address, auth.
    """
    for module in ("dask_gateway", "dask_gateway_server", "sqlalchemy"):
        pytest.importorskip(
            module, reason="pip install dask-gateway dask-gateway-server sqlalchemy"
        )
    from dask_gateway.auth import BasicAuth

    ports = {name: free_port() for name in ("api", "web", "tcp")}
    bin_directory = Path(sys.executable).parent
    config = directory / "dask_gateway_config.py"
    config.write_text(
        _CONFIG.format(
            **ports,
            directory=directory,
            token="0" * 64,
            password=PASSWORD,
            dask=bin_directory / "dask",
        )
    )
    with (directory / "gateway.log").open("ab") as log:
        process = subprocess.Popen(
            [bin_directory / "dask-gateway-server", "-f", config],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=REPOSITORY,
        )
    address = f"http://127.0.0.1:{ports['web']}"
    try:
        wait_until(lambda: _answers(f"{address}/api/health"), f"{directory}/gateway.log")
        yield {
            "address": address,
            "proxy_address": f"gateway://127.0.0.1:{ports['tcp']}",
            "auth": BasicAuth("alice", PASSWORD),
        }
    finally:
        stop_process(process)


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
        return bool(answer.status == 200)
    return False
