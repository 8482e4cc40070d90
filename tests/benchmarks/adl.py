"""The eight ADL queries with the same processors in both: hepdask's defaults, coffea's, and coffea's best chunk size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.benchmarks.measurement import Row, Target, geometric_mean, take_turns
from tests.benchmarks.plain_queries import QUERIES
from tests.benchmarks.systems import CoffeaRun, HepdaskRun

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.measurement import Setting

__all__ = ["adl_files", "build_local_run", "measure"]

CASE = "adl"
#: Found by hand for 2,000,000 events on two workers: two ranges for each.
BEST_CHUNKSIZE = 500_000


def measure(setting: Setting) -> list[Row]:
    """Run each query."""
    rows = [_measure_query(setting, name) for name in QUERIES]
    ratios = [row.median("coffea") / row.median("hepdask") for row in rows]
    mean = Target("geometric mean of coffea / hepdask", geometric_mean(ratios), 2.0)
    return [*rows, Row(CASE, "Q1 to Q8", targets=(mean,))]


def _measure_query(setting: Setting, name: str) -> Row:
    what = _what(setting, name)
    hepdask = HepdaskRun(setting.client, **what)
    best = {**what, "chunksize": BEST_CHUNKSIZE}
    runs = {
        "coffea": CoffeaRun(setting.client, **what),
        "coffea 500k": CoffeaRun(setting.client, **best),
        "hepdask": hepdask,
    }
    turns = take_turns(runs, setting.num_repeats, client=setting.client)
    hepdask.check_read()
    target = Target("coffea 500k / hepdask", turns.ratio("coffea 500k", "hepdask"), 0.95)
    return turns.row(CASE, name, [target], hepdask.facts)


def build_local_run(setting: Setting, query: str = "Q5") -> Callable[[], Any]:
    """Return hepdask's run of a query in this process."""
    from hepdask import LocalExecutor

    return HepdaskRun(LocalExecutor(), **_what(setting, query))


def adl_files(setting: Setting) -> list[str]:
    """Return the sample: at full size 2,000,000 events in four files, in clusters of 100,000."""
    return setting.samples.adl(*setting.choose((2_000_000, 4, 100_000), (2_000, 2, 500)))


def _what(setting: Setting, query: str) -> dict[str, Any]:
    from coffea.nanoevents import NanoAODSchema

    return {
        "fileset": {"adl": adl_files(setting)},
        "processor": QUERIES[query],
        "schema": NanoAODSchema,
    }
