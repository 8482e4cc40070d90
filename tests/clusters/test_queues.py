from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from hepdask.clusters.queues import describe_jobs, explain

if TYPE_CHECKING:
    from pathlib import Path

#: What each command prints, as its manual has it, and what is made of it.
ANSWERS = {
    ("sbatch", "slurm", "squeue"): (
        "PENDING|Resources\nPENDING|Priority\nRUNNING|None\n",
        "SLURM: 2 jobs pending (Priority; Resources), 1 job running",
    ),
    ("condor_submit", "htcondor", "condor_q"): (
        "1 undefined\n5 Error from slot1: no such image\n",
        "HTCondor: 1 job pending, 1 job held (Error from slot1: no such image)",
    ),
    ("qsub", "pbs", "qstat"): (
        (
            "Job Id: 12.server\n    Job_Name = dask\n    job_state = Q\n"
            "    comment = Not Running: Insufficient amount of\n\t resource: ncpus\n\n"
        ),
        "PBS: 1 job pending (Not Running: Insufficient amount of resource: ncpus)",
    ),
    ("bsub", "lsf", "bjobs"): (
        "PEND|Job slot limit reached\nRUN|-\n",
        "LSF: 1 job pending (Job slot limit reached), 1 job running",
    ),
    ("qsub", "sge", "qstat"): (
        "job-ID prior name user state submit at queue slots\n-----\n 1 0.5 dask root qw 11/25/2026 1\n",
        "Grid Engine: 1 job pending",
    ),
    ("oarsub", "oar", "oarstat"): (
        '{"7": {"state": "Waiting", "message": "R=1,W=1:0:0"}}',
        "OAR: 1 job pending (R=1,W=1:0:0)",
    ),
}


def cluster_of(submit_command: str, config_name: str, *ids: str) -> Any:
    job_class = SimpleNamespace(submit_command=submit_command, config_name=config_name)
    workers = {number: SimpleNamespace(job_id=one) for number, one in enumerate(ids)}
    return SimpleNamespace(job_cls=job_class, workers=workers)


def write_command(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("system", ANSWERS, ids=lambda one: one[1])
def test_each_batch_system_is_understood(
    system: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, config_name, command = system
    printed, expected = ANSWERS[system]
    (tmp_path / "answer").write_text(printed)
    write_command(tmp_path, command, f'echo "$@" > {tmp_path}/asked; cat {tmp_path}/answer')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert explain(cluster_of(submit, config_name, "12; rm -rf x", "13")) == expected
    if config_name != "sge":
        assert "12; rm -rf x" in (tmp_path / "asked").read_text()  # no shell has read it


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("echo 'slurm_load_jobs error' >&2; exit 1", "squeue says: slurm_load_jobs error"),
        ("", "SLURM: no jobs"),
    ],
)
def test_answers_that_are_none(
    text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_command(tmp_path, "squeue", text)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert expected in explain(cluster_of("sbatch", "slurm", "1"))


def test_what_cannot_be_understood_or_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "oarstat: [Errno 2]" in explain(cluster_of("oarsub", "oar", "1"))
    write_command(tmp_path, "oarstat", "echo no json")
    assert "does not understand" in explain(cluster_of("oarsub", "oar", "1"))


def test_clusters_without_a_batch_system_have_nothing_to_say() -> None:
    assert explain(None) == ""
    assert explain(cluster_of("sbatch", "slurm")) == "SLURM: no job has been submitted yet"
    assert describe_jobs("X", [("held", "b"), ("held", "a")]) == "X: 2 jobs held (a; b)"
