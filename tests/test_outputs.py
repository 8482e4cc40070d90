from __future__ import annotations

import gzip
import json
import logging
import os
import pickle
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import awkward as ak
import boost_histogram as bh
import hist
import numpy as np
import pytest
import uproot
from coffea.processor import column_accumulator, set_accumulator, value_accumulator
from hist import Hist
from uhi.io.json import object_hook

from hepdask.errors import OptionError, ProcessorError
from hepdask.outputs import (
    OUTPUT_SUFFIXES,
    check_output_path,
    check_plot_path,
    draw_histograms,
    list_histograms,
    write_output,
    write_plot,
)

if TYPE_CHECKING:
    from pathlib import Path


def make_mass() -> Hist[Any]:
    histogram = (
        Hist.new.StrCat([], growth=True, name="dataset")
        .Reg(4, 1, 10_000, transform=hist.axis.transform.log, name="mass", label="m [GeV]")
        .Weight()
    )
    histogram.fill(dataset="dy 50/x", mass=[0.5, 2, 200, 1e6], weight=2.0)
    histogram.fill(dataset="tt", mass=[20.0, 3000.0], weight=0.5)
    return histogram


def make_count() -> Hist[Any]:
    return Hist.new.Reg(3, 0, 3, name="count", label="Count").Double().fill([-1, 0.5, 1.5, 1.5, 9])


@pytest.fixture
def output() -> dict[str, Any]:
    return {
        "mass": make_mass(),
        "dy": {"count": make_count(), "num_events": 3, "cuts": {"trigger", "muon"}},
        "list": [make_count(), (1, 2.5)],
    }


# --- where ---


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
def test_suffix_is_found_in_any_case(tmp_path: Path, suffix: str) -> None:
    assert check_output_path(tmp_path / f"a.b{suffix.upper()}") == suffix


def test_wrong_paths_are_found_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"'.*out\.txt' has no suffix .* use one of \.coffea, "):
        check_output_path(tmp_path / "out.txt")
    with pytest.raises(OptionError, match=r"make its directory, '.*nowhere', first"):
        check_output_path(tmp_path / "nowhere" / "out.json")
    (tmp_path / "dir.json").mkdir()
    with pytest.raises(OptionError, match=r"dir\.json' is a directory"):
        check_output_path(tmp_path / "dir.json")
    with pytest.raises(OptionError, match=r"has no suffix .* use one of .*\.png"):
        check_plot_path(tmp_path / "plot.xyz")


def test_file_has_usual_permissions_and_nothing_is_beside_it(
    tmp_path: Path, output: dict[str, Any]
) -> None:
    before = os.umask(0o027)
    try:
        for suffix in OUTPUT_SUFFIXES:
            write_output(make_count(), tmp_path / f"out{suffix}")
    finally:
        os.umask(before)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(
        f"out{suffix}" for suffix in OUTPUT_SUFFIXES
    )
    assert {one.stat().st_mode & 0o777 for one in tmp_path.iterdir()} == {0o640}


def test_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("before")
    with pytest.raises(OptionError, match="can't be written as JSON"):
        write_output({"a": object()}, path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    link = tmp_path / "out.json"
    link.symlink_to(tmp_path / "data" / "real.json")
    write_output([1], link)
    assert link.is_symlink()
    assert (tmp_path / "data" / "real.json").read_text() == "[1]\n"


# --- pickles ---


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


# --- JSON ---


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


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, None),
        ("µ", "µ"),
        (np.float32(0.5), 0.5),
        (np.longdouble(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (np.array([1, "a"], dtype=object), [1, "a"]),
        (ak.Array([[1], [2, 3]]), [[1], [2, 3]]),
        (OrderedDict({1: 2, np.int64(3): 4}), {"1": 2, "3": 4}),
        ({1, "a"}, ["a", 1]),
        (frozenset({3, 1, 2}), [1, 2, 3]),
        (set_accumulator({2, 1}), [1, 2]),
        (column_accumulator(np.array([1.0])), [1.0]),
        (value_accumulator(int, 3), 3),
    ],
    ids=repr,
)
def test_json_values(tmp_path: Path, value: Any, written: Any) -> None:
    write_output({"v": value}, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == {"v": written}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"dy": [1, {"x": 1j}]}, r'^output\["dy"\]\[1\]\["x"\] is builtins\.complex, which'),
        ({"dy": np.datetime64("2020-01-01")}, r'^output\["dy"\] is datetime\.date, which'),
        ({"dy": {("a", 1): 2}}, r'^output\["dy"\] has the key \(\'a\', 1\) \(tuple\)'),
        ({"dy": {1: 2, "1": 3}}, r'^output\["dy"\] has two keys that are \'1\' in JSON'),
        ({"dy": {b"x"}}, r'^output\["dy"\] \(an element\) is builtins\.bytes'),
        (lambda: 1, r"^output is builtins\.function"),
    ],
)
def test_what_json_cannot_hold_is_named(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        write_output(value, tmp_path / "out.json")


# --- histograms ---


def test_histograms_are_found_in_nested_outputs(output: dict[str, Any]) -> None:
    assert [path for path, _ in list_histograms(output)] == [
        ("mass",),
        ("dy", "count"),
        ("list", "0"),
    ]
    assert list_histograms(output)[0][1] is output["mass"]


def test_a_histogram_alone_is_found() -> None:
    plain = bh.Histogram(bh.axis.Regular(2, 0, 1))
    assert list_histograms(plain) == [(("histogram",), plain)]
    named = Hist(hist.axis.Regular(2, 0, 1), name="pt")
    assert [path for path, _ in list_histograms(named)] == [("pt",)]
    assert list_histograms({"a": 1, "b": [1, 2]}) == []


# --- ROOT ---


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


# --- pictures ---


def test_each_histogram_is_a_panel(output: dict[str, Any]) -> None:
    output["map"] = Hist.new.StrCat(["a", "b"]).Reg(2, 0, 1).Reg(3, 1, 4, label="y").Double()
    output["cutflow"] = Hist.new.StrCat(["all", "muon"]).Double().fill(["all"])
    output["skipped"] = Hist.new.Reg(1, 0, 1).Reg(1, 0, 1).Reg(1, 0, 1).Double()
    figure = draw_histograms(output)
    figure.draw_without_rendering()
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    # a map has a colour bar besides
    assert [title for title in titles if title] == ["mass", "dy/count", "list/0", "map", "cutflow"]
    assert len(titles) == 6
    mass = figure.axes[0]
    assert mass.get_xscale() == "log"
    assert mass.get_xlabel() == "m [GeV]"
    assert [text.get_text() for text in mass.get_legend().get_texts()] == ["dy 50/x", "tt"]


def test_many_categories_are_not_all_drawn() -> None:
    histogram = Hist.new.IntCat(range(20)).Reg(2, 0, 1).Double().fill(range(20), 0.5)
    legend = draw_histograms(histogram).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()][-2:] == ["11", "8 more are not drawn"]


def test_many_histograms_are_drawn_up_to_a_limit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hepdask.outputs.MAX_PANELS", 2)
    assert len(draw_histograms([make_count()] * 3).axes) == 2
    assert "drawing the first 2 of 3 histograms" in caplog.text


@pytest.mark.parametrize(
    ("name", "magic"), [("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.SVG", b"<?xml")]
)
def test_picture_is_written(
    tmp_path: Path, output: dict[str, Any], name: str, magic: bytes
) -> None:
    write_plot(output, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(magic)
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_pdf_has_a_page_for_each_histogram(tmp_path: Path, output: dict[str, Any]) -> None:
    write_plot(output, tmp_path / "a.pdf")
    assert b"/Count 3" in (tmp_path / "a.pdf").read_bytes()


def test_the_users_plot_is_used(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    seen = []

    def plot(output: Any) -> Figure:
        seen.append(output)
        return Figure()

    write_plot({"n": 1}, tmp_path / "a.png", plot)
    assert seen == [{"n": 1}]
    assert (tmp_path / "a.png").stat().st_size > 0


def test_plots_that_fail_are_explained(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"nothing to draw: .* write a function plot"):
        write_plot({"n": 1}, tmp_path / "a.png")
    with pytest.raises(ProcessorError, match=r"plot\(\) raised KeyError: 'mass'"):
        write_plot({"n": 1}, tmp_path / "a.png", lambda output: output["mass"])
    with pytest.raises(ProcessorError, match=r"plot\(\) returned int: return a matplotlib"):
        write_plot({"n": 1}, tmp_path / "a.png", lambda output: output["n"])
    assert list(tmp_path.iterdir()) == []
