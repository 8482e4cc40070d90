"""Kubernetes, through dask-kubernetes and its operator: each worker is a pod."""

from __future__ import annotations

import getpass
import uuid
from typing import TYPE_CHECKING, Any

import yaml

from hepdask.clusters.environment import warn_of_threads, worker_environment
from hepdask.clusters.systems import SCALING, System, require

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["KubernetesSystem"]

DEFAULT_IMAGE = "ghcr.io/dask/dask:latest"
DEFAULT_BYTES = 2_000_000_000


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
        cluster = operator.KubeCluster(custom_cluster_spec=_manifest(options), **namespace)
        if "minimum" in options or "maximum" in options:
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
    user = "".join(one for one in getpass.getuser().lower() if one.isalnum())
    manifest: dict[str, Any] = operator.make_cluster_spec(
        name=options.get("name") or f"hepdask-{user}-{uuid.uuid4().hex[:8]}",
        image=options.get("image", DEFAULT_IMAGE),
        n_workers=options.get("workers", options.get("minimum", 0)),
        resources={"requests": limits, "limits": limits},
        env=worker_environment(options),
        worker_command=command,
    )
    scheduler = manifest["spec"]["scheduler"]["spec"]["containers"][0]
    # distributed has no command dask-scheduler any more
    scheduler["args"] = ["dask", "scheduler", *scheduler["args"][1:]]
    return manifest
