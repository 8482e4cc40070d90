"""Schedulers that run already: nothing is started, scaled or stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hepdask.clusters.security import build_security, warn_of_plain_text
from hepdask.clusters.systems import Endpoint, System
from hepdask.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["AddressSystem"]


class AddressSystem(System):
    """The address of a scheduler, with the certificates for it."""

    name = "address"
    help = "a scheduler that runs already"
    words = ("address", "security")

    def open(self, options: Mapping[str, Any]) -> Endpoint:
        """Find the certificates; see `System.open`."""
        address = options["address"]
        security = build_security(options.get("security"))
        if address.startswith("tls://") and security is None:
            raise OptionError(
                f"{address} needs certificates: say security={{'ca': ..., 'cert': ..., 'key': ...}}, or set "
                "distributed.comm.tls in dask's configuration"
            )
        if options.get("security") == "temporary":
            raise OptionError(
                f"{address} has its own certificates: 'temporary' ones are for clusters that are started here"
            )
        warn_of_plain_text(address)
        return Endpoint(address, security)

    def render(self, options: Mapping[str, Any]) -> str:
        """Say where the scheduler is; see `System.render`."""
        security = options.get("security")
        lines = [f"connects to {options['address']}: nothing is submitted"]
        if security is not None:
            lines += [f"  {name}: {path}" for name, path in dict(security).items()]
        return "\n".join(lines)
