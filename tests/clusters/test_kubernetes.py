"""An analysis on Kubernetes: the interface is a stand-in, the operator is dask's, the commands of pods are run for real."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from hepdask import OptionError
from hepdask.clusters import choose_cluster
from tests.clusters.analysis import hash_of
from tests.clusters.cloud_servers import URL, Cloud, run_kubernetes
from tests.servers import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import NanoFiles

SITE = {
    "memory": "1 GB",
    "image": "registry/analysis:1",
    "environment": {"PYTHONPATH": str(REPOSITORY), "QUOTED": 'it\'s "x" $HOME'},
}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with run_kubernetes(tmp_path_factory.mktemp("kubernetes")) as running:
        yield running


def left_over(cloud: Cloud) -> list[str]:
    code = "import sys, urllib.request as web; print(web.urlopen(sys.argv[1]).read().decode())"
    dask = "apis/kubernetes.dask.org/v1"
    kinds = ("api/v1/pods", "api/v1/services", "apis/apps/v1/deployments", f"{dask}/daskclusters")
    answers = [json.loads(cloud.run("-c", code, f"{URL}/{one}")) for one in kinds]
    return [one["metadata"]["name"] for answer in answers for one in answer["items"]]


def test_the_bits_are_the_same(cloud: Cloud, nano_files: NanoFiles, expected: bytes) -> None:
    configuration = {**SITE, "workers": 2, "name": "mine"}
    printed, pods = cloud.run_script("kubernetes", configuration, nano_files, end="close")
    assert printed == hash_of(expected)
    *workers, scheduler = sorted(pods, key=lambda pod: pod.name)
    assert scheduler.name.startswith("mine-scheduler-")
    assert scheduler.command == ["dask", "scheduler", "--host", "0.0.0.0"]
    assert len(workers) == 2
    for pod in workers:
        assert pod.name.startswith("mine-default-worker-")
        memory = ["--memory-limit", "1000000000"]
        assert pod.command[:6] == ["dask", "worker", "--nthreads", "1", *memory]
    for pod in pods:
        assert pod.image == "registry/analysis:1"
        assert pod.environment["QUOTED"] == 'it\'s "x" $HOME'
        assert pod.environment["OMP_NUM_THREADS"] == "1"
    assert left_over(cloud) == []


def test_a_script_that_closes_nothing_leaves_nothing(
    cloud: Cloud, nano_files: NanoFiles, expected: bytes
) -> None:
    # as many workers as there is work for: nothing says how many
    printed, pods = cloud.run_script("kubernetes", SITE, nano_files, end="leave")
    assert printed == hash_of(expected)
    assert {pod.command[1] for pod in pods} == {"scheduler", "worker"}
    assert left_over(cloud) == []


@pytest.mark.parametrize("name", ["Mine", "-a", "a.b", "x" * 54])
def test_names_that_kubernetes_does_not_have(name: str) -> None:
    pytest.importorskip("dask_kubernetes", reason="pip install 'hepdask[kubernetes]'")
    with pytest.raises(OptionError, match="give small letters, digits and hyphens"):
        choose_cluster("kubernetes", {"name": name}).render()
