"""What functions and classes consist of.

Those of libraries count by name and version. The user's count by their code and all that it names: globals with their
values of now, classes with their attributes, closures; and by the source of their module, if they have one. For what is
defined in a notebook or a script, code is all there is: the file has more than the processor, and may have changed.
"""

from __future__ import annotations

import sys
from types import CellType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

from hepdask.fingerprint.code import read_code
from hepdask.fingerprint.modules import (
    append_imports,
    append_module,
    append_named,
    append_source,
)

if TYPE_CHECKING:
    from hepdask.fingerprint.origins import Origin
    from hepdask.fingerprint.walk import Walk

__all__ = ["expand_builtin", "expand_cell", "expand_class", "expand_function", "expand_method"]

_IGNORED_ATTRIBUTES = frozenset(
    {
        "__abstractmethods__", "__annotations_cache__", "__dict__", "__doc__", "__firstlineno__", "__module__",
        "__slotnames__", "__static_attributes__", "__weakref__", "_abc_impl",
    }
)  # fmt: skip
_HEAP_TYPE = 1 << 9
_LIBRARY_KINDS = frozenset({"standard", "library"})


def expand_function(walk: Walk, index: int, function: FunctionType) -> None:
    """Fill the node of a function that is written in Python."""
    # functools.wraps changes __module__, but never the globals
    home = str(function.__globals__.get("__name__") or "")
    origin = walk.origins.find(home)
    facts = read_code(function.__code__)
    is_library = origin.kind in _LIBRARY_KINDS
    if is_library and _is_found(function, home, function.__qualname__):
        _refer(walk, index, origin, home, function.__qualname__)
        return
    walk.nodes[index].label = b"function"
    walk.mark(index, function.__qualname__, facts.digest)
    append_source(walk, index, origin)
    if is_library and "registry" in vars(function):  # functools.singledispatch; the rest is a cache
        walk.append(index, function.registry, (".registry", None))  # type: ignore[attr-defined]
        return
    _append_bindings(walk, index, function)
    if is_library:
        return
    for text in sorted(facts.strings):
        walk.append_file(index, text)
    is_weak = origin.kind == "user"
    values = function.__globals__
    named = {name: values[name] for name in sorted(facts.global_names) if name in values}
    append_named(walk, index, named, facts.attributes, is_weak)
    package = str(values.get("__package__") or "")
    for name in sorted(append_imports(walk, index, facts.imports, package)):
        module = sys.modules.get(name)
        if isinstance(module, ModuleType):
            append_module(
                walk, index, module, facts.attributes | _list_imported(facts), (".{}", name)
            )


def _list_imported(facts: Any) -> frozenset[str]:
    return frozenset(name for imported in facts.imports for name in imported.names)


def _append_bindings(walk: Walk, index: int, function: FunctionType) -> None:
    """Add what a function got when it was defined, not when it is called."""
    walk.append(index, function.__defaults__, (", defaults", None))
    walk.append(index, function.__kwdefaults__, (", defaults", None))
    cells = function.__closure__ or ()
    walk.mark(index, f"closure {len(cells)}")
    for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
        walk.append(index, cell, (", variable {}", name))
    walk.append_items(index, vars(function).items(), ".{}")
    try:
        annotations = function.__annotations__
    except Exception:  # noqa: BLE001  # worked out lazily since Python 3.14
        annotations = {}
    walk.mark(index, f"annotations {len(annotations)}")
    for name, value in annotations.items():
        walk.mark(index, name)
        walk.append(index, value, is_weak=True)


def expand_class(walk: Walk, index: int, kind: type) -> None:
    """Fill the node of a class."""
    home = str(kind.__module__)
    origin = walk.origins.find(home)
    is_static = not kind.__flags__ & _HEAP_TYPE
    is_library = origin.kind in _LIBRARY_KINDS
    if is_static or (is_library and _is_found(kind, home, kind.__qualname__)):
        _refer(walk, index, origin, home, kind.__qualname__)
        return
    walk.nodes[index].label = b"class"
    walk.mark(index, kind.__qualname__)
    append_source(walk, index, origin)
    walk.mark(index, f"bases {len(kind.__bases__)}")
    for base in kind.__bases__:
        walk.append(index, base, (", base class", None))
    walk.append(index, type(kind))
    attributes = {
        name: value
        for name, value in sorted(vars(kind).items(), key=lambda item: str(item[0]))
        if name not in _IGNORED_ATTRIBUTES
    }
    walk.mark(index, f"attributes {len(attributes)}")
    for name, value in attributes.items():
        # those with underscores are made by decorators and base classes, compiled validators among them
        is_weak = origin.kind != "unknown" or str(name).startswith("__")
        walk.mark(index, str(name))
        walk.append(index, value, (".{}", name), is_weak=is_weak)


def expand_method(walk: Walk, index: int, method: MethodType) -> None:
    """Fill the node of a bound method."""
    walk.nodes[index].label = b"method"
    walk.append(index, method.__func__, (".{}", getattr(method, "__name__", "__func__")))
    walk.append(index, method.__self__, (".__self__", None))


def expand_builtin(walk: Walk, index: int, function: Any) -> None:
    """Fill the node of a function or a descriptor that is compiled."""
    owner = getattr(function, "__objclass__", None) or getattr(function, "__self__", None)
    home = getattr(function, "__module__", None)
    name = str(getattr(function, "__qualname__", function.__name__))
    if owner is None or isinstance(owner, ModuleType):
        home = str(home or getattr(owner, "__name__", ""))
        _refer(walk, index, walk.origins.find(home), home, name)
        return
    walk.nodes[index].label = b"compiled method"
    walk.mark(index, name)
    walk.append(index, owner, (".__self__", None))


def expand_cell(walk: Walk, index: int, cell: CellType) -> None:
    """Fill the node of a variable in a closure."""
    walk.nodes[index].label = b"cell"
    try:
        walk.append(index, cell.cell_contents)
    except ValueError:  # a name that is bound only later
        walk.mark(index, "empty")


def _refer(walk: Walk, index: int, origin: Origin, home: str, name: str) -> None:
    walk.nodes[index].label = b"reference"
    walk.mark(index, home, name)
    append_source(walk, index, origin)


def _is_found(value: Any, home: str, qualname: str) -> bool:
    found: Any = sys.modules.get(home)
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found is value
