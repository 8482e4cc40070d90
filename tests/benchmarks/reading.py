"""Reading alone: the columns of Q6, no processor, in this process. hepdask, and uproot's own bulk read of the same ranges.

uproot runs twice: with our decompressor for zlib, and with its default. Its file stays open, as ours does, and its array cache is
off. hepdask's time is that of its ranges, from open to the end of `process`, by its metrics;
the run as a whole is the system "hepdask, whole run".
"""

from __future__ import annotations

import time
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import awkward as ak
import numpy as np

from hepdask.readers.decompression import fast_decompression
from tests.benchmarks.adl import adl_files
from tests.benchmarks.measurement import Target, Turns, check_equal
from tests.benchmarks.systems import TREENAME, HepdaskRun

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.measurement import Row, Setting

__all__ = ["build_local_run", "measure"]

CASE = "reading"
COLUMNS = ("pt", "eta", "phi", "mass", "btag")


def touch(events: Any) -> dict[str, Any]:
    """Read the columns of Q6, and return what shows that they were read."""
    jets = events.Jet
    return _summarize({name: jets[name] for name in COLUMNS})


def _summarize(columns: dict[str, Any]) -> dict[str, Any]:
    flat = {name: np.asarray(ak.flatten(column)) for name, column in columns.items()}
    return {
        "numbers": np.array([len(values) for values in flat.values()]),
        # bits, not values: their sum doesn't depend on the order of the ranges
        "bits": np.array(
            [values.view(np.uint32).sum(dtype=np.uint64) % 2**31 for values in flat.values()]
        ),
    }


def measure(setting: Setting) -> list[Row]:
    """Read with all, in turn."""
    run = build_local_run(setting)
    run()
    # where hepdask cuts the files: all read the same ranges
    ranges = [(one.file.file_path, one.entry_start, one.entry_stop) for one in run.plan().ranges]
    names = ("uproot", "uproot deflate", "hepdask", "hepdask, whole run")
    turns = Turns({name: [] for name in names}, {name: [] for name in names})
    with ExitStack() as stack:
        trees = _open_trees(stack, ranges)
        for turn in range(-1, setting.num_repeats):
            times, outputs = _read_once(run, trees, ranges)
            check_equal(outputs)
            for name in names if turn >= 0 else ():
                turns.seconds[name].append(times[name][0])
                turns.cpu_seconds[name].append(times[name][1])
    run.check_read()
    targets = [
        Target(
            "hepdask / uproot deflate",
            turns.ratio("hepdask", "uproot deflate"),
            1.05,
            is_upper=True,
        ),
        Target("uproot / uproot deflate", turns.ratio("uproot", "uproot deflate"), 1.5),
    ]
    return [turns.row(CASE, "columns of Q6", targets, run.facts)]


def _open_trees(stack: ExitStack, ranges: list[tuple[str, int, int]]) -> dict[str, Any]:
    import uproot

    return {
        path: stack.enter_context(uproot.open(path, array_cache=None))[TREENAME]
        for path in dict.fromkeys(path for path, _, _ in ranges)
    }


def _read_once(
    run: Any, trees: dict[str, Any], ranges: list[tuple[str, int, int]]
) -> tuple[dict[str, tuple[float, float]], dict[str, Any]]:
    """Return wall and CPU seconds, and outputs, by system."""
    times, outputs = {}, {}
    for name, decompression in (("uproot", nullcontext), ("uproot deflate", fast_decompression)):
        with decompression():
            outputs[name], times[name] = _timed(partial(_read_with_uproot, trees, ranges))
    outputs["hepdask"], times["hepdask, whole run"] = _timed(run)
    total = run.result.metrics.total
    times["hepdask"] = (total.wall_seconds, total.cpu_seconds)
    return times, outputs


def _timed(function: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    cpu_before, started = time.process_time(), time.perf_counter()
    output = function()
    return output, (time.perf_counter() - started, time.process_time() - cpu_before)


def _read_with_uproot(trees: dict[str, Any], ranges: list[tuple[str, int, int]]) -> dict[str, Any]:
    names = [f"Jet_{name}" for name in COLUMNS]
    output: dict[str, Any] = {}
    for path, start, stop in ranges:
        arrays = trees[path].arrays(["nJet", *names], entry_start=start, entry_stop=stop, how=dict)
        summary = _summarize({name: arrays[f"Jet_{name}"] for name in COLUMNS})
        output = {key: output.get(key, 0) + values for key, values in summary.items()}
    return output


class _LocalReading(HepdaskRun):
    def plan(self) -> Any:
        """Return hepdask's plan of the run."""
        fileset, processor = self._what
        return self._run.plan(fileset, processor, treename=TREENAME)


def build_local_run(setting: Setting) -> Callable[[], Any]:
    """Return hepdask's run in this process."""
    from coffea.nanoevents import NanoAODSchema

    from hepdask import LocalExecutor

    return _LocalReading(LocalExecutor(), {"adl": adl_files(setting)}, touch, schema=NanoAODSchema)
