"""Clouds that fit into this machine: their interfaces are there, their machines are processes in a network of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pytest
import yaml

from tests.clusters.analysis import run_inside
from tests.clusters.containers import Container, list_containers
from tests.clusters.networks import LocalNetwork, local_network
from tests.local import wait_until
from tests.servers import REPOSITORY, stop_process

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.conftest import NanoFiles

__all__ = ["URL", "Cloud", "run_ecs", "run_kubernetes"]

#: The network is new: every port is free.
PORT = 8001
URL = f"http://127.0.0.1:{PORT}"


@dataclass(frozen=True, slots=True)
class Cloud:
    """A cloud that runs.

    Attributes
    ----------
    network : LocalNetwork
        Where.
    directory : Path
        For logs, and a folder for each container.
    environment : dict
        Variables with which its users find it.
    """

    network: LocalNetwork
    directory: Path
    environment: Mapping[str, str]

    def run_script(
        self,
        word: str,
        configuration: Mapping[str, Any],
        nano_files: NanoFiles,
        *,
        end: Literal["close", "leave"],
    ) -> tuple[str, list[Container]]:
        """Run a user's script in the network; return what it prints, and what was started for it, when that has ended."""
        before = {one.name for one in self._containers()}
        printed = run_inside(
            *(self.network.inside, word, configuration, nano_files, self.directory),
            environment=self.environment,
            end=end,
        )
        wait_until(lambda: all(one.has_ended for one in self._containers()), "containers end")
        return printed, [one for one in self._containers() if one.name not in before]

    def run(self, *arguments: str) -> str:
        """Run a Python program in the network; return what it prints."""
        done = subprocess.run(
            [*self.network.inside, sys.executable, *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            cwd=REPOSITORY,
            env=self.variables,
        )
        return done.stdout

    @property
    def variables(self) -> dict[str, str]:
        """All variables of its users."""
        return {**os.environ, "PYTHONPATH": str(REPOSITORY), **self.environment}

    def _containers(self) -> list[Container]:
        return list_containers(self.directory / "containers")


@contextmanager
def run_ecs(directory: Path) -> Iterator[Cloud]:
    """Run a simulation of Amazon's ECS, EC2 and IAM, and what runs its tasks."""
    for module in ("dask_cloudprovider.aws", "moto", "flask", "flask_cors"):
        text = "pip install 'hepdask[ecs]' moto flask flask-cors"
        pytest.importorskip(module, reason=text)
    environment = {
        "AWS_ENDPOINT_URL": URL,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "eu-south-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        # the policies that every account has, which roles of dask-cloudprovider name
        "MOTO_IAM_LOAD_MANAGED_POLICIES": "true",
    }
    with ExitStack() as stack:
        network = stack.enter_context(local_network("10.0.0.0/8"))
        cloud = Cloud(network, directory, environment)
        _start(stack, cloud, "moto.server", "-p", str(PORT), ready="Running on")
        containers = str(directory / "containers")
        _start(stack, cloud, "tests.clusters.ecs_agent", URL, containers, ready="ready")
        yield cloud


@contextmanager
def run_kubernetes(directory: Path) -> Iterator[Cloud]:
    """Run a stand-in for Kubernetes with dask's real operator."""
    for module in ("dask_kubernetes.operator", "kopf"):
        pytest.importorskip(module, reason="pip install 'hepdask[kubernetes]'")
    config = directory / "kubeconfig"
    context = {"cluster": "test", "user": "test", "namespace": "default"}
    known = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": context}],
        "clusters": [{"name": "test", "cluster": {"server": URL}}],
        "users": [{"name": "test", "user": {"token": "none"}}],
    }
    config.write_text(yaml.safe_dump(known))
    with ExitStack() as stack:
        network = stack.enter_context(local_network("10.244.0.0/16"))
        cloud = Cloud(network, directory, {"KUBECONFIG": str(config)})
        where = (str(PORT), str(network.hosts), str(directory / "containers"))
        _start(stack, cloud, "tests.clusters.kube_stand_in", *where, ready="ready")
        operator = ("run", "--all-namespaces", "--standalone", "--verbose")
        module = ("-m", "dask_kubernetes.operator.controller")
        _start(stack, cloud, "kopf", *operator, *module, ready="Starting the watch-stream")
        yield cloud


def _start(stack: ExitStack, cloud: Cloud, module: str, *arguments: str, ready: str) -> None:
    path = cloud.directory / f"{module}.log"
    with path.open("wb") as log:
        process = subprocess.Popen(
            [*cloud.network.inside, sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=REPOSITORY,
            env=cloud.variables,
        )
    stack.callback(stop_process, process)
    wait_until(
        lambda: ready in path.read_text() or process.poll() is not None, f"{ready!r} in {path}"
    )
    if process.poll() is not None:
        raise RuntimeError(f"{module} ends with {process.returncode}: {path.read_text()[-3000:]}")
