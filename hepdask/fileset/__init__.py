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

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hepdask.errors import FilesetError
from hepdask.fileset.dialects import parse_dataset, read_plain
from hepdask.fileset.documents import FILESET_SUFFIXES, load_document
from hepdask.fileset.inputs import Dataset, Fileset, InputFile
from hepdask.fileset.problems import Problems
from hepdask.fileset.values import describe_value, parse_path, parse_treename
from hepdask.paths import has_glob, split_authority, split_object_path, split_query

__all__ = ["Dataset", "Fileset", "InputFile", "Problems", "load_fileset"]


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
    content = read_plain(content)
    if not isinstance(content, Mapping):
        raise FilesetError(
            f"{described}: {describe_value(content)} is no mapping of datasets to files"
        )
    if not content:
        raise FilesetError(f"{described} is empty; write {{'dataset': ['file.root']}}")
    try:
        treename = parse_treename(treename)
    except FilesetError as error:
        raise FilesetError(f"treename={treename!r}: {error}") from None
    problems = Problems()
    parsed = [
        parse_dataset(name, value, treename=treename, problems=problems)
        for name, value in content.items()
    ]
    problems.check(described)
    return Fileset(tuple(dataset for dataset in parsed if dataset is not None))


def _load_named(source: str | os.PathLike[str]) -> tuple[object, str]:
    """Return the content that a path stands for, and how to name it in an error."""
    try:
        path = parse_path(source)
    except FilesetError as error:
        raise FilesetError(f"fileset: {error}") from None
    if not path.lower().endswith(FILESET_SUFFIXES):
        return {_name_dataset(path): [path]}, f"fileset of the file {path!r}"
    if split_authority(path)[0]:
        raise FilesetError(f"fileset {path!r} is not a local file; download it first")
    return load_document(Path(path).expanduser()), f"fileset {path!r}"


def _name_dataset(path: str) -> str:
    """Return the stem of a file; of a pattern, what is no wildcard, or else its directory."""
    file_path = split_query(split_object_path(path)[0])[0]
    for part in reversed(split_authority(file_path)[1].split("/")):
        stem = re.sub(r"\.root(\.\d+)?$", "", part, flags=re.IGNORECASE)
        if has_glob(stem):
            stem = re.sub(r"\[[^]]*\]|[*?\[]", "", stem).strip("._- ")
        if stem.strip("."):
            return stem
    return "dataset"
