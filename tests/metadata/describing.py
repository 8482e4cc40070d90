"""What the tests of metadata share: a file to inspect, and facts about one that nobody can see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import uproot

from hepdask.fileset import InputFile
from hepdask.metadata import Branch, Branches, FileMetadata

if TYPE_CHECKING:
    from pathlib import Path


def input_file(*replicas: Path | str, **promised: Any) -> InputFile:
    urls = tuple(map(str, replicas))
    return InputFile("dy", urls[0], "Events", urls, {}, **promised)


def write_tree(path: Path, *sizes: int) -> Path:
    with uproot.recreate(path) as file:
        file.mktree("Events", {"x": "f8", "run": "i4"})
        for size in sizes:
            file["Events"].extend({"x": np.arange(size) * 1.0, "run": np.ones(size, "i4")})
    return path


def metadata_of(file_path: str, num_entries: int = 10) -> FileMetadata:
    return FileMetadata(
        file_path=file_path,
        treename="Events",
        num_entries=num_entries,
        uuid="01234567-89ab-cdef-0123-456789abcdef",
        cluster_offsets=(0, 5, 10),
        branches=Branches([Branch("x", "double", 70, 80), Branch("run", "int32_t", 10, 40)]),
        kind="TTree",
        num_file_bytes=1_000,
    )
