"""Dask Gateway: a service that starts clusters for its users, and speaks TLS with them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import dask

from hepdask.clusters.environment import worker_environment
from hepdask.clusters.systems import SCALING, System, require
from hepdask.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["GatewaySystem"]

#: The service's own names for our words; a service has those that its administrators allow.
_NAMES = {"cores": "worker_cores", "memory": "worker_memory", "image": "image"}


class GatewaySystem(System):
    """A cluster of a Dask Gateway."""

    name = "gateway"
    help = "Dask Gateway: a service that starts clusters"
    words = (*SCALING, *_NAMES, "address", "auth", "environment", "proxy_address", "settings")

    def open(self, options: Mapping[str, Any]) -> Any:
        """Ask the service for a cluster, and for workers; see `System.open`."""
        gateway_class = require("dask_gateway", "gateway").Gateway
        wanted = _settings(options)
        with gateway_class(**_connection(options)) as gateway:
            allowed = gateway.cluster_options()
            for name in wanted:
                if name not in allowed:
                    names = ", ".join(sorted(allowed)) or "none"
                    raise OptionError(
                        f"the gateway at {gateway.address} has no option {name!r}; its options are: {names}"
                    )
            cluster = gateway.new_cluster(**wanted)
        _scale(cluster, options)
        return cluster

    def render(self, options: Mapping[str, Any]) -> str:
        """Write what the service is asked for; see `System.render`."""
        connection = {name: value for name, value in _connection(options).items() if name != "auth"}
        configured = dask.config.get("gateway.address", None)
        connection.setdefault("address", configured or "<as dask-gateway is configured>")
        asked = {
            "gateway": connection,
            "cluster_options": _settings(options),
            "scale" if "workers" in options else "adapt": _scaling(options),
        }
        return json.dumps(asked, indent=2)


def _connection(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what finds the service; what is not said is in dask-gateway's configuration."""
    return {name: options[name] for name in ("address", "proxy_address", "auth") if name in options}


def _settings(options: Mapping[str, Any]) -> dict[str, Any]:
    wanted = {name: options[word] for word, name in _NAMES.items() if word in options}
    if "memory" in options:
        wanted["worker_memory"] = options["memory"] / 2**30  # GiB, as in the service's examples
    if "environment" in options:
        wanted["environment"] = worker_environment(options)
    return {**wanted, **options.get("settings", {})}


def _scaling(options: Mapping[str, Any]) -> dict[str, int | None]:
    if "workers" in options:
        return {"workers": options["workers"]}
    return {"minimum": options.get("minimum", 0), "maximum": options.get("maximum")}


def _scale(cluster: Any, options: Mapping[str, Any]) -> None:
    wanted = _scaling(options)
    if "workers" in wanted:
        # the service itself replaces what is lost
        cluster.scale(wanted["workers"])
    else:
        cluster.adapt(**wanted)
