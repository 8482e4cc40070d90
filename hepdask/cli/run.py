"""``hepdask run``: process a fileset, write what comes out, say what it came to."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hepdask.cli.options import (
    ARGUMENT_OPTION,
    FILE_OPTIONS,
    PROGRESS_OPTION,
    RECOVERY_OPTIONS,
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
    EXIT_INTERRUPTED,
    EXIT_SKIPPED,
    fail,
    format_bytes,
    note,
    show,
)
from hepdask.errors import HepdaskError, OptionError, RunError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from hepdask.cli.processors import LoadedProcessor
    from hepdask.failures import Failure
    from hepdask.result import RunResult

__all__ = ["command"]

_JSON_SUFFIXES = (".json", ".json.gz")


@click.command("run")
@click.argument("processor")
@click.argument("fileset", nargs=-1, required=True)
@ARGUMENT_OPTION
@FILE_OPTIONS
@SPLIT_OPTIONS
@RECOVERY_OPTIONS
@executor_options("dask; without configuration, a local cluster with a worker for each core")
@click.option("--test", is_flag=True, help="One file, one range per dataset, in this process.")
@click.option(
    "--output",
    "-o",
    "outputs",
    multiple=True,
    metavar="PATH",
    help="Write the output: .coffea, .pkl, .json, .json.gz or .root. Repeatable.",
)
@click.option("--plot", metavar="PATH", help="Draw the output: .png, .pdf, .svg, ...")
@click.option("--metrics", metavar="PATH", help="Write the metrics: .json.")
@click.option(
    "--failures", metavar="PATH", help="Write what failed or was not reached, as a fileset: .json."
)
@PROGRESS_OPTION
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@click.option(
    "--traceback", "show_traceback", is_flag=True, help="Print that of the first failure."
)
def command(
    processor: str, fileset: tuple[str, ...], arguments: dict[str, Any], **options: Any
) -> int:
    """Run PROCESSOR (module:Name or file.py:Name) over FILESET (JSON, YAML, or ROOT files)."""
    _check_paths(options)
    chosen = _choose_executor(options)
    loaded = load_processor(processor, arguments)
    files = load_sources(fileset, options["treename"])
    with open_executor(chosen, options) as executor:
        runner = build_runner(executor, options)
        try:
            result, error = runner.run(files, processor_instance=loaded.instance), None
        except RunError as run_error:
            result, error = run_error.partial_result, run_error
            if result is None:
                raise
    writers = _list_writers(result, loaded, options)
    written = [path for path, write in writers if _has_written(path, write)]
    if not options["quiet"]:
        show(result if sys.stdout.isatty() else result.report())
        _show_written(result, written, options)
    if options["show_traceback"] and result.failures:
        note(result.failures[0].traceback.rstrip())
    if not options["quiet"]:
        _suggest_replay(result, processor, fileset, arguments)
    if error is not None:
        fail(_describe_error(error, result, [one for one in options["outputs"] if one in written]))
        return EXIT_INTERRUPTED if result.stopped_by == "interrupted twice" else EXIT_FAILED
    if len(written) < len(writers):
        return EXIT_FAILED
    return EXIT_SKIPPED if result.failures else 0


def _check_paths(options: Mapping[str, Any]) -> None:
    from hepdask.outputs import check_output_path, check_plot_path

    for path in options["outputs"]:
        check_output_path(path)
    for path in filter(None, (options["metrics"], options["failures"])):
        check_output_path(path, _JSON_SUFFIXES)
    if options["plot"] is not None:
        check_plot_path(options["plot"])


def _choose_executor(options: Mapping[str, Any]) -> str:
    if not options["test"]:
        return choose_executor(options, "dask")
    given = (options["workers"], *options["cluster_options"])
    if options["executor"] not in (None, "iterative") or any(given):
        raise OptionError("--test runs in this process: leave out --executor and --workers")
    return "iterative"


def _list_writers(
    result: RunResult, loaded: LoadedProcessor, options: Mapping[str, Any]
) -> list[tuple[str, Callable[[], None]]]:
    """List what is to be written: where, and what writes it."""
    from hepdask.outputs import write_output, write_plot

    writers: list[tuple[str, Callable[[], None]]] = []

    def add(path: str, make: Callable[[], Any]) -> None:
        writers.append((path, lambda: write_output(make(), path)))

    if result.output is not None:
        for path in options["outputs"]:
            add(path, lambda: result.output)
    if options["metrics"]:
        add(options["metrics"], result.metrics.to_dict)
    if options["failures"]:
        add(options["failures"], result.missing_fileset)
    if result.output is not None and options["plot"]:
        plot = loaded.plot if callable(loaded.plot) else None
        writers.append((options["plot"], lambda: write_plot(result.output, options["plot"], plot)))
    return writers


def _has_written(path: str, write: Callable[[], None]) -> bool:
    """Write one file; what can't be written costs itself alone."""
    try:
        write()
    except HepdaskError as error:
        fail(f"{path}: {error}")
        return False
    return True


def _show_written(result: RunResult, written: Sequence[str], options: Mapping[str, Any]) -> None:
    for path in written:
        click.echo(f"wrote {path} ({format_bytes(Path(path).stat().st_size)})")
    if result.output is None:
        click.echo("nothing was processed: there is no output to write")
    elif not options["outputs"] and not options["plot"]:
        click.echo("the output is not kept: write it with -o output.coffea, or draw it with --plot")


def _suggest_replay(
    result: RunResult, processor: str, fileset: Sequence[str], arguments: Mapping[str, Any]
) -> None:
    """Print the command that replays the first failure of the user's code, if there is one."""
    # outputs that don't add up are not made by one range
    failures = (
        one
        for one in result.failures
        if one.kind == "user" and one.exception_type != "hepdask.errors.AccumulatorError"
    )
    failure = next(failures, None)
    if failure is not None:
        words = ["hepdask", "replay", processor, *_name_range(failure, fileset)]
        for name, value in arguments.items():
            words += ["--arg", f"{name}={_write_yaml(value)}"]
        note(f"replay it here: {shlex.join([*words, *_changed_options()])}")


def _name_range(failure: Failure, fileset: Sequence[str]) -> list[str]:
    from hepdask.fileset.documents import FILESET_SUFFIXES

    bounds = ["--entries", f"{failure.entry_start}:{failure.entry_stop}"]
    if fileset[0].lower().endswith(FILESET_SUFFIXES):
        options = ["--dataset", failure.dataset, "--file", failure.file_path, *bounds]
        return [*fileset, *options, *_given("treename")]
    # of many ROOT files, this one: the name of their dataset comes from all of them
    return [
        failure.file_path, "--dataset", failure.dataset, *bounds, "--treename", failure.treename
    ]  # fmt: skip


def _changed_options() -> list[str]:
    """Return the options that decide what events look like, as they were typed."""
    return [*_given("schema"), *_given("xrootdtimeout")]


def _given(name: str) -> list[str]:
    """Return an option as it was typed; nothing if it was not, or says what is the default."""
    context = click.get_current_context()
    option = next(one for one in context.command.params if one.name == name)
    value = context.params[name]
    if value is None or value == option.default:
        return []
    return [f"--{name}", str(value)]


def _write_yaml(value: Any) -> str:
    """Write a value as ``--arg`` reads it."""
    import yaml

    written: str = yaml.safe_dump([value], default_flow_style=True, width=float("inf"))
    return written.strip()[1:-1]


def _describe_error(error: RunError, result: RunResult, kept: Sequence[str]) -> str:
    total = result.completeness.total
    where = f", and are in {', '.join(kept)}" if kept else ""
    fatal = next((one for one in result.failures if not one.is_skipped), None)
    advice = f"; {fatal.how_to_skip}" if fatal is not None and fatal.how_to_skip else ""
    return (
        f"{str(error).splitlines()[0]}; {total.num_entries_processed:,} of "
        f"{total.num_entries_requested:,} events were processed{where}{advice}"
    )
