"""The options that several commands have, and what they open and build."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hepdask.errors import OptionError
from hepdask.failures import BAD_EVENTS, BAD_FILES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from hepdask.executors import Executor
    from hepdask.runner import Runner

__all__ = [
    "ARGUMENT_OPTION",
    "CLUSTER_OPTION",
    "FILE_OPTIONS",
    "JSON_OPTION",
    "PROGRESS_OPTION",
    "RECOVERY_OPTIONS",
    "SPLIT_OPTIONS",
    "build_runner",
    "choose_executor",
    "executor_options",
    "open_executor",
]

Command = TypeVar("Command", bound="Callable[..., Any]")


def _options(*decorators: Callable[[Any], Any]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for one in reversed(decorators):
            command = one(command)
        return command

    return decorate


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


ARGUMENT_OPTION = click.option(
    "--arg",
    "arguments",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_parse_arguments,
    help="Argument of the processor's class; VALUE is YAML.",
)
CLUSTER_OPTION = click.option(
    "--cluster-option",
    "-c",
    "cluster_options",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_parse_arguments,
    help="Option of the cluster, queue=short; VALUE is YAML. Repeatable.",
)
FILE_OPTIONS = _options(
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
SPLIT_OPTIONS = _options(
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
RECOVERY_OPTIONS = _options(
    click.option(
        "--skipbadevents",
        is_flag=True,
        help="Leave out, and list, events that kill their process or need more memory than there is.",
    ),
    click.option(
        "--store",
        metavar="DIRECTORY|URL",
        help="Keep results of parts of the run there; the next run computes what is missing.",
    ),
    click.option(
        "--max-failed-fraction",
        type=click.FloatRange(0, 1),
        metavar="F",
        help="With --skipbadfiles or --skipbadevents: end the run when more than this fraction of the events fails.",
    ),
    click.option(
        "--max-opens-per-endpoint",
        type=click.IntRange(1),
        metavar="N",
        help="Files that all workers together open at one server at a time.",
    ),
)
PROGRESS_OPTION = click.option(
    "--progress",
    type=click.Choice(["auto", "off", "rich", "plain"]),
    default="auto",
    show_default=True,
    help="How to show progress.",
)
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def executor_options(default: str) -> Callable[[Command], Command]:
    """Make ``--executor``, ``--workers`` and ``--cluster-option``; their help says what the default is."""
    return _options(
        click.option(
            "--executor",
            "-e",
            metavar="WORD",
            help="iterative (in this process), dask (what dask's configuration says, else local), local, slurm, htcondor, ..., the "
            f"name of a facility, or tcp://..., tls://...: see hepdask cluster ls.  [default: {default}]",
        ),
        click.option(
            "--workers",
            "-w",
            type=click.IntRange(1),
            metavar="N",
            help="Workers to have; those of a local cluster are processes.",
        ),
        CLUSTER_OPTION,
    )


def choose_executor(options: Mapping[str, Any], default: str) -> str:
    """Return what ``--executor`` says, where it says nothing what the other options imply, or else the default."""
    chosen: str | None = options["executor"]
    has_cluster = options["workers"] or options["cluster_options"]
    return chosen or ("dask" if has_cluster else default)


@contextmanager
def open_executor(chosen: str, options: Mapping[str, Any]) -> Iterator[Executor]:
    """Open what ``--executor`` and the options of clusters say; close what was opened."""
    given = dict(options["cluster_options"])
    if options["workers"] is not None:
        given["workers"] = options["workers"]
    if chosen == "iterative":
        if given:
            flag = "workers" if options["workers"] is not None else "cluster-option"
            raise OptionError(f"--{flag} is for a cluster: it does not go with --executor {chosen}")
        from hepdask.executors.local import LocalExecutor

        yield LocalExecutor()
        return
    from hepdask.executors.dask import DaskExecutor

    with DaskExecutor(_find_word(chosen), **given) as executor:
        yield executor


def _find_word(chosen: str) -> str | None:
    """Return the word for a cluster; None: what dask's configuration says."""
    import dask

    if chosen != "dask":
        return chosen
    has_cluster = any(
        dask.config.get(name, None) for name in ("hepdask.cluster", "scheduler-address")
    )
    return None if has_cluster else "local"


def _list_skipped(options: Mapping[str, Any]) -> tuple[type[BaseException], ...]:
    return (
        *(BAD_FILES if options["skipbadfiles"] else ()),
        *(BAD_EVENTS if options.get("skipbadevents") else ()),
    )


def build_runner(executor: Executor, options: Mapping[str, Any]) -> Runner:
    """Make the runner that the options of a command describe."""
    from hepdask.runner import Runner

    is_test = options.get("test", False)
    return Runner(
        executor,
        schema=None if options["schema"].lower() == "none" else options["schema"],
        chunksize=options["chunksize"],
        maxchunks=1 if is_test else options["limit_chunks"],
        maxfiles=1 if is_test else options["limit_files"],
        skipbadfiles=_list_skipped(options),
        xrootdtimeout=options["xrootdtimeout"],
        align_clusters=options["align_clusters"],
        store=options.get("store"),
        max_failed_fraction=options.get("max_failed_fraction"),
        max_opens_per_endpoint=options.get("max_opens_per_endpoint"),
        progress="off" if options.get("quiet") else options["progress"],
    )
