"""Add histograms bin by bin, whatever their storage, and grow their axes to where either reaches.

Left's categories, name, label and metadata come first or stay; axes that differ otherwise than by growth are a
`Mismatch`. Grown edges of a ``Variable`` axis that cut a bin of the other one are dropped.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

from hepdask.mismatch import IMMUTABLE, Mismatch, copy_deeply, copy_with, describe_cause, shorten

__all__ = ["add_histograms", "copy_histogram"]

# of a bin's width: far above the rounding of an axis that grew, far below what a different binning gives
_EDGE_TOLERANCE = 1e-6
_SAME_HISTOGRAMS = "build the histogram in the same way in every call of process()"


def add_histograms(a: Any, b: Any) -> Any:
    """Add two histograms and return a new one.

    Parameters
    ----------
    a, b : hist.BaseHist or boost_histogram.Histogram
        Neither is changed. Categories, name, label and metadata of ``a`` come first or stay.

    Returns
    -------
    hist.BaseHist or boost_histogram.Histogram
        The sum, of ``a``'s type, which shares no mutable state with ``a`` or ``b``.

    Raises
    ------
    Mismatch
        If axes or storages don't fit together.
    """
    # boost-histogram would merge axes that differ in flow bins only, reading beyond the smaller array
    grown = _check_axes(a, b)
    left, right = (copy_deeply(a), copy_deeply(b)) if grown else (a, b)
    for position, edges in grown.items():
        left, right = _moved(left, position, edges), _moved(right, position, edges)
    try:
        result = left + right
    except MemoryError:
        raise
    except Exception as error:
        raise _histogram_mismatch(a, b, error) from error
    if vars(a).get("_variance_known") and vars(b).get("_variance_known"):
        # `+` forgets it: variances() of plain counts would be None as soon as there are two ranges
        vars(result)["_variance_known"] = True
    return _with_own_metadata(result)


def copy_histogram(a: Any) -> Any:
    """Copy a histogram with its metadata.

    Parameters
    ----------
    a : hist.BaseHist or boost_histogram.Histogram
        The original.

    Returns
    -------
    hist.BaseHist or boost_histogram.Histogram
        The copy, which shares no mutable state with it.

    Raises
    ------
    Mismatch
        If its metadata can't be copied.
    """
    return _with_own_metadata(copy_with(a, copy.copy))


def _with_own_metadata(h: Any) -> Any:
    """Replace a fresh histogram by a deep copy if it shares metadata that could be changed in place."""
    values = [*_attributes(h).values(), *(value for x in h.axes for value in vars(x).values())]
    return h if IMMUTABLE.issuperset(map(type, values)) else copy_deeply(h)


def _histogram_mismatch(a: Any, b: Any, error: Exception) -> Mismatch:
    storages = repr(a.storage), repr(b.storage)
    if storages[0] != storages[1]:
        problem = f"storages differ: {storages[0]} and {storages[1]}"
    else:
        problem = f"the histograms can't be added ({describe_cause(error)})"
    return Mismatch(problem, advice=_SAME_HISTOGRAMS)


def _check_axes(a: Any, b: Any) -> dict[int, Any]:
    """Raise if axes don't fit; return the common edges of those that boost-histogram can't merge."""
    if len(a.axes) != len(b.axes):
        names = [", ".join(getattr(x, "name", "") or repr(x) for x in h.axes) for h in (a, b)]
        raise Mismatch(
            f"axes differ: {len(a.axes)} ({names[0]}) and {len(b.axes)} ({names[1]})",
            advice=_SAME_HISTOGRAMS,
        )
    grown = {}
    for position, (left, right) in enumerate(zip(a.axes, b.axes, strict=True)):
        if left != right:
            _check_axis(position, left, right)
            if left.traits.continuous:
                grown[position] = _common_edges(left, right)
    return grown


def _check_axis(position: int, left: Any, right: Any) -> None:
    difference = _axis_difference(left, right)
    if difference:
        name = getattr(left, "name", "")
        axis = f"axis {position} ({name!r})" if name else f"axis {position}"
        raise Mismatch(f"axes differ: {axis}: {difference}", advice=_SAME_HISTOGRAMS)


def _axis_difference(left: Any, right: Any) -> str:
    """Say what keeps two unequal axes from being merged; empty if they only grew differently."""
    if type(left) is not type(right):
        return f"{left!r} and {right!r}"
    for name in {**vars(left), **vars(right)}:
        values = vars(left).get(name), vars(right).get(name)
        if not _equal(*values):
            return f"{name} {shorten(values[0])} and {shorten(values[1])}"
    for name in ("underflow", "overflow", "circular", "growth"):
        options = getattr(left.traits, name), getattr(right.traits, name)
        if options[0] is not options[1]:
            return f"{name}={options[0]} and {name}={options[1]}"
    if not left.traits.growth or (left.traits.continuous and _common_edges(left, right) is None):
        return f"{shorten(left)} and {shorten(right)}"
    return ""


def _equal(x: Any, y: Any) -> bool:
    try:
        return bool(x == y)
    except ValueError:
        # numpy arrays as metadata: boost-histogram calls them different, too
        return False


def _moved(h: Any, position: int, edges: Any) -> Any:
    """Sort the bins of one axis into wider or more bins; ``h`` may lend its axes to the result.

    Several old bins may fall into one new bin. Each round takes at most one of them, and boost-histogram adds the
    rounds up, since only it knows how (means, for example, don't simply add).
    """
    import numpy as np

    old = h.axes[position]
    inner = np.searchsorted(edges, (old.edges[:-1] + old.edges[1:]) / 2, side="right")
    target = np.concatenate([[0], inner, [len(edges)]])  # growing axes have both flow bins
    rounds = np.arange(len(target)) - np.searchsorted(target, target)
    result: Any = None
    for step in range(int(rounds.max()) + 1):
        part = _empty_histogram(h, position, edges)
        chosen = np.flatnonzero(rounds == step)
        _bins_in_front(part, position)[target[chosen]] = _bins_in_front(h, position)[chosen]
        result = part if result is None else result + part
    vars(result).update(_attributes(h))
    return result


def _bins_in_front(h: Any, position: int) -> Any:
    import numpy as np

    # counted from the back, since a MultiCell has its cells in front of the axes
    return np.moveaxis(np.asarray(h.view(flow=True)), position - len(h.axes), 0)


def _empty_histogram(h: Any, position: int, edges: Any) -> Any:
    axes = list(h.axes)
    old = axes[position]
    if hasattr(old, "transform"):
        axes[position] = type(old)(len(edges) - 1, edges[0], edges[-1], growth=True)
    else:
        axes[position] = type(old)(edges, growth=True)
    # not as an argument: hist would replace the name in it by an empty one
    vars(axes[position]).update(vars(old))
    return type(h)(*axes, storage=h.storage)


def _attributes(h: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(h).items() if name not in {"_hist", "axes"}}


def _common_edges(left: Any, right: Any) -> Any:
    """Find the edges of the union of two growing continuous axes, None if they don't fit together."""
    if hasattr(left, "transform"):
        return _common_regular_edges(left.edges, right.edges)
    return _common_variable_edges(left.edges, right.edges)


def _common_regular_edges(left: Any, right: Any) -> Any:
    """Extend left's lattice of equal bins to where right's reaches.

    A regular axis grows by whole bins, so right's edges lie on left's lattice, but for rounding. The outermost
    edges are taken as they are from the axis that reaches there, so that rounding doesn't pile up.
    """
    import numpy as np

    width = (left[-1] - left[0]) / (len(left) - 1)
    shifts = (right[[0, -1]] - left[0]) / width
    first, last = np.rint(shifts).astype(np.int64)
    if last - first != len(right) - 1 or np.abs(shifts - (first, last)).max() > _EDGE_TOLERANCE:
        return None
    start, stop = min(0, first), max(len(left) - 1, last)
    lower = left[0] if start == 0 else right[0]
    upper = left[-1] if stop == len(left) - 1 else right[-1]
    return np.linspace(lower, upper, stop - start + 1)


def _common_variable_edges(left: Any, right: Any) -> Any:
    """Keep all edges but those that cut a bin of the other axis.

    A variable axis grows by one bin that ends just behind the value that was filled, e.g. left = [0, 1, 3, 6],
    right = [0, 1, 3, 7, 9] -> [0, 1, 3, 7, 9]: nobody knows how many of right's entries in [3, 7) are below 6.
    The original bins are in both; if there is no bin in both, the axes were different from the start.
    """
    import numpy as np

    if not set(pairwise(left)) & set(pairwise(right)):
        return None

    def uncut(edges: Any, other: Any) -> Any:
        return edges[np.isin(edges, other) | (edges < other[0]) | (edges > other[-1])]

    return np.union1d(uncut(left, right), uncut(right, left))
