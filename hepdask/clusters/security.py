"""Certificates for a cluster, and what is said of one that has none."""

from __future__ import annotations

import ipaddress
import socket
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hepdask.errors import MissingDependencyError, OptionError, suggest

__all__ = ["build_security", "configured_security", "describe_plain_text", "warn_of_plain_text"]

_FILES = ("ca", "cert", "key")


def build_security(given: Any) -> Any:
    """Make the `distributed.Security` that an option describes.

    Parameters
    ----------
    given : str, mapping, bool, Security or None
        ``"temporary"`` (or True) makes certificates for this session; ``{"ca": ..., "cert": ..., "key": ...}`` are PEM files,
        for client, scheduler and workers alike; None: what dask's configuration has under ``distributed.comm.tls``.

    Returns
    -------
    distributed.Security or None
        None where nothing asks for encryption.

    Raises
    ------
    OptionError
        If a file is missing, or the option is none of these.
    MissingDependencyError
        If certificates are to be made, and ``cryptography`` is not installed.
    """
    from distributed import Security

    if given is None:
        return configured_security()
    if isinstance(given, Security) or hasattr(given, "get_connection_args"):
        return given
    if given is True or given == "temporary":
        try:
            return Security.temporary()
        except ImportError as error:
            raise MissingDependencyError(
                "temporary certificates need cryptography: pip install 'hepdask[tls]'"
            ) from error
    if isinstance(given, Mapping):
        return _from_files(given)
    raise OptionError(
        f"security is {given!r}: give 'temporary', or {{'ca': ..., 'cert': ..., 'key': ...}}"
    )


def _from_files(given: Mapping[str, Any]) -> Any:
    from distributed import Security

    for name in given:
        if name not in _FILES:
            raise OptionError(f"security has no {name!r}{suggest(name, _FILES)}")
    files = {}
    for name in _FILES:
        if name not in given:
            raise OptionError(f"security lacks {name!r}: it is the path of a PEM file")
        # dask looks relative paths up in its own configuration folder
        path = Path(str(given[name])).expanduser().absolute()
        if not path.is_file():
            raise OptionError(f"security: there is no file {path} ({name})")
        files[name] = str(path)
    roles = ("client", "scheduler", "worker")
    return Security(
        require_encryption=True,
        tls_ca_file=files["ca"],
        **{f"tls_{role}_{kind}": files[kind] for role in roles for kind in ("cert", "key")},
    )


def configured_security() -> Any:
    """Return what dask's configuration says of certificates; None if it says nothing."""
    import dask
    from distributed import Security

    tls = dask.config.get("distributed.comm.tls", {}) or {}
    required = dask.config.get("distributed.comm.require-encryption", None)
    return Security() if tls.get("ca-file") or required else None


def warn_of_plain_text(address: str) -> None:
    """Warn where a scheduler without certificates can be reached from other machines: whoever reaches it runs code as its user."""
    text = describe_plain_text(address)
    if text:
        warnings.warn(text, UserWarning, stacklevel=2)


def describe_plain_text(address: str) -> str:
    """Say what is wrong with a scheduler without certificates; empty if nothing is."""
    scheme, _, rest = address.partition("://")
    if scheme != "tcp" or _is_here_alone(rest):
        return ""
    return (
        f"the scheduler at {address} uses no encryption and knows no users: whoever can reach it runs code as you. "
        "Say security='temporary' (or give certificates), or interface='lo' where all workers are on this machine"
    )


def _is_here_alone(host_and_port: str) -> bool:
    host = host_and_port.rpartition(":")[0].strip("[]") or host_and_port
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = {one[4][0] for one in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(str(one)).is_loopback for one in found)
