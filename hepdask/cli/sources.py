"""What the user names on the command line, as one fileset."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hepdask.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hepdask.fileset import Fileset

__all__ = ["NO_TREE", "load_sources"]

#: Stands for the tree name where the user gave none; no tree can have it.
NO_TREE = "?"


def load_sources(sources: Sequence[str], treename: str | None) -> Fileset:
    """Load one fileset, or several ROOT files and patterns as one dataset.

    Parameters
    ----------
    sources : sequence of str
        One fileset in JSON or YAML, or ROOT files and patterns.
    treename : str or None
        For files that the fileset gives none.

    Returns
    -------
    Fileset
        Without patterns.

    Raises
    ------
    FilesetError
        If it can't be read.
    OptionError
        If there are several arguments, and one is a fileset.
    """
    from hepdask.discovery import expand_globs
    from hepdask.fileset import load_fileset
    from hepdask.fileset.documents import FILESET_SUFFIXES

    if len(sources) == 1:
        return expand_globs(load_fileset(sources[0], treename))
    filesets = [one for one in sources if one.lower().endswith(FILESET_SUFFIXES)]
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
