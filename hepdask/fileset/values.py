"""Parse the values that a fileset holds: each parser returns what is meant, or raises what is wrong.

The errors don't say where: whoever calls knows the dataset, the file and the key.
"""

from __future__ import annotations

import itertools
import operator
import os
import re
import uuid as uuid_module
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hepdask.errors import FilesetError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "DATASET_PARSERS",
    "FILE_PARSERS",
    "RESERVED_METADATA",
    "describe_value",
    "parse_path",
    "parse_treename",
]

RESERVED_METADATA = (
    "dataset",
    "filename",
    "treename",
    "entrystart",
    "entrystop",
    "fileuuid",
    "numentries",
    "uuid",
    "clusters",
    "preload",
)
"""Names that a user's metadata can't have: ``events.metadata`` has them, or coffea refuses them."""

_URL_THROUGH_PATHLIB = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)")


def parse_path(value: object) -> str:
    """Return the text of a path that the user wrote, or raise what is wrong with it.

    Parameters
    ----------
    value : object
        What stands where a file should be.

    Returns
    -------
    str
        A path, URL or pattern, perhaps with a tree name, without outer spaces.

    Raises
    ------
    FilesetError
        If it is no text or path, empty, a directory, or a URL that pathlib has spoilt.
    """
    if isinstance(value, str):
        path = value.strip()
    elif isinstance(value, os.PathLike):
        path = os.fspath(value)
        if not isinstance(path, str):
            raise FilesetError(f"{value!r} is a path of bytes; write a str")
        if _URL_THROUGH_PATHLIB.match(path):
            raise FilesetError(f"pathlib drops a slash of the URL {path!r}; write it as a str")
    else:
        raise FilesetError(f"{describe_value(value)} is no file; write a path or a URL as a str")
    if not path:
        raise FilesetError("the name of the file is empty")
    if path.endswith("/"):
        raise FilesetError(
            f"{path!r} is a directory; write {path + '*.root'!r} for the files in it"
        )
    return path


def describe_value(value: object) -> str:
    """Describe a value of a wrong type in an error text, whatever its size.

    Parameters
    ----------
    value : object
        What the user wrote.

    Returns
    -------
    str
        At most 60 characters of its ``repr``, and its type: ``"3 (int)"``.
    """
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def parse_treename(value: object) -> str | None:
    """Return a tree name that the user wrote.

    Parameters
    ----------
    value : object
        What stands where a tree name should be.

    Returns
    -------
    str or None
        The name as it is; None if there is none.

    Raises
    ------
    FilesetError
        If it is no text, or blank.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise FilesetError(f"{describe_value(value)} is no tree name; write a str")
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
            raise FilesetError(f"{describe_value(value)} is no integer") from None
        if isinstance(value, bool):
            raise FilesetError(f"{describe_value(value)} is no integer")
    if number < 0:
        raise FilesetError(f"{number} is negative")
    return number


def _parse_num_entries(value: object) -> int | None:
    return None if value is None else _parse_count(value)


def _parse_uuid(value: object) -> str | None:
    if value is None or isinstance(value, uuid_module.UUID):
        return None if value is None else str(value)
    if not isinstance(value, str):
        raise FilesetError(
            f"{describe_value(value)} is no UUID; write 32 hexadecimal digits as a str"
        )
    try:
        return str(uuid_module.UUID(value))
    except ValueError:
        raise FilesetError(f"{value!r} is no UUID; write 32 hexadecimal digits") from None


def _parse_format(value: object) -> None:
    if value not in (None, "root"):
        raise FilesetError(
            f"{describe_value(value)} can't be read; hepdask reads ROOT files ('root')"
        )


def _parse_steps(value: object) -> tuple[tuple[int, int], ...] | None:
    """Read pairs ``[[0, 10], [10, 20]]`` or edges ``[0, 10, 20]``.

    coffea writes ``[[0, 0]]`` for a file without entries: an empty range is allowed, and dropped.
    """
    if value is None:
        return None
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise FilesetError(f"{describe_value(value)} is no list of [entry_start, entry_stop]")
    if value and not any(isinstance(step, list | tuple) for step in value):
        return _parse_edges(value)
    steps: list[tuple[int, int]] = []
    previous_stop = 0
    for step in value:
        if not isinstance(step, list | tuple) or len(step) != 2:
            raise FilesetError(f"{describe_value(step)} is no pair [entry_start, entry_stop]")
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
        raise FilesetError(f"{describe_value(value)} has one edge; a range needs two")
    steps = list(itertools.pairwise(edges))
    for start, stop in steps:
        if start > stop:
            raise FilesetError(f"the edge {stop} comes after {start}; order the edges")
    return tuple(step for step in steps if step[0] < step[1])


def _parse_replicas(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise FilesetError(f"{describe_value(value)} is no list of URLs")
    return tuple(parse_path(url) for url in value)


def _parse_preload(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise FilesetError(f"{describe_value(value)} is no list of branch names")
    return tuple(dict.fromkeys(value))


def _parse_metadata(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise FilesetError(f"{describe_value(value)} is no mapping")
    reserved = [name for name in RESERVED_METADATA if name in value]
    if reserved:
        names = ", ".join(repr(name) for name in reserved)
        raise FilesetError(f"{names} is reserved by hepdask and coffea; choose another name")
    return dict(value)


FILE_PARSERS: dict[str, Callable[[object], Any]] = {
    "object_path": parse_treename,
    "steps": _parse_steps,
    "num_entries": _parse_num_entries,
    "uuid": _parse_uuid,
    "replicas": _parse_replicas,
    "format": _parse_format,
}
"""What each key of a file's entry may hold; a parser raises `FilesetError` without the place."""

DATASET_PARSERS: dict[str, Callable[[object], Any]] = {
    "treename": parse_treename,
    "metadata": _parse_metadata,
    "preload": _parse_preload,
    "format": _parse_format,
}
"""The same for what a dataset says beside its ``files``."""
