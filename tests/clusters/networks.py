"""Three networks, for client, scheduler and workers: the scheduler sees both others, and these don't see each other."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Networks", "three_networks"]


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
    if os.geteuid() != 0 or shutil.which("ip") is None or not _is_allowed():
        pytest.skip(
            "needs root, the right to make network namespaces, and: apt-get install iproute2"
        )
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
