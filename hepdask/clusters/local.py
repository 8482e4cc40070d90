"""Worker processes on this machine."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import dask

from hepdask.clusters.environment import warn_of_threads, worker_environment
from hepdask.clusters.security import build_security
from hepdask.clusters.systems import SCALING, System, scale

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LocalSystem", "open_local_cluster"]

#: A terminal sends Ctrl-C to the worker processes, too: these shall finish what they have begun.
_IGNORE_INTERRUPTS = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
_BEFORE_START = "distributed.nanny.pre-spawn-environ"


def open_local_cluster(n_workers: int | None = None, **options: Any) -> Any:
    """Start worker processes with one thread each on this machine.

    Parameters
    ----------
    n_workers : int or None
        How many; None: one for each CPU.
    **options
        Passed to `distributed.LocalCluster`.
    """
    import distributed

    defaults = {"threads_per_worker": 1, "processes": True, "preload": [_IGNORE_INTERRUPTS]}
    return distributed.LocalCluster(
        n_workers=dask.system.CPU_COUNT if n_workers is None else n_workers,
        **{**defaults, **options},
    )


class LocalSystem(System):
    """A `distributed.LocalCluster`; it listens on the loopback interface alone."""

    name = "local"
    help = "processes on this machine"
    words = (
        *SCALING,
        "dashboard_address",
        "environment",
        "lifetime",
        "memory",
        "scheduler_port",
        "scratch",
        "security",
        "threads",
    )

    def open(self, options: Mapping[str, Any]) -> Any:
        """Start the processes; see `System.open`."""
        arguments = _translate(options)
        warn_of_threads(arguments["threads_per_worker"])
        # the allocator and the thread pools look at these when they are loaded
        before = {**dask.config.get(_BEFORE_START), **arguments["env"]}
        with dask.config.set({_BEFORE_START: before}):
            cluster = open_local_cluster(
                0, security=build_security(options.get("security")), **arguments
            )
            scale(cluster, options, default=dask.system.CPU_COUNT)
        return cluster

    def render(self, options: Mapping[str, Any]) -> str:
        """Write the arguments of the cluster; see `System.render`."""
        arguments = {
            "n_workers": options.get("workers", dask.system.CPU_COUNT),
            **_translate(options),
        }
        if "maximum" in options or "minimum" in options:
            arguments["n_workers"] = options.get("minimum", 0)
        lines = [f"    {name}={json.dumps(value)}," for name, value in sorted(arguments.items())]
        return "\n".join(["distributed.LocalCluster(", *lines, ")"])


def _translate(options: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {
        "threads_per_worker": options.get("threads", 1),
        "dashboard_address": options.get("dashboard_address", "127.0.0.1:0"),
        "env": worker_environment(options),
        # what workers say of memory and the like comes between the lines of progress
        "silence_logs": logging.ERROR,
    }
    names = {
        "memory": "memory_limit",
        "scratch": "local_directory",
        "scheduler_port": "scheduler_port",
        "lifetime": "lifetime",
    }
    for word, name in names.items():
        if word in options:
            arguments[name] = options[word]
    if "lifetime" in options:
        # one that ends is replaced at once
        arguments["lifetime_restart"] = True
        arguments["lifetime_stagger"] = options["lifetime"] // 4
    return arguments
