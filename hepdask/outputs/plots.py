"""Draw an output, by the user's own function or a panel for each histogram."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepdask.errors import MissingDependencyError, OptionError, ProcessorError
from hepdask.outputs.files import check_output_path, replacing
from hepdask.outputs.histograms import (
    axis_label,
    is_category,
    list_histograms,
    split_axes,
    split_categories,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hepdask.outputs.histograms import HistogramPath

__all__ = ["check_plot_path", "draw_histograms", "write_plot"]

logger = logging.getLogger(__name__)

#: Panels in one picture; a PDF has a page for each histogram instead.
MAX_PANELS = 60
#: Categories of a histogram that are drawn as lines; more can't be told apart.
MAX_LINES = 12


def check_plot_path(path: str | os.PathLike[str]) -> str:
    """Check that a picture can be drawn and written.

    Returns
    -------
    str
        The suffix.

    Raises
    ------
    MissingDependencyError
        If matplotlib isn't installed.
    OptionError
        If matplotlib doesn't write files of this suffix, or not there.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise MissingDependencyError(
            'plots need matplotlib: pip install "hepdask[plot]"'
        ) from error
    return check_output_path(
        path, [f".{one}" for one in FigureCanvasBase.get_supported_filetypes()]
    )


def write_plot(
    output: Any,
    path: str | os.PathLike[str],
    plot: Callable[[Any], Any] | None = None,
) -> None:
    """Draw an output.

    Parameters
    ----------
    output : object
        What a run gave back.
    path : path-like
        A file of any format that matplotlib knows.
    plot : callable or None
        The user's ``plot(output)``, which returns a figure. None: `draw_histograms`, in a PDF a page for each.

    Raises
    ------
    ProcessorError
        If `plot` raises, or returns something else.
    OptionError
        If there is nothing to draw, or the file can't be written.
    MissingDependencyError
        If matplotlib isn't installed.
    """
    suffix = check_plot_path(path)
    if plot is None and suffix == ".pdf":
        figures = [_draw([one]) for one in _list_drawable(output)]
    else:
        figures = [draw_histograms(output) if plot is None else _call_plot(plot, output)]
    with replacing(Path(path)) as new_path:
        if len(figures) == 1:
            figures[0].savefig(new_path, format=suffix[1:], dpi=150)
            return
        from matplotlib.backends.backend_pdf import PdfPages

        with PdfPages(new_path) as pages:
            for figure in figures:
                pages.savefig(figure)


def _call_plot(plot: Callable[[Any], Any], output: Any) -> Any:
    try:
        figure = plot(output)
    except Exception as error:
        raise ProcessorError(f"plot() raised {type(error).__name__}: {error}") from error
    if not hasattr(figure, "savefig"):
        raise ProcessorError(
            f"plot() returned {type(figure).__name__}: return a matplotlib.figure.Figure"
        )
    return figure


def draw_histograms(output: Any) -> Figure:
    """Draw all histograms of one and two axes, a panel for each.

    Parameters
    ----------
    output : object
        What a run gave back. Category axes are not counted: with one axis besides, each combination is a line, with
        two, they are summed.

    Returns
    -------
    matplotlib.figure.Figure
        At most `MAX_PANELS` panels; a warning is logged if there are more histograms.

    Raises
    ------
    OptionError
        If there is nothing to draw.
    """
    drawable = _list_drawable(output)
    if len(drawable) > MAX_PANELS:
        logger.warning(
            "drawing the first %d of %d histograms; a .pdf has all of them",
            MAX_PANELS,
            len(drawable),
        )
    return _draw(drawable[:MAX_PANELS])


def _list_drawable(output: Any) -> list[tuple[HistogramPath, Any]]:
    found = [
        (path, one)
        for path, one in list_histograms(output)
        if len(one.axes) - len(split_axes(one)) in (1, 2)
    ]
    if not found:
        raise OptionError(
            "there is nothing to draw: the output has no histogram of one or two axes; "
            "write a function plot(output) that returns a figure, beside the processor"
        )
    return found


def _draw(histograms: Sequence[tuple[HistogramPath, Any]]) -> Figure:
    from matplotlib.figure import Figure

    num_columns = min(3, math.ceil(math.sqrt(len(histograms))))
    num_rows = math.ceil(len(histograms) / num_columns)
    figure = Figure(figsize=(6.0 * num_columns, 4.5 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False).flat
    # histograms first, as zip takes one panel too many otherwise
    for (path, histogram), panel in zip(histograms, panels, strict=False):
        axes = split_axes(histogram)
        if len(histogram.axes) - len(axes) == 1:
            _draw_lines(panel, histogram, axes)
        else:
            _draw_map(panel, histogram, axes)
        panel.set_title("/".join(path), loc="left", fontsize="medium")
    for panel in panels:
        panel.remove()
    return figure


def _draw_lines(panel: Axes, histogram: Any, axes: Sequence[int]) -> None:
    (number,) = (index for index in range(len(histogram.axes)) if index not in axes)
    axis = histogram.axes[number]
    num_hidden = 0
    for index, (labels, one) in enumerate(split_categories(histogram, axes)):
        if index >= MAX_LINES:
            num_hidden += 1
            continue
        panel.stairs(
            one.values(), _drawn_edges(axis), label=", ".join(labels) or None, linewidth=1.2
        )
        panel.stairs(one.values(), _drawn_edges(axis), fill=True, alpha=0.08, color=f"C{index}")
    if num_hidden:
        panel.plot([], [], " ", label=f"{num_hidden} more are not drawn")
    if axes:
        panel.legend(frameon=False, fontsize="small")
    _label_axis(panel, axis)
    panel.set_ylabel("Mean" if "MEAN" in str(histogram.kind) else "Entries", loc="top")
    panel.tick_params(which="both", direction="in", top=True, right=True)


def _draw_map(panel: Axes, histogram: Any, axes: Sequence[int]) -> None:
    summed = histogram[dict.fromkeys(axes, sum)] if axes else histogram
    first, second = summed.axes
    values = summed.values()
    mesh = panel.pcolormesh(_drawn_edges(first), _drawn_edges(second), values.T, rasterized=True)
    panel.figure.colorbar(mesh, ax=panel, label="Entries")
    _label_axis(panel, first)
    panel.set_ylabel(axis_label(second), loc="top")
    if _is_logarithmic(second):
        panel.set_yscale("log")


def _label_axis(panel: Axes, axis: Any) -> None:
    panel.set_xlabel(axis_label(axis), loc="right")
    if is_category(axis):
        panel.set_xticks([index + 0.5 for index in range(len(axis))], [str(one) for one in axis])
        panel.tick_params(axis="x", rotation=30)
    elif _is_logarithmic(axis):
        panel.set_xscale("log")
    edges = _drawn_edges(axis)
    panel.set_xlim(edges[0], edges[-1])


def _drawn_edges(axis: Any) -> Any:
    # those of integer categories are the categories themselves
    return range(len(axis) + 1) if is_category(axis) else axis.edges


def _is_logarithmic(axis: Any) -> bool:
    import boost_histogram

    transform = getattr(axis, "transform", None)
    return transform is not None and transform == boost_histogram.axis.transform.log
