"""What the tests of filesets share: load one file, or say why it can't be loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from hepdask.errors import FilesetError
from hepdask.fileset import load_fileset

if TYPE_CHECKING:
    from hepdask.fileset import InputFile

UUID = "6d6b2b3c-51cf-4e26-b9b6-0d2f3b1d9d1e"


def load_one(entry: Any, treename: str | None = "Events") -> InputFile:
    (file,) = load_fileset({"dy": entry}, treename).files
    return file


def fail(source: Any, treename: str | None = "Events") -> str:
    with pytest.raises(FilesetError, match=r"^fileset|^treename") as caught:
        load_fileset(source, treename)
    return str(caught.value)
