"""Hadoop's YARN, through dask-yarn: scheduler and workers are containers of one application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hepdask.clusters.environment import warn_of_threads, worker_environment
from hepdask.clusters.systems import SCALING, System, require

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["YarnSystem"]

#: What dask-yarn 0.9 imports from distributed.utils, and is in dask.utils since 2023.
_MOVED = ("format_bytes", "parse_bytes", "parse_timedelta")


class YarnSystem(System):
    """An application on YARN; ``python`` is the environment that it takes along, as dask-yarn writes it."""

    name = "yarn"
    help = "Hadoop YARN: each worker is a container"
    words = (*SCALING, "environment", "memory", "name", "python", "queue", "settings", "threads")

    def open(self, options: Mapping[str, Any]) -> Any:
        """Submit the application; see `System.open`."""
        dask_yarn = _import()
        warn_of_threads(options.get("threads", 1))
        cluster = dask_yarn.YarnCluster(**_translate(options))
        if "minimum" in options or "maximum" in options:
            cluster.adapt(minimum=options.get("minimum", 0), maximum=options.get("maximum"))
        return cluster

    def render(self, options: Mapping[str, Any]) -> str:
        """Write the specification of the application; see `System.render`."""
        _import()
        core = require("dask_yarn.core", "yarn")
        written: str = core._make_specification(**_translate(options)).to_yaml()
        return written.rstrip("\n")


def _import() -> Any:
    import dask.utils
    import distributed.utils

    for name in _MOVED:
        if not hasattr(distributed.utils, name):
            setattr(distributed.utils, name, getattr(dask.utils, name))
    return require("dask_yarn", "yarn")


def _translate(options: Mapping[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "worker_vcores": options.get("threads", 1),
        "n_workers": options.get("workers", options.get("minimum", 0)),
        "worker_env": worker_environment(options),
        "worker_memory": f"{options.get('memory', 2_000_000_000)} B",
    }
    names = {"python": "environment", "queue": "queue", "name": "name"}
    arguments |= {name: options[word] for word, name in names.items() if word in options}
    return {**arguments, **options.get("settings", {})}
