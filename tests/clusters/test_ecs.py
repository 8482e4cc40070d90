"""An analysis on Amazon's ECS: the account is a simulation, the commands of its tasks are run for real."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from hepdask.clusters.ecs import warn_of_open_ports
from tests.clusters.analysis import hash_of
from tests.clusters.cloud_servers import URL, Cloud, run_ecs
from tests.servers import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import NanoFiles

SITE = {
    "memory": "3 GiB",
    "image": "registry/analysis:1",
    "environment": {"PYTHONPATH": str(REPOSITORY), "QUOTED": 'it\'s "x" $HOME'},
    "settings": {"fargate_use_private_ip": True},
}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with run_ecs(tmp_path_factory.mktemp("ecs")) as running:
        yield running


def test_the_bits_are_the_same(cloud: Cloud, nano_files: NanoFiles, expected: bytes) -> None:
    # the script leaves its cluster open, and still nothing is left over
    configuration = {**SITE, "workers": 2}
    printed, tasks = cloud.run_script("ecs", configuration, nano_files, end="leave")
    assert printed == hash_of(expected)
    scheduler, *workers = sorted(tasks, key=lambda task: task.command[1])
    assert scheduler.command == ["dask", "scheduler", "--idle-timeout", "5 minutes"]
    assert sorted(task.command[task.command.index("--name") + 1] for task in workers) == ["0", "1"]
    for task in workers:
        assert task.command[:2] == ["dask", "worker"]
        assert task.command[5:] == [
            "--nthreads",
            "1",
            "--memory-limit",
            "3GB",
            "--death-timeout",
            "60",
        ]
    for task in tasks:
        assert task.image == "registry/analysis:1"
        assert task.environment["QUOTED"] == 'it\'s "x" $HOME'
        assert task.environment["OMP_NUM_THREADS"] == "1"
    assert cloud.run("-m", "tests.clusters.ecs_account", URL).split() == []


def test_a_cluster_that_cannot_start_leaves_nothing(cloud: Cloud, nano_files: NanoFiles) -> None:
    # roles and ECS's cluster are there before the network is looked for
    settings = {"fargate_use_private_ip": True, "vpc": "vpc-none"}
    with pytest.raises(RuntimeError, match="get_vpc_subnets"):
        cloud.run_script("ecs", {**SITE, "settings": settings}, nano_files, end="close")
    assert cloud.run("-m", "tests.clusters.ecs_account", URL).split() == []


@pytest.mark.parametrize(
    "arguments", [{"security_groups": ["sg-1"]}, {"fargate_use_private_ip": True}]
)
def test_a_scheduler_that_everybody_can_reach_is_warned_of(arguments: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="opens its ports to everybody"):
        warn_of_open_ports({"n_workers": 0})
    warn_of_open_ports(arguments)
