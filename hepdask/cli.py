"""The command ``hepdask``: run a processor, plan a run, look into files, make a sample.

Exit codes: 0 all is done; 1 something failed (what was done is written all the same); 2 a mistake in the command, the
fileset or an option; 3 done, but something was skipped; 130 interrupted. Tables go to the standard output, progress, notes and
errors to the standard error.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect as python_inspect
import logging
import re
import sys
import traceback
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from hepdask import __version__
from hepdask.errors import (
    FilesetError,
    HepdaskError,
    MissingDependencyError,
    OptionError,
    ProcessorError,
    RunError,
    suggest,
)
from hepdask.tables import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import ModuleType

    from hepdask.executors import Executor
    from hepdask.failures import Failure, Failures
    from hepdask.fileset import Fileset, InputFile
    from hepdask.metadata import FileMetadata
    from hepdask.plan import Plan
    from hepdask.result import RunResult

__all__ = ["load_processor", "main"]

Command = TypeVar("Command", bound="Callable[..., Any]")

EXIT_FAILED, EXIT_USAGE, EXIT_SKIPPED, EXIT_INTERRUPTED = 1, 2, 3, 130

#: Stands for the tree name where the user gave none; no tree can have it.
_NO_TREE = "?"
#: Files that a table shows: nobody reads more, and rich takes a millisecond for each.
MAX_ROWS = 500
_JSON_SUFFIXES = (".json", ".json.gz")
_FILESET_SUFFIXES = (".json", ".json.gz", ".yaml", ".yaml.gz", ".yml", ".yml.gz")
_USER_ERRORS = (FilesetError, OptionError, MissingDependencyError)
#: Ctrl-C in a terminal goes to all processes; only this one may act on it. Runs in each worker as it starts.
_IGNORE_INTERRUPTS = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
#: Errors speak of Python: what to type here instead.
_WORDS = {
    "give treename=": "give --treename",
    f", tree {_NO_TREE!r}": "",
    "; skipbadfiles=True leaves out, and lists, files that can't be read": "",
    "LocalExecutor() runs it in this process": "--executor local runs it in this process",
}


# --- the group, its errors and notes ---


class _Commands(click.Group):
    """Ends with one line and an exit code for everything that a user can get wrong."""

    def main(self, *arguments: Any, **options: Any) -> NoReturn:
        options["standalone_mode"] = False
        options["prog_name"] = "hepdask"
        try:
            with _one_line_notes():
                code = super().main(*arguments, **options)
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            help_hint = f" (see {context.command_path} --help)" if context is not None else ""
            _fail(error.format_message() + help_hint)
            sys.exit(EXIT_USAGE)
        except click.Abort:
            _fail("interrupted")
            sys.exit(EXIT_INTERRUPTED)
        except HepdaskError as error:
            _fail(str(error))
            sys.exit(EXIT_USAGE if isinstance(error, _USER_ERRORS) else EXIT_FAILED)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(text: str) -> None:
    for python, typed in _WORDS.items():
        text = text.replace(python, typed)
    click.echo(f"hepdask: error: {text}", err=True)


def _note(text: str) -> None:
    click.echo(text, err=True)


@contextmanager
def _one_line_notes() -> Iterator[None]:
    """Show warnings and log messages of hepdask as one line each, without the place in the code."""

    def show(message: Warning | str, category: type[Warning], *_: Any) -> None:
        label = "" if issubclass(category, UserWarning) else f"{category.__name__}: "
        _note(f"hepdask: warning: {label}{message}")

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("hepdask: warning: %(message)s"))
    logger = logging.getLogger("hepdask")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show  # type: ignore[assignment]  # as the documentation of warnings has it
            # coffea's, for each index column that a file lacks; what is missing shows when it is used
            warnings.filterwarnings("ignore", "Missing cross-reference index", RuntimeWarning)
            yield
    finally:
        logger.removeHandler(handler)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="hepdask %(version)s")
def main() -> None:
    """Run columnar analyses over ROOT files, on this machine or on a Dask cluster."""


# --- what several commands have in common ---


def _options(*decorators: Callable[[Any], Any]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for one in reversed(decorators):
            command = one(command)
        return command

    return decorate


_FILE_OPTIONS = _options(
    click.option("--treename", "-t", metavar="NAME", help="Tree of the files that name none."),
    click.option("--limit-files", type=click.IntRange(1), metavar="N", help="Files per dataset."),
    click.option(
        "--xrootdtimeout",
        type=click.FloatRange(0, min_open=True),
        default=60.0,
        show_default=True,
        metavar="SECONDS",
        help="Limit for a request to a remote server.",
    ),
)
_SPLIT_OPTIONS = _options(
    click.option(
        "--schema",
        default="NanoAODSchema",
        show_default=True,
        metavar="NAME",
        help="Schema of coffea.nanoevents, or none for plain arrays.",
    ),
    click.option(
        "--chunksize",
        type=click.IntRange(1),
        metavar="N",
        help="Events per range, at most.  [default: chosen for each file]",
    ),
    click.option("--limit-chunks", type=click.IntRange(1), metavar="N", help="Ranges per dataset."),
    click.option(
        "--align-clusters/--no-align-clusters",
        default=None,
        help="Never, or always, cut where clusters don't end.  [default: cut large ones only]",
    ),
    click.option("--skipbadfiles", is_flag=True, help="Leave out, and list, unreadable files."),
)
_PROGRESS_OPTION = click.option(
    "--progress",
    type=click.Choice(["auto", "off", "rich", "plain"]),
    default="auto",
    show_default=True,
    help="How to show progress.",
)


def _executor_options(default: str) -> Callable[[Command], Command]:
    return _options(
        click.option(
            "--executor",
            "-e",
            metavar="local|dask|ADDRESS",
            help="In this process, on the cluster of dask's configuration, or on that of a scheduler "
            f"(tcp://..., tls://...).  [default: {default}]",
        ),
        click.option(
            "--workers",
            "-w",
            type=click.IntRange(1),
            metavar="N",
            help="Start a local Dask cluster of N processes.",
        ),
    )


@contextmanager
def _open_executor(chosen: str, workers: int | None) -> Iterator[Executor]:
    """Open what ``--executor`` and ``--workers`` say; close what was opened."""
    if workers is not None and chosen != "cluster":
        raise OptionError(f"--workers starts a cluster, so it does not go with --executor {chosen}")
    if chosen == "local":
        from hepdask.executors.local import LocalExecutor

        yield LocalExecutor()
        return
    from hepdask.executors.dask import DaskExecutor

    if chosen == "cluster":
        with _open_cluster(workers) as cluster, DaskExecutor(cluster) as executor:
            yield executor
        return
    if chosen != "dask" and "://" not in chosen:
        names = ["local", "dask", "tcp://HOST:PORT", "tls://HOST:PORT"]
        raise OptionError(f"--executor is {chosen!r}{suggest(chosen, names)}")
    with DaskExecutor(None if chosen == "dask" else chosen) as executor:
        yield executor


@contextmanager
def _open_cluster(workers: int | None) -> Iterator[Any]:
    from dask.system import CPU_COUNT
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=workers or CPU_COUNT,
        threads_per_worker=1,
        processes=True,
        dashboard_address=":0",
        silence_logs=logging.ERROR,
        preload=[_IGNORE_INTERRUPTS],
    ) as cluster:
        yield cluster


def _load_sources(sources: Sequence[str], treename: str | None) -> Fileset:
    """Load one fileset, or several ROOT files and patterns as one dataset."""
    from hepdask.discovery import expand_globs
    from hepdask.fileset import load_fileset

    if len(sources) == 1:
        return expand_globs(load_fileset(sources[0], treename))
    filesets = [one for one in sources if one.lower().endswith(_FILESET_SUFFIXES)]
    if filesets:
        raise OptionError(
            f"{filesets[0]!r} is a fileset, and there are {len(sources)} arguments: give one fileset, or ROOT files"
        )
    return expand_globs(load_fileset({_name_dataset(sources): list(sources)}, treename))


def _name_dataset(sources: Sequence[str]) -> str:
    """Return what the names of files have in common, or else the directory of the first."""
    stems = [one.split("?")[0].rpartition("/")[2].split(".root")[0] for one in sources]
    first, last = min(stems), max(stems)  # what these two have in common, all have
    length = next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first)
    )
    # files_10, files_11 --> files_1 --> files
    common = re.sub(r"[._-]+\d*$", "", re.split(r"[*?[]", first[:length])[0])
    directory = sources[0].split("?")[0].rstrip("/").rpartition("/")[0].rpartition("/")[2]
    return common or directory or "dataset"


def _show(what: Any) -> None:
    """Print a table: in full width where nobody looks, so that nothing is cut in a log."""
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        console.print(what)
    else:
        click.echo(str(what))


def _write_json(value: Any, path: str) -> None:
    from hepdask.outputs import write_output

    write_output(value, path)


def _echo_json(value: Any) -> None:
    import json

    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _format_bytes(number: int | None) -> str:
    if number is None:
        return ""
    size, units = float(number), ["B", "kB", "MB", "GB", "TB", "PB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.3g} {units[0]}"


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


# --- the user's processor ---


@dataclass(frozen=True, slots=True)
class _Processor:
    """What the user's module has."""

    instance: Any
    """Something with ``process(events)``, or a callable."""
    plot: Any
    """The module's ``plot(output)``, or None."""


def load_processor(name: str, arguments: Mapping[str, Any] | None = None) -> _Processor:
    """Import a processor, and make an instance if it is a class.

    Parameters
    ----------
    name : str
        ``module:Name``, with the current directory on the path; or ``path/to/file.py:Name``.
    arguments : mapping of str to object, optional
        Of the class.

    Returns
    -------
    _Processor
        Its module, and those that it has imported from the same directory, are pickled by value from now on: workers
        need not have them.

    Raises
    ------
    OptionError
        If the module can't be imported, or has no such name, or the arguments don't fit. The text has the nearest name.
    """
    source, separator, attribute = name.rpartition(":")
    if not separator or attribute.endswith(".py"):
        source, attribute = name, ""
    module = _import_file(Path(source)) if source.endswith(".py") else _import_module(source)
    names = _list_processors(module)
    if not attribute:
        example = f"{source}:{names[0] if names else 'Name'}"
        raise OptionError(f"{name!r} does not say which processor: write {example}")
    if not hasattr(module, attribute):
        raise OptionError(f"{source} has no {attribute!r}{suggest(attribute, names)}")
    found = getattr(module, attribute)
    if python_inspect.isclass(found):
        found = _make_instance(found, arguments or {})
    elif arguments:
        raise OptionError(f"--arg is for classes, and {name} is {type(found).__name__}: remove it")
    return _Processor(found, getattr(module, "plot", None))


def _list_processors(module: ModuleType) -> list[str]:
    def may_process(value: Any) -> bool:
        if python_inspect.isfunction(value):
            return value.__module__ == module.__name__
        return callable(getattr(value, "process", None)) and (
            not python_inspect.isclass(value) or value.__module__ == module.__name__
        )

    return [
        key
        for key, value in vars(module).items()
        if key[0] != "_" and key != "plot" and may_process(value)
    ]


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        near = [one.name for one in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise OptionError(f"there is no file '{path}'{suggest(path.name, near)}")
    path = path.resolve()
    # a processor in hist.py must not stand in for the library
    module_name = (
        path.stem if path.stem not in sys.modules and not _is_library(path) else f"{path.stem}_py"
    )
    specification = importlib.util.spec_from_file_location(module_name, path)
    if specification is None or specification.loader is None:
        raise OptionError(f"'{path}' can't be imported as Python")
    module = importlib.util.module_from_spec(specification)
    with _explained_import(str(path), path.parent):
        sys.modules[module_name] = module
        try:
            specification.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
    return module


def _is_library(path: Path) -> bool:
    try:
        found = importlib.util.find_spec(path.stem)
    except (ImportError, ValueError):
        return False
    return found is not None and found.origin != str(path)


def _import_module(name: str) -> ModuleType:
    with _explained_import(name, Path.cwd()):
        return importlib.import_module(name)


@contextmanager
def _explained_import(name: str, directory: Path) -> Iterator[None]:
    """Import from a directory, which stays on the path; say in a line what goes wrong in the user's code."""
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
    before = set(sys.modules)
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            near = [one.stem for one in directory.glob("*.py")]
            hint = suggest(name, near) or "; for a file, write path/to/file.py:Name"
            raise OptionError(
                f"there is no module {name!r} in {directory} or installed{hint}"
            ) from error
        raise OptionError(_explain_import(name, error)) from error
    except Exception as error:
        raise OptionError(_explain_import(name, error)) from error
    _pickle_by_value(directory, before)


def _explain_import(name: str, error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError):
        place = f"{error.filename}, line {error.lineno}"
    else:
        place = f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else name
    text = error.msg if isinstance(error, SyntaxError) else error
    return f"{name} can't be imported: {type(error).__name__}: {text} ({place})"


def _pickle_by_value(directory: Path, before: Iterable[str]) -> None:
    """Send the user's own modules along with the processor: workers don't have them."""
    import cloudpickle

    for name in set(sys.modules).difference(before):
        module = sys.modules[name]
        path = Path(getattr(module, "__file__", None) or "/")
        is_own = path.is_relative_to(directory) and "site-packages" not in path.parts
        if is_own and name.partition(".")[0] != "hepdask":
            cloudpickle.register_pickle_by_value(module)


def _make_instance(kind: type, arguments: Mapping[str, Any]) -> Any:
    signature = python_inspect.signature(kind)
    takes_any = any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values())
    for name in arguments:
        if name not in signature.parameters and not takes_any:
            raise OptionError(
                f"{kind.__name__} has no argument {name!r}{suggest(name, signature.parameters)}"
            )
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise OptionError(f"{kind.__name__}: {error}: give it as --arg name=value") from error
    try:
        return kind(**arguments)
    except Exception as error:
        raise OptionError(f"{kind.__name__}(...) raised {type(error).__name__}: {error}") from error


def _parse_arguments(
    _context: click.Context, _option: click.Parameter, values: Sequence[str]
) -> dict[str, Any]:
    import yaml

    parsed = {}
    for value in values:
        name, separator, text = value.partition("=")
        if not separator or not name.isidentifier():
            raise click.BadParameter(f"{value!r} is not name=value")
        try:
            parsed[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise click.BadParameter(
                f"{value!r}: {text!r} is no YAML: {' '.join(str(error).split())}"
            ) from error
    return parsed


# --- run ---


@main.command()
@click.argument("processor")
@click.argument("fileset", nargs=-1, required=True)
@click.option(
    "--arg",
    "arguments",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_parse_arguments,
    help="Argument of the processor's class; VALUE is YAML.",
)
@_FILE_OPTIONS
@_SPLIT_OPTIONS
@_executor_options("a local Dask cluster, a worker for each core")
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
@click.option("--failures", metavar="PATH", help="Write what failed, as a fileset: .json.")
@_PROGRESS_OPTION
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@click.option(
    "--traceback", "show_traceback", is_flag=True, help="Print that of the first failure."
)
def run(processor: str, fileset: tuple[str, ...], arguments: dict[str, Any], **options: Any) -> int:
    """Run PROCESSOR (module:Name or file.py:Name) over FILESET (JSON, YAML, or ROOT files)."""
    _check_paths(options)
    chosen = _choose_executor(options)
    loaded = load_processor(processor, arguments)
    files = _load_sources(fileset, options["treename"])
    with _open_executor(chosen, options["workers"]) as executor:
        runner = _build_runner(executor, options)
        try:
            result, error = runner.run(files, processor_instance=loaded.instance), None
        except RunError as run_error:
            result, error = run_error.partial_result, run_error
            if result is None:
                raise
    is_written = _write_results(result, loaded, files, options)
    if not options["quiet"]:
        _show(result if sys.stdout.isatty() else result.report())
        _show_results(result, options)
    if options["show_traceback"] and result.failures:
        _note(result.failures[0].traceback.rstrip())
    return _conclude(result, error, is_written, options)


def _check_paths(options: Mapping[str, Any]) -> None:
    from hepdask.outputs import check_output_path, check_plot_path

    for path in options["outputs"]:
        check_output_path(path)
    for path in filter(None, (options["metrics"], options["failures"])):
        check_output_path(path, _JSON_SUFFIXES)
    if options["plot"] is not None:
        check_plot_path(options["plot"])


def _choose_executor(options: Mapping[str, Any]) -> str:
    chosen: str | None = options["executor"]
    if not options["test"]:
        return chosen or "cluster"
    if chosen not in (None, "local") or options["workers"] is not None:
        raise OptionError("--test runs in this process: leave out --executor and --workers")
    return "local"


def _build_runner(executor: Executor, options: Mapping[str, Any]) -> Any:
    from hepdask.runner import Runner

    is_test = options.get("test", False)
    return Runner(
        executor,
        schema=None if options["schema"].lower() == "none" else options["schema"],
        chunksize=options["chunksize"],
        maxchunks=1 if is_test else options["limit_chunks"],
        maxfiles=1 if is_test else options["limit_files"],
        skipbadfiles=options["skipbadfiles"],
        xrootdtimeout=options["xrootdtimeout"],
        align_clusters=options["align_clusters"],
        progress="off" if options.get("quiet") else options["progress"],
    )


def _write_results(
    result: RunResult, loaded: _Processor, files: Fileset, options: Mapping[str, Any]
) -> bool:
    """Write all that was asked for; what can't be written costs itself alone. Returns whether all was written."""
    from hepdask.outputs import write_output, write_plot

    writers: list[tuple[str, Callable[[], None]]] = []
    if result.output is not None:
        writers += [
            (one, functools.partial(write_output, result.output, one)) for one in options["outputs"]
        ]
    if options["metrics"]:
        writers.append(
            (options["metrics"], lambda: _write_json(result.metrics.to_dict(), options["metrics"]))
        )
    if options["failures"]:
        failed = _build_failed_fileset(result.failures, files)
        writers.append((options["failures"], lambda: _write_json(failed, options["failures"])))
    if result.output is not None and options["plot"]:
        plot = loaded.plot if callable(loaded.plot) else None
        writers.append((options["plot"], lambda: write_plot(result.output, options["plot"], plot)))
    is_written = True
    for path, write in writers:
        try:
            write()
        except HepdaskError as error:
            is_written = False
            _fail(f"{path}: {error}")
    return is_written


def _build_failed_fileset(failures: Failures, files: Fileset) -> dict[str, Any]:
    """Make the fileset of what failed, with what else the user's fileset says of these files."""
    failed = failures.to_fileset()
    for dataset in files:
        if dataset.name not in failed:
            continue
        failed[dataset.name]["metadata"] = dict(dataset.metadata)
        for file in dataset.files:
            entry = failed[dataset.name]["files"].get(file.file_path)
            if entry is not None and len(file.replicas) > 1:
                entry["replicas"] = list(file.replicas)
    return failed


def _show_results(result: RunResult, options: Mapping[str, Any]) -> None:
    paths = [*options["outputs"], options["plot"]] if result.output is not None else []
    for path in filter(None, [*paths, options["metrics"], options["failures"]]):
        if Path(path).exists():
            click.echo(f"wrote {path} ({_format_bytes(Path(path).stat().st_size)})")
    if result.output is None:
        click.echo("nothing was processed: there is no output to write")
    elif not any(paths):
        click.echo("the output is not kept: write it with -o output.coffea, or draw it with --plot")


def _conclude(
    result: RunResult, error: RunError | None, is_written: bool, options: Mapping[str, Any]
) -> int:
    if error is not None:
        total = result.completeness.total
        kept = result.output is not None and options["outputs"]
        _fail(
            f"{str(error).splitlines()[0]}; {total.num_entries_processed:,} of "
            f"{total.num_entries_requested:,} events were processed"
            + (f", and are in {', '.join(options['outputs'])}" if kept else "")
        )
        return EXIT_INTERRUPTED if result.stopped_by == "interrupted twice" else EXIT_FAILED
    if not is_written:
        return EXIT_FAILED
    return EXIT_SKIPPED if result.failures else 0


# --- plan ---


@main.command()
@click.argument("fileset")
@click.argument("processor", required=False)
@click.option(
    "--arg",
    "arguments",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_parse_arguments,
    help="Argument of the processor's class; VALUE is YAML.",
)
@_FILE_OPTIONS
@_SPLIT_OPTIONS
@_executor_options("local")
@_PROGRESS_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(fileset: str, processor: str | None, arguments: dict[str, Any], **options: Any) -> int:
    """Show what a run over FILESET would do; with PROCESSOR, also which branches it reads.

    Files of which the number of events is not known are opened, nothing is processed.
    """
    loaded = load_processor(processor, arguments).instance if processor else None
    files = _load_sources([fileset], options["treename"])
    chosen = options["executor"] or ("cluster" if options["workers"] else "local")
    with _open_executor(chosen, options["workers"]) as executor:
        made = _build_runner(executor, options).plan(files, loaded)
    num_tasks = _count_tasks(made)
    if options["as_json"]:
        _echo_json(_plan_to_dict(made, num_tasks))
    else:
        _show(made.to_table())
        for line in _describe_plan(made, num_tasks):
            click.echo(line)
        _show_failures(made.failures)
    if any(not one.is_skipped for one in made.failures):
        return EXIT_FAILED
    return EXIT_SKIPPED if made.failures else 0


def _count_tasks(made: Plan) -> int:
    """Count the tasks that a Dask cluster would get to process ranges."""
    from hepdask.executors import Job, cut_tree
    from hepdask.tree import arrange

    work: Any = None  # the cut looks at the ranges alone, and a reader costs seconds to import
    return len(cut_tree(Job("plan", made.ranges, arrange(made.ranges), work)))


def _describe_plan(made: Plan, num_tasks: int) -> Iterator[str]:
    yield f"in {_count(num_tasks, 'task')} on a Dask cluster"
    if made.num_inspected:
        yield f"opened {_count(made.num_inspected, 'file')} to count events"
    if made.columns:
        num_bytes = (
            "" if made.num_bytes is None else f" ({_format_bytes(made.num_bytes)} uncompressed)"
        )
        names = ", ".join(sorted(made.columns))
        yield f"reads {len(made.columns)} branches{num_bytes}: {names}"


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
        "datasets": datasets,
        "failures": [_failure_to_dict(one) for one in made.failures],
    }


def _failure_to_dict(failure: Failure) -> dict[str, str]:
    names = ("dataset", "file_path", "treename", "kind", "exception_type", "message")
    return {name: getattr(failure, name) for name in names}


def _show_failures(failures: Sequence[Failure]) -> None:
    if failures:
        from hepdask.failures import Failures

        _show(Failures(failures).to_table())


# --- inspect ---


@main.command()
@click.argument("fileset", nargs=-1)
@click.option(
    "--branches",
    "pattern",
    is_flag=False,
    flag_value="*",
    metavar="[PATTERN]",
    help="List the branches of one file, largest first.",
)
@_FILE_OPTIONS
@_executor_options("local")
@_PROGRESS_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(fileset: tuple[str, ...], pattern: str | None, **options: Any) -> int:
    """Show what is in FILESET (ROOT files, JSON or YAML): entries, clusters, sizes, branches."""
    if not fileset and pattern is not None and Path(pattern.split(":")[0]).exists():
        fileset, pattern = (pattern,), "*"  # --branches FILE
    if not fileset:
        raise OptionError("no file: write hepdask inspect FILE")
    files = (
        _load_sources(fileset, options["treename"] or _NO_TREE).limit(options["limit_files"]).files
    )
    files, trees = _find_trees(files, options)
    if len(trees) > 1:
        return _show_trees(files[0], trees, as_json=options["as_json"])
    if pattern is not None and len(files) > 1:
        raise OptionError(
            f"--branches is about one file, and there are {len(files):,}: write hepdask inspect "
            f"{files[0].file_path}:{files[0].treename} --branches"
        )
    results = _inspect_files(files, options)
    if pattern is not None:
        return _show_branches(results[0], pattern, as_json=options["as_json"])
    return _show_files(files, results, as_json=options["as_json"])


def _find_trees(
    files: tuple[InputFile, ...], options: Mapping[str, Any]
) -> tuple[tuple[InputFile, ...], dict[str, str]]:
    """Fill in the tree where the user named none: the one of the first file, if it has one."""
    from dataclasses import replace

    unnamed = next((one for one in files if one.treename == _NO_TREE), None)
    if unnamed is None:
        return files, {}
    trees = _list_trees(unnamed, options)
    if not trees:
        raise OptionError(f"{unnamed.file_path} has no tree at all")
    (treename, *_) = trees
    return tuple(
        replace(one, treename=treename) if one.treename == _NO_TREE else one for one in files
    ), trees


def _list_trees(file: InputFile, options: Mapping[str, Any]) -> dict[str, str]:
    import uproot

    from hepdask.opening import as_read_error, local_path, read_errors

    limits = (
        {} if local_path(file.file_path) else {"timeout": max(1, round(options["xrootdtimeout"]))}
    )
    try:
        with uproot.open({file.file_path: None}, **limits) as directory:
            classes = directory.classnames(recursive=True, cycle=True)
    except read_errors() as error:
        raise as_read_error(error, file, "the list of its trees") from error
    return {
        name.partition(";")[0]: kind.rpartition(":")[2]
        for name, kind in classes.items()
        if kind.rpartition(":")[2] in ("TTree", "TNtuple", "TNtupleD", "RNTuple")
    }


def _show_trees(file: InputFile, trees: Mapping[str, str], *, as_json: bool) -> int:
    if as_json:
        _echo_json({"file_path": file.file_path, "trees": dict(trees)})
        return 0
    click.echo(file.file_path)
    _show(Table("Trees", ("tree", "kind"), tuple(trees.items())))
    click.echo("choose one with --treename")
    return 0


def _inspect_files(
    files: Sequence[InputFile], options: Mapping[str, Any]
) -> list[FileMetadata | Failure]:
    from hepdask.failures import build_failure
    from hepdask.metadata import FileMetadata, MetadataCache
    from hepdask.opening import ReadOptions
    from hepdask.progress import choose_progress
    from hepdask.task import inspect_files

    function = functools.partial(inspect_files, options=ReadOptions(options["xrootdtimeout"]))
    chosen = options["executor"] or ("cluster" if options["workers"] else "local")
    with (
        _open_executor(chosen, options["workers"]) as executor,
        contextlib.closing(choose_progress(options["progress"])) as progress,
    ):
        progress.start("inspecting", len(files), "files")
        results = executor.map(
            function,
            files,
            name="inspect",
            advance=lambda batch: progress.advance("inspecting", len(batch)),
        )
        progress.finish("inspecting")
    # opened once, known to the runs that follow
    MetadataCache().store(one for one in results if isinstance(one, FileMetadata))
    return [
        build_failure(one, file, None) if isinstance(one, BaseException) else one
        for file, one in zip(files, results, strict=True)
    ]


def _show_files(
    files: Sequence[InputFile], results: Sequence[FileMetadata | Failure], *, as_json: bool
) -> int:
    from hepdask.failures import Failure

    failures = [one for one in results if isinstance(one, Failure)]
    known = [
        (file.dataset, one)
        for file, one in zip(files, results, strict=True)
        if not isinstance(one, Failure)
    ]
    if as_json:
        _echo_json(
            {
                "files": [{"dataset": dataset, **_facts_to_dict(one)} for dataset, one in known],
                "failures": [_failure_to_dict(one) for one in failures],
            }
        )
    else:
        if known:
            _show(_build_file_table(known))
        _show_failures(failures)
    return EXIT_FAILED if failures else 0


def _facts_to_dict(facts: FileMetadata) -> dict[str, Any]:
    return {
        "file_path": facts.file_path,
        "treename": facts.treename,
        "kind": facts.kind,
        "num_entries": facts.num_entries,
        "cluster_offsets": list(facts.cluster_offsets),
        "num_branches": len(facts.branches),
        "num_file_bytes": facts.num_file_bytes,
        "uuid": facts.uuid,
    }


def _build_file_table(known: Sequence[tuple[str, FileMetadata]]) -> Table:
    rows: list[tuple[str, ...]] = [
        (
            dataset,
            one.file_path,
            one.treename,
            one.kind,
            f"{one.num_entries:,}",
            f"{len(one.cluster_offsets) - 1:,}",
            f"{len(one.branches):,}",
            _format_bytes(one.num_file_bytes),
            one.uuid,
        )
        for dataset, one in known[:MAX_ROWS]
    ]
    if len(known) > 1:
        facts = [one for _, one in known]
        total = f"{sum(one.num_entries for one in facts):,}"
        clusters = f"{sum(len(one.cluster_offsets) - 1 for one in facts):,}"
        num_bytes = _format_bytes(sum(one.num_file_bytes or 0 for one in facts))
        rows.append(("all", f"{len(facts):,} files", "", "", total, clusters, "", num_bytes, ""))
    headers = ("dataset", "file", "tree", "kind", "entries", "clusters", "branches", "size", "uuid")
    title = "Files" if len(known) <= MAX_ROWS else f"The first {MAX_ROWS:,} files; --json has all"
    return Table(title, headers, tuple(rows))


def _show_branches(facts: FileMetadata | Failure, pattern: str, *, as_json: bool) -> int:
    from hepdask.failures import Failure

    if isinstance(facts, Failure):
        _show_failures([facts])
        return EXIT_FAILED
    total = sum(one.num_compressed_bytes for one in facts.branches)
    chosen = [one for one in facts.branches if fnmatchcase(one.name, pattern)]
    if not chosen:
        hint = suggest(pattern, [one.name for one in facts.branches])
        raise OptionError(f"no branch matches {pattern!r}{hint}")
    chosen.sort(key=lambda one: -one.num_compressed_bytes)
    names = ("name", "typename", "num_compressed_bytes", "num_uncompressed_bytes")
    if as_json:
        branches = [{name: getattr(one, name) for name in names} for one in chosen]
        _echo_json({**_facts_to_dict(facts), "branches": branches})
        return 0
    rows = [
        (
            one.name,
            one.typename,
            _format_bytes(one.num_compressed_bytes),
            f"{100 * one.num_compressed_bytes / total:.2f}%" if total else "",
            _format_bytes(one.num_uncompressed_bytes),
        )
        for one in chosen
    ]
    # a title is as narrow as its table
    click.echo(f"{facts.file_path}:{facts.treename}, {facts.num_entries:,} entries")
    title = f"{len(chosen):,} of {_count(len(facts.branches), 'branch', 'branches')}"
    _show(Table(title, ("branch", "type", "compressed", "share", "uncompressed"), tuple(rows)))
    return 0


# --- sample ---


@main.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--events", type=click.IntRange(1), default=200_000, show_default=True, metavar="N")
@click.option("--files", type=click.IntRange(1), default=4, show_default=True, metavar="N")
@click.option("--seed", type=click.IntRange(0), default=2012, show_default=True, metavar="N")
@click.option("--force", is_flag=True, help="Overwrite the files of another sample.")
def sample(directory: Path, events: int, files: int, seed: int, force: bool) -> None:
    """Write toy collisions in the layout of CMS Open Data into DIRECTORY, to try things on."""
    there = [*directory.glob("SingleMu_*.root"), *directory.glob("fileset.json")]
    if there and not force:
        raise OptionError(f"'{there[0]}' exists already: choose another directory, or --force")
    _find_sample_writer()(directory, num_events=events, num_files=files, seed=seed)
    made = sorted(directory.glob("SingleMu_*.root"))[:files]
    num_bytes = sum(one.stat().st_size for one in made)
    click.echo(
        f"wrote {events:,} events in {_count(files, 'file')}, {_format_bytes(num_bytes)}, and {directory / 'fileset.json'}"
    )
    click.echo(f"next: {_suggest_run(directory / 'fileset.json')}")


def _find_sample_writer() -> Callable[..., Any]:
    """Find `write_sample`: beside the package in a checkout, inside it in an installed wheel."""
    path = Path(__file__).resolve().parent.parent / "datasets" / "sample.py"
    if not path.is_file():
        path = Path(__file__).resolve().parent / "bundled" / "sample.py"
    if not path.is_file():
        raise ProcessorError(f"this installation has no '{path}': install hepdask again")
    return _import_file(path).write_sample  # type: ignore[no-any-return]


def _suggest_run(fileset: Path) -> str:
    processor = Path(__file__).resolve().parent.parent / "processors" / "dimuon.py"
    if not processor.is_file():
        return f"hepdask inspect {fileset}"
    if processor.is_relative_to(Path.cwd()):
        processor = processor.relative_to(Path.cwd())
    return f"hepdask run {processor}:DimuonSpectrum {fileset} --plot spectrum.png"
