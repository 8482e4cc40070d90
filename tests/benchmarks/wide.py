"""NanoAOD with 1,499 branches, 20 ranges of 10,000 entries, a histogram of MET: what the branches cost that nobody asked for.

Cold: each run has new worker processes, with the libraries imported and nothing else, and empty metadata caches on both sides.
Warm: the session runs it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.benchmarks.measurement import Target, take_turns
from tests.benchmarks.plain_queries import QUERIES
from tests.benchmarks.systems import CoffeaRun, HepdaskRun, forget_everything

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.measurement import Row, Setting, Turns

__all__ = ["build_local_run", "measure"]

CASE = "wide"


def measure(setting: Setting) -> list[Row]:
    """Run cold, then warm."""
    what = _what(setting)
    runs = {
        "coffea": CoffeaRun(setting.client, **what),
        "hepdask": HepdaskRun(setting.client, **what),
    }
    hepdask = runs["hepdask"]

    def forget(name: str) -> None:
        if setting.is_full:
            forget_everything(setting.client)
        runs[name].forget()

    cold = take_turns(
        runs, setting.num_repeats, client=setting.client, prepare=forget, num_warm_ups=0
    )
    cold_facts = hepdask.facts
    warm = take_turns(
        runs, setting.num_repeats, client=setting.client, num_warm_ups=setting.choose(1, 0)
    )
    facts = hepdask.facts
    hepdask.check_read()
    overhead = Target(
        "open and form, ms a range", facts["open_and_form_ms_per_range"], 10.0, is_upper=True
    )
    return [
        cold.row(CASE, "cold", [_ratio(cold, 8.0)], cold_facts),
        warm.row(CASE, "warm", [_ratio(warm, 20.0), overhead], facts),
    ]


def _ratio(turns: Turns, bound: float) -> Target:
    return Target("coffea / hepdask", turns.ratio("coffea", "hepdask"), bound)


def build_local_run(setting: Setting) -> Callable[[], Any]:
    """Return hepdask's run in this process; the second call is warm."""
    from hepdask import LocalExecutor

    return HepdaskRun(LocalExecutor(), **_what(setting))


def _what(setting: Setting) -> dict[str, Any]:
    from coffea.nanoevents import NanoAODSchema

    size = setting.choose((10, 2, 10_000), (1, 1, 100, 550))
    return {
        "fileset": {"wide": setting.samples.wide(*size)},
        "processor": QUERIES["Q1"],
        "schema": NanoAODSchema,
        "chunksize": size[2],
    }
