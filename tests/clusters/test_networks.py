"""Client, scheduler and workers in three networks, connected only where a facility connects them."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tests.certificates import make_certificates, tls_flags
from tests.clusters.analysis import hash_of, run_inside
from tests.clusters.networks import Networks, three_networks
from tests.servers import REPOSITORY, stop_process

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import NanoFiles


def start(stack: ExitStack, directory: Path, inside: list[str], *arguments: str) -> None:
    with (directory / f"{arguments[0]}.log").open("ab") as log:
        process = subprocess.Popen(
            [*inside, sys.executable, "-m", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=REPOSITORY,
        )
    stack.callback(stop_process, process)


def sees(networks: Networks, network: str, host: str) -> bool:
    """Return whether there is a way to a host from a network."""
    route = ["ip", "route", "get", host]
    done = subprocess.run([*networks.inside(network), *route], capture_output=True, check=False)
    return done.returncode == 0


def test_the_client_needs_to_see_the_scheduler_alone(
    nano_files: NanoFiles, expected: bytes, tmp_path: Path
) -> None:
    make_certificates(tmp_path)
    flags = tls_flags(tmp_path)
    with three_networks() as networks, ExitStack() as stack:
        assert sees(networks, networks.client, networks.scheduler_for_client)
        assert not sees(networks, networks.client, networks.worker_host)
        assert not sees(networks, networks.workers, networks.client_host)
        start(
            *(stack, tmp_path, networks.inside(networks.scheduler)),
            *("distributed.cli.dask_scheduler", "--protocol", "tls", "--host", "0.0.0.0"),
            *("--port", "8786", "--no-dashboard", *flags),
        )
        start(
            *(stack, tmp_path, networks.inside(networks.workers), "distributed.cli.dask_worker"),
            *(f"tls://{networks.scheduler_for_workers}:8786", "--nthreads", "1"),
            *("--host", networks.worker_host, "--no-dashboard", "--death-timeout", "60"),
            *("--local-directory", str(tmp_path), *flags),
        )
        word = f"tls://{networks.scheduler_for_client}:8786"
        files = {name: str(tmp_path / f"{name}.pem") for name in ("ca", "cert", "key")}
        client = networks.inside(networks.client)
        printed = run_inside(client, word, {"security": files}, nano_files, tmp_path)
    assert printed == hash_of(expected)
