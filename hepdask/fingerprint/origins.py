"""Whose a module is: Python's, a library's, or the user's own.

A library counts by its version. But what a user installs from a directory (``pip install .``) or puts into site-packages
by hand is edited without a new version: it counts as the user's, as editable installs do.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hepdask.fingerprint.code import ImportedName

__all__ = ["Origin", "Origins"]

_LIBRARY_DIRECTORIES = frozenset({"dist-packages", "site-packages"})
#: counts by its version even where it is installed from a directory: a new result format is a new version
_ALWAYS_LIBRARIES = frozenset({"hepdask"})

Kind = Literal["standard", "library", "user", "unknown"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose a module is, and where it lies."""

    name: str
    """Of the module; for a library's, of the library's top one."""
    kind: Kind
    """``unknown`` for ``__main__``, a notebook, and what has no file at all."""
    file: str | None = None
    """The user's source or compiled module; None for others, and for a package without ``__init__``."""
    locations: tuple[str, ...] | None = None
    """Directories of a package; None for a plain module."""
    versions: tuple[tuple[str, str], ...] = ()
    """Distributions of a library with their versions."""


class Origins:
    """Finds the origins of modules by name, without importing any; valid for one walk."""

    def __init__(self) -> None:
        self._found: dict[str, Origin | None] = {}

    def find(self, name: str) -> Origin:
        """Return the origin of a module, or of its nearest parent that exists: compiled ones have parts of their own."""
        while name:
            found = self.find_exactly(name)
            if found is not None:
                return found
            name = name.rpartition(".")[0]
        return Origin("", "unknown")

    def find_exactly(self, name: str) -> Origin | None:
        """Return the origin of a module, None if there is none of that name."""
        if name not in self._found:
            self._found[name] = self._search(name)
        return self._found[name]

    def resolve(self, imported: ImportedName, package: str) -> Iterator[Origin]:
        """Find all modules that an import runs, those that exist.

        Parameters
        ----------
        imported : ImportedName
            As it is written.
        package : str
            What a relative import starts from.
        """
        base = imported.module
        if imported.level:
            parts = package.split(".")
            parts = parts[: len(parts) - imported.level + 1]
            base = ".".join([*parts, base] if base else parts)
        parts = base.split(".") if base else []
        names = [".".join(parts[: end + 1]) for end in range(len(parts))]
        for name in (*names, *(f"{base}.{one}" for one in imported.names if base)):
            origin = self.find_exactly(name)
            if origin is not None:
                yield origin

    def _search(self, name: str) -> Origin | None:
        if name == "__main__" or not name:
            return Origin(name, "unknown")
        top, _, rest = name.partition(".")
        if top in _ALWAYS_LIBRARIES:
            version = str(getattr(sys.modules.get(top), "__version__", ""))
            return Origin(top, "library", versions=((top, version),))
        if rest:
            above = self.find_exactly(name.rpartition(".")[0])
            if above is None or above.kind in {"standard", "library"}:
                return above
        else:
            above = None
        module = sys.modules.get(name)
        if isinstance(module, ModuleType):
            return _classify(name, *_read_place(module))
        return _classify_unloaded(name, above)


def _read_place(module: ModuleType) -> tuple[str | None, tuple[str, ...] | None]:
    file = vars(module).get("__file__")
    try:
        locations = tuple(str(one) for one in vars(module).get("__path__") or ())
    except TypeError:
        locations = ()
    return file if isinstance(file, str) else None, locations or None


def _classify_unloaded(name: str, above: Origin | None) -> Origin | None:
    path = None if above is None else list(above.locations or ())
    if path == []:
        return None
    for finder in sys.meta_path:
        find_spec: Any = getattr(finder, "find_spec", None)
        try:
            spec = None if find_spec is None else find_spec(name, path, None)
        except Exception:  # noqa: BLE001  # a finder is anybody's code
            spec = None
        if spec is not None:
            locations = tuple(str(one) for one in spec.submodule_search_locations or ())
            return _classify(name, spec.origin if spec.has_location else None, locations or None)
    return None


def _classify(name: str, file: str | None, locations: tuple[str, ...] | None) -> Origin:
    top = name.partition(".")[0]
    places = [file] if file is not None else list(locations or ())
    if not places:
        is_standard = top in sys.stdlib_module_names or top in sys.builtin_module_names
        return Origin(name, "standard" if is_standard else "unknown")
    if all(_is_in_library(place) for place in places):
        versions = _find_versions(top)
        if versions:
            return Origin(top, "library", locations=locations, versions=versions)
    elif all(_is_standard(place) for place in places):
        return Origin(name, "standard", locations=locations)
    return Origin(name, "user", file and os.path.abspath(file), locations)  # noqa: PTH100


def _is_in_library(path: str) -> bool:
    return not _LIBRARY_DIRECTORIES.isdisjoint(PurePath(path).parts)


def _is_standard(path: str) -> bool:
    return path.startswith(_list_standard_directories())


@cache
def _list_standard_directories() -> tuple[str, ...]:
    paths = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    real = [os.path.realpath(path) for path in paths]
    return tuple(f"{path}{os.sep}" for path in (*paths, *real))


@cache
def _find_versions(top: str) -> tuple[tuple[str, str], ...]:
    """Return the distributions that a top-level module belongs to; none if it is the user's in truth."""
    found = _find_distributions(top)
    if any(_is_from_directory(one) for one in found):
        return ()
    versions = sorted({(one.metadata["Name"] or top, _read_version(one)) for one in found})
    if not versions:
        version = getattr(sys.modules.get(top), "__version__", None)
        return ((top, version),) if isinstance(version, str) else ()
    return tuple(versions)


def _find_distributions(top: str) -> list[importlib.metadata.Distribution]:
    try:
        found = importlib.metadata.distribution(top)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        found = None
    # a distribution of the same name may hold another module: attr is in attrs
    if found is not None and _holds(found, top):
        return [found]
    return [importlib.metadata.distribution(name) for name in set(_map_modules().get(top, ()))]


@cache
def _map_modules() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())  # 0.1 to 0.3 s


def _holds(found: importlib.metadata.Distribution, top: str) -> bool:
    record = found.read_text("RECORD")
    return record is None or f"\n{top}/" in f"\n{record}" or f"\n{top}." in f"\n{record}"


def _read_url(found: importlib.metadata.Distribution) -> dict[str, Any]:
    """Return where pip says that it has a distribution from (PEP 610); empty for one from an index."""
    try:
        content = json.loads(found.read_text("direct_url.json") or "{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _is_from_directory(found: importlib.metadata.Distribution) -> bool:
    return "dir_info" in _read_url(found)


def _read_version(found: importlib.metadata.Distribution) -> str:
    url = _read_url(found)
    exact = [url[key] for key in ("vcs_info", "archive_info") if key in url]
    return found.version + (f"+{json.dumps(exact, sort_keys=True)}" if exact else "")
