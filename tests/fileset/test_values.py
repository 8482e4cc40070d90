from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest

from tests.fileset.loading import UUID, fail, load_one


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([[0, 10], (10, 20)], ((0, 10), (10, 20))),
        ([0, 10, 20], ((0, 10), (10, 20))),
        ([[5, 7], [12, 13]], ((5, 7), (12, 13))),
        ([[0, 0]], ()),
        ([0, 0, 5], ((0, 5),)),
        ([], ()),
        (None, None),
        (np.array([[0, 10], [10, 20]]), ((0, 10), (10, 20))),
        ([[np.int64(0), np.int32(4)]], ((0, 4),)),
    ],
)
def test_steps(steps: Any, expected: Any) -> None:
    assert load_one({"files": {"a.root": {"steps": steps, "num_entries": 20}}}).steps == expected


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("object_path", 3, "3 (int) is no tree name"),
        ("object_path", "", "the tree name is empty"),
        ("treename", "Events", "did you mean 'object_path'?"),
        ("step", [], "did you mean 'steps'?"),
        ("num_entries", -1, "-1 is negative"),
        ("num_entries", 1.0, "1.0 (float) is no integer"),
        ("num_entries", True, "True (bool) is no integer"),
        ("num_entries", "7", "'7' (str) is no integer"),
        ("uuid", "junk", "'junk' is no UUID"),
        ("uuid", 3, "3 (int) is no UUID"),
        ("replicas", "b.root", "'b.root' (str) is no list of URLs"),
        ("replicas", [3], "3 (int) is no file"),
        ("format", "parquet", "hepdask reads ROOT files"),
        ("steps", 3, "3 (int) is no list"),
        ("steps", [3], "needs two"),
        ("steps", [3, 2], "order the edges"),
        ("steps", [[0, 1, 2]], "is no pair"),
        ("steps", [[0, 1], 2], "2 (int) is no pair"),
        ("steps", [[2, 1]], "[2, 1] ends before it starts"),
        ("steps", [[0, 2], [1, 3]], "[1, 3] starts before the previous range ends, at 2"),
        ("steps", [[5, 6], [0, 1]], "order the ranges"),
        ("steps", [[-1, 1]], "-1 is negative"),
        ("steps", [[0, 1.5]], "1.5 (float) is no integer"),
    ],
)
def test_wrong_key_of_a_file(key: str, value: Any, problem: str) -> None:
    text = fail({"dy": {"files": {"a.root": {key: value}}}})
    assert text.startswith(f"fileset: dataset 'dy', file 'a.root', key {key!r}: ")
    assert problem in text


def test_uuid_objects_are_accepted() -> None:
    assert load_one({"files": {"a.root": {"uuid": uuid.UUID(UUID)}}}).uuid == UUID


@pytest.mark.parametrize(
    "name",
    [
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
    ],
)
def test_names_of_hepdask_and_coffea_are_no_metadata(name: str) -> None:
    text = fail({"d": {"files": ["a.root"], "metadata": {name: 1}}})
    assert f"dataset 'd', key 'metadata': {name!r} is reserved by hepdask and coffea" in text
