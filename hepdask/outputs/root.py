"""Write histograms to a ROOT file."""

from __future__ import annotations

import itertools
import logging
import re
from typing import TYPE_CHECKING, Any

from hepdask.outputs.histograms import (
    axis_label,
    is_category,
    is_histogram,
    list_categories,
    list_leaves,
    split_axes,
    split_categories,
)

if TYPE_CHECKING:
    from pathlib import Path

    from hepdask.outputs.histograms import HistogramPath

__all__ = ["write_root"]

logger = logging.getLogger(__name__)


def write_root(output: Any, path: Path) -> None:
    import uproot

    left_out = []
    names = _RootNames()
    with uproot.recreate(path) as file:
        for keys, leaf in list_leaves(output):
            if not is_histogram(leaf) or not _fits_root(leaf):
                left_out.append("/".join(keys) or type(leaf).__name__)
                continue
            for labels, histogram in split_categories(leaf, split_axes(leaf)):
                file[names.add((*keys, *labels))] = _with_flow(histogram)
    if left_out:
        more = f" and {len(left_out) - 10} more" if len(left_out) > 10 else ""
        logger.warning(
            "not in the ROOT file, which holds histograms of up to three axes alone: %s%s",
            ", ".join(left_out[:10]),
            more,
        )


def _fits_root(histogram: Any) -> bool:
    num_axes = len(histogram.axes) - len(split_axes(histogram))
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

    if any(map(is_category, histogram.axes)):
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

    categories = list_categories(histogram, 0)
    axis = hist.axis.StrCategory(
        [label for label, _ in categories], label=axis_label(histogram.axes[0]), overflow=False
    )
    copied = hist.Hist(axis, storage=histogram.storage_type(), name=_title(histogram))
    copied.view(flow=True)[...] = histogram.view(flow=True)[: len(categories)]
    return copied


def _flow_axis(axis: Any) -> Any:
    import boost_histogram
    import hist

    label, edges = axis_label(axis), axis.edges
    is_even = isinstance(axis, boost_histogram.axis.Regular) and axis.transform is None
    if is_even or axis.traits.discrete:
        return hist.axis.Regular(len(axis), edges[0], edges[-1], label=label)
    return hist.axis.Variable(edges, label=label)


def _title(histogram: Any) -> str:
    return str(getattr(histogram, "label", None) or getattr(histogram, "name", None) or "")
