"""Check where an output shall be, and put it there when it is complete."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hepdask.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["OUTPUT_SUFFIXES", "check_output_path", "replacing"]

OUTPUT_SUFFIXES = (".coffea", ".pkl", ".pickle", ".json", ".json.gz", ".root")
"""What the name of an output may end with."""


def check_output_path(
    path: str | os.PathLike[str], suffixes: Sequence[str] = OUTPUT_SUFFIXES
) -> str:
    """Check that a file can be written, before hours are spent on what goes into it.

    Parameters
    ----------
    path : path-like
        Where it shall be.
    suffixes : sequence of str
        What its name may end with, in lower case.

    Returns
    -------
    str
        The suffix that it has.

    Raises
    ------
    OptionError
        If the suffix is none of them, or the directory isn't there or can't be written to.
    """
    target = Path(path)
    name = target.name.lower()
    suffix = next((one for one in suffixes if name.endswith(one)), None)
    if suffix is None:
        listed = ", ".join(suffixes)
        raise OptionError(f"'{target}' has no suffix that says its format: use one of {listed}")
    directory = Path(os.path.realpath(target)).parent
    if not directory.is_dir():
        raise OptionError(f"'{target}' can't be written: make its directory, '{directory}', first")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise OptionError(f"'{target}' can't be written: the directory '{directory}' is read-only")
    if target.is_dir():
        raise OptionError(f"'{target}' is a directory: give the name of a file")
    return suffix


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the name of a new file, which takes the place of `path` if nothing is raised."""
    # where a link points to, so that the link stays
    target = Path(os.path.realpath(path))
    new_path = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        yield new_path
        new_path.replace(target)
    except OSError as error:
        raise OptionError(f"'{path}' can't be written: {error}") from error
    finally:
        new_path.unlink(missing_ok=True)
