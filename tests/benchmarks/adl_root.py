"""The eight ADL queries: hepdask's own processors against compiled ROOT, over the same Dask workers and with two threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.benchmarks.adl import adl_files
from tests.benchmarks.measurement import Row, Target, geometric_mean, take_turns
from tests.benchmarks.root_queries import QUERIES, RootDaskRun, RootThreadsRun, import_root
from tests.benchmarks.systems import HepdaskRun

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.measurement import Setting

__all__ = ["build_local_run", "measure"]

CASE = "adl_root"
#: These fill columns as they are: every bin is equal.
EXACT = frozenset({"Q1", "Q2", "Q3", "Q4"})
#: The others may differ in values beside the edge of a bin or a cut, where ROOT, numpy and numba round the last bit differently: by 2
#: of 2,000,000 events. (Between ROOT 6.40 and plain awkward none of them did.)
MAX_MOVED = 1e-6


def measure(setting: Setting) -> list[Row]:
    """Run each query."""
    import_root()
    # ROOT compiles each for some seconds on each worker
    names = setting.choose(tuple(QUERIES), ("Q4", "Q7"))
    rows = [_measure_query(setting, name) for name in names]
    ratios = [row.median("ROOT Dask") / row.median("hepdask") for row in rows]
    mean = Target("geometric mean of ROOT Dask / hepdask", geometric_mean(ratios), 1.5)
    return [*rows, Row(CASE, "all", targets=(mean,))]


def _measure_query(setting: Setting, name: str) -> Row:
    files = adl_files(setting)
    hepdask = HepdaskRun(setting.client, **_what(setting, name))
    runs = {
        "ROOT Dask": RootDaskRun(setting.client, files, name),
        "ROOT threads": RootThreadsRun(files, name),
        "hepdask": hepdask,
    }
    turns = take_turns(
        runs,
        setting.num_repeats,
        client=setting.client,
        max_moved=0.0 if name in EXACT else MAX_MOVED,
    )
    hepdask.check_read()
    target = Target("ROOT Dask / hepdask", turns.ratio("ROOT Dask", "hepdask"), 1.0)
    return turns.row(CASE, name, [target], hepdask.facts)


def build_local_run(setting: Setting, query: str = "Q5") -> Callable[[], Any]:
    """Return hepdask's run of a query in this process."""
    from hepdask import LocalExecutor

    return HepdaskRun(LocalExecutor(), **_what(setting, query))


def _what(setting: Setting, query: str) -> dict[str, Any]:
    from coffea.nanoevents import NanoAODSchema

    from processors import adl

    return {
        "fileset": {"adl": adl_files(setting)},
        "processor": adl.QUERIES[query](),
        "schema": NanoAODSchema,
    }
