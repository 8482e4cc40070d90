"""The same script, unchanged but for one word, on each kind of cluster: outputs equal to the bit."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import dask
import pytest

from hepdask import DaskExecutor
from tests.clusters.analysis import script
from tests.clusters.gateway_server import run_gateway
from tests.servers import REPOSITORY, run_tls_cluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import NanoFiles


@pytest.fixture
def site(tmp_path: Path) -> dict[str, Any]:
    """What a site's configuration says of workers on this machine, for all systems."""
    return {"workers": 2, "memory": "1 GB", "environment": {"PYTHONPATH": str(REPOSITORY)}}


def prepare(word: str, request: pytest.FixtureRequest, site: dict[str, Any], path: Path) -> Any:
    """Start what the word needs; return the word and its configuration."""
    stack: ExitStack = request.getfixturevalue("stack")
    batch = {**site, "interface": "lo", "log_directory": str(path), "scratch": str(path)}
    if word == "local":
        return word, {"workers": 2}
    if word == "slurm":
        pytest.importorskip("dask_jobqueue", reason="pip install 'hepdask[jobqueue]'")
        request.getfixturevalue("slurm")
        return word, {**batch, "queue": "short"}
    if word == "sge":
        request.getfixturevalue("grid_engine")
        return word, {**batch, "queue": "all.q", "resource_spec": "h_rss=4G"}
    if word == "gateway":
        return word, {**site, **stack.enter_context(run_gateway(path))}
    running = stack.enter_context(run_tls_cluster(path))
    files = {name: str(path / f"{name}.pem") for name in ("ca", "cert", "key")}
    return running.address, {"security": files}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.mark.parametrize("system", ["local", "slurm", "sge", "gateway", "tls"])
def test_the_bits_are_the_same(
    system: str,
    request: pytest.FixtureRequest,
    site: dict[str, Any],
    nano_files: NanoFiles,
    expected: bytes,
    tmp_path: Path,
) -> None:
    word, configuration = prepare(system, request, site, tmp_path)
    with (
        dask.config.set({"hepdask.clusters": {word: configuration}}),
        DaskExecutor(word) as executor,
    ):
        assert script(executor, nano_files.fileset) == expected
