"""Data files of the user's that a processor opens: the same name here and on every worker."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hepdask.errors import FileReadError, OptionError, suggest
from hepdask.shipping.arrival import active_resource, find_shipped
from hepdask.shipping.options import Shipping
from hepdask.shipping.packing import Unit, build_file_unit

__all__ = [
    "Resource",
    "build_resource_units",
    "declare",
    "digest_resource",
    "read_resources",
    "resource",
]

#: What runs of this process have declared: path by name.
_declared: dict[str, str] = {}
#: Of what is shipped with a processor; `Shipping.max_bytes` is checked when it is sent.
_NO_LIMIT = Shipping(max_bytes=1 << 62)


class Resource(os.PathLike[str]):
    """A file or a directory that is shipped with the processor that holds it: a path to whatever takes paths.

    Parameters
    ----------
    name : str
        How it is called everywhere.
    path : str
        Where it is on the machine of the user.
    digest : str
        Of its content, once it has been shipped.
    """

    def __init__(self, name: str, path: str, digest: str = "") -> None:
        self.name = name
        self._path = path
        self._digest = digest

    def __fspath__(self) -> str:
        shipped = find_shipped(self._digest) if self._digest else None
        if shipped is not None:
            return str(shipped / self.name)
        if not self._path or not os.path.exists(self._path):  # noqa: PTH110
            raise FileReadError(
                f"the resource {self.name!r} is neither shipped to this process nor at {self._path or 'any path'}: declare "
                "it with Runner(resources=[...]), or make it with hepdask.resource(path) where the processor is made"
            )
        return self._path

    def __str__(self) -> str:
        return self.__fspath__()

    def __repr__(self) -> str:
        return f"resource({self.name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Resource) and (self.name, self._path, self._digest) == (
            other.name,
            other._path,
            other._digest,
        )

    def __hash__(self) -> int:
        return hash((self.name, self._path, self._digest))

    @property
    def source(self) -> str | None:
        """Where it is on this machine; None if it was shipped here."""
        return None if self._digest else self._path

    def __reduce__(self) -> tuple[Any, ...]:
        # another content is another resource, for whoever unpickles it
        return type(self), (
            self.name,
            self._path,
            self._digest or digest_resource(self.name, self._path),
        )

    def __hepdask_fingerprint__(self) -> tuple[str, str]:
        return self.name, self._digest or digest_resource(self.name, self._path)


def resource(path: str | os.PathLike[str]) -> Resource:
    """Name a data file that is there on every worker.

    Where a processor is made, it takes a path, and the file is shipped with the processor. In ``process`` it takes the name of a file
    that was declared with ``Runner(resources=[...])``.

    Parameters
    ----------
    path : str or path
        Of a file or directory, or a name that was declared; the name is the last part of a path.

    Returns
    -------
    Resource
        A path: ``open(it)``, ``Path(it)``, ``str(it)``. On the client the file itself, on a worker the copy that was shipped.

    Raises
    ------
    FileReadError
        If there is no such file here, and none was declared.
    """
    text = os.fspath(path)
    digest = active_resource(text)
    if digest is not None:
        return Resource(text, "", digest)
    found = _declared.get(text) or (text if os.path.exists(text) else None)  # noqa: PTH110
    if found is None:
        raise FileReadError(
            f"there is no resource {text!r} here{suggest(text, sorted(_declared))}; declare its path with "
            "Runner(resources=[...])"
        )
    found = os.path.abspath(found)  # noqa: PTH100
    return Resource(Path(found).name if text not in _declared else text, found)


def read_resources(given: Any) -> dict[str, str]:
    """Check what ``Runner(resources=...)`` is given; return absolute paths by name.

    Raises
    ------
    OptionError
        If a file is not there, or two have the same name.
    """
    if isinstance(given, (str, os.PathLike)) or not isinstance(given, (Mapping, Iterable)):
        raise OptionError(
            f"resources is {given!r}: give a list of paths, or a mapping of names to paths"
        )
    pairs = (
        given.items() if isinstance(given, Mapping) else [(Path(one).name, one) for one in given]
    )
    found: dict[str, str] = {}
    for name, one in pairs:
        path = os.path.abspath(os.fspath(one))  # noqa: PTH100
        if not os.path.exists(path):  # noqa: PTH110
            raise OptionError(f"resources has {str(one)!r}, and there is no such file ({path})")
        if "/" in name or found.get(name, path) != path:
            raise OptionError(
                f"resources has {name!r} twice, or with a '/' in its name: give names, {{'a.json': 'x/a.json', 'b.json': "
                "'y/a.json'}"
            )
        found[name] = path
    return found


def declare(resources: Mapping[str, str]) -> None:
    """Let `resource` find these in this process, under their names."""
    _declared.update(resources)


def digest_resource(name: str, path: str) -> str:
    """Return what stands for the content of a resource."""
    return build_file_unit(name, path, _NO_LIMIT).digest


def build_resource_units(
    declared: Mapping[str, str], held: Iterable[Resource], options: Shipping
) -> tuple[list[Unit], dict[str, str]]:
    """Make the units of all resources of a run.

    Parameters
    ----------
    declared : mapping of str to str
        Paths by name, of the `Runner`.
    held : iterable of Resource
        Those that the processor has.
    options : Shipping
        How large each may be.

    Returns
    -------
    list of Unit, dict of str to str
        The units; and the digests of those that were declared, by name.
    """
    units: dict[str, Unit] = {}
    digests: dict[str, str] = {}
    for name, path in declared.items():
        unit = build_file_unit(name, path, options)
        units[unit.digest] = unit
        digests[name] = unit.digest
    for one in held:
        if one.source is not None:
            unit = build_file_unit(one.name, one.source, options)
            units[unit.digest] = unit
    return list(units.values()), digests
