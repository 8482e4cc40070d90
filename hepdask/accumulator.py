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
import sys
from collections.abc import Callable, Iterable, MutableMapping, MutableSet, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

from hepdask.errors import AccumulatorError
from hepdask.histograms import add_histograms, copy_histogram
from hepdask.mismatch import IMMUTABLE, Mismatch, copy_deeply, copy_with, describe, describe_cause

__all__ = ["add", "copy_accumulator"]

# the rules below stand in for the `+` of these; a `+` that a user's subclass defines is used as it is
_KNOWN_PACKAGES = frozenset(
    {"awkward", "boost_histogram", "builtins", "coffea", "collections", "hist", "numpy"}
)
# whose `+` gives an object of its own, so that it need not be copied once more
_FRESH_PACKAGES = frozenset({"datetime", "decimal", "fractions", "numpy", "pandas"})


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
    except Mismatch as mismatch:
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
    except Mismatch as mismatch:
        raise AccumulatorError(mismatch.text()) from mismatch.__cause__


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
    return a if type(a) in IMMUTABLE else _kind(a).copy(a)


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
    except Mismatch as mismatch:
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
    return _add_sets(a, frozenset()) if isinstance(a, set) else copy_deeply(a)


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
    except Mismatch as mismatch:
        mismatch.steps.append(f".{name}")
        raise


def _copy_tuple(a: tuple[Any, ...]) -> Any:
    if type(a) is tuple:
        return a if IMMUTABLE.issuperset(map(type, a)) else tuple(_copied_items(a))
    return _rebuilt(a, _copied_items(a)) if hasattr(a, "_fields") else copy_deeply(a)


def _rebuilt(like: Any, values: Iterable[Any]) -> Any:
    return type(like)._make(values)


def _copied_items(items: Sequence[Any]) -> Sequence[Any]:
    # what long lists mostly hold needs one pass in C, not a call for each item
    if IMMUTABLE.issuperset(map(type, items)):
        return items
    return [_copy(item) for item in items]


def _emptied(a: Any) -> Any:
    """Make an empty container of the same type and attributes, whatever its ``__init__`` asks for."""
    if type(a) is dict:
        return {}
    if not isinstance(a, (dict, list, set)):
        # a shallow copy would share what holds the items, and clearing it would clear `a`
        result = copy_deeply(a)
        result.clear()
        return result
    result = copy_with(a, copy.copy)
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
    raise Mismatch(
        f"the texts differ: {describe(a)} and {describe(b)}",
        advice="text stays in the output only if it is the same everywhere: make it a key, or put it into a set "
        "or a list",
    )


def _add_arrays(a: Any, b: Any) -> Any:
    shapes = getattr(a, "shape", ()), getattr(b, "shape", ())
    if shapes[0] != shapes[1]:
        raise Mismatch(
            f"shapes differ: {shapes[0]} and {shapes[1]}",
            advice="arrays are added element by element; to append one to the other, put them into lists or "
            "coffea.processor.column_accumulator",
        )
    if a.dtype.kind in "SUT" and bool((a == b).all()):
        return _copy_array(a)
    result = _plus(a, b)
    return copy_deeply(result) if result.dtype.hasobject else result


def _copy_array(a: Any) -> Any:
    return copy_deeply(a) if a.dtype.hasobject else a.copy(order="K")


def _add_awkward(a: Any, b: Any) -> Any:
    for what, left, right in (("lengths", len(a), len(b)), ("depths", a.ndim, b.ndim)):
        if left != right:
            raise Mismatch(
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
    raise Mismatch(
        f"can't add {type(a).__name__} and {type(b).__name__}: {describe(a)} and {describe(b)}",
        advice="return the same types from every call of process()",
    )


def _plus(a: Any, b: Any) -> Any:
    try:
        return a + b
    except MemoryError:
        # the run answers to it with smaller pieces
        raise
    except Exception as error:
        raise Mismatch(
            f"can't add {type(a).__name__} and {type(b).__name__}: {describe(a)} and {describe(b)} "
            f"({describe_cause(error)})",
            advice="return numbers, sets, lists, mappings, histograms or objects whose class has __add__",
        ) from error


_TEXT = _Kind("text", _add_text, copy_deeply)
_MAPPING = _Kind("mapping", _add_mappings, _copy_mapping)
_SET = _Kind("set", _add_sets, _copy_set)
_LIST = _Kind("list", _add_lists, _copy_list)
_TUPLE = _Kind("tuple", _add_tuples, _copy_tuple)
_HISTOGRAM = _Kind("histogram", add_histograms, copy_histogram)
_ARRAY = _Kind("array", _add_arrays, _copy_array)
_AWKWARD = _Kind("awkward", _add_awkward, copy_deeply)
_NUMBER = _Kind("number", _plus, copy_deeply)
_OBJECT = _Kind("object", _add_objects, copy_deeply)
_UNLIKE = _Kind("unlike", _add_unlike, copy_deeply)
_MIXED = {
    frozenset({"number", "object"}): _OBJECT,
    frozenset({"number", "array"}): _ARRAY,
}
