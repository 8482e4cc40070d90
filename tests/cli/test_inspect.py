from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import uproot

from hepdask import FileMetadata
from tests.cli.calling import assert_one_line_error, call

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

    from tests.conftest import NanoFiles


def inspect(*arguments: object) -> Result:
    return call("inspect", *arguments, "--progress", "off")


def test_inspect_lists_files(fileset: Path) -> None:
    result = inspect(fileset)
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines() if "Events" in line]
    # dataset, file, tree, kind, entries, clusters, branches, size and unit, uuid
    assert [row[2:7] for row in rows] == [
        ["Events", "TTree", entries, clusters, "17"]
        for entries, clusters in (("100", "2"), ("149", "3"), ("40", "1"))
    ]
    assert "3 files" in result.stdout


def test_inspect_as_json_finds_the_only_tree(nano_files: NanoFiles) -> None:
    result = inspect(nano_files.paths[1], "--json")
    (facts,) = json.loads(result.stdout)["files"]
    assert facts["treename"] == "Events"
    assert facts["cluster_offsets"] == [0, 50, 100, 149]
    assert set(facts) - {"dataset", "num_branches"} <= set(FileMetadata.__slots__)


def test_inspect_lists_branches_largest_first(nano_files: NanoFiles) -> None:
    for arguments in (["--branches", nano_files.paths[1]], [nano_files.paths[1], "--branches"]):
        result = inspect(*arguments)
        assert result.exit_code == 0, result.output
        assert "17 of 17 branches\n" in result.stdout
    result = inspect(nano_files.paths[1], "--branches", "Muon_*", "--json")
    branches = json.loads(result.stdout)["branches"]
    assert {one["name"] for one in branches} == {
        f"Muon_{name}" for name in ("pt", "eta", "phi", "mass", "charge")
    }
    sizes = [one["num_compressed_bytes"] for one in branches]
    assert sizes == sorted(sizes, reverse=True)


def test_inspect_lists_trees_to_choose_from(tmp_path: Path) -> None:
    path = tmp_path / "two.root"
    with uproot.recreate(path) as file:
        file.mktree("a/Events", {"x": "f8"}).extend({"x": np.arange(3.0)})
        file.mkrntuple("Runs", {"y": np.arange(5.0)})
    result = inspect(path)
    assert result.exit_code == 0, result.output
    assert "choose one with --treename" in result.stdout
    trees = json.loads(inspect(path, "--json").stdout)["trees"]
    assert trees == {"a/Events": "TTree", "Runs": "RNTuple"}
    (facts,) = json.loads(inspect(path, "--json", "-t", "Runs").stdout)["files"]
    assert (facts["kind"], facts["num_entries"]) == ("RNTuple", 5)


def test_inspect_explains_what_is_wrong(
    nano_files: NanoFiles, fileset: Path, truncated: Path, tmp_path: Path
) -> None:
    result = inspect(nano_files.paths[0], "-t", "Evens")
    assert result.exit_code == 1
    assert "did you mean 'Events'?" in result.stdout
    assert_one_line_error(inspect(tmp_path / "none.root"), "there is no such file", code=1)
    assert "'?'" not in inspect(tmp_path / "none.root").output
    assert_one_line_error(inspect(fileset, "--branches"), "about one file, and there are 3")
    wrong = inspect(nano_files.paths[0], "--branches", "Muon_ptt")
    assert_one_line_error(wrong, "no branch matches 'Muon_ptt'; did you mean 'Muon_pt'?")
    result = inspect(f"{truncated}:Events", "--json")
    assert result.exit_code == 1
    assert len(json.loads(result.stdout)["failures"]) == 1
