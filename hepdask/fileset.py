"""Every way to write a fileset, turned into `InputFile` objects. No ROOT file is opened here.

The dialects, all of which may be mixed in one fileset::

    {"dy": ["a.root", "b.root:Events"]}                       lists, the tree name after a colon
    {"dy": "data/*.root"}                                     one file or one pattern
    {"dy": {"files": [...], "treename": "Events", "metadata": {"xsec": 6077.0},
            "preload": ["Jet_pt"]}}
    {"dy": {"files": {"a.root": "Events"}}}                   file -> tree name
    {"dy": {"files": {"a.root": {"object_path": "Events", "steps": [[0, 10]], "num_entries": 10,
                                 "uuid": "...", "replicas": [...]}}}}   coffea preprocessed
    {"dy": [["root://a//f.root", "root://b//f.root"]]}        replicas of one file

The tree name nearest to the file wins: its own entry, the dataset's ``treename``, the argument.
Patterns stay patterns (`hepdask.discovery.expand_globs` replaces them).
"""

from __future__ import annotations

import gzip
import itertools
import json
import operator
import os
import posixpath
import re
import uuid as uuid_module
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepdask.errors import FilesetError, OptionError, suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "Dataset",
    "Fileset",
    "InputFile",
    "Problems",
    "canonical_path",
    "has_glob",
    "load_fileset",
    "split_object_path",
    "split_query",
]

RESERVED_METADATA = ("dataset", "filename", "treename", "entrystart", "entrystop", "fileuuid")

_FILESET_SUFFIXES = (".json", ".json.gz", ".yaml", ".yaml.gz", ".yml", ".yml.gz")
_DATASET_KEYS = ("files", "treename", "metadata", "preload", "format")
_FILE_KEYS = ("object_path", "steps", "num_entries", "uuid", "replicas", "format")
# what coffea writes beside them and hepdask has no use for
_IGNORED_DATASET_KEYS = frozenset({"form", "compressed_form", "did"})
_IGNORED_FILE_KEYS = frozenset({"form", "compressed_form", "lfn", "pfn", "num_selected_entries"})

# in these, '?' starts a query and is no wildcard
_QUERY_SCHEMES = frozenset({"http", "https", "dav", "davs", "root", "roots", "xroot", "xroots"})
_DEFAULT_PORTS = {"root": ":1094", "roots": ":1094", "http": ":80", "https": ":443"}

_ROOT_THEN_TREE = re.compile(r"(.+\.root(?:\.\d+)?):(.*)", re.IGNORECASE | re.DOTALL)
_ENDS_AS_FILE = re.compile(r"\.root(?:\.\d+)?(?:\?.*)?$", re.IGNORECASE)
_TREE_AFTER_QUERY = re.compile(r"[A-Za-z_][\w/;.-]*")
_TREE_AFTER_BARE_PATH = re.compile(r"[A-Za-z_]\w*(?:;\d+)?")
_URL_THROUGH_PATHLIB = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)")


@dataclass(frozen=True, slots=True)
class InputFile:
    """One logical file of one dataset, as the user describes it."""

    dataset: str
    """Name of the dataset."""
    file_path: str
    """Path, URL or pattern of the first replica: the name in metadata, failures and reports."""
    treename: str
    """Path of the TTree or RNTuple inside the file."""
    replicas: tuple[str, ...]
    """All URLs of the file in the order of preference; ``replicas[0] == file_path``."""
    metadata: Mapping[str, Any] = field(hash=False)
    """The dataset's metadata as the user wrote it; one plain dict for all its files."""
    preload: tuple[str, ...] = ()
    """Branches that the user says are in use; empty: nothing was said."""
    num_entries: int | None = None
    """Number of entries in the tree; None: not known yet."""
    uuid: str | None = None
    """The file's UUID, lower case, with hyphens; None: not known yet."""
    steps: tuple[tuple[int, int], ...] | None = None
    """Half-open entry ranges to process, ordered, none empty; None: all entries, ``()``: none."""


@dataclass(frozen=True, slots=True, repr=False)
class Dataset:
    """The files of one dataset, in the order in which they were written."""

    name: str
    """Name of the dataset: the key in the outputs."""
    files: tuple[InputFile, ...]
    """The files; never empty when loaded."""
    metadata: Mapping[str, Any] = field(hash=False)
    """What the user wrote under ``metadata``."""

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        return f"<Dataset {self.name!r}: {len(self.files)} files>"

    def to_dict(self) -> dict[str, Any]:
        """Write the dataset in coffea's preprocessed dialect.

        Returns
        -------
        dict
            ``{"files": {file_path: {"object_path", ...}}, "metadata"}``, and ``preload`` if any.
        """
        written: dict[str, Any] = {
            "files": {file.file_path: _write_file(file) for file in self.files},
            "metadata": dict(self.metadata),
        }
        if self.files and self.files[0].preload:
            written["preload"] = list(self.files[0].preload)
        return written


@dataclass(frozen=True, slots=True, repr=False)
class Fileset:
    """Datasets in the order in which they were written; iterating gives the datasets."""

    datasets: tuple[Dataset, ...]
    """The datasets; never empty when loaded."""

    def __len__(self) -> int:
        return len(self.datasets)

    def __iter__(self) -> Iterator[Dataset]:
        return iter(self.datasets)

    def __repr__(self) -> str:
        num_files = sum(map(len, self.datasets))
        return f"<Fileset: {len(self.datasets)} datasets, {num_files} files>"

    @property
    def files(self) -> tuple[InputFile, ...]:
        """All files, dataset after dataset."""
        return tuple(file for dataset in self.datasets for file in dataset.files)

    def limit(self, max_files: int | None = None) -> Fileset:
        """Keep the first files of each dataset.

        Parameters
        ----------
        max_files : int or None
            Number of files to keep in each dataset, at least 1; None keeps all.

        Returns
        -------
        Fileset
            A new fileset. A pattern counts as one file: expand patterns first.

        Raises
        ------
        OptionError
            If `max_files` is no positive integer.
        """
        if max_files is None:
            return self
        try:
            positive = _parse_count(max_files) > 0
        except FilesetError:
            positive = False
        if not positive:
            raise OptionError(f"max_files is {max_files!r}; it must be a positive integer or None")
        return Fileset(
            tuple(
                Dataset(dataset.name, dataset.files[:max_files], dataset.metadata)
                for dataset in self.datasets
            )
        )

    def to_dict(self) -> dict[str, Any]:
        """Write the fileset in coffea's preprocessed dialect.

        Returns
        -------
        dict
            What `load_fileset` reads back to an equal fileset, and what coffea reads, too. What is
            not known is left out. It can be written as JSON if the user's metadata can.
        """
        return {dataset.name: dataset.to_dict() for dataset in self.datasets}


def _write_file(file: InputFile) -> dict[str, Any]:
    written: dict[str, Any] = {"object_path": file.treename}
    if file.steps is not None:
        written["steps"] = [list(step) for step in file.steps]
    if file.num_entries is not None:
        written["num_entries"] = file.num_entries
    if file.uuid is not None:
        written["uuid"] = file.uuid
    if len(file.replicas) > 1:
        written["replicas"] = list(file.replicas)
    return written


class Problems:
    """What is wrong in a fileset, collected so that the user sees it at once."""

    __slots__ = ("_lines", "_num_problems")

    max_lines = 10

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._num_problems = 0

    def add(
        self, problem: str, dataset: object = None, file: object = None, key: object = None
    ) -> None:
        """Note one problem.

        Parameters
        ----------
        problem : str
            What is wrong and what to write instead.
        dataset, file, key : object
            Where it is; None: does not apply.
        """
        self._num_problems += 1
        if len(self._lines) >= self.max_lines:
            return
        named = (("dataset", dataset), ("file", file), ("key", key))
        where = ", ".join(f"{word} {name!r}" for word, name in named if name is not None)
        self._lines.append(f"{where}: {problem}" if where else problem)

    def check(self, source: str) -> None:
        """Raise if there is any problem.

        Parameters
        ----------
        source : str
            What was read: ``"fileset 'my.json'"``.

        Raises
        ------
        FilesetError
            With one line for each of the first ten problems.
        """
        if not self._num_problems:
            return
        if self._num_problems == 1:
            raise FilesetError(f"{source}: {self._lines[0]}")
        lines = [f"{source}: {self._num_problems} things are wrong", *self._lines]
        if self._num_problems > len(self._lines):
            lines.append(f"... and {self._num_problems - len(self._lines)} more")
        raise FilesetError("\n  ".join(lines))


# --- paths ---


def _split_authority(path: str) -> tuple[str, str]:
    """Split ``root://host:1094//x`` after the host; the first part is empty for a local path."""
    scheme_end = path.rfind("://")
    if scheme_end < 0 or "?" in path[:scheme_end]:  # a URL inside a query is data
        scheme_end = path.find("://")
    if scheme_end < 0:
        return "", path
    slash = path.find("/", scheme_end + 3)
    return (path, "") if slash < 0 else (path[:slash], path[slash:])


def _url_scheme(path: str) -> str:
    """Return the lower-case scheme of a URL, the last one of ``simplecache::root://``."""
    authority, _ = _split_authority(path)
    return authority.partition("://")[0].rpartition("::")[2].lower()


def split_query(path: str) -> tuple[str, str]:
    """Split a URL before its query.

    Parameters
    ----------
    path : str
        A path or URL.

    Returns
    -------
    path, query : str
        The query starts with ``?``. It is empty where ``?`` has another meaning (local paths,
        object stores).
    """
    if _url_scheme(path) not in _QUERY_SCHEMES:
        return path, ""
    start = path.find("?")
    return (path, "") if start < 0 else (path[:start], path[start:])


def has_glob(path: str) -> bool:
    """Tell whether a path or URL is a pattern, with ``*``, ``?`` or ``[``.

    Parameters
    ----------
    path : str
        A path or URL, without a tree name.

    Returns
    -------
    bool
        False for the ``?`` of a query (HTTP, WebDAV, XRootD) and for the brackets of an IPv6 host.
    """
    _, rest = _split_authority(split_query(path)[0])
    return "*" in rest or "?" in rest or "[" in rest


def canonical_path(path: str) -> str:
    """Return a text that is the same for spellings that surely name the same file.

    Parameters
    ----------
    path : str
        A path or URL.

    Returns
    -------
    str
        A key for comparisons, not a path to open: without default port, XRootD query and ``./``.
    """
    authority, rest = _split_authority(path)
    if not authority:
        return posixpath.normpath(path)
    scheme, _, host = authority.partition("://")
    scheme = scheme.lower()
    if scheme in {"file", "local"}:
        return posixpath.normpath(rest)
    if scheme in {"xroot", "xroots"}:
        scheme = scheme[1:]
    if scheme in {"root", "roots"}:
        rest = rest.partition("?")[0]
    host = host.lower().removesuffix(_DEFAULT_PORTS.get(scheme, ":"))
    return f"{scheme}://{host}{rest}"


def split_object_path(path: str, *, certain_only: bool = False) -> tuple[str, str | None]:
    """Split ``file.root:tree`` into the file and the tree name.

    A colon after ``.root`` (or ``.root.1``, as ATLAS names files) is certain. After a query, or in
    a path without ``.root``, what follows the last colon counts as a tree name if it looks like
    one: it starts with a letter, and has no slash if there is no query. A port is none, and
    neither is what follows a colon in a directory.

    Parameters
    ----------
    path : str
        A path, URL or pattern, perhaps with a tree name.
    certain_only : bool
        Split only where ``.root`` stands before the colon.

    Returns
    -------
    file_path : str
        The part before the colon.
    treename : str or None
        The tree name without outer slashes; None if there is none, ``""`` if it is empty.
    """
    if ":" not in path:
        return path, None
    authority, rest = _split_authority(path)
    certain = _ROOT_THEN_TREE.fullmatch(rest)
    if certain is not None and not _ENDS_AS_FILE.search(certain[2]):
        return authority + certain[1], re.sub(r"/+", "/", certain[2].strip()).strip("/")
    if certain_only:
        return path, None
    head, _, tail = rest.rpartition(":")
    after_query = bool(split_query(authority + head)[1])
    tree_pattern = _TREE_AFTER_QUERY if after_query else _TREE_AFTER_BARE_PATH
    # one letter before the colon is a drive of Windows
    if len(head) > 1 and not head.endswith("/") and tree_pattern.fullmatch(tail):
        return authority + head, tail.rstrip("/")
    return path, None


def _read_path(value: object) -> str:
    """Return the text of a path that the user wrote, or raise what is wrong with it."""
    if isinstance(value, str):
        path = value.strip()
    elif isinstance(value, os.PathLike):
        path = os.fspath(value)
        if not isinstance(path, str):
            raise FilesetError(f"{value!r} is a path of bytes; write a str")
        if _URL_THROUGH_PATHLIB.match(path):
            raise FilesetError(f"pathlib drops a slash of the URL {path!r}; write it as a str")
    else:
        raise FilesetError(f"{_short(value)} is no file; write a path or a URL as a str")
    if not path:
        raise FilesetError("the name of the file is empty")
    if path.endswith("/"):
        raise FilesetError(
            f"{path!r} is a directory; write {path + '*.root'!r} for the files in it"
        )
    return path


def _short(value: object) -> str:
    """Describe a value of a wrong type in an error text, whatever its size."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


# --- values of keys: each parser returns what is meant, or raises without saying where ---


def _parse_treename(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise FilesetError(f"{_short(value)} is no tree name; write a str")
    if not value.strip():
        raise FilesetError("the tree name is empty")
    return value


def _parse_count(value: object) -> int:
    if type(value) is int:
        number = value
    else:
        try:
            number = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            raise FilesetError(f"{_short(value)} is no integer") from None
        if isinstance(value, bool):
            raise FilesetError(f"{_short(value)} is no integer")
    if number < 0:
        raise FilesetError(f"{number} is negative")
    return number


def _parse_num_entries(value: object) -> int | None:
    return None if value is None else _parse_count(value)


def _parse_uuid(value: object) -> str | None:
    if value is None or isinstance(value, uuid_module.UUID):
        return None if value is None else str(value)
    if not isinstance(value, str):
        raise FilesetError(f"{_short(value)} is no UUID; write 32 hexadecimal digits as a str")
    try:
        return str(uuid_module.UUID(value))
    except ValueError:
        raise FilesetError(f"{value!r} is no UUID; write 32 hexadecimal digits") from None


def _parse_format(value: object) -> None:
    if value not in (None, "root"):
        raise FilesetError(f"{_short(value)} can't be read; hepdask reads ROOT files ('root')")


def _parse_steps(value: object) -> tuple[tuple[int, int], ...] | None:
    """Read pairs ``[[0, 10], [10, 20]]`` or edges ``[0, 10, 20]``.

    coffea writes ``[[0, 0]]`` for a file without entries: an empty range is allowed, and dropped.
    """
    if value is None:
        return None
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise FilesetError(f"{_short(value)} is no list of [entry_start, entry_stop]")
    if value and not any(isinstance(step, list | tuple) for step in value):
        return _parse_edges(value)
    steps: list[tuple[int, int]] = []
    previous_stop = 0
    for step in value:
        if not isinstance(step, list | tuple) or len(step) != 2:
            raise FilesetError(f"{_short(step)} is no pair [entry_start, entry_stop]")
        start, stop = _parse_count(step[0]), _parse_count(step[1])
        if start > stop:
            raise FilesetError(f"[{start}, {stop}] ends before it starts")
        if start < previous_stop:
            raise FilesetError(
                f"[{start}, {stop}] starts before the previous range ends, at {previous_stop}; "
                "order the ranges and let none overlap"
            )
        previous_stop = stop
        if start < stop:
            steps.append((start, stop))
    return tuple(steps)


def _parse_edges(value: list[Any] | tuple[Any, ...]) -> tuple[tuple[int, int], ...]:
    edges = [_parse_count(edge) for edge in value]
    if len(edges) < 2:
        raise FilesetError(f"{_short(value)} has one edge; a range needs two")
    steps = list(itertools.pairwise(edges))
    for start, stop in steps:
        if start > stop:
            raise FilesetError(f"the edge {stop} comes after {start}; order the edges")
    return tuple(step for step in steps if step[0] < step[1])


def _parse_replicas(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise FilesetError(f"{_short(value)} is no list of URLs")
    return tuple(_read_path(url) for url in value)


def _parse_preload(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise FilesetError(f"{_short(value)} is no list of branch names")
    return tuple(dict.fromkeys(value))


_FILE_PARSERS: dict[str, Callable[[object], Any]] = {
    "object_path": _parse_treename,
    "steps": _parse_steps,
    "num_entries": _parse_num_entries,
    "uuid": _parse_uuid,
    "replicas": _parse_replicas,
    "format": _parse_format,
}


# --- one file ---


@dataclass(frozen=True, slots=True)
class _Scope:
    """What the files of one dataset have in common while they are read."""

    dataset: str
    treename: str | None
    metadata: dict[str, Any]
    preload: tuple[str, ...]
    problems: Problems
    treeless: list[str]
    """Files for which no tree name was found: one problem for all of them."""


def _parse_urls(
    values: tuple[object, ...], treename: str | None
) -> tuple[tuple[str, ...], str | None]:
    """Read the replicas of one file, each perhaps with ``:tree``; return URLs and tree name."""
    urls: list[str] = []
    for value in values:
        # beside a written tree name, a colon that might be part of the path is part of the path
        url, own = split_object_path(_read_path(value), certain_only=treename is not None)
        if own == "":
            raise FilesetError("no tree name follows the colon")
        if own is not None and treename is not None and own != treename:
            raise FilesetError(f"two tree names, {treename!r} and {own!r}; write one")
        treename = own or treename
        urls.append(url)
    return tuple(urls), treename


def _build_file(
    scope: _Scope, values: tuple[object, ...], facts: Mapping[str, Any]
) -> InputFile | None:
    """Build a file from its replicas, as written, and the parsed keys of its entry."""
    try:
        replicas, treename = _parse_urls(values, facts.get("object_path"))
    except FilesetError as error:
        scope.problems.add(str(error), scope.dataset, _short_name(values))
        return None
    if treename is None:
        treename = scope.treename
    if treename is None:
        scope.treeless.append(replicas[0])
        return None
    return InputFile(
        dataset=scope.dataset,
        file_path=replicas[0],
        treename=treename,
        replicas=replicas,
        metadata=scope.metadata,
        preload=scope.preload,
        num_entries=facts.get("num_entries"),
        uuid=facts.get("uuid"),
        steps=facts.get("steps"),
    )


def _short_name(values: tuple[object, ...]) -> str:
    return str(values[0])[:200]


def _parse_listed_file(scope: _Scope, value: object) -> InputFile | None:
    """Read an entry of a list: a file, or the replicas of one."""
    if isinstance(value, list | tuple):
        if not value:
            scope.problems.add("a list of replicas is empty", scope.dataset, key="files")
            return None
        return _build_file(scope, tuple(value), {})
    return _build_file(scope, (value,), {})


def _parse_keyed_file(scope: _Scope, name: object, value: object) -> InputFile | None:
    """Read an entry of a mapping: file -> tree name, or file -> what is known about it."""
    if value is None or isinstance(value, str):
        value = {"object_path": value}
    elif not isinstance(value, Mapping):
        scope.problems.add(
            f"{_short(value)} is neither a tree name nor a mapping with 'object_path'",
            scope.dataset,
            str(name),
        )
        return None
    facts = _parse_facts(scope, str(name), value)
    if facts is None:
        return None
    others = facts.get("replicas", ())
    if others:
        # the key is the file's name, so it is the first replica, wherever the list has it
        named = split_object_path(str(name).strip(), certain_only=bool(facts.get("object_path")))[0]
        others = tuple(
            url for url in others if split_object_path(url, certain_only=True)[0] != named
        )
    return _build_file(scope, (name, *others), facts)


def _parse_facts(scope: _Scope, name: str, entry: Mapping[Any, Any]) -> dict[str, Any] | None:
    """Parse all keys of a file's entry; None if one of them is wrong."""
    facts: dict[str, Any] = {}
    good = True
    for key, value in entry.items():
        parser = _FILE_PARSERS.get(key)
        if parser is not None:
            try:
                facts[key] = parser(value)
            except FilesetError as error:
                good = False
                scope.problems.add(str(error), scope.dataset, name, key)
        elif key not in _IGNORED_FILE_KEYS:
            good = False
            hint = (
                "; did you mean 'object_path'?"
                if key == "treename"
                else suggest(str(key), _FILE_KEYS)
            )
            scope.problems.add(f"a file has no such key{hint}", scope.dataset, name, key)
    num_entries, steps = facts.get("num_entries"), facts.get("steps")
    if num_entries is not None and steps and steps[-1][1] > num_entries:
        good = False
        problem = f"{list(steps[-1])} ends after the last of num_entries={num_entries} entries"
        scope.problems.add(problem, scope.dataset, name, "steps")
    return facts if good else None


# --- one dataset ---


def _plain(value: object) -> object:
    """Turn coffea's pydantic models (DataGroupSpec, DatasetSpec) into mappings."""
    dump = getattr(value, "model_dump", None)
    return dump() if callable(dump) else value


def _parse_dataset(
    name: object, value: object, *, treename: str | None, problems: Problems
) -> Dataset | None:
    """Read one dataset in any dialect; None if nothing can be made of it."""
    if not isinstance(name, str) or not name:
        problem = (
            f"{_short(name)} is no name of a dataset; write a str that is not empty, in quotes"
        )
        problems.add(problem)
        return None
    value = _plain(value)
    if not isinstance(value, Mapping) or _looks_like_files(value):
        value = {"files": value}
    scope = _parse_dataset_keys(name, value, treename=treename, problems=problems)
    if "files" not in value:
        problems.add("the key 'files' is missing", name)
        return None
    files = tuple(_parse_files(scope, value["files"]))
    if scope.treeless:
        more = f" (and {len(scope.treeless) - 1} more files)" if len(scope.treeless) > 1 else ""
        problems.add(
            f"no tree name{more}; write 'file.root:tree', the dataset's 'treename', "
            "or give treename=",
            name,
            scope.treeless[0],
        )
    _check_listed_once(files, problems)
    return Dataset(name, files, scope.metadata)


def _looks_like_files(value: Mapping[Any, Any]) -> bool:
    """Recognise ``{dataset: {file: treename}}``, which coffea's dataset tools and uproot accept."""
    return bool(value) and all(
        isinstance(key, os.PathLike) or (isinstance(key, str) and ("/" in key or ".root" in key))
        for key in value
    )


def _parse_dataset_keys(
    name: str, value: Mapping[Any, Any], *, treename: str | None, problems: Problems
) -> _Scope:
    """Parse what a dataset says beside its files."""
    parsers: dict[str, Callable[[object], Any]] = {
        "treename": _parse_treename,
        "metadata": _parse_metadata,
        "preload": _parse_preload,
        "format": _parse_format,
    }
    parsed: dict[str, Any] = {}
    for key, item in value.items():
        parser = parsers.get(key)
        if parser is not None:
            try:
                parsed[key] = parser(item)
            except FilesetError as error:
                problems.add(str(error), name, key=key)
        elif key != "files" and key not in _IGNORED_DATASET_KEYS:
            problem = f"a dataset has no such key{suggest(str(key), _DATASET_KEYS)}"
            problems.add(problem, name, key=key)
    # a wrong treename is one problem, not one for each file
    own = parsed.get("treename", treename if "treename" not in value else "?")
    return _Scope(
        dataset=name,
        treename=own if own is not None else treename,
        metadata=parsed.get("metadata", {}),
        preload=parsed.get("preload", ()),
        problems=problems,
        treeless=[],
    )


def _parse_metadata(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise FilesetError(f"{_short(value)} is no mapping")
    reserved = [name for name in RESERVED_METADATA if name in value]
    if reserved:
        names = ", ".join(repr(name) for name in reserved)
        raise FilesetError(f"{names} is set by hepdask for each entry range; choose another name")
    return dict(value)


def _parse_files(scope: _Scope, value: object) -> Iterator[InputFile]:
    """Read the files of a dataset: one, a list, or a mapping."""
    if isinstance(value, str | os.PathLike):
        value = [value]
    if isinstance(value, Mapping):
        parsed = (_parse_keyed_file(scope, name, entry) for name, entry in value.items())
    elif isinstance(value, list | tuple):
        parsed = (_parse_listed_file(scope, entry) for entry in value)
    else:
        problem = f"{_short(value)} is neither a file, nor a list of files, nor a mapping of files"
        scope.problems.add(problem, scope.dataset, key="files")
        return
    if not value:
        scope.problems.add(
            "the dataset has no files; add one or remove it", scope.dataset, key="files"
        )
    yield from (file for file in parsed if file is not None)


def _check_listed_once(files: tuple[InputFile, ...], problems: Problems) -> None:
    """Refuse a file that would be processed twice, also if another replica of it is listed."""
    seen: dict[str, InputFile] = {}
    for file in files:
        for url in file.replicas:
            first = seen.setdefault(canonical_path(url), file)
            if first is not file:
                of = "" if url == file.file_path == first.file_path else f": {url!r} is also listed"
                by = "" if url == first.file_path else f" under {first.file_path!r}"
                problems.add(f"the file is listed twice{of}{by}", file.dataset, file.file_path)
                break
    for file in files:
        if len(file.replicas) > 1 and len(set(map(canonical_path, file.replicas))) < len(
            file.replicas
        ):
            problem = "a replica is listed twice"
            problems.add(problem, file.dataset, file.file_path, "replicas")


# --- the fileset ---


def load_fileset(
    source: Fileset | Mapping[Any, Any] | str | os.PathLike[str], treename: str | None = None
) -> Fileset:
    """Load a fileset in any dialect and check it; no file but the fileset's own is opened.

    Parameters
    ----------
    source : Fileset, mapping, str or path
        A mapping of datasets; a path to one in ``.json``, ``.yaml`` or ``.yml``, also with ``.gz``;
        or one ROOT file or pattern, whose stem is then the dataset's name. A loaded fileset is
        returned as it is.
    treename : str, optional
        Tree name for the files for which the fileset has none.

    Returns
    -------
    Fileset
        The datasets and files, in the order in which they are written.

    Raises
    ------
    FilesetError
        With up to ten things that are wrong, each with its dataset, file and key.
    """
    if isinstance(source, Fileset):
        return source
    described = "fileset"
    content: object = source
    if isinstance(source, str | os.PathLike):
        content, described = _load_named(source)
    content = _plain(content)
    if not isinstance(content, Mapping):
        raise FilesetError(f"{described}: {_short(content)} is no mapping of datasets to files")
    if not content:
        raise FilesetError(f"{described} is empty; write {{'dataset': ['file.root']}}")
    try:
        treename = _parse_treename(treename)
    except FilesetError as error:
        raise FilesetError(f"treename={treename!r}: {error}") from None
    problems = Problems()
    parsed = [
        _parse_dataset(name, value, treename=treename, problems=problems)
        for name, value in content.items()
    ]
    problems.check(described)
    return Fileset(tuple(dataset for dataset in parsed if dataset is not None))


def _load_named(source: str | os.PathLike[str]) -> tuple[object, str]:
    """Return the content that a path stands for, and how to name it in an error."""
    try:
        path = _read_path(source)
    except FilesetError as error:
        raise FilesetError(f"fileset: {error}") from None
    if not path.lower().endswith(_FILESET_SUFFIXES):
        return {_name_dataset(path): [path]}, f"fileset of the file {path!r}"
    if _split_authority(path)[0]:
        raise FilesetError(f"fileset {path!r} is not a local file; download it first")
    return _load_file(Path(path).expanduser()), f"fileset {path!r}"


def _name_dataset(path: str) -> str:
    """Return the stem of a file; of a pattern, what is no wildcard, or else its directory."""
    file_path = split_query(split_object_path(path)[0])[0]
    for part in reversed(_split_authority(file_path)[1].split("/")):
        stem = re.sub(r"\.root(\.\d+)?$", "", part, flags=re.IGNORECASE)
        if has_glob(stem):
            stem = re.sub(r"\[[^]]*\]|[*?\[]", "", stem).strip("._- ")
        if stem.strip("."):
            return stem
    return "dataset"


def _load_file(path: Path) -> object:
    """Read a JSON or YAML file, perhaps compressed."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix.lower() == ".gz" else raw).decode("utf-8-sig")
    except FileNotFoundError:
        raise FilesetError(f"no such fileset file: '{path}'{_suggest_beside(path)}") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise FilesetError(f"fileset '{path}' can't be read: {error}") from error
    is_json = ".json" in "".join(path.suffixes[-2:]).lower()
    return _parse_json(text, path) if is_json else _parse_yaml(text, path)


def _suggest_beside(path: Path) -> str:
    """Offer the filesets in the directory in which one was looked for."""
    if not path.parent.is_dir():
        return f"; there is no directory '{path.parent}'"
    names = sorted(
        p.name for p in path.parent.iterdir() if p.name.lower().endswith(_FILESET_SUFFIXES)
    )
    return suggest(path.name, names)


def _parse_json(text: str, path: Path) -> object:
    def build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        built = dict(pairs)
        if len(built) < len(pairs):  # json keeps the last one, and the files of the first are lost
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise FilesetError(
                f"fileset '{path}': the key {twice!r} is written twice; merge the two"
            )
        return built

    try:
        return json.loads(text, object_pairs_hook=build_object)
    except json.JSONDecodeError as error:
        raise FilesetError(
            f"fileset '{path}', line {error.lineno}, column {error.colno}: "
            f"no valid JSON: {error.msg}"
        ) from error


def _parse_yaml(text: str, path: Path) -> object:
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is ten times faster

    class Loader(base):  # type: ignore[misc]
        """Refuses a key that is written twice: yaml would keep the last one."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[tuple[str, str]] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    if (key.tag, key.value) in seen:
                        problem = f"the key {key.value!r} is written twice; merge the two"
                        raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                    seen.add((key.tag, key.value))
            return super().construct_mapping(node, deep=deep)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or error
        raise FilesetError(f"fileset '{path}'{where}: no valid YAML: {reason}") from error
