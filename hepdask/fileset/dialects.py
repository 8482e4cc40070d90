"""Read datasets in every dialect; what is wrong is noted, and reading goes on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hepdask.errors import FilesetError, suggest
from hepdask.fileset.inputs import Dataset, InputFile
from hepdask.fileset.values import (
    DATASET_PARSERS,
    FILE_PARSERS,
    describe_value,
    parse_path,
)
from hepdask.paths import canonical_path, split_object_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hepdask.fileset.problems import Problems

__all__ = ["parse_dataset", "read_plain"]

# what coffea writes beside the keys of hepdask, and hepdask has no use for
_IGNORED_DATASET_KEYS = frozenset({"form", "compressed_form", "did"})
_IGNORED_FILE_KEYS = frozenset({"form", "compressed_form", "lfn", "pfn", "num_selected_entries"})


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
        url, own = split_object_path(parse_path(value), certain_only=treename is not None)
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
            f"{describe_value(value)} is neither a tree name nor a mapping with 'object_path'",
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
        parser = FILE_PARSERS.get(key)
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
                else suggest(str(key), FILE_PARSERS)
            )
            scope.problems.add(f"a file has no such key{hint}", scope.dataset, name, key)
    num_entries, steps = facts.get("num_entries"), facts.get("steps")
    if num_entries is not None and steps and steps[-1][1] > num_entries:
        good = False
        problem = f"{list(steps[-1])} ends after the last of num_entries={num_entries} entries"
        scope.problems.add(problem, scope.dataset, name, "steps")
    return facts if good else None


def read_plain(value: object) -> object:
    """Turn coffea's pydantic models (DataGroupSpec, DatasetSpec) into mappings.

    Parameters
    ----------
    value : object
        A fileset or dataset as it was given.

    Returns
    -------
    object
        The mapping that a model stands for; anything else as it is.
    """
    dump = getattr(value, "model_dump", None)
    return dump() if callable(dump) else value


def parse_dataset(
    name: object, value: object, *, treename: str | None, problems: Problems
) -> Dataset | None:
    """Read one dataset in any dialect.

    Parameters
    ----------
    name : object
        The key of the dataset.
    value : object
        Its files, or a mapping with ``files``.
    treename : str or None
        Tree name for the files for which the dataset has none.
    problems : Problems
        Where everything that is wrong is noted.

    Returns
    -------
    Dataset or None
        The files without fault; None if nothing can be made of it.
    """
    if not isinstance(name, str) or not name:
        problem = f"{describe_value(name)} is no name of a dataset; write a str that is not empty, in quotes"
        problems.add(problem)
        return None
    value = read_plain(value)
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
    parsed: dict[str, Any] = {}
    for key, item in value.items():
        parser = DATASET_PARSERS.get(key)
        if parser is not None:
            try:
                parsed[key] = parser(item)
            except FilesetError as error:
                problems.add(str(error), name, key=key)
        elif key != "files" and key not in _IGNORED_DATASET_KEYS:
            problem = f"a dataset has no such key{suggest(str(key), ('files', *DATASET_PARSERS))}"
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


def _parse_files(scope: _Scope, value: object) -> Iterator[InputFile]:
    """Read the files of a dataset: one, a list, or a mapping."""
    if isinstance(value, str | os.PathLike):
        value = [value]
    if isinstance(value, Mapping):
        parsed = (_parse_keyed_file(scope, name, entry) for name, entry in value.items())
    elif isinstance(value, list | tuple):
        parsed = (_parse_listed_file(scope, entry) for entry in value)
    else:
        problem = f"{describe_value(value)} is neither a file, nor a list of files, nor a mapping of files"
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
