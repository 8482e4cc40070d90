"""``hepdask inspect``: what is in files."""

from __future__ import annotations

import contextlib
import functools
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hepdask.cli.options import (
    FILE_OPTIONS,
    JSON_OPTION,
    PROGRESS_OPTION,
    choose_executor,
    executor_options,
    open_executor,
)
from hepdask.cli.sources import NO_TREE, load_sources
from hepdask.cli.text import (
    EXIT_FAILED,
    count,
    echo_json,
    failure_to_dict,
    format_bytes,
    show,
    show_failures,
)
from hepdask.errors import OptionError, suggest
from hepdask.tables import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hepdask.failures import Failure
    from hepdask.fileset import InputFile
    from hepdask.metadata import FileMetadata

__all__ = ["command"]

#: Files that a table shows: nobody reads more, and rich takes a millisecond for each.
MAX_ROWS = 500


@click.command("inspect")
@click.argument("fileset", nargs=-1)
@click.option(
    "--branches",
    "pattern",
    is_flag=False,
    flag_value="*",
    metavar="[PATTERN]",
    help="List the branches of one file, largest first.",
)
@FILE_OPTIONS
@executor_options("iterative")
@PROGRESS_OPTION
@JSON_OPTION
def command(fileset: tuple[str, ...], pattern: str | None, **options: Any) -> int:
    """Show what is in FILESET (ROOT files, JSON or YAML): entries, clusters, sizes, branches."""
    if not fileset and pattern is not None and Path(pattern.split(":")[0]).exists():
        fileset, pattern = (pattern,), "*"  # --branches FILE
    if not fileset:
        raise OptionError("no file: write hepdask inspect FILE")
    files = (
        load_sources(fileset, options["treename"] or NO_TREE).limit(options["limit_files"]).files
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

    unnamed = next((one for one in files if one.treename == NO_TREE), None)
    if unnamed is None:
        return files, {}
    trees = _list_trees(unnamed, options)
    if not trees:
        raise OptionError(f"{unnamed.file_path} has no tree at all")
    (treename, *_) = trees
    return tuple(
        replace(one, treename=treename) if one.treename == NO_TREE else one for one in files
    ), trees


def _list_trees(file: InputFile, options: Mapping[str, Any]) -> dict[str, str]:
    import uproot

    from hepdask.paths import local_path
    from hepdask.read_errors import as_read_error, read_errors

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
        echo_json({"file_path": file.file_path, "trees": dict(trees)})
        return 0
    click.echo(file.file_path)
    show(Table("Trees", ("tree", "kind"), tuple(trees.items())))
    click.echo("choose one with --treename")
    return 0


def _inspect_files(
    files: Sequence[InputFile], options: Mapping[str, Any]
) -> list[FileMetadata | Failure]:
    from hepdask.executors import check_reached
    from hepdask.failures import build_failure
    from hepdask.metadata import FileMetadata, MetadataCache
    from hepdask.opening import ReadOptions
    from hepdask.progress import choose_progress
    from hepdask.task import inspect_files

    function = functools.partial(inspect_files, options=ReadOptions(options["xrootdtimeout"]))
    with (
        open_executor(choose_executor(options, "iterative"), options) as executor,
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
    check_reached(results)
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
        echo_json(
            {
                "files": [{"dataset": dataset, **_facts_to_dict(one)} for dataset, one in known],
                "failures": [failure_to_dict(one) for one in failures],
            }
        )
    else:
        if known:
            show(_build_file_table(known))
        show_failures(failures)
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
            format_bytes(one.num_file_bytes),
            one.uuid,
        )
        for dataset, one in known[:MAX_ROWS]
    ]
    if len(known) > 1:
        facts = [one for _, one in known]
        total = f"{sum(one.num_entries for one in facts):,}"
        clusters = f"{sum(len(one.cluster_offsets) - 1 for one in facts):,}"
        num_bytes = format_bytes(sum(one.num_file_bytes or 0 for one in facts))
        rows.append(("all", count(len(facts), "file"), "", "", total, clusters, "", num_bytes, ""))
    headers = ("dataset", "file", "tree", "kind", "entries", "clusters", "branches", "size", "uuid")
    title = "Files" if len(known) <= MAX_ROWS else f"The first {MAX_ROWS:,} files; --json has all"
    return Table(title, headers, tuple(rows))


def _show_branches(facts: FileMetadata | Failure, pattern: str, *, as_json: bool) -> int:
    from hepdask.failures import Failure

    if isinstance(facts, Failure):
        show_failures([facts])
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
        echo_json({**_facts_to_dict(facts), "branches": branches})
        return 0
    rows = [
        (
            one.name,
            one.typename,
            format_bytes(one.num_compressed_bytes),
            f"{100 * one.num_compressed_bytes / total:.2f}%" if total else "",
            format_bytes(one.num_uncompressed_bytes),
        )
        for one in chosen
    ]
    # a title is as narrow as its table
    click.echo(f"{facts.file_path}:{facts.treename}, {facts.num_entries:,} entries")
    title = f"{len(chosen):,} of {count(len(facts.branches), 'branch', 'branches')}"
    show(Table(title, ("branch", "type", "compressed", "share", "uncompressed"), tuple(rows)))
    return 0
