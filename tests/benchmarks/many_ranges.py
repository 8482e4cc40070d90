"""What a range costs beside the processor: 10,000 and 100,000 ranges of a trivial processor, and many small files.

``python -m tests.benchmarks.many_ranges`` is short for ``python -m tests.benchmarks --full --only many_ranges``. coffea opens a
file for each range by design, and sends each range as a task of its own; it runs only where that ends in minutes.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from tests.benchmarks.measurement import Target, take_turns
from tests.benchmarks.systems import CoffeaRun, HepdaskRun

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.measurement import Row, Setting

__all__ = ["build_local_run", "measure"]

CASE = "many_ranges"
NUM_ENTRIES_PER_RANGE = 10
MAX_MS_PER_RANGE = 0.2


def count(events: Any) -> dict[str, int]:
    """Count events: the trivial processor."""
    return {"entries": len(events)}


def measure(setting: Setting) -> list[Row]:
    """Run many ranges of a few files, more of them, and many files of one range."""
    num_ranges = setting.choose(10_000, 12)
    return [
        _compare(setting, f"{num_ranges:,} ranges", num_ranges, 2, with_coffea=True),
        _compare(setting, f"{10 * num_ranges:,} ranges", 10 * num_ranges, 2, with_coffea=False),
        _small_files(setting),
    ]


def _compare(
    setting: Setting, what: str, num_ranges: int, num_files: int, *, with_coffea: bool
) -> Row:
    arguments = _what(setting, num_ranges, num_files)
    hepdask = HepdaskRun(setting.client, **arguments, align_clusters=False)
    runs: dict[str, Any] = {"hepdask": hepdask}
    if with_coffea:
        runs = {"coffea": CoffeaRun(setting.client, **arguments), **runs}
    turns = take_turns(runs, setting.num_repeats, client=setting.client)
    _check_count(hepdask, num_ranges * NUM_ENTRIES_PER_RANGE)
    per_range = {
        f"{name}_ms_per_range": 1e3 * statistics.median(seconds) / num_ranges
        for name, seconds in turns.seconds.items()
    }
    target = Target(
        "hepdask, ms a range", per_range["hepdask_ms_per_range"], MAX_MS_PER_RANGE, is_upper=True
    )
    return turns.row(CASE, what, [target], {**per_range, **hepdask.facts})


def _small_files(setting: Setting) -> Row:
    num_files = setting.choose(300, 4)
    files = setting.samples.adl(num_files * setting.choose(1_000, 20), num_files, 1_000)
    from coffea.nanoevents import NanoAODSchema

    from tests.benchmarks.plain_queries import QUERIES

    what = {
        "fileset": {"small": files},
        "processor": QUERIES["Q2"],
        "schema": NanoAODSchema,
    }
    runs = {
        "coffea": CoffeaRun(setting.client, **what),
        "hepdask": HepdaskRun(setting.client, **what),
    }
    turns = take_turns(runs, setting.num_repeats, client=setting.client)
    # no figure is asked for; not to be slower is the least
    target = Target("coffea / hepdask", turns.ratio("coffea", "hepdask"), 1.0)
    return turns.row(CASE, f"{num_files} files, Q2", [target], runs["hepdask"].facts)


def _check_count(run: HepdaskRun, expected: int) -> None:
    if run.result.output != {"entries": expected}:
        raise AssertionError(f"{run.result.output}, not {expected} entries")


def build_local_run(setting: Setting) -> Callable[[], Any]:
    """Return hepdask's run of the first row in this process."""
    from hepdask import LocalExecutor

    what = _what(setting, setting.choose(10_000, 12), 2)
    return HepdaskRun(LocalExecutor(), **what, align_clusters=False)


def _what(setting: Setting, num_ranges: int, num_files: int) -> dict[str, Any]:
    from coffea.nanoevents import NanoAODSchema

    files = setting.samples.narrow(num_ranges * NUM_ENTRIES_PER_RANGE, num_files)
    return {
        "fileset": {"narrow": files},
        "processor": count,
        "schema": NanoAODSchema,
        "chunksize": NUM_ENTRIES_PER_RANGE,
    }


if __name__ == "__main__":
    from tests.benchmarks.__main__ import main

    main(["--full", "--only", CASE])
