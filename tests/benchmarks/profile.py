"""Profile one case down to functions: ``python -m tests.benchmarks.profile wide --full``.

The case runs in this process with `LocalExecutor`, first without the profiler (libraries are imported, files opened), then with
it. ``--cold`` profiles the first run instead.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.benchmarks.__main__ import add_size_options
from tests.benchmarks.cases import CASES
from tests.benchmarks.measurement import Setting
from tests.benchmarks.samples import Samples
from tests.benchmarks.systems import import_libraries, private_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Profile what the command line says."""
    chosen = _parse(arguments)
    import_libraries()
    setting = Setting(None, Samples(chosen.samples), chosen.full, 1)
    with (
        tempfile.TemporaryDirectory(prefix="hepdask-benchmark-") as name,
        private_cache(name),
        local_run(setting, chosen.case, chosen.query) as run,
    ):
        if not chosen.cold:
            run()
        _profile(run, chosen)
        print(run.result.metrics.to_table())


@contextmanager
def local_run(setting: Setting, case: str, query: str | None = None) -> Iterator[Any]:
    """Build the run of a case in this process, and end its servers afterwards."""
    run = CASES[case].build_local_run(setting, **({"query": query} if query else {}))
    try:
        yield run
    finally:
        run.close()


def _profile(run: Callable[[], Any], chosen: argparse.Namespace) -> None:
    if chosen.tool == "pyinstrument":
        from pyinstrument import Profiler

        with Profiler() as profiler:
            run()
        print(profiler.output_text(unicode=True, color=False))
        return
    profile = cProfile.Profile(time.thread_time) if chosen.cpu else cProfile.Profile()
    profile.runcall(run)
    for order in ("cumulative", "tottime"):
        pstats.Stats(profile).sort_stats(order).print_stats(chosen.lines)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.profile", description=__doc__)
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--query", help="Q1 to Q8, for the cases that have them")
    add_size_options(parser)
    parser.add_argument("--cold", action="store_true", help="the first run in this process")
    parser.add_argument("--tool", choices=("cprofile", "pyinstrument"), default="cprofile")
    parser.add_argument(
        "--cpu", action="store_true", help="CPU time, which other work on the machine changes less"
    )
    parser.add_argument("--lines", type=int, default=40, help="functions to print (40)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
