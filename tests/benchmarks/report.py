"""The results as JSON, as Markdown, as plots."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.benchmarks.measurement import Row, Target

__all__ = ["describe_machine", "format_row", "write_report"]

LIBRARIES = (
    "hepdask",
    "coffea",
    "uproot",
    "awkward",
    "dask",
    "distributed",
    "numba",
    "deflate",
    "root",
)


def write_report(directory: Path, rows: Sequence[Row], *, is_full: bool, num_repeats: int) -> None:
    """Write ``results.json``, ``table.md``, and ``plots.png`` where matplotlib is installed."""
    directory.mkdir(parents=True, exist_ok=True)
    machine = {**describe_machine(), "is_full": is_full, "num_repeats": num_repeats}
    document = {"machine": machine, "rows": [asdict(row) for row in rows]}
    (directory / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    (directory / "table.md").write_text("\n".join(_markdown(rows, machine)) + "\n")
    _draw(directory / "plots.png", [row for row in rows if row.seconds])


def describe_machine() -> dict[str, Any]:
    """Return what figures depend on: processors, Python, versions."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "num_cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": versions,
    }


def format_row(row: Row) -> str:
    """Return a row as one line of text."""
    parts = [f"{name} {_cell(row, name)}" for name in row.seconds]
    parts += [_target(target) for target in row.targets]
    return f"{row.case}: {row.what}: " + "; ".join(parts)


def _spread(seconds: Sequence[float]) -> str:
    text = f"{statistics.median(seconds):.3g} s"
    return text if len(seconds) == 1 else f"{text} ({min(seconds):.3g} to {max(seconds):.3g})"


def _cell(row: Row, name: str) -> str:
    text = _spread(row.seconds[name])
    if name in row.cpu_seconds:
        text += f", CPU {statistics.median(row.cpu_seconds[name]):.3g} s"
    return text


def _target(target: Target) -> str:
    sign = "at most" if target.is_upper else "at least"
    verdict = "met" if target.is_met else "MISSED"
    return f"{target.what} = {target.value:.3g} ({sign} {target.bound:g}: {verdict})"


def _markdown(rows: Sequence[Row], machine: dict[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    size = "full" if machine["is_full"] else "small"
    yield (
        f"Medians of {machine['num_repeats']} runs (least to most), and their CPU time in all processes; systems in turn; {size} "
        f"size, two workers with one thread each, {machine['num_cpus']} CPUs, load {machine['load']:.1f} at the end; Python {machine['python']}, {versions}."
    )
    for case in dict.fromkeys(row.case for row in rows):
        chosen = [row for row in rows if row.case == case]
        systems = list(dict.fromkeys(name for row in chosen for name in row.seconds))
        yield from ("", f"## {case}", "")
        yield f"| | {' | '.join(systems)} | figures to reach |"
        yield f"|---|{'---|' * len(systems)}---|"
        for row in chosen:
            cells = [_cell(row, name) if name in row.seconds else "" for name in systems]
            targets = "; ".join(_target(target) for target in row.targets)
            yield f"| {row.what} | {' | '.join(cells)} | {targets} |"
        yield ""
        for row in chosen:
            if row.facts:
                facts = ", ".join(f"{name} {value:.4g}" for name, value in row.facts.items())
                yield f"* {row.what}, hepdask's last run: {facts}"


def _draw(path: Path, rows: Sequence[Row]) -> None:
    """Draw a panel for each case: medians as bars, each run as a point."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plots: pip install 'hepdask[benchmark]'")
        return
    cases = list(dict.fromkeys(row.case for row in rows))
    if not cases:
        return
    figure = Figure(figsize=(11.0, 3.6 * len(cases)), layout="constrained")
    for panel, case in zip(figure.subplots(len(cases), squeeze=False)[:, 0], cases, strict=True):
        _draw_case(panel, case, [row for row in rows if row.case == case])
    figure.savefig(path, dpi=110)


def _draw_case(panel: Any, case: str, rows: Sequence[Row]) -> None:
    systems = list(dict.fromkeys(name for row in rows for name in row.seconds))
    width = 0.8 / len(systems)
    for number, name in enumerate(systems):
        places = [
            place + (number - (len(systems) - 1) / 2) * width
            for place, row in enumerate(rows)
            if name in row.seconds
        ]
        runs = [row.seconds[name] for row in rows if name in row.seconds]
        medians = [statistics.median(seconds) for seconds in runs]
        panel.bar(places, medians, width, label=name, color=f"C{number}", alpha=0.6)
        for place, seconds in zip(places, runs, strict=True):
            panel.plot([place] * len(seconds), seconds, ".", color="black", markersize=3)
    panel.set_xticks(range(len(rows)), [row.what for row in rows])
    panel.set_yscale("log")
    panel.set_ylabel("Wall time [s]", loc="top")
    panel.set_title(case, loc="left")
    panel.legend(frameon=False, ncols=len(systems), loc="upper right", fontsize="small")
