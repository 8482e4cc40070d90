from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hist import Hist

from hepdask.errors import OptionError, ProcessorError
from hepdask.outputs import check_plot_path, draw_histograms, write_plot
from tests.outputs.examples import make_count

if TYPE_CHECKING:
    from pathlib import Path


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
    monkeypatch.setattr("hepdask.outputs.plots.MAX_PANELS", 2)
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


def test_wrong_suffix_is_found_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"has no suffix .* use one of .*\.png"):
        check_plot_path(tmp_path / "plot.xyz")
