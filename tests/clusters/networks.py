"""Networks of tests: three, for client, scheduler and workers, with no way from the first to the last; or one, far from all others."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LocalNetwork", "Networks", "local_network", "three_networks"]

#: Where processes in a network of this name find their /etc/hosts; see ip-netns(8).
NETWORK_FILES = Path("/etc/netns")


@dataclass(frozen=True, slots=True)
class Networks:
    """Names of network namespaces, and where the scheduler is seen from the others."""

    client: str
    scheduler: str
    workers: str
    scheduler_for_client: str = "10.98.1.1"
    scheduler_for_workers: str = "10.98.2.1"
    client_host: str = "10.98.1.2"
    worker_host: str = "10.98.2.2"

    def inside(self, network: str) -> list[str]:
        """Return the words before a command that let it run there."""
        return ["ip", "netns", "exec", network]

    def connect_client(self, is_up: bool) -> None:
        """Let the client see the scheduler, or let what they send to each other be lost."""
        end = _ends("c")[0]
        _ip("-n", self.scheduler, "link", "set", end, "up" if is_up else "down")


@contextmanager
def three_networks() -> Iterator[Networks]:
    """Make the networks, and remove them; skip the test where that is not allowed."""
    _require_networks()
    names = [f"hepdask-{part}-{os.getpid()}" for part in ("client", "scheduler", "workers")]
    networks = Networks(*names)
    with ExitStack() as stack:
        for name in names:
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _connect(
            networks, networks.client, "c", networks.scheduler_for_client, networks.client_host
        )
        _connect(
            networks, networks.workers, "w", networks.scheduler_for_workers, networks.worker_host
        )
        yield networks


@dataclass(frozen=True, slots=True)
class LocalNetwork:
    """A network without any other machine.

    Attributes
    ----------
    name : str
        Of the network namespace.
    hosts : Path
        What processes in it see as ``/etc/hosts``.
    """

    name: str
    hosts: Path

    @property
    def inside(self) -> list[str]:
        """The words before a command that let it run there."""
        return ["ip", "netns", "exec", self.name]


@contextmanager
def local_network(*local: str) -> Iterator[LocalNetwork]:
    """Make a network in which all addresses of some ranges are this machine's own, and remove it.

    Addresses that a simulation gives away lead to processes there, whichever it takes.

    Parameters
    ----------
    *local : str
        Ranges, ``"10.0.0.0/8"``.
    """
    _require_networks()
    name = f"hepdask-local-{os.getpid()}"
    files = NETWORK_FILES / name
    with ExitStack() as stack:
        files.mkdir(parents=True)
        stack.callback(_remove_files, files)
        hosts = files / "hosts"
        hosts.write_text("127.0.0.1 localhost\n")
        _ip("netns", "add", name)
        stack.callback(_ip, "netns", "del", name)
        _ip("-n", name, "link", "set", "lo", "up")
        for one in local:
            _ip("-n", name, "route", "add", "local", one, "dev", "lo")
        yield LocalNetwork(name, hosts)


def _remove_files(directory: Path) -> None:
    shutil.rmtree(directory)
    with suppress(OSError):  # others have files there, too
        directory.parent.rmdir()


def _require_networks() -> None:
    if os.geteuid() != 0 or shutil.which("ip") is None or not _is_allowed():
        pytest.skip(
            "needs root, the right to make network namespaces, and: apt-get install iproute2"
        )


def _connect(networks: Networks, other: str, tag: str, near: str, far: str) -> None:
    ends = _ends(tag)
    _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
    for end, network, address in zip(ends, (networks.scheduler, other), (near, far), strict=True):
        _ip("link", "set", end, "netns", network)
        _ip("-n", network, "addr", "add", f"{address}/24", "dev", end)
        _ip("-n", network, "link", "set", end, "up")


def _ends(tag: str) -> list[str]:
    return [f"hd{tag}{number}{os.getpid() % 100_000}" for number in (0, 1)]


def _is_allowed() -> bool:
    name = f"hepdask-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode == 0:
        _ip("netns", "del", name)
    return made.returncode == 0


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)
