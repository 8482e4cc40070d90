"""``hepdask replay``: process one range here, to see what is wrong with it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from hepdask.cli import run
from hepdask.cli.processors import load_processor
from hepdask.cli.sources import load_sources
from hepdask.cli.text import EXIT_FAILED, count, note
from hepdask.errors import FileReadError, HepdaskError, OptionError, ProcessorError, suggest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hepdask.fileset import InputFile
    from hepdask.opening import ReadOptions
    from hepdask.ranges import EntryRange

__all__ = ["command"]

#: The options of ``hepdask run`` that decide what the events look like.
_SHARED = ("arguments", "treename", "schema", "xrootdtimeout")
#: Keys of an output that are named; the others are counted.
_MAX_KEYS = 8

Bounds = tuple[int, int]


def _parse_bounds(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> Bounds | None:
    if value is None:
        return None
    start, _, stop = value.partition(":")
    if not (start.isdecimal() and stop.isdecimal()) or int(start) > int(stop):
        raise click.BadParameter(f"{value!r} is not START:STOP, 0:1000 say")
    return int(start), int(stop)


@click.command("replay")
@click.argument("processor")
@click.argument("fileset", nargs=-1, required=True)
@click.option("--dataset", metavar="NAME", help="That one only; of ROOT files: what it is called.")
@click.option("--file", "file_path", metavar="PATH", help="That file only.")
@click.option(
    "--entries",
    "bounds",
    metavar="START:STOP",
    callback=_parse_bounds,
    help="The entries, half-open, of one file.",
)
@click.option(
    "--index",
    type=click.IntRange(0),
    metavar="N",
    help="Number of the range, of all that FILESET has as steps.  [default: 0]",
)
@click.option(
    "--pdb", "debug", is_flag=True, help="Start a debugger where the processor's code raises."
)
def command(
    processor: str, fileset: tuple[str, ...], arguments: dict[str, Any], **options: Any
) -> int:
    """Process one range with PROCESSOR (module:Name or file.py:Name) here.

    FILESET (JSON, YAML, or ROOT files) may be what hepdask run --failures has written: then the first range that failed, or that
    of --index, is processed. A file without steps is one range.
    """
    from hepdask.opening import ReadOptions
    from hepdask.readers import build_reader
    from hepdask.replay import enable_faulthandler

    if options["debug"] and not sys.stdin.isatty():
        raise OptionError("--pdb needs a terminal to type in: leave it out, or run it in one")
    instance = load_processor(processor, arguments).instance
    read_options = ReadOptions(options["xrootdtimeout"])
    schema = None if options["schema"].lower() == "none" else options["schema"]
    entry_range = _choose_range(fileset, read_options, options)
    reader = build_reader(schema, read_options)
    enable_faulthandler()
    click.echo(f"replaying {entry_range}")
    note(
        "(a range that killed its worker ends this process, too; a crash shows its lines of Python)"
    )
    return _replay(entry_range, instance, reader, debug=options["debug"])


# the same objects: what they are called, mean and default to is written once
command.params.extend(one for one in run.command.params if one.name in _SHARED)


def _replay(entry_range: EntryRange, processor: Any, reader: Any, *, debug: bool) -> int:
    from hepdask.replay import find_user_traceback, format_user_error, replay_range

    started = perf_counter()
    try:
        output = replay_range(entry_range, processor, reader, debug=debug)
    except FileReadError:
        raise
    except Exception as error:
        # that of sys.exit(), which comes wrapped
        cause = error.__cause__ if type(error) is ProcessorError else None
        shown = cause or error
        has_frames = find_user_traceback(shown, processor) is not None
        if isinstance(error, HepdaskError) and not has_frames:
            raise
        if not (debug and has_frames):  # else the debugger has shown it
            note(format_user_error(shown, processor).rstrip())
        return EXIT_FAILED
    seconds = perf_counter() - started
    entries = count(entry_range.num_entries, "event")
    click.echo(f"no failure: {entries} in {seconds:.2f} s; output: {_describe_output(output)}")
    return 0


def _choose_range(
    sources: Sequence[str], read_options: ReadOptions, options: Mapping[str, Any]
) -> EntryRange:
    from hepdask.metadata import read_file_metadata
    from hepdask.ranges import EntryRange

    files = _choose_files(sources, options)
    file, bounds = _choose_bounds(files, options["bounds"], options["index"])
    if file.num_entries is None:
        facts = read_file_metadata(file, read_options)
        file = replace(file, num_entries=facts.num_entries, uuid=facts.uuid)
    num_entries = file.num_entries or 0
    start, stop = (0, num_entries) if bounds is None else bounds
    if stop > num_entries:
        raise OptionError(
            f"entries {start}:{stop} of {file.file_path}: its tree {file.treename!r} has {num_entries}"
        )
    return EntryRange(file, start, stop)


def _choose_files(sources: Sequence[str], options: Mapping[str, Any]) -> tuple[InputFile, ...]:
    from hepdask.discovery import make_absolute
    from hepdask.fileset.documents import FILESET_SUFFIXES

    # as in a run, whose failures have absolute paths
    files = make_absolute(load_sources(sources, options["treename"])).files
    dataset = options["dataset"]
    if dataset is not None:
        if sources[0].lower().endswith(FILESET_SUFFIXES):
            files = _of_dataset(files, dataset)
        else:
            files = tuple(replace(one, dataset=dataset) for one in files)
    return files if options["file_path"] is None else _of_path(files, options["file_path"])


def _of_dataset(files: Sequence[InputFile], dataset: str) -> tuple[InputFile, ...]:
    found = tuple(one for one in files if one.dataset == dataset)
    if not found:
        names = dict.fromkeys(one.dataset for one in files)
        raise OptionError(f"the fileset has no dataset {dataset!r}{suggest(dataset, names)}")
    return found


def _of_path(files: Sequence[InputFile], path: str) -> tuple[InputFile, ...]:
    """Find a file by its path or URL, or by how this ends: ``f.root`` for ``/data/f.root``."""
    exact = tuple(one for one in files if path in one.replicas)
    found = exact or tuple(
        one for one in files if any(url.endswith(f"/{path}") for url in one.replicas)
    )
    if not found:
        raise OptionError(
            f"the fileset has no file {path!r}{suggest(path, [one.file_path for one in files])}"
        )
    return found


def _choose_bounds(
    files: Sequence[InputFile], bounds: Bounds | None, index: int | None
) -> tuple[InputFile, Bounds | None]:
    """Choose a range; without bounds, it is all of the file."""
    if bounds is not None:
        if index is not None:
            raise OptionError("--entries and --index both say which range: leave one out")
        if len(files) > 1:
            raise OptionError(
                f"--entries is about one file, and there are {len(files):,}: say which, with --dataset and --file"
            )
        return files[0], bounds
    ranges: list[tuple[InputFile, Bounds | None]] = []
    for file in files:
        steps: Sequence[Bounds | None] = (None,) if file.steps is None else file.steps
        ranges.extend((file, one) for one in steps)
    chosen = index or 0
    if chosen >= len(ranges):
        numbers = f"their numbers are 0 to {len(ranges) - 1}" if ranges else "all steps are empty"
        raise OptionError(f"there is no range {chosen}: {numbers}")
    return ranges[chosen]


def _describe_output(output: Any) -> str:
    name = type(output).__name__
    if not isinstance(output, Mapping):
        return name
    keys = [repr(one) for one in output]
    more = f" and {len(keys) - _MAX_KEYS:,} more" if len(keys) > _MAX_KEYS else ""
    return f"{name} of {', '.join(keys[:_MAX_KEYS])}{more}" if keys else f"{name}, empty"
