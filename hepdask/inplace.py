"""Add one accumulator to another one in place, where nobody else holds that: ``add_into(a, b)`` gives the bits of ``add(a, b)``.

A new accumulator for each sum costs memory and time when it has many bins. What `add` has made belongs to who called it, and
shares nothing with its inputs. So in a task, where nothing between two merges can get hold of it, it can take up the next
neighbour. It is the left one that grows, so that dataset order stays.

First everything is checked, and what can't be changed in place is added up beside; then nothing can fail any more. So an
accumulator is never left half added.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from hepdask.accumulator import add, copy_accumulator

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["HalfAdded", "add_into"]

# plain ones only: a subclass may do anything in its own __setitem__ or __iadd__
_MAPPINGS = (dict, defaultdict)
_NUMERIC_KINDS = frozenset("biufc")
# fixed cells, which `+=` adds up without getting memory: not Unlimited, whose cells may grow
_STORAGES = frozenset({"AtomicInt64", "Double", "Int64", "Mean", "Weight", "WeightedMean"})
_HISTOGRAM_PACKAGES = frozenset({"boost_histogram", "hist"})


class HalfAdded(BaseException):  # no error of the user's that could be listed and passed over
    """Nothing can be done with the accumulator any more: the task has to be run again.

    Not an `Exception`: what catches those takes the accumulator for as good as it was.
    """


def add_into(a: Any, b: Any) -> Any:
    """Add `b` to `a`, in place as far as possible.

    Parameters
    ----------
    a : accumulator
        Made by `add`, and held by nobody else: it must not be used any more after this.
    b : accumulator
        Comes after `a` in dataset order; it is not changed.

    Returns
    -------
    accumulator
        What ``add(a, b)`` is, to the last bit: `a` itself, changed, or a new one. It shares no mutable state with `b`.

    Raises
    ------
    AccumulatorError
        If the two don't fit together. Then `a` is as it was.
    HalfAdded
        If there is no memory for a list or a set to grow, after all else was checked.
    """
    steps: list[Callable[[], object]] = []
    try:
        result = _prepare(a, b, steps)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  # nothing is changed yet; this tells the error as it always does
        return add(a, b)
    try:
        for step in steps:
            step()
    except Exception as error:
        raise HalfAdded(
            f"an accumulator was left half added ({type(error).__name__}: {error})"
        ) from error
    return result


def _prepare(a: Any, b: Any, steps: list[Callable[[], object]]) -> Any:
    """Return the sum as it will be after `steps`, which are appended to."""
    kind = type(a)
    if kind in _MAPPINGS and type(b) in _MAPPINGS:
        _prepare_mapping(a, b, steps)
        return a
    if kind is not type(b):
        return add(a, b)
    if kind is list or kind is set:
        more = copy_accumulator(b)
        steps.append(lambda: a.extend(more) if kind is list else a.update(more))
        return a
    if _are_like_arrays(a, b):
        steps.append(lambda: sys.modules["numpy"].add(a, b, out=a))
        return a
    if _are_like_histograms(a, b):
        steps.append(lambda: _add_histogram(a, b))
        return a
    return add(a, b)


def _prepare_mapping(a: Any, b: Any, steps: list[Callable[[], object]]) -> None:
    for key, value in b.items():
        if key not in a:
            made = copy_accumulator(value)
        else:
            made = _prepare(a[key], value, steps)
            if made is a[key]:
                continue
        # not now: the mapping is being looked at, and may have to stay as it is
        steps.append(lambda key=key, made=made: a.__setitem__(key, made))  # type: ignore[misc]  # bound early on purpose


def _are_like_arrays(a: Any, b: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return (
        numpy is not None
        and type(a) is type(b) is numpy.ndarray
        and a.dtype == b.dtype
        and a.dtype.kind in _NUMERIC_KINDS
        and a.shape == b.shape
        and a.flags.c_contiguous
        and a.flags.writeable
        and a.flags.owndata
    )


def _are_like_histograms(a: Any, b: Any) -> bool:
    module = sys.modules.get("boost_histogram")
    return (
        module is not None
        and isinstance(a, module.Histogram)
        and type(a) is type(b)
        and type(a).__module__.partition(".")[0] in _HISTOGRAM_PACKAGES
        and type(a.storage).__name__ in _STORAGES
        and type(a.storage) is type(b.storage)
        and len(a.axes) == len(b.axes)
        and all(left == right for left, right in zip(a.axes, b.axes, strict=True))
    )


def _add_histogram(a: Any, b: Any) -> None:
    known = vars(a).get("_variance_known") and vars(b).get("_variance_known")
    a += b
    if known:
        # `+=` forgets it, as `+` does: see `add_histograms`
        vars(a)["_variance_known"] = True
