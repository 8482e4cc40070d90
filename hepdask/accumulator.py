"""Add what processors return: ``add(a, b)`` makes a new accumulator and leaves both inputs alone.

The rules are coffea's (anything with ``+``, sets, nested mappings), without those of its surprises that lose or
mix up data:

===========================  ================================================================================
``None``                     nothing: ``None + x`` is a copy of ``x``
mappings                     key by key; left's keys first, then right's new ones; left's type and
                             ``default_factory`` stay. Also `collections.Counter` (whose own ``+`` drops
                             counts that aren't positive) and coffea's ``dict_accumulator``
sets, frozensets             union, in left's type
lists, tuples                concatenation; named tuples field by field
numbers                      ``+``, with Python's and numpy's rules (``True + True`` is 2)
``str``, ``bytes``           equal ones stay as they are, different ones are an error
numpy arrays                 element by element, of equal shapes only: nothing is broadcast
awkward arrays               element by element (coffea's meaning), of equal length and depth only; a column
                             that shall grow longer belongs into coffea's ``column_accumulator``
``hist``, boost-histogram    bin by bin, every storage; growing axes grow, left's categories first
                             (grown edges of a ``Variable`` axis that cut a bin of the other one are dropped);
                             name, label and metadata are left's, axes must agree in theirs
anything else                its own ``+``
===========================  ================================================================================

A result never shares anything with its inputs that could be changed in place, except keys and elements of sets:
those are hashable, and copies of them might not be equal.
"""

from __future__ import annotations

import copy
import json
import numbers
import reprlib
import sys
from collections.abc import Callable, Iterable, MutableMapping, MutableSet, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NoReturn

from hepdask.errors import AccumulatorError

__all__ = ["add", "copy_accumulator"]

_IMMUTABLE = frozenset({type(None), bool, int, float, complex, str, bytes})
# the rules below stand in for the `+` of these; a `+` that a user's subclass defines is used as it is
_KNOWN_PACKAGES = frozenset(
    {"awkward", "boost_histogram", "builtins", "coffea", "collections", "hist", "numpy"}
)
# whose `+` gives an object of its own, so that it need not be copied once more
_FRESH_PACKAGES = frozenset({"datetime", "decimal", "fractions", "numpy", "pandas"})
# of a bin's width: far above the rounding of an axis that grew, far below what a different binning gives
_EDGE_TOLERANCE = 1e-6


def add(a: Any, b: Any) -> Any:
    """Add two accumulators and return a new one.

    Parameters
    ----------
    a, b : accumulator
        Outputs of a processor, or parts of them; see the module's table for what may be in them. ``a`` is the
        one that comes first in the order of the datasets: its keys, categories, list items, attributes and types
        come first or stay. Neither is changed.

    Returns
    -------
    accumulator
        The sum, which shares no mutable state with ``a`` or ``b``. The same inputs give the same bits.

    Raises
    ------
    AccumulatorError
        If the two don't fit together. The text starts with the path to the place: ``output["dy"]["mass"]: ...``.
    """
    try:
        return _add(a, b)
    except _Mismatch as mismatch:
        raise AccumulatorError(mismatch.text()) from mismatch.__cause__


def copy_accumulator(a: Any) -> Any:
    """Copy an accumulator so that changing the copy in place can't change the original.

    Parameters
    ----------
    a : accumulator
        Anything that `add` takes.

    Returns
    -------
    accumulator
        The copy; immutable values, keys and elements of sets are shared.

    Raises
    ------
    AccumulatorError
        If a value can't be copied (an open file, a lock, a generator).
    """
    try:
        return _copy(a)
    except _Mismatch as mismatch:
        raise AccumulatorError(mismatch.text()) from mismatch.__cause__


class _Mismatch(Exception):
    """Why two values can't be added; collects the path to them while it goes up."""

    def __init__(self, problem: str, *, advice: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.advice = advice
        self.steps: list[str] = []  # innermost first

    def text(self) -> str:
        return f"output{''.join(reversed(self.steps))}: {self.problem}; {self.advice}"


@dataclass(frozen=True, slots=True)
class _Kind:
    """How all values of one kind are added and copied."""

    name: str
    add: Callable[[Any, Any], Any]
    copy: Callable[[Any], Any]


def _add(a: Any, b: Any) -> Any:
    if a is None:
        return _copy(b)
    if b is None:
        return _copy(a)
    kind, other = _kind(a), _kind(b)
    if kind is not other:
        kind = _MIXED.get(frozenset({kind.name, other.name}), _UNLIKE)
    return kind.add(a, b)


def _copy(a: Any) -> Any:
    return a if type(a) in _IMMUTABLE else _kind(a).copy(a)


def _kind(value: Any) -> _Kind:
    cls: Any = type(value)
    return _kind_of(cls)


@lru_cache(maxsize=512)
def _kind_of(cls: type) -> _Kind:
    """Find the kind of a type; optional libraries are looked up, not imported."""
    if _defines_addition(cls):
        return _OBJECT
    return next((kind for bases, kind in _kinds() if issubclass(cls, bases)), _OBJECT)


def _kinds() -> Iterable[tuple[tuple[type, ...], _Kind]]:
    """List base types with their kinds; the first that fits counts."""
    yield (str, bytes), _TEXT
    yield (MutableMapping,), _MAPPING
    yield (MutableSet, frozenset), _SET
    yield (list,), _LIST
    yield (tuple,), _TUPLE
    # a value of these types can only be here if its library has been imported already
    yield _loaded("boost_histogram", "Histogram"), _HISTOGRAM
    yield _loaded("numpy", "ndarray"), _ARRAY
    yield _loaded("awkward", "Array"), _AWKWARD
    yield (numbers.Number, *_loaded("numpy", "bool_")), _NUMBER


def _loaded(module: str, name: str) -> tuple[type, ...]:
    found = getattr(sys.modules.get(module), name, None)
    return () if found is None else (found,)


def _defines_addition(cls: type) -> bool:
    """Whether a user's subclass of a container or histogram brings a ``+`` of its own."""
    package = _package_defining(cls, "__add__")
    if package == "coffea":
        # coffea's `+` is made of the `add` that its subclasses are asked to write
        package = _package_defining(cls, "add")
    return package is not None and package not in _KNOWN_PACKAGES


def _package_defining(cls: type, name: str) -> str | None:
    owner = next((base for base in cls.__mro__ if name in vars(base)), None)
    return None if owner is None else owner.__module__.partition(".")[0]


# ---------------------------------------------------------------------------------------------- containers


def _add_mappings(a: MutableMapping[Any, Any], b: MutableMapping[Any, Any]) -> Any:
    result = _emptied(a)
    key: Any = None
    try:
        for key, value in a.items():
            result[key] = _add(value, b[key]) if key in b else _copy(value)
        for key, value in b.items():
            if key not in a:
                result[key] = _copy(value)
    except _Mismatch as mismatch:
        mismatch.steps.append(_step(key))
        raise
    return result


def _copy_mapping(a: MutableMapping[Any, Any]) -> Any:
    return _add_mappings(a, {})


def _add_sets(a: AbstractSet[Any], b: AbstractSet[Any]) -> Any:
    if isinstance(a, set) and type(a) is not set and type(a).__or__ is set.__or__:
        # `|` of a subclass of set gives a plain set
        result = _emptied(a)
        set.update(result, a, b)
        return result
    return a | b


def _copy_set(a: AbstractSet[Any]) -> Any:
    if type(a) is frozenset:
        return a
    return _add_sets(a, frozenset()) if isinstance(a, set) else _deepcopy(a)


def _add_lists(a: list[Any], b: list[Any]) -> Any:
    items = [*_copied_items(a), *_copied_items(b)]
    if type(a) is list:
        return items
    result = _emptied(a)
    list.extend(result, items)
    return result


def _copy_list(a: list[Any]) -> Any:
    return _add_lists(a, [])


def _add_tuples(a: tuple[Any, ...], b: tuple[Any, ...]) -> Any:
    fields = getattr(a, "_fields", None)
    if fields is None and not hasattr(b, "_fields"):
        return (*_copied_items(a), *_copied_items(b))
    if type(a) is not type(b):
        _add_unlike(a, b)
    return _rebuilt(a, [_add_field(*pair) for pair in zip(fields or (), a, b, strict=True)])


def _add_field(name: str, a: Any, b: Any) -> Any:
    try:
        return _add(a, b)
    except _Mismatch as mismatch:
        mismatch.steps.append(f".{name}")
        raise


def _copy_tuple(a: tuple[Any, ...]) -> Any:
    if type(a) is tuple:
        return a if _IMMUTABLE.issuperset(map(type, a)) else tuple(_copied_items(a))
    return _rebuilt(a, _copied_items(a)) if hasattr(a, "_fields") else _deepcopy(a)


def _rebuilt(like: Any, values: Iterable[Any]) -> Any:
    return type(like)._make(values)


def _copied_items(items: Sequence[Any]) -> Sequence[Any]:
    # what long lists mostly hold needs one pass in C, not a call for each item
    if _IMMUTABLE.issuperset(map(type, items)):
        return items
    return [_copy(item) for item in items]


def _emptied(a: Any) -> Any:
    """Make an empty container of the same type and attributes, whatever its ``__init__`` asks for."""
    if type(a) is dict:
        return {}
    if not isinstance(a, (dict, list, set)):
        # a shallow copy would share what holds the items, and clearing it would clear `a`
        result = _deepcopy(a)
        result.clear()
        return result
    result = _copied(a, copy.copy)
    result.clear()
    for name, value in getattr(result, "__dict__", {}).items():
        vars(result)[name] = _copy(value)
    return result


def _step(key: Any) -> str:
    return f"[{json.dumps(key, ensure_ascii=False) if isinstance(key, str) else repr(key)}]"


# -------------------------------------------------------------------------------------------------- leaves


def _add_text(a: str | bytes, b: str | bytes) -> str | bytes:
    if isinstance(a, str) is isinstance(b, str) and a == b:
        return a
    raise _Mismatch(
        f"the texts differ: {_described(a)} and {_described(b)}",
        advice="text stays in the output only if it is the same everywhere: make it a key, or put it into a set "
        "or a list",
    )


def _add_arrays(a: Any, b: Any) -> Any:
    shapes = getattr(a, "shape", ()), getattr(b, "shape", ())
    if shapes[0] != shapes[1]:
        raise _Mismatch(
            f"shapes differ: {shapes[0]} and {shapes[1]}",
            advice="arrays are added element by element; to append one to the other, put them into lists or "
            "coffea.processor.column_accumulator",
        )
    if a.dtype.kind in "SUT" and bool((a == b).all()):
        return _copy_array(a)
    result = _plus(a, b)
    return _deepcopy(result) if result.dtype.hasobject else result


def _copy_array(a: Any) -> Any:
    return _deepcopy(a) if a.dtype.hasobject else a.copy(order="K")


def _add_awkward(a: Any, b: Any) -> Any:
    for what, left, right in (("lengths", len(a), len(b)), ("depths", a.ndim, b.ndim)):
        if left != right:
            raise _Mismatch(
                f"{what} of the awkward arrays differ: {left} and {right}",
                advice="awkward arrays are added element by element; to append one to the other, use "
                "coffea.processor.column_accumulator",
            )
    return _plus(a, b)


def _add_objects(a: Any, b: Any) -> Any:
    result = _plus(a, b)
    if type(result).__module__.partition(".")[0] in _FRESH_PACKAGES:
        return result
    # a `+` may hand parts of its operands on, as coffea's value_accumulator does with a list's items
    return _copy(result)


def _add_unlike(a: Any, b: Any) -> NoReturn:
    raise _Mismatch(
        f"can't add {type(a).__name__} and {type(b).__name__}: {_described(a)} and {_described(b)}",
        advice="return the same types from every call of process()",
    )


def _plus(a: Any, b: Any) -> Any:
    try:
        return a + b
    except MemoryError:
        # the run answers to it with smaller pieces
        raise
    except Exception as error:
        raise _Mismatch(
            f"can't add {type(a).__name__} and {type(b).__name__}: {_described(a)} and {_described(b)} "
            f"({_cause(error)})",
            advice="return numbers, sets, lists, mappings, histograms or objects whose class has __add__",
        ) from error


def _deepcopy(a: Any) -> Any:
    return _copied(a, copy.deepcopy)


def _copied(a: Any, how: Callable[[Any], Any]) -> Any:
    try:
        return how(a)
    except MemoryError:
        raise
    except Exception as error:
        raise _Mismatch(
            f"can't copy {_described(a)} ({_cause(error)})",
            advice="leave it out of the output: only what can be copied and pickled can be merged",
        ) from error


_short = reprlib.Repr()
_short.maxother = _short.maxstring = 60


def _described(value: Any) -> str:
    text = " ".join(_short.repr(value).split())
    size = f" of {len(value)}" if isinstance(value, (MutableMapping, AbstractSet, list)) else ""
    return f"{type(value).__name__}{size} {text}"


def _cause(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# ---------------------------------------------------------------------------------------------- histograms


def _add_histograms(a: Any, b: Any) -> Any:
    # boost-histogram would merge axes that differ in flow bins only, reading beyond the smaller array
    grown = _check_axes(a, b)
    left, right = (_deepcopy(a), _deepcopy(b)) if grown else (a, b)
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


def _copy_histogram(a: Any) -> Any:
    return _with_own_metadata(_copied(a, copy.copy))


def _with_own_metadata(h: Any) -> Any:
    """Replace a fresh histogram by a deep copy if it shares metadata that could be changed in place."""
    values = [*_attributes(h).values(), *(value for x in h.axes for value in vars(x).values())]
    return h if _IMMUTABLE.issuperset(map(type, values)) else _deepcopy(h)


def _histogram_mismatch(a: Any, b: Any, error: Exception) -> _Mismatch:
    storages = repr(a.storage), repr(b.storage)
    if storages[0] != storages[1]:
        problem = f"storages differ: {storages[0]} and {storages[1]}"
    else:
        problem = f"the histograms can't be added ({_cause(error)})"
    return _Mismatch(problem, advice=_SAME_HISTOGRAMS)


def _check_axes(a: Any, b: Any) -> dict[int, Any]:
    """Raise if axes don't fit; return the common edges of those that boost-histogram can't merge."""
    if len(a.axes) != len(b.axes):
        names = [", ".join(getattr(x, "name", "") or repr(x) for x in h.axes) for h in (a, b)]
        raise _Mismatch(
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
        raise _Mismatch(f"axes differ: {axis}: {difference}", advice=_SAME_HISTOGRAMS)


def _axis_difference(left: Any, right: Any) -> str:
    """Say what keeps two unequal axes from being merged; empty if they only grew differently."""
    if type(left) is not type(right):
        return f"{left!r} and {right!r}"
    for name in {**vars(left), **vars(right)}:
        values = vars(left).get(name), vars(right).get(name)
        if not _equal(*values):
            return f"{name} {_short.repr(values[0])} and {_short.repr(values[1])}"
    for name in ("underflow", "overflow", "circular", "growth"):
        options = getattr(left.traits, name), getattr(right.traits, name)
        if options[0] is not options[1]:
            return f"{name}={options[0]} and {name}={options[1]}"
    if not left.traits.growth or (left.traits.continuous and _common_edges(left, right) is None):
        return f"{_short.repr(left)} and {_short.repr(right)}"
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


_SAME_HISTOGRAMS = "build the histogram in the same way in every call of process()"

_TEXT = _Kind("text", _add_text, _deepcopy)
_MAPPING = _Kind("mapping", _add_mappings, _copy_mapping)
_SET = _Kind("set", _add_sets, _copy_set)
_LIST = _Kind("list", _add_lists, _copy_list)
_TUPLE = _Kind("tuple", _add_tuples, _copy_tuple)
_HISTOGRAM = _Kind("histogram", _add_histograms, _copy_histogram)
_ARRAY = _Kind("array", _add_arrays, _copy_array)
_AWKWARD = _Kind("awkward", _add_awkward, _deepcopy)
_NUMBER = _Kind("number", _plus, _deepcopy)
_OBJECT = _Kind("object", _add_objects, _deepcopy)
_UNLIKE = _Kind("unlike", _add_unlike, _deepcopy)
_MIXED = {
    frozenset({"number", "object"}): _OBJECT,
    frozenset({"number", "array"}): _ARRAY,
}
