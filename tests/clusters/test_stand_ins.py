"""HTCondor, PBS, LSF and OAR: the submit command is a stand-in that runs the job script for real."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from hepdask import DaskExecutor, LocalExecutor, Runner
from hepdask.clusters.queues import explain
from tests.clusters.batch_stand_in import COMMANDS, install, list_jobs
from tests.example_processors import Weighted
from tests.local import wait_until
from tests.servers import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import NanoFiles

pytest.importorskip("dask_jobqueue", reason="pip install 'hepdask[jobqueue]'")


def run(executor: Any, nano_files: NanoFiles) -> bytes:
    runner = Runner(executor, chunksize=50, progress=False, metadata_cache=False)
    result = runner.run(nano_files.fileset, processor_instance=Weighted())
    return bytes(result.output["pt"].view(flow=True).tobytes())


@pytest.mark.parametrize("system", COMMANDS)
@pytest.mark.filterwarnings("ignore:OAR Job memory reserved:UserWarning")
def test_the_job_script_starts_the_workers(
    system: str, nano_files: NanoFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(system, tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    environment = {"PYTHONPATH": str(REPOSITORY), "QUOTED": 'it\'s "x" $HOME'}
    options = {"workers": 1, "memory": "1 GB", "interface": "lo", "environment": environment}
    with DaskExecutor(system, **options, prologue=["export SECOND=2"]) as executor:
        assert run(executor, nano_files) == run(LocalExecutor(), nano_files)
        client = executor._client()
        (seen,) = client.run(lambda: dict(os.environ)).values()
        assert seen["QUOTED"] == 'it\'s "x" $HOME'
        assert (seen["SECOND"], seen["OMP_NUM_THREADS"], seen["BATCH_JOB"]) == ("2", "1", "1")
        assert explain(client.cluster).endswith(": 1 job running")
    wait_until(lambda: not list_jobs(tmp_path), "the job has ended")
