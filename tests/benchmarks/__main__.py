"""Run the comparisons with coffea and ROOT: ``python -m tests.benchmarks --full``.

Prints each figure when it is there, and writes all of them as ``results.json``, ``table.md`` and ``plots.png``. If two systems
make different outputs of the same files, the case fails, and so does the command at the end.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.cases import CASES
from tests.benchmarks.measurement import Setting
from tests.benchmarks.report import format_row, write_report
from tests.benchmarks.samples import Samples
from tests.benchmarks.systems import two_workers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.benchmarks.measurement import Row

__all__ = ["add_size_options", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says, and return its exit code."""
    chosen = _parse(arguments)
    rows: list[Row] = []
    failed = []
    for name in chosen.only or CASES:
        print(f"== {name}", flush=True)
        try:
            # new workers for each case: none begins with the memory of the one before
            with two_workers() as client:
                setting = Setting(client, Samples(chosen.samples), chosen.full, chosen.repeat)
                for row in CASES[name].measure(setting):
                    rows.append(row)
                    print(format_row(row), flush=True)
        except Exception:  # noqa: BLE001  (the other cases are still worth their time)
            traceback.print_exc()
            failed.append(name)
        write_report(Path(chosen.output), rows, is_full=chosen.full, num_repeats=chosen.repeat)
    print(f"written: {chosen.output}/results.json, table.md, plots.png")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    add_size_options(parser)
    parser.add_argument(
        "--only", action="append", choices=list(CASES), help="this case; again for more"
    )
    parser.add_argument("--repeat", type=int, default=5, help="timed runs of each system (5)")
    parser.add_argument("--output", default="benchmark-results", help="a directory")
    return parser.parse_args(arguments)


def add_size_options(parser: argparse.ArgumentParser) -> None:
    """Add what both commands take."""
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--full",
        action="store_true",
        help="the size of the figures to reach: about an hour, 4 GB of disk",
    )
    size.add_argument(
        "--small", action="store_false", dest="full", help="that it works; the default"
    )
    default = Path(tempfile.gettempdir(), "hepdask-samples")
    parser.add_argument(
        "--samples", default=default, help=f"where the samples are kept ({default})"
    )


if __name__ == "__main__":
    sys.exit(main())
