"""Find the histograms in an output, and split them by their categories."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "HistogramPath",
    "axis_label",
    "is_category",
    "is_histogram",
    "list_categories",
    "list_histograms",
    "list_leaves",
    "split_axes",
    "split_categories",
]

HistogramPath = tuple[str, ...]


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
    return [(path, leaf) for path, leaf in list_leaves(output) if is_histogram(leaf)]


def list_leaves(output: Any) -> Iterator[tuple[HistogramPath, Any]]:
    if is_histogram(output):
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
    return isinstance(value, Mapping | list | tuple) or is_histogram(value)


def is_histogram(value: Any) -> bool:
    # every histogram of hist is one of boost-histogram
    return any(
        one.__module__.startswith("boost_histogram") for one in type(value).__mro__[:-1]
    ) and (hasattr(value, "axes"))


def is_category(axis: Any) -> bool:
    import boost_histogram

    return isinstance(axis, boost_histogram.axis.StrCategory | boost_histogram.axis.IntCategory)


def _category_axes(histogram: Any) -> list[int]:
    return [index for index, axis in enumerate(histogram.axes) if is_category(axis)]


def split_axes(histogram: Any) -> list[int]:
    """Return the category axes that become names; if there are no others, the last becomes labelled bins."""
    axes = _category_axes(histogram)
    return axes[:-1] if len(axes) == len(histogram.axes) else axes


def split_categories(histogram: Any, axes: Sequence[int]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the labels of each combination of categories, and its slice of the histogram."""
    choices = [list_categories(histogram, axis) for axis in axes]
    for combination in itertools.product(*choices):
        labels = tuple(label for label, _ in combination)
        indices = {axis: index for axis, (_, index) in zip(axes, combination, strict=True)}
        yield labels, histogram[indices] if indices else histogram


def list_categories(histogram: Any, number: int) -> list[tuple[str, Any]]:
    import boost_histogram

    axis = histogram.axes[number]
    categories: list[tuple[str, Any]] = [(str(label), index) for index, label in enumerate(axis)]
    if axis.traits.overflow:
        others = histogram.values(flow=True).take(len(axis), axis=number)
        if others.any():  # what was filled with no category of a fixed list
            categories.append(("other", boost_histogram.tag.overflow))
    return categories


def axis_label(axis: Any) -> str:
    return str(getattr(axis, "label", "") or "")
