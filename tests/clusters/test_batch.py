from __future__ import annotations

import re
from typing import Any

import dask
import pytest

from hepdask import MissingDependencyError, OptionError
from hepdask.clusters import choose_cluster

pytest.importorskip("dask_jobqueue", reason="pip install 'hepdask[jobqueue]'")

EVERYTHING = {
    "cores": 2,
    "memory": "4 GB",
    "walltime": "08:00:00",
    "prologue": ["module load python"],
    "environment": {"A": "x y"},
    "worker_ports": "10000:10100",
    "scratch": "/scratch",
    "interface": "lo",
    "nanny": True,
    "death_timeout": "2 min",
}


def script(word: str, **options: Any) -> str:
    return choose_cluster(word, options).render()


@pytest.mark.parametrize(
    ("word", "lines"),
    [
        ("slurm", ["#SBATCH -t 08:00:00", "#SBATCH --mem=4G", "#SBATCH --cpus-per-task=2"]),
        ("pbs", ["#PBS -l walltime=08:00:00", "#PBS -l select=1:ncpus=2:mem=3815MB"]),
        ("lsf", ["#BSUB -W 08:00", "#BSUB -n 2", '#BSUB -R "span[hosts=1]"']),
        ("sge", ["#$ -l h_rt=08:00:00"]),
        ("oar", ["#OAR -l /nodes=1/core=2,walltime=08:00:00"]),
        ("htcondor", ["MY.DaskWorkerCores = 2", "MY.DaskWorkerMemory = 4000000000"]),
    ],
)
@pytest.mark.filterwarnings("ignore:OAR Job memory reserved:UserWarning")
def test_the_same_words_everywhere(word: str, lines: list[str]) -> None:
    text = script(word, **EVERYTHING)
    assert set(lines) <= set(text.splitlines())
    for part in (
        "export OMP_NUM_THREADS=1",
        "export A=",
        "module load python",
        "--nthreads 1",
        "--nworkers 2",
        "--nanny",
        "--death-timeout 120",
        "--local-directory /scratch",
        "--interface lo",
        "--worker-port 10000:10050 --nanny-port 10051:10100",
        "--lifetime 28200s --lifetime-stagger 300s",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("slurm", "#SBATCH -A cms"),
        ("pbs", "#PBS -A cms"),
        ("lsf", '#BSUB -P "cms"'),
        ("sge", "#$ -P cms"),
        ("oar", "#OAR --project cms"),
    ],
)
@pytest.mark.filterwarnings("ignore:OAR Job memory reserved:UserWarning")
def test_who_pays_and_where(word: str, line: str) -> None:
    lines = script(word, account="cms", queue="short").splitlines()
    assert line in lines
    assert any(re.fullmatch(r"#\S+ -[pq] short", one) for one in lines)


def test_containers() -> None:
    assert "\napptainer exec 'a b.sif' python3 -m distributed" in script("slurm", image="a b.sif")
    text = script("htcondor", image="/cvmfs/x", directives={"MY.JobFlavour": '"longlunch"'})
    assert 'MY.SingularityImage = "/cvmfs/x"' in text
    assert 'MY.JobFlavour = "longlunch"' in text
    assert "python3 -m distributed" in text


def test_directives_are_lines_or_names_and_values() -> None:
    assert "#SBATCH --exclusive" in script("slurm", directives="--exclusive")
    with pytest.raises(OptionError, match="slurm: directives are a list of lines"):
        script("slurm", directives={"a": 1})
    with pytest.raises(OptionError, match="htcondor: directives are names and values"):
        script("htcondor", directives=["a"])


def test_what_hepdask_is_not_told_dask_jobqueue_is_asked() -> None:
    settings = {"cores": 4, "memory": "7GB", "queue": "night", "job-script-prologue": ["hello"]}
    with dask.config.set({"jobqueue.slurm": {**dask.config.get("jobqueue.slurm"), **settings}}):
        text = script("slurm")
        assert "#SBATCH --cpus-per-task=4" in text
        assert "#SBATCH -p night" in text
        assert "--nworkers 4" in text
        assert "\nhello\n" in text
        assert "#SBATCH -p day" in script("slurm", queue="day")


def test_threads_must_divide_the_cores() -> None:
    assert "--nthreads 2" in script("slurm", cores=2, threads=2)
    with pytest.raises(OptionError, match="slurm: 4 cores can't be 3 for each worker"):
        script("slurm", cores=4, threads=3)


def test_certificates_are_in_the_command(tmp_path: Any) -> None:
    text = script("slurm", security="temporary")
    assert "dask_worker tls://" in text
    assert "--tls-key" in text
    assert "PRIVATE" not in text


def test_a_missing_library_is_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dask_jobqueue", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hepdask\[jobqueue\]'"):
        script("slurm")
