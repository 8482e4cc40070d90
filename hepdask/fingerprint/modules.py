"""What a module consists of: its source and all that it imports, and what the loaded one runs in truth.

The file of a module may have been edited since it was imported. So the functions that are loaded count, too: old code
with a new source has a fingerprint of its own, which no other process will ever look up.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from hepdask.fingerprint.atoms import encode_atom
from hepdask.fingerprint.code import ImportedName, read_code
from hepdask.fingerprint.sources import SourceFacts, read_source

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from hepdask.fingerprint.origins import Origin
    from hepdask.fingerprint.walk import Step, Walk

__all__ = [
    "ModuleAttributes",
    "ModuleSource",
    "append_imports",
    "append_source",
    "expand_attributes",
    "expand_module",
    "expand_source",
    "is_edited",
]


@dataclass(frozen=True, slots=True)
class ModuleSource:
    """A module of the user's, all of it."""

    origin: Origin
    """Where its file is."""


@dataclass(frozen=True, slots=True)
class ModuleAttributes:
    """Those attributes of a loaded module that some code may look up."""

    module: ModuleType
    """The user's, or one without a file."""
    names: frozenset[str]
    """Some are attributes of other things, and are ignored."""


def append_source(walk: Walk, index: int, origin: Origin) -> None:
    """Add a module of the user's, or the version of a library."""
    version = walk.note(origin)
    if origin.kind == "user":
        walk.append(index, ModuleSource(origin), is_weak=True, key=("source", origin.name))
    elif origin.kind == "library":
        walk.mark(index, origin.name, version)


def append_imports(
    walk: Walk, index: int, imports: Iterable[ImportedName], package: str
) -> set[str]:
    """Add all modules that imports run; return their names."""
    found = {
        origin.name: origin
        for imported in imports
        for origin in walk.origins.resolve(imported, package)
    }
    kept = {name: one for name, one in sorted(found.items()) if one.kind in {"user", "library"}}
    walk.mark(index, f"imports {len(kept)}")
    for name, origin in kept.items():
        walk.mark(index, name)
        append_source(walk, index, origin)
    return set(found)


def expand_source(walk: Walk, index: int, source: ModuleSource) -> None:
    """Fill the node of a module of the user's."""
    origin = source.origin
    facts = _read(origin)
    node = walk.nodes[index]
    node.label = b"module"
    walk.mark(index, facts.digest)
    above, _, _ = origin.name.rpartition(".")
    package = origin.name if origin.locations is not None else above
    parents = (ImportedName(above),) if above else ()
    # a module may be imported under another name, and it may import itself
    append_imports(walk, index, {*facts.imports, *parents}, package)
    directory = str(Path(origin.file).parent) if origin.file else ""
    for text in sorted(facts.strings):
        walk.append_file(index, text)
        walk.append_file(index, text, directory)
    module = sys.modules.get(origin.name)
    if isinstance(module, ModuleType):
        _append_loaded(walk, index, vars(module), facts)


def _read(origin: Origin) -> SourceFacts:
    if origin.file is None:
        return SourceFacts(b"no file")
    with suppress(OSError):
        return read_source(origin.file)
    loader = getattr(sys.modules.get(origin.name), "__loader__", None)
    with suppress(Exception):  # a module in an archive
        return SourceFacts(b"data" + loader.get_data(origin.file))  # type: ignore[union-attr]
    return SourceFacts(b"no file")


def _append_loaded(
    walk: Walk, index: int, namespace: Mapping[str, Any], facts: SourceFacts
) -> None:
    """Add in what the loaded module is not what its file says; nothing, as long as nobody edited or patched it."""
    digests = set(_list_codes(namespace, namespace, set())) - facts.codes
    if digests:
        walk.mark(index, f"loaded {len(digests)}", *sorted(digests))
    for name, encoded in facts.constants:
        loaded = encode_atom(namespace.get(name))
        if loaded != encoded:
            walk.mark(index, f"loaded {name}", b"another object" if loaded is None else loaded)


def is_edited(origin: Origin) -> bool:
    """Return whether a loaded module has functions that its file doesn't have: one of them was changed since the import."""
    module = sys.modules.get(origin.name)
    if not isinstance(module, ModuleType) or origin.file is None:
        return False
    if type(vars(module).get("__loader__")) is not SourceFileLoader:
        return False  # pytest's, say, changes what it loads
    facts = _read(origin)
    # a compiled module, or one that is half edited, can't be compared
    return bool(facts.codes) and not facts.codes.issuperset(
        _list_codes(vars(module), vars(module), set())
    )


def _list_codes(
    namespace: Mapping[str, Any], home: Mapping[str, Any], seen: set[int]
) -> Iterator[bytes]:
    """List the digests of the functions in a module's namespace, and in that of its classes."""
    for value in list(namespace.values()):
        for part in _unwrap(value):
            if isinstance(part, FunctionType):
                # dataclasses and the like write functions of their own
                is_written = not part.__code__.co_filename.startswith("<")
                if part.__globals__ is home and is_written:
                    yield read_code(part.__code__).digest
            elif isinstance(part, type) and id(part) not in seen:
                seen.add(id(part))
                if part.__module__ == home.get("__name__"):
                    yield from _list_codes(vars(part), home, seen)


def _unwrap(value: Any) -> Iterator[Any]:
    """List the functions that a function wraps, itself first; those of a property; or the value."""
    if isinstance(value, FunctionType):
        seen: set[int] = set()
        while isinstance(value, FunctionType) and id(value) not in seen:
            seen.add(id(value))
            yield value
            value = vars(value).get("__wrapped__")
    elif isinstance(value, property):
        yield from (value.fget, value.fset, value.fdel)
    elif isinstance(value, classmethod | staticmethod):
        yield value.__func__
    else:
        yield value


def expand_module(walk: Walk, index: int, module: ModuleType) -> None:
    """Fill the node of a module that something refers to."""
    node = walk.nodes[index]
    name = module.__name__
    if sys.modules.get(name) is not module:
        node.label = b"module without a place"
        walk.append(
            index, ModuleAttributes(module, frozenset(vars(module))), key=("all", id(module))
        )
        return
    origin = walk.origins.find(name)
    node.label = b"module reference"
    if origin.kind != "user":
        walk.mark(index, name)
    append_source(walk, index, origin)


def expand_attributes(walk: Walk, index: int, wanted: ModuleAttributes) -> None:
    """Fill the node of a module's attributes with their values of now, which may not be those of its source."""
    namespace = vars(wanted.module)
    names = sorted(wanted.names & namespace.keys() - _PLACES)
    walk.nodes[index].label = b"module attributes"
    if sys.modules.get(wanted.module.__name__) is wanted.module:
        walk.append(index, wanted.module)
    is_weak = walk.origins.find(wanted.module.__name__).kind == "user"
    append_named(walk, index, {name: namespace[name] for name in names}, wanted.names, is_weak)


#: what the interpreter puts into a module: where it is, and how it was found
_PLACES = frozenset(
    {
        "__annotations__", "__builtins__", "__cached__", "__doc__", "__file__", "__loader__", "__path__", "__spec__",
        "__warningregistry__",
    }
)  # fmt: skip


def append_named(
    walk: Walk,
    index: int,
    values: Mapping[str, Any],
    attributes: frozenset[str],
    is_weak: bool,
) -> None:
    """Add the globals that some code names.

    Parameters
    ----------
    walk : Walk
        The graph.
    index : int
        The node.
    values : mapping of str to object
        The globals.
    attributes : frozenset of str
        What the code looks up in them, if they are modules.
    is_weak : bool
        True if the source of their module counts anyway.
    """
    kept = {name: value for name, value in values.items() if name not in _PLACES}
    walk.mark(index, f"globals {len(kept)}")
    for name, value in kept.items():
        walk.mark(index, name)
        step: Step = (", global {}", name)
        if isinstance(value, ModuleType):
            append_module(walk, index, value, attributes, step)
        else:
            walk.append(index, value, step, is_weak=is_weak)


def append_module(
    walk: Walk, index: int, module: ModuleType, attributes: frozenset[str], step: Step
) -> None:
    """Add a module with what some code may look up in it."""
    if walk.origins.find(module.__name__).kind in {"standard", "library"}:
        walk.append(index, module, step)
        return
    wanted = ModuleAttributes(module, attributes)
    walk.append(index, wanted, step, key=("attributes", id(module), attributes))
