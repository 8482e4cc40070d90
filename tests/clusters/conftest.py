from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from hepdask import LocalExecutor
from hepdask.clusters.systems import require
from hepdask.errors import MissingDependencyError
from tests.clusters.analysis import script
from tests.clusters.batch_servers import (
    GridEngineServer,
    SlurmServer,
    require_commands,
    require_slurm,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import NanoFiles


with suppress(MissingDependencyError):
    # not with importorskip alone, which would leave this process another handler of Ctrl-C
    require("dask_jobqueue", "jobqueue")


@pytest.fixture(scope="session")
def expected(nano_files: NanoFiles) -> bytes:
    """The bits of the script's output, made without a cluster."""
    return script(LocalExecutor(), nano_files.fileset)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmServer]:
    """Run SLURM with two nodes; the environment of this process knows it."""
    require_slurm()
    with SlurmServer(tmp_path_factory.mktemp("slurm")) as server:
        yield server


@pytest.fixture(scope="session")
def grid_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GridEngineServer]:
    """Run Grid Engine; the environment of this process knows it."""
    require_commands(
        ("sge_qmaster", "sge_execd", "qsub", "qconf"),
        "gridengine-master gridengine-exec gridengine-client",
    )
    with GridEngineServer(tmp_path_factory.mktemp("sge")) as server:
        yield server
