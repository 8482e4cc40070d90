"""ADL queries from a real XRootD server, near and far: Q2 and Q7 at 0, 20 and 50 ms round trip, and what distance costs us.

The server is on this machine; a proxy in a process of its own adds the delay to both sides' connections. Both sides keep their
connections from one run to the next, hepdask its open files, too; columns are read each time.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.adl import adl_files
from tests.benchmarks.delay import delayed_port
from tests.benchmarks.measurement import Target, take_turns
from tests.benchmarks.plain_queries import QUERIES
from tests.benchmarks.systems import CoffeaRun, HepdaskRun
from tests.servers import XrdServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.benchmarks.measurement import Row, Setting

__all__ = ["build_local_run", "measure"]

CASE = "xrootd"
ROUND_TRIPS_MS = (0, 20, 50)
#: Copies of the sample that take hepdask 5 s or more.
NUM_COPIES = {"Q2": 24, "Q7": 4}


def measure(setting: Setting) -> list[Row]:
    """Compare with coffea at each distance, then our throughput at all of them."""
    queries = setting.choose(tuple(NUM_COPIES), ("Q2",))
    round_trips_ms = setting.choose(ROUND_TRIPS_MS, (0, 5))
    with _serve(setting) as server:
        return [
            *(
                _compare(setting, server, query, round_trip_ms)
                for query in queries
                for round_trip_ms in round_trips_ms
            ),
            *(_throughput(setting, server, query, round_trips_ms) for query in queries),
        ]


@contextmanager
def _serve(setting: Setting) -> Iterator[XrdServer]:
    adl_files(setting)  # the server starts only if the directory is there
    with tempfile.TemporaryDirectory(prefix="hepdask-xrootd-") as name:
        Path(name).chmod(0o755)  # the server's user must get in
        with XrdServer(setting.samples.directory, Path(name)) as server:
            yield server


def _compare(setting: Setting, server: XrdServer, query: str, round_trip_ms: int) -> Row:
    with delayed_port(server.port, round_trip_ms) as delay:
        what = _what(query, _urls(setting, server, adl_files(setting), delay.port))
        hepdask = HepdaskRun(setting.client, **what)
        runs = {
            "coffea": CoffeaRun(setting.client, **what),
            "coffea traced": CoffeaRun(setting.client, **what, is_traced=True),
            "hepdask": hepdask,
        }
        turns = take_turns(runs, setting.num_repeats, client=setting.client)
        hepdask.check_read()
    # the figures to reach are for the largest distance
    bounds = {"coffea": 3.5, "coffea traced": 2.0} if round_trip_ms == ROUND_TRIPS_MS[-1] else {}
    targets = [
        Target(f"{name} / hepdask", turns.ratio(name, "hepdask"), bound)
        for name, bound in bounds.items()
    ]
    return turns.row(CASE, f"{query}, {round_trip_ms} ms", targets, hepdask.facts)


def _throughput(
    setting: Setting, server: XrdServer, query: str, round_trips_ms: Sequence[int]
) -> Row:
    files = setting.samples.linked(adl_files(setting), setting.choose(NUM_COPIES[query], 1))
    with ExitStack() as stack:
        runs = {"local": HepdaskRun(setting.client, **_what(query, files))}
        direct = _urls(setting, server, files, server.port)
        runs["no proxy"] = HepdaskRun(setting.client, **_what(query, direct))
        for round_trip_ms in round_trips_ms:
            delay = stack.enter_context(delayed_port(server.port, round_trip_ms))
            urls = _urls(setting, server, files, delay.port)
            runs[f"{round_trip_ms} ms"] = HepdaskRun(setting.client, **_what(query, urls))
        turns = take_turns(runs, setting.num_repeats, client=setting.client)
        for run in runs.values():
            run.check_read()
    farthest = f"{round_trips_ms[-1]} ms"
    targets = [
        Target("throughput without proxy / local", turns.ratio("local", "no proxy"), 0.9),
        Target(f"throughput at {farthest} / at 0 ms", turns.ratio("0 ms", farthest), 0.9),
    ]
    return turns.row(CASE, f"{query}, hepdask's throughput", targets, runs[farthest].facts)


def _urls(setting: Setting, server: XrdServer, files: list[str], port: int) -> list[str]:
    root = setting.samples.directory
    return [server.url(str(Path(file).relative_to(root)), port=port) for file in files]


def _what(query: str, files: list[str]) -> dict[str, Any]:
    from coffea.nanoevents import NanoAODSchema

    return {"fileset": {"adl": files}, "processor": QUERIES[query], "schema": NanoAODSchema}


def build_local_run(setting: Setting, query: str = "Q2") -> Callable[[], Any]:
    """Return hepdask's run of a query in this process, at 50 ms round trip."""
    from hepdask import LocalExecutor

    with ExitStack() as stack:
        server = stack.enter_context(_serve(setting))
        delay = stack.enter_context(delayed_port(server.port, 50))
        urls = _urls(setting, server, adl_files(setting), delay.port)
        run = HepdaskRun(LocalExecutor(), **_what(query, urls))
        run.resources = stack.pop_all()
    return run
