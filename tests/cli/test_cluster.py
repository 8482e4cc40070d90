from __future__ import annotations

import json

import pytest

from tests.cli.calling import assert_one_line_error, call


def test_systems_and_facilities_are_listed() -> None:
    result = call("cluster", "ls")
    assert result.exit_code == 0
    for word in ("slurm", "htcondor", "lxplus", "coffea-casa", "https://github.com/cernops"):
        assert word in result.stdout
    listed = json.loads(call("cluster", "ls", "--json").stdout)
    assert "walltime" in listed["systems"]["slurm"]["options"]
    assert listed["facilities"]["infn"]["system"] == "tls://localhost:8786"


def test_what_would_be_submitted_is_printed() -> None:
    pytest.importorskip("dask_jobqueue", reason="pip install 'hepdask[jobqueue]'")
    result = call("cluster", "show", "slurm", "-c", "queue=short", "-c", "walltime=8:00:00")
    assert result.exit_code == 0, result.output
    assert "#SBATCH -p short" in result.stdout
    assert "#SBATCH -t 08:00:00" in result.stdout


def test_a_facility_says_what_is_to_be_done() -> None:
    result = call("cluster", "show", "swan")
    assert "SwanHTCondorCluster(" in result.stdout
    assert "swan: Only inside SWAN; run kinit" in result.stderr


def test_options_are_listed_with_what_is_set() -> None:
    result = call("cluster", "options", "slurm-site")
    assert "7200" in result.stdout
    assert "queue or partition" in result.stdout


def test_wrong_words_are_errors_of_one_line() -> None:
    assert_one_line_error(call("cluster", "show", "slrum"), "did you mean 'slurm'?")
    assert_one_line_error(
        call("cluster", "show", "slurm", "-c", "qeue=x"), "its options are account, cores,"
    )
