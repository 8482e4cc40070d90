"""What a value consists of: containers by their elements, everything else by what pickle would take along.

Pickle's own bytes don't do: they depend on which equal strings are one object, and hold functions by name only.
"""

from __future__ import annotations

import copyreg
import functools
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    CellType,
    ClassMethodDescriptorType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import TYPE_CHECKING, Any

from hepdask.fingerprint.code import read_code
from hepdask.fingerprint.definitions import (
    expand_builtin,
    expand_cell,
    expand_class,
    expand_function,
    expand_method,
)
from hepdask.fingerprint.modules import (
    ModuleAttributes,
    ModuleSource,
    append_source,
    expand_attributes,
    expand_module,
    expand_source,
)

if TYPE_CHECKING:
    from hepdask.fingerprint.walk import Walk

__all__ = ["HOOK", "Root", "expand"]

#: The name of a method by which an object says itself what stands for its state.
HOOK = "__hepdask_fingerprint__"


@dataclass(frozen=True, slots=True)
class Root:
    """What a walk starts from."""

    value: Any
    """The value to take apart."""


class _Behaviors:
    """Stands for awkward's global behaviors."""


_ENUM_ATTRIBUTES = frozenset({"__objclass__", "_inverted_", "_name_", "_sort_order_", "_value_"})
_NEW_OBJECT: Any = vars(copyreg)["__newobj__"]
Expand = Callable[["Walk", int, Any], None]


def expand(walk: Walk, index: int, value: Any) -> None:
    """Fill the node of any value."""
    kind = type(value)
    exact = _EXACT.get(kind)
    if exact is not None:
        exact(walk, index, value)
    elif isinstance(value, type):
        expand_class(walk, index, value)
    elif isinstance(value, ModuleType):
        expand_module(walk, index, value)
    elif hasattr(kind, HOOK):
        _expand_hook(walk, index, value)
    else:
        special = next((one for known, one in _INSTANCES if isinstance(value, known)), None)
        (special or _find_foreign(kind) or _expand_object)(walk, index, value)


def _expand_root(walk: Walk, index: int, root: Root) -> None:
    walk.nodes[index].label = b"root"
    walk.append(index, root.value)
    walk.append(index, _Behaviors(), is_weak=True)


def _expand_behaviors(walk: Walk, index: int, _: _Behaviors) -> None:
    """Add what the user's code registered in awkward: arrays behave by it, though nothing refers to it."""
    walk.nodes[index].label = b"behaviors"
    walk.nodes[index].is_unordered = True
    behavior = getattr(sys.modules.get("awkward"), "behavior", None) or {}
    for key, value in behavior.items():
        home = getattr(value, "__module__", None)
        if isinstance(home, str) and walk.origins.find(home).kind in {"user", "unknown"}:
            walk.append(index, (key, value), is_weak=True)


def _expand_elements(walk: Walk, index: int, value: Any) -> None:
    walk.nodes[index].label = type(value).__name__.encode()
    for number, element in enumerate(value):
        walk.append(index, element, ("[{}]", number))


def _expand_set(walk: Walk, index: int, value: Any) -> None:
    walk.nodes[index].label = type(value).__name__.encode()
    walk.nodes[index].is_unordered = True
    for element in value:
        walk.append(index, element, (" element {!r:.60}", element))


def _expand_mapping(walk: Walk, index: int, value: Any) -> None:
    walk.nodes[index].label = type(value).__name__.encode()
    walk.append_items(index, value.items(), "[{!r:.60}]")


def _expand_code(walk: Walk, index: int, code: CodeType) -> None:
    facts = read_code(code)
    walk.nodes[index].label = b"code"
    walk.mark(index, facts.digest)
    for text in sorted(facts.strings):
        walk.append_file(index, text)


def _expand_property(walk: Walk, index: int, value: property) -> None:
    walk.nodes[index].label = type(value).__name__.encode()
    walk.append(index, type(value))
    for part in (value.fget, value.fset, value.fdel):
        walk.append(index, part)


def _expand_wrapped(walk: Walk, index: int, value: Any) -> None:
    walk.nodes[index].label = type(value).__name__.encode()
    walk.append(index, value.__func__)


def _expand_cached_property(walk: Walk, index: int, value: Any) -> None:
    walk.nodes[index].label = b"cached property"
    walk.append(index, value.func)


def _expand_cached_function(walk: Walk, index: int, value: Any) -> None:
    walk.nodes[index].label = b"cached function"
    walk.append(index, value.__wrapped__)
    walk.append_items(index, value.cache_parameters().items(), "[{!r}]")


def _expand_enum(walk: Walk, index: int, value: Enum) -> None:
    walk.nodes[index].label = b"enum"
    walk.append(index, type(value))
    walk.append(index, value.name)
    walk.append(index, value._value_)
    attributes = {name: one for name, one in vars(value).items() if name not in _ENUM_ATTRIBUTES}
    walk.append_items(index, attributes.items(), ".{}")


def _expand_path(walk: Walk, index: int, value: PurePath) -> None:
    walk.nodes[index].label = b"path"
    walk.append(index, type(value))
    walk.append(index, str(value))


def _expand_hook(walk: Walk, index: int, value: Any) -> None:
    state = getattr(value, HOOK)()
    if not isinstance(state, str | bytes | tuple):
        raise TypeError(f"its {HOOK}() returned {type(state).__name__}, not str, bytes or tuple")
    walk.nodes[index].label = b"hook"
    walk.append(index, type(value), (", class", None))
    walk.append(index, state, (f".{HOOK}()", None))


def _find_foreign(kind: type) -> Expand | None:
    """Find a way for the types of libraries that pickle doesn't show well; the library is there if its type is."""
    library = kind.__module__.partition(".")[0]
    if library == "numpy" and kind is sys.modules["numpy"].ndarray:
        return _expand_array
    if library == "numba" and (hasattr(kind, "py_func") or hasattr(kind, "_dispatcher")):
        return _expand_compiled
    if library == "numba" and kind.__name__ in {"CPUDispatcher", "DUFunc"}:
        return _expand_compiled
    return None


def _expand_array(walk: Walk, index: int, array: Any) -> None:
    walk.nodes[index].label = b"array"
    has_objects = array.dtype.hasobject
    if not has_objects:
        # pickle may change the order of bytes
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    walk.append(index, array.dtype)
    walk.append(index, array.shape)
    walk.append(index, array.ravel().tolist() if has_objects else array.tobytes())


def _expand_compiled(walk: Walk, index: int, function: Any) -> None:
    """Take numba's function for what it was compiled from; its pickle has a name that is new in each process."""
    walk.nodes[index].label = b"numba"
    walk.append(index, type(function))
    dispatcher = getattr(function, "_dispatcher", function)
    walk.append(index, dispatcher.py_func)
    walk.append_items(index, dispatcher.targetoptions.items(), "[{!r}]")


def _expand_object(walk: Walk, index: int, value: Any) -> None:
    kind = type(value)
    reducer = copyreg.dispatch_table.get(kind)
    reduced = reducer(value) if reducer is not None else value.__reduce_ex__(4)
    walk.nodes[index].label = b"object"
    walk.append(index, kind, (", class", None))
    if isinstance(reduced, str):
        _append_name(walk, index, value, reduced)
        return
    parts = [*reduced, *[None] * (6 - len(reduced))]
    function, arguments, state, elements, items, setter = parts
    if function is _NEW_OBJECT and arguments[:1] == (kind,):
        arguments = arguments[1:]
    else:
        walk.append(index, function, (", rebuilt by", None))
    walk.mark(index, f"arguments {len(arguments)}")
    for number, argument in enumerate(arguments):
        walk.append(index, argument, (", rebuilt from [{}]", number))
    _append_state(walk, index, state)
    if elements is not None:
        walk.append(index, list(elements))
    if items is not None:
        walk.append_items(index, items, "[{!r:.60}]")
    if setter is not None:
        walk.mark(index, "setter")
        walk.append(index, setter)


def _append_state(walk: Walk, index: int, state: Any) -> None:
    """Add the attributes of an object: a dictionary, one with that of its slots, or what its __getstate__ returned."""
    is_pair = type(state) is tuple and len(state) == 2
    if is_pair and type(state[1]) is dict and (state[0] is None or type(state[0]) is dict):
        walk.mark(index, "slots")
        _append_state(walk, index, state[0])
        _append_state(walk, index, state[1])
    elif type(state) is dict:
        walk.append_items(index, state.items(), ".{}")
    else:
        walk.append(index, state, (".__getstate__()", None))


def _append_name(walk: Walk, index: int, value: Any, name: str) -> None:
    """Add an object that pickle refers to by its name in a module."""
    home = _find_home(value, name)
    walk.mark(index, home, name)
    append_source(walk, index, walk.origins.find(home))
    wrapped = getattr(value, "__wrapped__", None)
    if wrapped is not None:
        walk.append(index, wrapped)


def _find_home(value: Any, name: str) -> str:
    top = type(value).__module__.partition(".")[0]
    # the last one goes through all modules
    guesses: tuple[Callable[[], Any], ...] = (
        lambda: getattr(value, "__module__", None),
        lambda: top,
        lambda: pickle.whichmodule(value, name),  # type: ignore[attr-defined]  # not in typeshed
    )
    for guess in guesses:
        home = guess()
        found: Any = sys.modules.get(str(home))
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is value:
            return str(home)
    raise TypeError(f"it calls itself {name!r}, and no module has it under this name")


_EXACT: dict[type, Expand] = {
    list: _expand_elements,
    tuple: _expand_elements,
    set: _expand_set,
    frozenset: _expand_set,
    dict: _expand_mapping,
    MappingProxyType: _expand_mapping,
    FunctionType: expand_function,
    MethodType: expand_method,
    CellType: expand_cell,
    CodeType: _expand_code,
    Root: _expand_root,
    _Behaviors: _expand_behaviors,
    ModuleSource: expand_source,
    ModuleAttributes: expand_attributes,
    functools._lru_cache_wrapper: _expand_cached_function,
    functools.cached_property: _expand_cached_property,
    BuiltinFunctionType: expand_builtin,
    ClassMethodDescriptorType: expand_builtin,
    GetSetDescriptorType: expand_builtin,
    MemberDescriptorType: expand_builtin,
    MethodDescriptorType: expand_builtin,
    MethodWrapperType: expand_builtin,
    WrapperDescriptorType: expand_builtin,
}
_INSTANCES: tuple[tuple[Any, Expand], ...] = (
    (property, _expand_property),
    (classmethod | staticmethod, _expand_wrapped),
    (Enum, _expand_enum),
    (PurePath, _expand_path),
)
