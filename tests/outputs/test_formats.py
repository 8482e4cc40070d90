from __future__ import annotations

import gzip
import json
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hist import Hist
from uhi.io.json import object_hook

from hepdask.errors import OptionError
from hepdask.outputs import write_output

if TYPE_CHECKING:
    from pathlib import Path


def test_coffea_reads_it_back(tmp_path: Path, output: dict[str, Any]) -> None:
    from coffea.util import load

    write_output(output, tmp_path / "out.coffea")
    assert load(tmp_path / "out.coffea") == output


@pytest.mark.parametrize("suffix", [".pkl", ".pickle"])
def test_pickle_reads_it_back(tmp_path: Path, output: dict[str, Any], suffix: str) -> None:
    write_output(output, tmp_path / f"out{suffix}")
    assert pickle.loads((tmp_path / f"out{suffix}").read_bytes()) == output


@pytest.mark.parametrize("suffix", [".coffea", ".pkl"])
def test_what_cannot_be_pickled_is_named(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(OptionError, match=r"the output can't be pickled: TypeError: .*generator"):
        write_output({"a": (i for i in [1])}, tmp_path / f"out{suffix}")


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_json_round_trip(tmp_path: Path, output: dict[str, Any], suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    write_output(output, path)
    raw = path.read_bytes()
    text = gzip.decompress(raw) if suffix.endswith("gz") else raw
    read = json.loads(text, object_hook=object_hook)
    assert Hist(read["dy"]["count"]) == output["dy"]["count"]
    assert Hist(read["list"][0]) == output["list"][0]
    mass = Hist(read["mass"])
    # UHI has no logarithmic axis: the edges are written
    np.testing.assert_allclose(mass.axes["mass"].edges, output["mass"].axes["mass"].edges)
    np.testing.assert_array_equal(mass.values(flow=True), output["mass"].values(flow=True))
    np.testing.assert_array_equal(mass.variances(flow=True), output["mass"].variances(flow=True))
    assert list(mass.axes["dataset"]) == ["dy 50/x", "tt"]
    assert read["dy"]["num_events"] == 3
    assert read["dy"]["cuts"] == ["muon", "trigger"]
    assert read["list"][1] == [1, 2.5]


def test_compressed_json_is_the_same_each_time(tmp_path: Path, output: dict[str, Any]) -> None:
    write_output(output, tmp_path / "a.json.gz")
    write_output(output, tmp_path / "b.json.gz")
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()
