"""A cluster class of a facility, as its documentation gives it: hepdask hands the words on, the class does the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hepdask.clusters.security import build_security, warn_of_plain_text
from hepdask.clusters.systems import SCALING, System, describe_scaling, load_class, scale
from hepdask.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ClassSystem"]

#: Words that clusters of dask-jobqueue's kind have, too, under these names.
_NAMES = {
    "cores": "cores",
    "death_timeout": "death_timeout",
    "disk": "disk",
    "interface": "interface",
    "log_directory": "log_directory",
    "nanny": "nanny",
    "prologue": "job_script_prologue",
    "python": "python",
    "scratch": "local_directory",
}


class ClassSystem(System):
    """A class like dask_lxplus's or lpcjobqueue's; what only it knows is said in ``settings``."""

    name = "class"
    help = "a cluster class of a facility: cluster_class=MODULE:CLASS"
    words = (
        *SCALING,
        *_NAMES,
        "cluster_class",
        "memory",
        "scheduler_host",
        "scheduler_port",
        "security",
        "settings",
    )

    def open(self, options: Mapping[str, Any]) -> Any:
        """Make an instance of the class, and scale it; see `System.open`."""
        arguments = _translate(options)
        if "security" in options:
            arguments["security"] = build_security(options["security"])
        cluster = load_class(_path_of(options))(**arguments)
        warn_of_plain_text(str(cluster.scheduler_address))
        scale(cluster, options, per_job=arguments.get("processes", 1))
        return cluster

    def render(self, options: Mapping[str, Any]) -> str:
        """Write the calls; the class itself writes the jobs. See `System.render`."""
        module, _, name = _path_of(options).partition(":")
        arguments = _translate(options)
        lines = [f"    {key}={value!r}," for key, value in sorted(arguments.items())]
        if "security" in options:
            lines.append("    security=...,  # as configured")
        call = "\n".join([f"{name}(", *lines, ")"]) if lines else f"{name}()"
        scaling = describe_scaling(options, per_job=arguments.get("processes", 1))
        return (
            f"# {name} writes and submits the jobs\n"
            f"from {module} import {name}\n\ncluster = {call}\n{scaling}"
        )


def _path_of(options: Mapping[str, Any]) -> str:
    path = options.get("cluster_class")
    if path is None:
        raise OptionError("class needs cluster_class='MODULE:CLASS', say 'dask_lxplus:CernCluster'")
    return str(path)


def _translate(options: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {name: options[word] for word, name in _NAMES.items() if word in options}
    if "prologue" in options:
        arguments["job_script_prologue"] = list(options["prologue"])
    if "memory" in options:
        arguments["memory"] = f"{options['memory']}B"
    if "cores" in options:
        arguments["processes"] = options["cores"]  # one thread a worker
    scheduler = {
        name: options[word]
        for word, name in (("scheduler_host", "host"), ("scheduler_port", "port"))
        if word in options
    }
    if scheduler:
        arguments["scheduler_options"] = scheduler
    return {**arguments, **options.get("settings", {})}
