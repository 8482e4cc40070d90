"""Find the files that the patterns of a fileset stand for, in local directories and on servers.

The only stage before the run that looks at directories. A pattern is data: it is matched against
listings, never passed through a shell. Only directories that match are listed, and one that can't
be listed is an error: Python's and fsspec's ``glob`` leave it out silently, with all its events.
"""

from __future__ import annotations

import dataclasses
import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepdask.errors import FileReadError, FilesetError, MissingDependencyError
from hepdask.fileset import Dataset, Fileset, InputFile, Problems
from hepdask.paths import canonical_path, has_glob, split_query

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    # directory -> (name, is a directory) of what is in it; nothing if there is no such directory
    Listing = Callable[[str], list[tuple[str, bool]]]

__all__ = ["expand_globs", "make_absolute"]

_LOCAL_SCHEMES = ("file://", "local://")


def expand_globs(fileset: Fileset) -> Fileset:
    """Replace each pattern of a fileset by the files that match it.

    Parameters
    ----------
    fileset : Fileset
        What `load_fileset` returned. Wildcards are ``*``, ``?``, ``[...]``, and ``**`` for any
        number of directories; as in a shell, names that start with a dot match only a dot.

    Returns
    -------
    Fileset
        Each pattern's matches stand in its place, sorted by name, with its tree name and metadata.
        They are written as the pattern is: same scheme, host and slashes
        (``root://host:1094//store/x.root``). Files without a pattern are untouched, and so is
        a local file whose name only looks like a pattern.

    Raises
    ------
    FilesetError
        If a pattern matches nothing, has replicas or facts about a single file, or if a file would
        be listed twice in a dataset.
    FileReadError
        If a directory exists but can't be listed.
    MissingDependencyError
        If the file system of a URL is not installed.
    """
    if not any(_is_pattern(url) for file in fileset.files for url in file.replicas):
        return fileset
    problems = Problems()
    datasets = tuple(_expand_dataset(dataset, problems) for dataset in fileset)
    problems.check("fileset")
    return Fileset(datasets)


def make_absolute(fileset: Fileset) -> Fileset:
    """Make relative local paths absolute: a worker has another working directory than the notebook.

    Parameters
    ----------
    fileset : Fileset
        With paths relative to the current directory; ``~`` is the home directory.
    """
    if all(_absolute(url) == url for file in fileset.files for url in file.replicas):
        return fileset
    return Fileset(
        tuple(
            dataclasses.replace(
                dataset, files=tuple(_with_absolute_paths(file) for file in dataset.files)
            )
            for dataset in fileset
        )
    )


def _with_absolute_paths(file: InputFile) -> InputFile:
    replicas = tuple(map(_absolute, file.replicas))
    return dataclasses.replace(file, file_path=replicas[0], replicas=replicas)


def _absolute(url: str) -> str:
    if url.startswith("/") or "://" in url:
        return url
    return str(Path(url).expanduser().absolute())


def _expand_dataset(dataset: Dataset, problems: Problems) -> Dataset:
    files: list[InputFile] = []
    origins: dict[str, str] = {}
    for file in dataset.files:
        for match in _expand_file(file, problems):
            files.append(match)
            _check_new(match, file, origins, problems)
    return dataclasses.replace(dataset, files=tuple(files))


def _check_new(
    match: InputFile, file: InputFile, origins: dict[str, str], problems: Problems
) -> None:
    """Refuse a file that two entries of a dataset stand for: it would be processed twice."""
    for url in match.replicas:
        first = origins.setdefault(canonical_path(url), file.file_path)
        if first != file.file_path:
            problem = f"the file is listed twice, by {first!r} and by {file.file_path!r}"
            problems.add(problem, file.dataset, url)


def _expand_file(file: InputFile, problems: Problems) -> Iterator[InputFile]:
    """Yield the files that one entry of the fileset stands for."""
    if not any(_is_pattern(url) for url in file.replicas):
        yield file
        return
    problem = _find_misuse(file)
    if problem is not None:
        problems.add(problem, file.dataset, file.file_path)
        return
    matches, nearest = _list_matches(file)
    if not matches:
        problem = f"no file matches the pattern; {nearest}"
        problems.add(problem, file.dataset, file.file_path)
    for path in matches:
        yield dataclasses.replace(file, file_path=path, replicas=(path,))


def _find_misuse(file: InputFile) -> str | None:
    """Say what a pattern has that only a single file can have."""
    if len(file.replicas) > 1:
        return "a pattern can't be or have a replica; list the files, each with its replicas"
    for key in ("steps", "num_entries", "uuid"):
        if getattr(file, key) is not None:
            return f"a pattern can't have {key!r}, which is true of one file; list the files"
    return None


def _split_local(path: str) -> tuple[str, str] | None:
    """Split a local path or ``file://`` URL into its scheme and its path; None for a remote URL."""
    for scheme in _LOCAL_SCHEMES:
        if path.startswith(scheme):
            return scheme, path.removeprefix(scheme)
    if "://" in path:
        return None
    return "", os.path.expanduser(path)  # noqa: PTH111 - Path would drop './'


def _is_pattern(path: str) -> bool:
    """Tell whether a path is a pattern and not a local file with such a name, ``data[1].root``."""
    if not has_glob(path):
        return False
    local = _split_local(path)
    return local is None or not os.path.lexists(local[1])


def _list_matches(file: InputFile) -> tuple[list[str], str]:
    """Return the matches of a file's pattern and, if there are none, what does exist."""
    url, query = split_query(file.file_path)
    local = _split_local(url)
    listing: Listing = _list_local
    if local is not None:
        scheme, path = local
        fixed, levels = _split_wildcards(path, first_level=0)
        directory = fixed
    else:
        scheme = ""
        fixed, levels = _split_wildcards(url, first_level=3)
        file_system, directory = _open_directory(fixed, file.dataset)
        listing = _build_listing(file_system)
    try:
        found = sorted(set(_match_levels(listing, directory, levels)))
        nearest = "" if found else _describe_nearest(listing, directory)
    except Exception as error:
        raise FileReadError(
            f"dataset {file.dataset!r}, pattern {file.file_path!r}: a directory can't be listed: "
            f"{type(error).__name__}: {error}; check the path and your permissions or credentials, "
            "or list the files in the fileset"
        ) from error
    return [f"{scheme}{fixed}{name}{query}" for name in found], nearest


def _split_wildcards(path: str, *, first_level: int) -> tuple[str, list[str]]:
    """Split a pattern before the first level with a wildcard.

    ``root://[::1]:1094//store/*.root``, first level 3 (after the host, whose brackets are no
    wildcard), gives ``root://[::1]:1094//store/`` and ``["*.root"]``.
    """
    levels = path.split("/")
    first = next(i for i in range(first_level, len(levels)) if _is_wild(levels[i]))
    return "".join(level + "/" for level in levels[:first]), levels[first:]


def _is_wild(level: str) -> bool:
    return any(character in level for character in "*?[")


def _match_levels(listing: Listing, directory: str, levels: list[str]) -> Iterator[str]:
    """Yield the files that match below a directory, which ends in a slash, relative to it."""
    level, deeper = levels[0], levels[1:]
    if deeper and not _is_wild(level):
        for matched in _match_levels(listing, f"{directory}{level}/", deeper):
            yield f"{level}/{matched}"
        return
    if level == "**":
        # no directory at all is a match, too
        yield from _match_levels(listing, directory, deeper or ["*"])
    for name, is_directory in listing(directory):
        if name != level and not _is_match(name, level):
            continue
        if is_directory and (deeper or level == "**"):
            below = levels if level == "**" else deeper
            for matched in _match_levels(listing, f"{directory}{name}/", below):
                yield f"{name}/{matched}"
        elif not is_directory and not deeper and level != "**":
            yield name


def _is_match(name: str, level: str) -> bool:
    return fnmatchcase(name, level) and (level.startswith(".") or not name.startswith("."))


def _describe_nearest(listing: Listing, searched: str) -> str:
    """Name the deepest part of a directory that exists."""
    directory = searched
    try:
        while directory.strip("/") and not _is_directory(listing, directory):
            directory = _parent(directory)
    except OSError as error:  # what the user may read can lie below what he may not
        return f"{searched!r} was searched, {directory!r} can't be: {error}"
    if directory == searched:
        return f"its directory {searched or './'!r} exists"
    return f"the nearest directory that exists is {directory or './'!r}, not {searched!r}"


def _is_directory(listing: Listing, directory: str) -> bool:
    name = directory.rstrip("/").rpartition("/")[2]
    # an empty directory lists as one that isn't there: only its parent knows
    return bool(listing(directory)) or (name, True) in listing(_parent(directory))


def _parent(directory: str) -> str:
    """Return the directory above, with its last slash; nothing above a relative one."""
    above, slash, _ = directory.rstrip("/").rpartition("/")
    return above + slash


def _list_local(directory: str) -> list[tuple[str, bool]]:
    try:
        with os.scandir(directory or ".") as entries:
            return [(entry.name, entry.is_dir()) for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []


# --- servers ---


def _open_directory(url: str, dataset: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL and its spelling of the path, with a last slash."""
    import fsspec

    try:
        # an instance of its own: a cached one may hold old listings and dead connections
        file_system, path = fsspec.core.url_to_fs(url, skip_instance_cache=True)
    except ImportError as error:
        scheme = url.partition("://")[0]
        command = 'pip install "hepdask[xrootd]"' if scheme == "root" else str(error)
        raise MissingDependencyError(
            f"dataset {dataset!r}: to expand patterns of {scheme}:// URLs: {command}"
        ) from error
    except ValueError as error:
        raise FilesetError(
            f"dataset {dataset!r}: {url!r} can't be listed: {error}; list the files instead"
        ) from error
    return file_system, str(path).rstrip("/") + "/"


def _build_listing(file_system: Any) -> Listing:
    """Return a function that lists a directory of a file system."""

    def list_directory(directory: str) -> list[tuple[str, bool]]:
        path = directory.rstrip("/")
        try:
            entries = file_system.ls(path or "/", detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            # fsspec-xrootd has one type for all; the server's text is the only sign
            if "no such file or directory" in str(error).lower():
                return []
            raise
        named = [
            (str(entry["name"]).rstrip("/"), entry["type"] == "directory") for entry in entries
        ]
        if named == [(path, True)] and file_system.protocol == "root":
            # so fsspec-xrootd shows a directory that the server won't open
            raise PermissionError(f"the server does not open the directory {path!r}")
        # a file is listed as its own content
        return [(name.rpartition("/")[2], is_dir) for name, is_dir in named if name != path]

    return list_directory
