from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hepdask.fileset import InputFile, load_fileset
from tests.fileset.loading import UUID, fail, load_one


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


def test_coffea_models_are_accepted() -> None:
    filespec = pytest.importorskip("coffea.dataset_tools.filespec")
    entry = {"object_path": "Events", "steps": [[0, 5]], "num_entries": 5, "uuid": UUID}
    source = {"dy": {"files": {"a.root": entry}, "metadata": {"x": 1}}}
    assert load_fileset(filespec.DataGroupSpec(source)) == load_fileset(source)
    assert filespec.DataGroupSpec(load_fileset(source).to_dict()) == filespec.DataGroupSpec(source)


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
            ["key 'metadata'", "'filename' is reserved"],
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


def test_steps_end_within_the_file() -> None:
    text = fail({"dy": {"files": {"a.root": {"steps": [[0, 11]], "num_entries": 10}}}})
    assert "key 'steps': [0, 11] ends after the last of num_entries=10" in text


def test_missing_tree_name_is_one_problem_for_a_dataset() -> None:
    text = fail({"dy": ["a.root", "b.root", "c.root"]}, None)
    assert text.startswith("fileset: dataset 'dy', file 'a.root': no tree name (and 2 more files)")


def test_wrong_names_of_datasets() -> None:
    assert "2018 (int) is no name of a dataset" in fail({2018: ["a.root"]})
    assert "'' (str) is no name of a dataset" in fail({"": ["a.root"]})


def test_same_file_in_two_datasets_is_allowed() -> None:
    assert len(load_fileset({"a": ["1.root"], "b": ["1.root"]}, "Events").files) == 2
