from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hepdask.fileset import Fileset, load_fileset
from tests.fileset.loading import fail


@pytest.mark.parametrize(
    ("source", "dataset"),
    [
        ("data/Run2012B.root", "Run2012B"),
        (Path("data/Run2012B.root"), "Run2012B"),
        ("root://h:1094//eos/Run2012B.root:Events", "Run2012B"),
        ("https://h/x.root?token=1", "x"),
        ("AOD.1.pool.root.1", "AOD.1.pool"),
        ("data/SingleMu_*.root", "SingleMu"),
        ("data/mu/*.root", "mu"),
        ("*.root", "dataset"),
    ],
)
def test_one_file_is_a_dataset_named_by_its_stem(source: Any, dataset: str) -> None:
    (loaded,) = load_fileset(source, "Events")
    assert loaded.name == dataset
    assert loaded.files[0].treename == "Events"


def test_large_fileset_loads() -> None:
    source = {"dy": [f"root://host//store/{i}.root" for i in range(60_000)]}
    fileset = load_fileset(source, "Events")
    assert isinstance(fileset, Fileset)
    assert len(fileset.files) == 60_000


@pytest.mark.parametrize("source", [{}, [], 3, None])
def test_wrong_source(source: Any) -> None:
    fail(source)


def test_empty_treename_argument() -> None:
    assert fail({"dy": ["a.root"]}, "").startswith("treename='': the tree name is empty")
