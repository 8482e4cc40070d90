"""Amazon's ECS, without machines of one's own (Fargate), through dask-cloudprovider: each worker is a task."""

from __future__ import annotations

import atexit
import json
import logging
import math
import threading
import warnings
import weakref
from typing import TYPE_CHECKING, Any

import dask
from distributed.core import Status
from distributed.deploy.spec import SpecCluster

from hepdask.clusters.environment import warn_of_threads, worker_environment
from hepdask.clusters.systems import SCALING, System, require, scale
from hepdask.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["EcsSystem", "warn_of_open_ports"]

logger = logging.getLogger(__name__)

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
    """A Fargate cluster; the image must have the command ``dask``."""

    name = "ecs"
    help = "Amazon ECS (Fargate): each worker is a task"
    words = (*SCALING, *_SAME, "environment", "memory", "settings", "threads")

    def open(self, options: Mapping[str, Any]) -> Any:
        """Start the scheduler's task, and those of workers; see `System.open`."""
        arguments = _translate(options)
        warn_of_threads(options.get("threads", 1))
        warn_of_open_ports(arguments)
        cluster = _make_class()(**arguments)
        _close_at_end(cluster)
        scale(cluster, options)
        return cluster

    def render(self, options: Mapping[str, Any]) -> str:
        """Write the arguments of the cluster; see `System.render`."""
        arguments = sorted(_translate(options).items())
        lines = [f"    {name}={json.dumps(value)}," for name, value in arguments]
        return "\n".join(["dask_cloudprovider.aws.FargateCluster(", *lines, ")"])


def warn_of_open_ports(arguments: Mapping[str, Any]) -> None:
    """Warn where everybody can reach the scheduler: whoever does runs code as its user.

    Parameters
    ----------
    arguments : mapping
        Those of the cluster.
    """
    configured = dask.config.get("cloudprovider.ecs", {}) or {}
    names = ("security_groups", "fargate_use_private_ip")
    if not any(arguments.get(name) or configured.get(name) for name in names):
        warnings.warn(
            "the scheduler will have a public address without encryption, and dask-cloudprovider opens its ports to everybody: "
            "whoever finds them runs code as you. Say security_groups=[...] with groups that let in your own address and each "
            "other, or, from inside of the VPC, settings={'fargate_use_private_ip': True}",
            UserWarning,
            stacklevel=2,
        )


class _ClearsUp(SpecCluster):  # type: ignore[misc]  # dask has no types
    """Leaves nothing over: neither at its end, nor where it can't start."""

    async def _start(self) -> None:
        try:
            await super()._start()
        except BaseException:
            await _clear_up(self)
            raise

    async def _close(self) -> None:
        await super()._close()
        await _clear_up(self)


class _WithCommands(SpecCluster):  # type: ignore[misc]
    """Sends commands that distributed still has."""

    async def _start(self) -> None:
        # dask-cloudprovider has just written down both kinds of tasks, and comes here to have them started
        for spec in (self.scheduler_spec, self.new_spec):
            spec["cls"] = _with_command(spec["cls"])
        await super()._start()


def _make_class() -> Any:
    aws = require("dask_cloudprovider.aws", "ecs")
    # in this order super() leads from one to the next
    return type("FargateCluster", (_ClearsUp, aws.FargateCluster, _WithCommands), {})


def _with_command(task_class: Any) -> Any:
    """Let tasks run ``dask scheduler``, ``dask worker``: there is no ``dask-scheduler``, ``dask-worker`` any more."""

    class Task(task_class):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            program, *rest = self._overrides["command"]
            self._overrides["command"] = [*program.split("-", 1), *rest]

    return Task


_open: weakref.WeakSet[Any] = weakref.WeakSet()


def _close_at_end(cluster: Any) -> None:
    """Close a cluster that a script leaves open: its tasks cost money, and run on for minutes.

    dask itself does it when Python has stopped its helper threads: then no name is looked up, and ECS can't be reached.
    """
    if not _open:
        # a private name, but the only moment before those threads stop
        register = getattr(threading, "_register_atexit", atexit.register)
        register(_close_all)
    _open.add(cluster)


def _close_all() -> None:
    for cluster in list(_open):
        if cluster.status not in (Status.closing, Status.closed):
            cluster.close()


async def _clear_up(cluster: Any) -> None:
    """Delete what was made for a cluster: task definitions, a security group, roles, ECS's own cluster.

    dask-cloudprovider leaves that to Python's last moment, when its event loop has stopped: all of it stays, and six tracebacks
    are the last that a user sees.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    finalizers = weakref.finalize._registry  # type: ignore[attr-defined]  # they can be found nowhere else
    for one in reversed(list(finalizers)):
        alive = one.peek()
        if alive is None or alive[0] is not cluster or alive[1] != cluster.sync:
            continue
        one.detach()
        delete, *rest = alive[2]
        try:
            await delete(*rest)
        except (BotoCoreError, ClientError) as error:
            logger.warning(
                "something of the ECS cluster %s is left over: %s", cluster.cluster_name, error
            )


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
