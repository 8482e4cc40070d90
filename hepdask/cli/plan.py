"""``hepdask plan``: what a run would do."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from hepdask.cli.options import (
    ARGUMENT_OPTION,
    FILE_OPTIONS,
    JSON_OPTION,
    PROGRESS_OPTION,
    SPLIT_OPTIONS,
    build_runner,
    choose_executor,
    executor_options,
    open_executor,
)
from hepdask.cli.processors import load_processor
from hepdask.cli.sources import load_sources
from hepdask.cli.text import (
    EXIT_FAILED,
    EXIT_SKIPPED,
    count,
    echo_json,
    failure_to_dict,
    format_bytes,
    show,
    show_failures,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hepdask.plan import Plan

__all__ = ["command"]


@click.command("plan")
@click.argument("fileset")
@click.argument("processor", required=False)
@ARGUMENT_OPTION
@FILE_OPTIONS
@SPLIT_OPTIONS
@executor_options("iterative")
@PROGRESS_OPTION
@JSON_OPTION
def command(fileset: str, processor: str | None, arguments: dict[str, Any], **options: Any) -> int:
    """Show what a run over FILESET would do; with PROCESSOR, also which branches it reads.

    Files of which the number of events is not known are opened, nothing is processed.
    """
    loaded = load_processor(processor, arguments).instance if processor else None
    files = load_sources([fileset], options["treename"])
    with open_executor(choose_executor(options, "iterative"), options) as executor:
        made = build_runner(executor, options).plan(files, loaded)
    num_tasks = _count_tasks(made)
    if options["as_json"]:
        echo_json(_plan_to_dict(made, num_tasks))
    else:
        show(made.to_table())
        for line in _describe_plan(made, num_tasks):
            click.echo(line)
        show_failures(made.failures)
    if any(not one.is_skipped for one in made.failures):
        return EXIT_FAILED
    return EXIT_SKIPPED if made.failures else 0


def _count_tasks(made: Plan) -> int:
    """Count the tasks that a Dask cluster would get to process ranges."""
    from hepdask.executors import Job, cut_tree
    from hepdask.tree import arrange

    work: Any = None  # the cut does not look at it, and a reader costs seconds to import
    return len(cut_tree(Job("plan", made.ranges, arrange(made.ranges), work, weights=made.weigh())))


def _describe_plan(made: Plan, num_tasks: int) -> Iterator[str]:
    yield f"in about {count(num_tasks, 'task')} on a Dask cluster"
    yield f"takes {made.predict()}"
    if made.num_inspected:
        yield f"opened {count(made.num_inspected, 'file')} to count events"
    if made.columns:
        num_bytes = (
            "" if made.num_bytes is None else f" ({format_bytes(made.num_bytes)} uncompressed)"
        )
        names = ", ".join(sorted(made.columns))
        yield f"reads {count(len(made.columns), 'branch', 'branches')}{num_bytes}: {names}"


def _plan_to_dict(made: Plan, num_tasks: int) -> dict[str, Any]:
    datasets: dict[str, dict[str, int]] = {
        file.dataset: {"num_files": 0, "num_entries": 0, "num_ranges": 0} for file in made.files
    }
    for file in made.files:
        datasets[file.dataset]["num_files"] += 1
    for one in made.ranges:
        datasets[one.file.dataset]["num_ranges"] += 1
        datasets[one.file.dataset]["num_entries"] += one.num_entries
    return {
        "num_files": len(made.files),
        "num_entries": made.num_entries,
        "num_ranges": len(made.ranges),
        "num_tasks": num_tasks,
        "num_bytes": made.num_bytes,
        "num_inspected": made.num_inspected,
        "columns": sorted(made.columns),
        "prediction": asdict(made.predict()),
        "datasets": datasets,
        "failures": [failure_to_dict(one) for one in made.failures],
    }
