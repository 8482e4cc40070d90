"""Kubernetes, through dask-kubernetes and its operator: each worker is a pod."""

from __future__ import annotations

import getpass
import re
import uuid
from typing import TYPE_CHECKING, Any

import yaml

from hepdask.clusters.environment import warn_of_threads, worker_environment
from hepdask.clusters.systems import SCALING, System, require
from hepdask.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["KubernetesSystem"]

DEFAULT_IMAGE = "ghcr.io/dask/dask:latest"
DEFAULT_BYTES = 2_000_000_000
#: A name has 63 characters at most, and that of the scheduler ends with ``-scheduler``.
MAX_NAME, MAX_USER = 53, 24


class KubernetesSystem(System):
    """A ``DaskCluster`` resource of the operator, which must run in the cluster."""

    name = "kubernetes"
    help = "Kubernetes with dask's operator: each worker is a pod"
    words = (*SCALING, "environment", "image", "memory", "name", "namespace", "threads")

    def open(self, options: Mapping[str, Any]) -> Any:
        """Create the resource; the operator starts the pods. See `System.open`."""
        operator = require("dask_kubernetes.operator", "kubernetes")
        warn_of_threads(options.get("threads", 1))
        namespace = {"namespace": options["namespace"]} if "namespace" in options else {}
        # quiet: what it draws goes to the output of the user's script
        cluster = operator.KubeCluster(
            custom_cluster_spec=_manifest(options), quiet=True, **namespace
        )
        if "workers" not in options:
            cluster.adapt(minimum=options.get("minimum", 0), maximum=options.get("maximum", 10_000))
        return cluster

    def render(self, options: Mapping[str, Any]) -> str:
        """Write the manifest; see `System.render`."""
        written: str = yaml.safe_dump(_manifest(options), sort_keys=False)
        return written.rstrip("\n")


def _manifest(options: Mapping[str, Any]) -> dict[str, Any]:
    operator = require("dask_kubernetes.operator", "kubernetes")
    threads = options.get("threads", 1)
    memory = str(options.get("memory", DEFAULT_BYTES))
    limits = {"cpu": str(threads), "memory": memory}
    command = ["dask", "worker", "--nthreads", str(threads), "--memory-limit", memory]
    manifest: dict[str, Any] = operator.make_cluster_spec(
        name=_check_name(options["name"]) if "name" in options else _make_name(),
        image=options.get("image", DEFAULT_IMAGE),
        n_workers=options.get("workers", options.get("minimum", 0)),
        resources={"requests": limits, "limits": limits},
        env=worker_environment(options),
        worker_command=command,
    )
    if "namespace" in options:
        manifest["metadata"]["namespace"] = options["namespace"]
    scheduler = manifest["spec"]["scheduler"]["spec"]["containers"][0]
    # distributed has no command dask-scheduler any more
    scheduler["args"] = ["dask", "scheduler", *scheduler["args"][1:]]
    return manifest


def _make_name() -> str:
    user = re.sub(r"[^a-z0-9]", "", getpass.getuser().lower())
    return f"hepdask-{user[:MAX_USER]}-{uuid.uuid4().hex[:8]}"


def _check_name(name: str) -> str:
    if len(name) > MAX_NAME or not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name):
        raise OptionError(
            f"kubernetes: name is {name!r}: give small letters, digits and hyphens in between, {MAX_NAME} at most"
        )
    return name
