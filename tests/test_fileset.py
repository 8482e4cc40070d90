from __future__ import annotations

import gzip
import json
import pickle
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hepdask.errors import FilesetError, OptionError
from hepdask.fileset import (
    Fileset,
    InputFile,
    canonical_path,
    has_glob,
    load_fileset,
    split_object_path,
    split_query,
)

UUID = "6d6b2b3c-51cf-4e26-b9b6-0d2f3b1d9d1e"


def load_one(entry: Any, treename: str | None = "Events") -> InputFile:
    (file,) = load_fileset({"dy": entry}, treename).files
    return file


def fail(source: Any, treename: str | None = "Events") -> str:
    with pytest.raises(FilesetError, match=r"^fileset|^treename") as caught:
        load_fileset(source, treename)
    return str(caught.value)


# --- paths ---


@pytest.mark.parametrize(
    ("written", "file_path", "treename"),
    [
        ("a.root", "a.root", None),
        ("a.root:Events", "a.root", "Events"),
        ("a.root:/dir//tree/;1", "a.root", "dir/tree/;1"),
        ("a.root:", "a.root", ""),
        ("a.ROOT:T", "a.ROOT", "T"),
        ("root://host:1094//path/x", "root://host:1094//path/x", None),
        ("root://host:1094//path/x.root", "root://host:1094//path/x.root", None),
        ("root://host:1094//x.root:T", "root://host:1094//x.root", "T"),
        ("root://my.root:1094//x/y", "root://my.root:1094//x/y", None),
        ("root://[::1]:1094//x.root:T;2", "root://[::1]:1094//x.root", "T;2"),
        (
            "root://cache:1094//root://o:1094//x.root:T",
            "root://cache:1094//root://o:1094//x.root",
            "T",
        ),
        ("https://h:443/p.root:dir/tree", "https://h:443/p.root", "dir/tree"),
        ("https://h/p.root?token=abc", "https://h/p.root?token=abc", None),
        ("https://h/p.root?token=abc:dir/tree", "https://h/p.root?token=abc", "dir/tree"),
        ("https://h/p.root?u=http://k/z", "https://h/p.root?u=http://k/z", None),
        ("/d/12:00:00/f.root", "/d/12:00:00/f.root", None),
        ("/d/12:00:00/f.root:T", "/d/12:00:00/f.root", "T"),
        ("/d/12:00:00/f", "/d/12:00:00/f", None),
        ("/d/x.root:1/f.root", "/d/x.root:1/f.root", None),
        ("/d/AOD.1:CollectionTree", "/d/AOD.1", "CollectionTree"),
        ("d/x.pool.root.1:CollectionTree", "d/x.pool.root.1", "CollectionTree"),
        ("mc23:AOD.1._01.pool.root.1", "mc23:AOD.1._01.pool.root.1", None),
        ("data/*:Events", "data/*", "Events"),
        ("data/*.root:Events", "data/*.root", "Events"),
        ("C:\\x\\a.root", "C:\\x\\a.root", None),
    ],
)
def test_split_object_path(written: str, file_path: str, treename: str | None) -> None:
    assert split_object_path(written) == (file_path, treename)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.root", False),
        ("a*.root", True),
        ("a?.root", True),
        ("a[12].root", True),
        ("https://h/a.root?x=[1]*", False),
        ("root://h//a.root?authz=1", False),
        ("root://h//a*.root?authz=1", True),
        ("root://[::1]:1094//a.root", False),
        ("s3://bucket/a?.root", True),
        ("memory://d/*.root", True),
    ],
)
def test_has_glob(path: str, expected: bool) -> None:
    assert has_glob(path) is expected


def test_split_query_leaves_local_wildcards_alone() -> None:
    assert split_query("https://h/a?b?c") == ("https://h/a", "?b?c")
    assert split_query("d/a?b") == ("d/a?b", "")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a.root", "./a.root"),
        ("/d/a.root", "file:///d/x/../a.root"),
        ("root://H:1094//a.root", "root://h//a.root"),
        ("root://h//a.root", "xroot://h//a.root?authz=1"),
        ("https://h:443/a", "HTTPS://h/a"),
    ],
)
def test_canonical_path_is_the_same_for_one_file(one: str, other: str) -> None:
    assert canonical_path(one) == canonical_path(other)


def test_canonical_path_keeps_different_files_apart() -> None:
    assert canonical_path("https://h/a?id=1") != canonical_path("https://h/a?id=2")
    assert canonical_path("root://h//a") != canonical_path("root://g//a")


# --- dialects ---


@pytest.mark.parametrize(
    "entry",
    [
        ["a.root"],
        ("a.root",),
        "a.root",
        Path("a.root"),
        [Path("a.root")],
        ["a.root:Events"],
        {"files": "a.root"},
        {"files": ["a.root"]},
        {"files": ["a.root"], "treename": "Events", "metadata": None},
        {"files": {"a.root": "Events"}},
        {"files": {"a.root": None}},
        {"files": {"a.root:Events": "Events"}},
        {"files": {Path("a.root"): {}}},
        {"files": {"a.root": {"object_path": None}}},
        {"a.root": "Events"},
        {
            "files": {
                "a.root": {"object_path": "Events", "format": "root", "lfn": None, "form": "x"}
            }
        },
        {"files": ["a.root"], "form": None, "compressed_form": None, "did": "x", "format": "root"},
    ],
)
def test_dialects_of_one_file(entry: Any) -> None:
    expected = InputFile("dy", "a.root", "Events", ("a.root",), {})
    assert load_one(entry) == expected


def test_preprocessed_dialect() -> None:
    file = load_one(
        {
            "files": {
                "a.root": {
                    "object_path": "Events",
                    "steps": [[0, 10], [10, 20]],
                    "num_entries": 20,
                    "uuid": UUID.upper().replace("-", ""),
                }
            },
            "metadata": {"xsec": 1.5},
            "preload": ["Jet_pt", "Jet_eta", "Jet_pt"],
        }
    )
    assert file.steps == ((0, 10), (10, 20))
    assert (file.num_entries, file.uuid) == (20, UUID)
    assert (file.metadata, file.preload) == ({"xsec": 1.5}, ("Jet_pt", "Jet_eta"))


@pytest.mark.parametrize(
    ("treenames", "expected"),
    [(("own", "set", "arg"), "own"), ((None, "set", "arg"), "set"), ((None, None, "arg"), "arg")],
)
def test_tree_name_nearest_to_the_file_wins(
    treenames: tuple[str | None, ...], expected: str
) -> None:
    own, of_dataset, argument = treenames
    entry = {"files": {"a.root": own}, "treename": of_dataset}
    assert load_one(entry, argument).treename == expected


@pytest.mark.parametrize(
    "entry",
    [
        [["root://a//f.root", "root://b//f.root"]],
        [["root://a//f.root:Events", "root://b//f.root"]],
        {"files": {"root://a//f.root": {"replicas": ["root://b//f.root"]}}},
        {"files": {"root://a//f.root": {"replicas": ["root://b//f.root", "root://a//f.root"]}}},
        {
            "files": {
                "root://a//f.root:Events": {"replicas": ["root://a//f.root", "root://b//f.root"]}
            }
        },
    ],
)
def test_replicas_are_one_file(entry: Any) -> None:
    file = load_one(entry)
    assert file.file_path == "root://a//f.root"
    assert file.replicas == ("root://a//f.root", "root://b//f.root")


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


@pytest.mark.parametrize("suffix", [".json", ".json.gz", ".yaml", ".yml", ".yaml.gz"])
def test_files(tmp_path: Path, suffix: str) -> None:
    source = {"dy": {"files": {"a.root": "Events"}, "metadata": {"year": 2018}}}
    text = (json.dumps if "json" in suffix else yaml.safe_dump)(source).encode()
    path = tmp_path / f"fileset{suffix}"
    path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    assert load_fileset(path) == load_fileset(str(path)) == load_fileset(source)


def test_coffea_models_are_accepted() -> None:
    filespec = pytest.importorskip("coffea.dataset_tools.filespec")
    entry = {"object_path": "Events", "steps": [[0, 5]], "num_entries": 5, "uuid": UUID}
    source = {"dy": {"files": {"a.root": entry}, "metadata": {"x": 1}}}
    assert load_fileset(filespec.DataGroupSpec(source)) == load_fileset(source)
    assert filespec.DataGroupSpec(load_fileset(source).to_dict()) == filespec.DataGroupSpec(source)


# --- the objects ---


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


def test_large_fileset_loads() -> None:
    source = {"dy": [f"root://host//store/{i}.root" for i in range(60_000)]}
    fileset = load_fileset(source, "Events")
    assert isinstance(fileset, Fileset)
    assert len(fileset.files) == 60_000


# --- what is wrong ---


@pytest.mark.parametrize(
    ("entry", "parts"),
    [
        ({"fils": []}, ["key 'fils'", "did you mean 'files'?", "'files' is missing"]),
        ({"metadata": {}}, ["'files' is missing"]),
        ({}, ["'files' is missing"]),
        ([], ["key 'files'", "no files"]),
        ({"files": {}}, ["key 'files'", "no files"]),
        ({"files": None}, ["key 'files'", "None (NoneType)"]),
        (3, ["key 'files'", "3 (int)"]),
        ({"files": {"a.root", "b.root"}}, ["key 'files'", "(set)"]),
        ([3], ["file '3'", "3 (int) is no file"]),
        ([""], ["the name of the file is empty"]),
        ([[]], ["a list of replicas is empty"]),
        (["data/"], ["is a directory; write 'data/*.root'"]),
        ([Path("root://h//a.root")], ["pathlib drops a slash"]),
        (["a.root:"], ["file 'a.root:'", "no tree name follows the colon"]),
        ([["a.root:x", "b.root:y"]], ["two tree names, 'x' and 'y'"]),
        ({"files": {"a.root:x": "y"}}, ["two tree names, 'y' and 'x'"]),
        ({"files": {"a.root": 3}}, ["file 'a.root'", "neither a tree name nor a mapping"]),
        ({"files": ["a.root"], "treename": 3}, ["key 'treename'", "3 (int)"]),
        ({"files": ["a.root"], "treename": " "}, ["key 'treename'", "empty"]),
        ({"files": ["a.root"], "metadata": [1]}, ["key 'metadata'", "no mapping"]),
        (
            {"files": ["a.root"], "metadata": {"filename": 1}},
            ["key 'metadata'", "'filename' is set"],
        ),
        ({"files": ["a.root"], "preload": "Jet_pt"}, ["key 'preload'", "no list of branch names"]),
        ({"files": ["a.root"], "format": "parquet"}, ["key 'format'", "hepdask reads ROOT files"]),
        (["a.root", "a.root"], ["file 'a.root': the file is listed twice"]),
        (["a.root", "./a.root"], ["file './a.root'", "listed twice", "under 'a.root'"]),
        (["a.root", ["b.root", "a.root"]], ["file 'b.root'", "listed twice", "'a.root'"]),
        ([["a.root", "a.root"]], ["key 'replicas'", "a replica is listed twice"]),
    ],
)
def test_wrong_dataset(entry: Any, parts: list[str]) -> None:
    text = fail({"my_dy": entry})
    for part in ["dataset 'my_dy'", *parts]:
        assert part in text


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


def test_steps_end_within_the_file() -> None:
    text = fail({"dy": {"files": {"a.root": {"steps": [[0, 11]], "num_entries": 10}}}})
    assert "key 'steps': [0, 11] ends after the last of num_entries=10" in text


@pytest.mark.parametrize("name", ["dataset", "treename", "entrystart", "entrystop", "fileuuid"])
def test_reserved_metadata(name: str) -> None:
    assert f"{name!r} is set by hepdask" in fail(
        {"d": {"files": ["a.root"], "metadata": {name: 1}}}
    )


def test_missing_tree_name_is_one_problem_for_a_dataset() -> None:
    text = fail({"dy": ["a.root", "b.root", "c.root"]}, None)
    assert text.startswith("fileset: dataset 'dy', file 'a.root': no tree name (and 2 more files)")


def test_wrong_names_of_datasets() -> None:
    assert "2018 (int) is no name of a dataset" in fail({2018: ["a.root"]})
    assert "'' (str) is no name of a dataset" in fail({"": ["a.root"]})


@pytest.mark.parametrize("source", [{}, [], 3, None])
def test_wrong_source(source: Any) -> None:
    fail(source)


def test_empty_treename_argument() -> None:
    assert fail({"dy": ["a.root"]}, "").startswith("treename='': the tree name is empty")


def test_ten_problems_are_reported_in_one_error() -> None:
    text = fail({f"d{i}": [] for i in range(12)})
    lines = text.splitlines()
    assert lines[0] == "fileset: 12 things are wrong"
    assert len(lines) == 12
    assert lines[-1].strip() == "... and 2 more"


def test_same_file_in_two_datasets_is_allowed() -> None:
    assert len(load_fileset({"a": ["1.root"], "b": ["1.root"]}, "Events").files) == 2


def test_missing_fileset_suggests_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "fileset.json").write_text("{}")
    with pytest.raises(FilesetError, match=r"no such fileset file.*did you mean 'fileset\.json'\?"):
        load_fileset(tmp_path / "filset.json")
    with pytest.raises(FilesetError, match="there is no directory"):
        load_fileset(tmp_path / "no" / "fileset.json")
    with pytest.raises(FilesetError, match="download it first"):
        load_fileset("https://host/fileset.json")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("f.json", b'{"a":\n  ["x" "y"]}', r"line 2, column 8: no valid JSON"),
        ("f.json", b'{"a": ["x"], "a": ["y"]}', r"the key 'a' is written twice"),
        ("f.json", b"\xff\xfe\x00", r"can't be read"),
        ("f.json.gz", b"no gzip", r"can't be read"),
        ("f.yaml", b"a: [x\nb: y", r"line 2, column 2: no valid YAML"),
        ("f.yaml", b"a: [x]\na: [y]", r"line 2, column 1: .*the key 'a' is written twice"),
        ("f.yaml", b"", r"None \(NoneType\) is no mapping"),
        ("f.yaml", b"2018: [a.root]", r"2018 \(int\) is no name of a dataset"),
    ],
)
def test_damaged_fileset_files(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FilesetError, match=problem) as caught:
        load_fileset(path, "Events")
    assert name in str(caught.value)


def test_yaml_merge_keys_may_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("a: &a {files: [x.root], treename: T}\nb: {<<: *a, treename: U}\n")
    assert [file.treename for file in load_fileset(path).files] == ["T", "U"]


def test_uuid_objects_are_accepted() -> None:
    assert load_one({"files": {"a.root": {"uuid": uuid.UUID(UUID)}}}).uuid == UUID
