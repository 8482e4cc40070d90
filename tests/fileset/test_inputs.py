from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hepdask.errors import OptionError
from hepdask.fileset import load_fileset
from hepdask.paths import canonical_path
from tests.fileset.loading import load_one


def test_fileset_iterates_over_datasets_and_is_short_in_print() -> None:
    fileset = load_fileset({"a": ["1.root", "2.root"], "b": ["1.root"]}, "Events")
    assert [dataset.name for dataset in fileset] == ["a", "b"]
    assert (len(fileset), len(fileset.datasets[0])) == (2, 2)
    assert [file.file_path for file in fileset.files] == ["1.root", "2.root", "1.root"]
    assert repr(fileset) == "<Fileset: 2 datasets, 3 files>"
    assert load_fileset(fileset) is fileset


def test_metadata_is_one_plain_dict_apart_from_the_user_s() -> None:
    written = {"x": 1}
    fileset = load_fileset({"a": {"files": ["1.root", "2.root"], "metadata": written}}, "Events")
    first, second = fileset.files
    assert first.metadata is second.metadata is fileset.datasets[0].metadata
    written["x"] = 2
    assert first.metadata == {"x": 1}


def test_files_pickle_and_hash() -> None:
    file = load_one({"files": {"a.root": {"steps": [0, 5]}}, "metadata": {"x": [1]}})
    assert pickle.loads(pickle.dumps(file)) == file
    assert len({file, pickle.loads(pickle.dumps(file))}) == 1


def test_limit_keeps_the_first_files_of_each_dataset() -> None:
    fileset = load_fileset({"a": ["1.root", "2.root"], "b": ["3.root"]}, "Events")
    assert [file.file_path for file in fileset.limit(1).files] == ["1.root", "3.root"]
    assert fileset.limit(max_files=5) == fileset
    assert fileset.limit() is fileset


@pytest.mark.parametrize("max_files", [0, -1, True, 1.5, "3"])
def test_limit_refuses_what_is_no_positive_integer(max_files: Any) -> None:
    with pytest.raises(OptionError, match=r"max_files is .*; it must be a positive integer"):
        load_fileset({"a": ["1.root"]}, "Events").limit(max_files)


counts = st.integers(min_value=0, max_value=100)
names = st.text("ab:/.?*[]1 t", min_size=1, max_size=8).map(lambda name: f"x{name}x.root")
urls = names | names.map(lambda name: f"root://h:1094//{name}") | st.just("https://h/p.root?a=b:c")
steps_in = st.lists(counts, min_size=2, max_size=5).map(sorted)


@st.composite
def file_entries(draw: st.DrawFn) -> dict[str, Any]:
    optional = {"steps": steps_in, "uuid": st.uuids().map(str), "num_entries": st.just(100)}
    entry = draw(st.fixed_dictionaries({}, optional=optional))
    return {"object_path": draw(st.sampled_from(["Events", "dir/tree;1", "é"])), **entry}


@settings(max_examples=60, deadline=None)
@given(
    files=st.lists(st.tuples(urls, urls, file_entries()), min_size=1, max_size=4),
    metadata=st.dictionaries(st.sampled_from(["x", "y"]), counts),
    preload=st.lists(st.sampled_from(["Jet_pt", "MET_pt"])),
)
def test_to_dict_loads_back_to_an_equal_fileset(
    files: list[tuple[str, str, dict[str, Any]]], metadata: Any, preload: Any
) -> None:
    written: dict[str, Any] = {}
    used: set[str] = set()
    for url, replica, entry in files:
        keys = {canonical_path(path) for path in (url, replica)}
        if keys & used or len(keys) < 2:
            continue
        used |= keys
        written[url] = {**entry, "replicas": [replica]}
    if not written:
        return
    source = {"d": {"files": written, "metadata": metadata, "preload": preload}}
    fileset = load_fileset(source)
    assert load_fileset(json.loads(json.dumps(fileset.to_dict()))) == fileset


def test_tree_name_after_a_colon_loads_back_to_an_equal_fileset() -> None:
    written = ["https://h/p.root?a=b:c:Events", "/d/a:b:Events", "a.root:x/y.root:t", "d/*:Events"]
    fileset = load_fileset({"dy": written})
    assert load_fileset(fileset.to_dict()) == fileset
