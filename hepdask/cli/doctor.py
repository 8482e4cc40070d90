"""``hepdask doctor``: whether a run would work on a cluster, and what to do where it would not."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from hepdask.cli.options import (
    ARGUMENT_OPTION,
    FILE_OPTIONS,
    JSON_OPTION,
    SPLIT_OPTIONS,
    build_runner,
    choose_executor,
    executor_options,
    open_executor,
)
from hepdask.cli.processors import load_processor
from hepdask.cli.sources import load_sources
from hepdask.cli.text import EXIT_FAILED, echo_json, show

if TYPE_CHECKING:
    from hepdask.doctor import Checkup

__all__ = ["command"]


@click.command("doctor")
@click.argument("processor")
@click.argument("fileset", nargs=-1, required=True)
@ARGUMENT_OPTION
@FILE_OPTIONS
@SPLIT_OPTIONS
@executor_options("a local Dask cluster, a worker for each core")
@click.option(
    "--run-hours",
    type=click.FloatRange(0, min_open=True),
    metavar="HOURS",
    help="How long the run will take, for proxies and tokens.  [default: estimated]",
)
@JSON_OPTION
def command(
    processor: str, fileset: tuple[str, ...], arguments: dict[str, Any], **options: Any
) -> int:
    """Look whether a run of PROCESSOR over FILESET would work on a cluster; process nothing.

    Ends with code 1 if something is found that will break it.
    """
    loaded = load_processor(processor, arguments).instance
    files = load_sources(fileset, options["treename"])
    chosen = choose_executor(options, "dask")
    hours = options["run_hours"]
    with open_executor(chosen, options) as executor:
        runner = build_runner(executor, {**options, "progress": "off"})
        checkup = runner.check(files, loaded, run_seconds=hours and hours * 3600)
    if options["as_json"]:
        echo_json(_to_dict(checkup))
    else:
        show(checkup)
    return 0 if checkup.is_fit else EXIT_FAILED


def _to_dict(checkup: Checkup) -> dict[str, Any]:
    return {
        "is_fit": checkup.is_fit,
        "num_workers": len(checkup.facts.workers),
        "shipped": checkup.shipped,
        "findings": [asdict(one) for one in checkup.findings],
    }
