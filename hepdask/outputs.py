"""Write an output: as a file for another program, or as a picture.

========================  =================================================================================
``.coffea``               what `coffea.util.load` reads: a pickle, compressed by lz4
``.pkl``, ``.pickle``     a pickle
``.json``, ``.json.gz``   histograms in UHI's JSON (https://uhi.readthedocs.io/en/latest/serialization.html),
                          everything else as JSON has it
``.root``                 the histograms alone, as TH1, TH2, TH3 (and TProfile)
========================  =================================================================================

A file takes its place when it is complete: nobody ever reads half of one.
"""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import math
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepdask.errors import MissingDependencyError, OptionError, ProcessorError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "OUTPUT_SUFFIXES",
    "check_output_path",
    "check_plot_path",
    "draw_histograms",
    "list_histograms",
    "write_output",
    "write_plot",
]

logger = logging.getLogger(__name__)

OUTPUT_SUFFIXES = (".coffea", ".pkl", ".pickle", ".json", ".json.gz", ".root")
"""What the name of an output may end with."""

#: Panels in one picture; a PDF has a page for each histogram instead.
MAX_PANELS = 60
#: Categories of a histogram that are drawn as lines; more can't be told apart.
MAX_LINES = 12

HistogramPath = tuple[str, ...]


def check_output_path(
    path: str | os.PathLike[str], suffixes: Sequence[str] = OUTPUT_SUFFIXES
) -> str:
    """Check that a file can be written, before hours are spent on what goes into it.

    Parameters
    ----------
    path : path-like
        Where it shall be.
    suffixes : sequence of str
        What its name may end with, in lower case.

    Returns
    -------
    str
        The suffix that it has.

    Raises
    ------
    OptionError
        If the suffix is none of them, or the directory isn't there or can't be written to.
    """
    target = Path(path)
    name = target.name.lower()
    suffix = next((one for one in suffixes if name.endswith(one)), None)
    if suffix is None:
        listed = ", ".join(suffixes)
        raise OptionError(f"'{target}' has no suffix that says its format: use one of {listed}")
    directory = Path(os.path.realpath(target)).parent
    if not directory.is_dir():
        raise OptionError(f"'{target}' can't be written: make its directory, '{directory}', first")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise OptionError(f"'{target}' can't be written: the directory '{directory}' is read-only")
    if target.is_dir():
        raise OptionError(f"'{target}' is a directory: give the name of a file")
    return suffix


def write_output(output: Any, path: str | os.PathLike[str]) -> None:
    """Write an output in the format that the suffix says.

    Parameters
    ----------
    output : object
        What a run gave back. JSON takes nested mappings, lists, tuples, sets (sorted), numbers, texts, arrays and
        histograms; NaN and infinities become ``NaN`` and ``Infinity``, which Python reads. ROOT takes the histograms
        alone, each under its path in the output, ``dataset/mass``; one with category axes becomes a directory
        with a histogram for each combination of categories, ``mass/SingleMu``. Whatever isn't a letter, a digit or
        one of ``_+.-`` in these names becomes ``_``.
    path : path-like
        A file of this name is replaced. It gets the permissions that new files have.

    Raises
    ------
    OptionError
        If the file can't be written, the suffix is not known, or something in the output does not fit the format.
    """
    writers: dict[str, Callable[[Any, Path], None]] = {
        ".coffea": _write_coffea,
        ".pkl": _write_pickle,
        ".pickle": _write_pickle,
        ".json": _write_json,
        ".json.gz": _write_json_gz,
        ".root": _write_root,
    }
    suffix = check_output_path(path)
    with _replacing(Path(path)) as new_path:
        writers[suffix](output, new_path)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give the name of a new file, which takes the place of `path` if nothing is raised."""
    # where a link points to, so that the link stays
    target = Path(os.path.realpath(path))
    new_path = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        yield new_path
        new_path.replace(target)
    except OSError as error:
        raise OptionError(f"'{path}' can't be written: {error}") from error
    finally:
        new_path.unlink(missing_ok=True)


# --- pickles ---


def _write_coffea(output: Any, path: Path) -> None:
    from coffea.util import save

    with _explained_pickling():
        save(output, str(path))


def _write_pickle(output: Any, path: Path) -> None:
    import cloudpickle

    with _explained_pickling(), path.open("wb") as file:
        cloudpickle.dump(output, file)


@contextmanager
def _explained_pickling() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OptionError(
            f"the output can't be pickled: {type(error).__name__}: {error}; return histograms, arrays, numbers"
        ) from error


# --- JSON ---


def _write_json(output: Any, path: Path) -> None:
    path.write_text(_dump_json(output), encoding="utf-8")


def _write_json_gz(output: Any, path: Path) -> None:
    # without a time, so that the same output gives the same bytes
    path.write_bytes(gzip.compress(_dump_json(output).encode(), mtime=0))


def _dump_json(output: Any) -> str:
    return json.dumps(_to_plain(output, "output"), ensure_ascii=False) + "\n"


def _to_plain(value: Any, where: str) -> Any:
    """Turn a value into what `json` writes; `where` is its place, ``output["dy"]["mass"]``."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return _plain_mapping(value, where)
    if isinstance(value, list | tuple):
        return [_to_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, AbstractSet):
        return [_to_plain(item, f"{where} (an element)") for item in _sorted(value)]
    if hasattr(value, "_to_uhi_"):
        from uhi.io.json import default

        return _to_plain(default(value), where)
    return _plain_array(value, where)


def _plain_mapping(mapping: Mapping[Any, Any], where: str) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, item in mapping.items():
        name = key if isinstance(key, str) else _key_name(key, where)
        if name in plain:
            raise OptionError(
                f"{where} has two keys that are {name!r} in JSON: rename one, or write .coffea or .pkl"
            )
        plain[name] = _to_plain(item, f"{where}[{key!r}]".replace("'", '"'))
    return plain


def _key_name(key: Any, where: str) -> str:
    import numpy as np

    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        return str(int(key))
    raise OptionError(
        f"{where} has the key {key!r} ({type(key).__name__}): JSON has keys of text alone; "
        "use a str or an int, or write .coffea or .pkl"
    )


def _sorted(values: AbstractSet[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=repr)


def _plain_array(value: Any, where: str) -> Any:
    import numpy as np

    if isinstance(value, np.ndarray):
        listed = value.tolist()
        return listed if value.dtype.kind in "biufU" else _to_plain(listed, where)
    if isinstance(value, np.floating):
        return float(value)  # item() of a long double is a long double
    if isinstance(value, np.generic):
        return _to_plain(value.item(), where)
    package = type(value).__module__.partition(".")[0]
    if package in ("awkward", "coffea") and hasattr(value, "to_list"):
        return _to_plain(value.to_list(), where)
    if package == "coffea" and hasattr(value, "value"):  # its column_accumulator, value_accumulator
        return _to_plain(value.value, where)
    raise OptionError(
        f"{where} is {type(value).__module__}.{type(value).__qualname__}, which can't be written as JSON: "
        "write .coffea or .pkl"
    )


# --- histograms ---


def list_histograms(output: Any) -> list[tuple[HistogramPath, Any]]:
    """List the histograms in nested mappings, lists and tuples.

    Parameters
    ----------
    output : object
        What a run gave back; may be a histogram itself.

    Returns
    -------
    list of (tuple of str, histogram)
        The keys (indices in lists) that lead to each histogram of hist or boost-histogram, in the output's order. The
        path of an output that is a histogram itself is its name.
    """
    return [(path, leaf) for path, leaf in _list_leaves(output) if _is_histogram(leaf)]


def _list_leaves(output: Any) -> Iterator[tuple[HistogramPath, Any]]:
    if _is_histogram(output):
        yield (getattr(output, "name", None) or "histogram",), output
    else:
        yield from _walk(output, ())


def _walk(value: Any, path: HistogramPath) -> Iterator[tuple[HistogramPath, Any]]:
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, list | tuple) and any(map(_is_nested, value)):
        items = enumerate(value)
    else:
        yield path, value
        return
    for key, item in items:
        yield from _walk(item, (*path, str(key)))


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple) or _is_histogram(value)


def _is_histogram(value: Any) -> bool:
    # every histogram of hist is one of boost-histogram
    return any(
        one.__module__.startswith("boost_histogram") for one in type(value).__mro__[:-1]
    ) and (hasattr(value, "axes"))


def _is_category(axis: Any) -> bool:
    import boost_histogram

    return isinstance(axis, boost_histogram.axis.StrCategory | boost_histogram.axis.IntCategory)


def _category_axes(histogram: Any) -> list[int]:
    return [index for index, axis in enumerate(histogram.axes) if _is_category(axis)]


def _split_categories(histogram: Any, axes: Sequence[int]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the labels of each combination of categories, and its slice of the histogram."""
    choices = [_list_categories(histogram, axis) for axis in axes]
    for combination in itertools.product(*choices):
        labels = tuple(label for label, _ in combination)
        indices = {axis: index for axis, (_, index) in zip(axes, combination, strict=True)}
        yield labels, histogram[indices] if indices else histogram


def _list_categories(histogram: Any, number: int) -> list[tuple[str, Any]]:
    import boost_histogram

    axis = histogram.axes[number]
    categories: list[tuple[str, Any]] = [(str(label), index) for index, label in enumerate(axis)]
    if axis.traits.overflow:
        others = histogram.values(flow=True).take(len(axis), axis=number)
        if others.any():  # what was filled with no category of a fixed list
            categories.append(("other", boost_histogram.tag.overflow))
    return categories


# --- ROOT ---


def _write_root(output: Any, path: Path) -> None:
    import uproot

    left_out = []
    names = _RootNames()
    with uproot.recreate(path) as file:
        for keys, leaf in _list_leaves(output):
            if not _is_histogram(leaf) or not _fits_root(leaf):
                left_out.append("/".join(keys) or type(leaf).__name__)
                continue
            for labels, histogram in _split_categories(leaf, _split_axes(leaf)):
                file[names.add((*keys, *labels))] = _with_flow(histogram)
    if left_out:
        more = f" and {len(left_out) - 10} more" if len(left_out) > 10 else ""
        logger.warning(
            "not in the ROOT file, which holds histograms of up to three axes alone: %s%s",
            ", ".join(left_out[:10]),
            more,
        )


def _split_axes(histogram: Any) -> list[int]:
    """Return the category axes that become names; if there are no others, the last becomes labelled bins."""
    axes = _category_axes(histogram)
    return axes[:-1] if len(axes) == len(histogram.axes) else axes


def _fits_root(histogram: Any) -> bool:
    num_axes = len(histogram.axes) - len(_split_axes(histogram))
    # a TProfile has one axis
    return 1 <= num_axes <= (1 if "MEAN" in str(histogram.kind) else 3)


def _clean(name: str) -> str:
    return re.sub(r"[^\w+.-]", "_", name, flags=re.ASCII) or "_"


class _RootNames:
    """Makes names that ROOT allows, a different one for each object and directory."""

    def __init__(self) -> None:
        self._directories: dict[HistogramPath, str] = {(): ""}
        self._used: set[str] = set()

    def add(self, path: HistogramPath) -> str:
        """Return the name of a new object."""
        return self._unused(self._directory(path[:-1]) + _clean(path[-1]))

    def _directory(self, path: HistogramPath) -> str:
        if path not in self._directories:
            name = self._unused(self._directory(path[:-1]) + _clean(path[-1]))
            self._directories[path] = f"{name}/"
        return self._directories[path]

    def _unused(self, name: str) -> str:
        candidates = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        chosen = next(one for one in candidates if one not in self._used)
        self._used.add(chosen)
        return chosen


def _with_flow(histogram: Any) -> Any:
    """Copy a histogram to axes that all have flow bins: uproot drops those of all axes if one has none."""
    import hist

    if any(map(_is_category, histogram.axes)):
        return _with_labels(histogram)
    is_plain = histogram.storage_type.__name__ not in ("Weight", "Mean", "WeightedMean")
    storage = hist.storage.Double() if is_plain else histogram.storage_type()
    axes = [_flow_axis(axis) for axis in histogram.axes]
    copied = hist.Hist(*axes, storage=storage, name=_title(histogram))
    inside = tuple(
        slice(None if axis.traits.underflow else 1, None if axis.traits.overflow else -1)
        for axis in histogram.axes
    )
    contents = histogram.values(flow=True) if is_plain else histogram.view(flow=True)
    copied.view(flow=True)[inside] = contents
    return copied


def _with_labels(histogram: Any) -> Any:
    """Copy a histogram of one category axis to an axis that has the overflow as a category."""
    import hist

    categories = _list_categories(histogram, 0)
    axis = hist.axis.StrCategory(
        [label for label, _ in categories], label=_axis_label(histogram.axes[0]), overflow=False
    )
    copied = hist.Hist(axis, storage=histogram.storage_type(), name=_title(histogram))
    copied.view(flow=True)[...] = histogram.view(flow=True)[: len(categories)]
    return copied


def _flow_axis(axis: Any) -> Any:
    import boost_histogram
    import hist

    label, edges = _axis_label(axis), axis.edges
    is_even = isinstance(axis, boost_histogram.axis.Regular) and axis.transform is None
    if is_even or axis.traits.discrete:
        return hist.axis.Regular(len(axis), edges[0], edges[-1], label=label)
    return hist.axis.Variable(edges, label=label)


def _axis_label(axis: Any) -> str:
    return str(getattr(axis, "label", "") or "")


def _title(histogram: Any) -> str:
    return str(getattr(histogram, "label", None) or getattr(histogram, "name", None) or "")


# --- pictures ---


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
    with _replacing(Path(path)) as new_path:
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
        if len(one.axes) - len(_split_axes(one)) in (1, 2)
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
        axes = _split_axes(histogram)
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
    for index, (labels, one) in enumerate(_split_categories(histogram, axes)):
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
    panel.set_ylabel(_axis_label(second), loc="top")
    if _is_logarithmic(second):
        panel.set_yscale("log")


def _label_axis(panel: Axes, axis: Any) -> None:
    panel.set_xlabel(_axis_label(axis), loc="right")
    if _is_category(axis):
        panel.set_xticks([index + 0.5 for index in range(len(axis))], [str(one) for one in axis])
        panel.tick_params(axis="x", rotation=30)
    elif _is_logarithmic(axis):
        panel.set_xscale("log")
    edges = _drawn_edges(axis)
    panel.set_xlim(edges[0], edges[-1])


def _drawn_edges(axis: Any) -> Any:
    # those of integer categories are the categories themselves
    return range(len(axis) + 1) if _is_category(axis) else axis.edges


def _is_logarithmic(axis: Any) -> bool:
    import boost_histogram

    transform = getattr(axis, "transform", None)
    return transform is not None and transform == boost_histogram.axis.transform.log
