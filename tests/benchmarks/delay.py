"""The delay proxy of `tests.servers` in a process of its own: in a thread it would share this one's interpreter with a run.

``python -m tests.benchmarks.delay TARGET_PORT ROUND_TRIP_MS`` prints the port that it listens on, and when its standard input
ends what it counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.servers import LatencyProxy, stop_process

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Delay", "delayed_port"]

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@dataclass(slots=True)
class Delay:
    """A running proxy.

    Attributes
    ----------
    port : int
        Where it listens on 127.0.0.1.
    counts : dict
        When it has ended: ``connections``, ``turns`` (about the sequential round trips) and ``bytes_down``.
    """

    port: int
    counts: dict[str, int] = field(default_factory=dict)


@contextmanager
def delayed_port(target_port: int, round_trip_ms: float) -> Iterator[Delay]:
    """Run a proxy in front of a port of 127.0.0.1.

    Parameters
    ----------
    target_port : int
        Where the server listens.
    round_trip_ms : float
        What the proxy adds to a round trip.

    Yields
    ------
    Delay
        With the port; `counts` is filled when the block ends.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(target_port), str(round_trip_ms)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the proxy ended with code {process.wait()}")
        delay = Delay(int(line))
        yield delay
        printed, _ = process.communicate("", timeout=20)
        delay.counts.update(json.loads(printed))
    finally:
        stop_process(process)
        process.stdin.close()
        process.stdout.close()


def main() -> None:
    """Serve until the standard input ends."""
    target_port, round_trip_ms = int(sys.argv[1]), float(sys.argv[2])
    with LatencyProxy(target_port, round_trip_seconds=round_trip_ms / 1e3) as proxy:
        print(proxy.port, flush=True)
        sys.stdin.read()
    counts = {
        "connections": proxy.num_connections,
        "turns": proxy.num_turns,
        "bytes_down": proxy.num_bytes_down,
    }
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main()
