"""Client, scheduler and workers in three networks, connected only where a facility connects them."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from hepdask import LocalExecutor, Runner
from tests.certificates import make_certificates, tls_flags
from tests.clusters.analysis import bits_of, hash_of, run_inside
from tests.clusters.networks import Networks, three_networks
from tests.clusters.sleeper import SHORT_TIMES, run_asleep
from tests.example_processors import Weighted
from tests.servers import REPOSITORY, stop_process

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

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


def start_cluster(stack: ExitStack, directory: Path, networks: Networks) -> None:
    """Start a scheduler, and a worker that the client can't see."""
    flags = tls_flags(directory)
    start(
        *(stack, directory, networks.inside(networks.scheduler)),
        *("distributed.cli.dask_scheduler", "--protocol", "tls", "--host", "0.0.0.0"),
        *("--port", "8786", "--no-dashboard", *flags),
    )
    start(
        *(stack, directory, networks.inside(networks.workers), "distributed.cli.dask_worker"),
        *(f"tls://{networks.scheduler_for_workers}:8786", "--nthreads", "1"),
        *("--host", networks.worker_host, "--no-dashboard", "--death-timeout", "60"),
        *("--local-directory", str(directory), *flags),
    )


def sees(networks: Networks, network: str, host: str) -> bool:
    """Return whether there is a way to a host from a network."""
    route = ["ip", "route", "get", host]
    done = subprocess.run([*networks.inside(network), *route], capture_output=True, check=False)
    return done.returncode == 0


def test_the_client_needs_to_see_the_scheduler_alone(
    nano_files: NanoFiles, expected: bytes, tmp_path: Path
) -> None:
    make_certificates(tmp_path)
    with three_networks() as networks, ExitStack() as stack:
        assert sees(networks, networks.client, networks.scheduler_for_client)
        assert not sees(networks, networks.client, networks.worker_host)
        assert not sees(networks, networks.workers, networks.client_host)
        start_cluster(stack, tmp_path, networks)
        word = f"tls://{networks.scheduler_for_client}:8786"
        files = {name: str(tmp_path / f"{name}.pem") for name in ("ca", "cert", "key")}
        client = networks.inside(networks.client)
        printed = run_inside(client, word, {"security": files}, nano_files, tmp_path)
    assert printed == hash_of(expected)


def test_a_client_that_went_to_sleep_where_nobody_sees_it(
    nano_files: NanoFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Runner(LocalExecutor(), chunksize=10, progress=False, metadata_cache=False)
    expected = hash_of(bits_of(run(nano_files.fileset, processor_instance=Weighted())))
    make_certificates(tmp_path)
    for name, value in SHORT_TIMES.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "calls").mkdir()
    with three_networks() as networks, ExitStack() as stack:
        start_cluster(stack, tmp_path, networks)
        found, said = run_asleep(
            networks.inside(networks.client),
            f"tls://{networks.scheduler_for_client}:8786",
            *(tmp_path, tmp_path / "calls", nano_files.paths),
            fall_asleep=lambda: networks.connect_client(False),
            wake_up=lambda: networks.connect_client(True),
            scheduler_log=tmp_path / "distributed.cli.dask_scheduler.log",
        )
    assert found == expected
    assert "was lost, and is there again" in said
