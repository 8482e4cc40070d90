from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import uproot
from hist import Hist

from hepdask.outputs import write_output
from tests.outputs.examples import make_count

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_root_round_trip(
    tmp_path: Path, output: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "hepdask.outputs"):
        write_output(output, tmp_path / "out.root")
    assert "dy/num_events, dy/cuts, list/1" in caplog.text
    with uproot.open(tmp_path / "out.root") as file:
        assert set(file.keys(cycle=False, filter_classname="TH1D")) == {
            "mass/dy_50_x",
            "mass/tt",
            "dy/count",
            "list/0",
        }
        np.testing.assert_array_equal(file["dy/count"].values(flow=True), [1, 1, 2, 0, 1])
        assert file["dy/count"].member("fXaxis").member("fTitle") == "Count"
        mass = file["mass/dy_50_x"]
        np.testing.assert_allclose(mass.axis().edges(), [1, 10, 100, 1000, 10_000])
        np.testing.assert_array_equal(mass.values(flow=True), [2, 2, 0, 2, 0, 2])
        np.testing.assert_array_equal(mass.variances(flow=True), [4, 4, 0, 4, 0, 4])


def test_flow_bins_stay_when_another_axis_has_none(tmp_path: Path) -> None:
    histogram = Hist.new.Reg(2, 0, 2, flow=False).Var([0, 1, 5]).Int64().fill([0.5, 1.5], [-1, 2])
    write_output({"h": histogram}, tmp_path / "out.root")
    with uproot.open(tmp_path / "out.root") as file:
        values = file["h"].values(flow=True)
        assert file["h"].classname == "TH2D"
    assert values.shape == (4, 4)
    assert (values[1, 0], values[2, 2], values.sum()) == (1, 1, 2)


def test_other_axes_and_storages(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = Hist.new.Reg(2, 0, 2)
    output = {
        "integer": Hist.new.Int(3, 6).Double().fill([2, 3, 5, 5, 7]),
        "boolean": Hist.new.Bool().Int64().fill([True]),
        "three": Hist.new.Reg(2, 0, 2).Reg(2, 0, 2).Reg(2, 0, 2).Double().fill([1], [1], [1]),
        "four": Hist.new.Reg(1, 0, 1).Reg(1, 0, 1).Reg(1, 0, 1).Reg(1, 0, 1).Double(),
        "profile": one.Mean().fill([0.5, 0.5, 1.5], sample=[1, 3, 5]),
        "map": Hist.new.Reg(2, 0, 2).Reg(2, 0, 2).Mean(),
        "by_flavour": Hist.new.IntCat([-11, 13]).Reg(2, 0, 2).Double().fill([-11, 99], [0.5, 1.5]),
        "cutflow": Hist.new.StrCat(["all", "muon"]).Weight().fill(["all", "all", "muon", "x"]),
    }
    write_output(output, tmp_path / "out.root")
    assert "alone: four, map" in caplog.text
    with uproot.open(tmp_path / "out.root") as file:
        np.testing.assert_array_equal(file["integer"].values(flow=True), [1, 1, 0, 2, 1])
        np.testing.assert_array_equal(file["integer"].axis().edges(), [3, 4, 5, 6])
        np.testing.assert_array_equal(file["boolean"].values(), [0, 1])
        assert file["three"].classname == "TH3D"
        assert file["profile"].classname == "TProfile"
        np.testing.assert_array_equal(file["profile"].values(), [2, 5])
        np.testing.assert_array_equal(file["by_flavour/-11"].values(), [1, 0])
        np.testing.assert_array_equal(file["by_flavour/13"].values(), [0, 0])
        np.testing.assert_array_equal(file["by_flavour/other"].values(), [0, 1])
        np.testing.assert_array_equal(file["cutflow"].values(), [2, 1, 1])
        assert file["cutflow"].axis().labels() == ["all", "muon", "other"]


def test_names_that_become_equal_are_told_apart(tmp_path: Path) -> None:
    output = {
        "a b": make_count(),
        "a_b": {"x": make_count()},
        "a/b": make_count(),
        "": make_count(),
    }
    write_output(output, tmp_path / "out.root")
    with uproot.open(tmp_path / "out.root") as file:
        assert set(file.keys(cycle=False)) == {"a_b", "a_b_2", "a_b_2/x", "a_b_3", "_"}
