"""Amazon's ECS, without machines of one's own (Fargate), through dask-cloudprovider: each worker is a task."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from hepdask.clusters.environment import warn_of_threads, worker_environment
from hepdask.clusters.systems import SCALING, System, require, scale
from hepdask.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["EcsSystem"]

MIB = 2**20
#: What Fargate sells: GiB of memory for so many vCPU, least, most and step
#: (https://docs.aws.amazon.com/AmazonECS/latest/developerguide/fargate-tasks-services.html, read on 2026-11-25).
_SIZES = {1: (2, 8, 1), 2: (4, 16, 1), 4: (8, 30, 1), 8: (16, 60, 4), 16: (32, 120, 8)}
_SAME = {
    "image": "image",
    "region": "region_name",
    "subnets": "subnets",
    "security_groups": "security_groups",
}


class EcsSystem(System):
    """A Fargate cluster; the image must have the commands ``dask-scheduler`` and ``dask-worker``."""

    name = "ecs"
    help = "Amazon ECS (Fargate): each worker is a task"
    words = (*SCALING, *_SAME, "environment", "memory", "settings", "threads")

    def open(self, options: Mapping[str, Any]) -> Any:
        """Start the scheduler's task, and those of workers; see `System.open`."""
        arguments = _translate(options)
        warn_of_threads(options.get("threads", 1))
        aws = require("dask_cloudprovider.aws", "ecs")
        cluster = aws.FargateCluster(**arguments)
        scale(cluster, options)
        return cluster

    def render(self, options: Mapping[str, Any]) -> str:
        """Write the arguments of the cluster; see `System.render`."""
        arguments = sorted(_translate(options).items())
        lines = [f"    {name}={json.dumps(value)}," for name, value in arguments]
        return "\n".join(["dask_cloudprovider.aws.FargateCluster(", *lines, ")"])


def _translate(options: Mapping[str, Any]) -> dict[str, Any]:
    threads = options.get("threads", 1)
    if threads not in _SIZES:
        raise OptionError(f"ecs: threads is {threads}: Fargate has {', '.join(map(str, _SIZES))}")
    least, most, step = _SIZES[threads]
    gib = math.ceil(options.get("memory", 1) / 2**30)
    if gib > most:
        raise OptionError(
            f"ecs: memory is {options['memory']} bytes: Fargate has {most} GiB at most with {threads} vCPU"
        )
    gib = max(least, least + math.ceil((gib - least) / step) * step)
    arguments: dict[str, Any] = {
        "n_workers": 0,
        "worker_cpu": 1024 * threads,
        "worker_nthreads": threads,
        "worker_mem": 1024 * gib,
        "environment": worker_environment(options),
    }
    for word, name in _SAME.items():
        if word in options:
            value = options[word]
            arguments[name] = list(value) if isinstance(value, tuple) else value
    return {**arguments, **options.get("settings", {})}
