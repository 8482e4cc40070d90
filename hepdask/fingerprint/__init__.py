"""A hash of a processor: of its arguments, its code, and the user's own modules that it uses.

Results are stored under it. So whatever can change the output must change it, and what can't should not:

===========================  ==================================================================================
what                         counts by
===========================  ==================================================================================
the processor's attributes   value, all that pickle would take along; dictionaries in their order, sets without
the user's functions         instructions, defaults, closures, the globals they name; no line number, docstring
the user's classes           attributes as they are now, bases
the user's modules           syntax tree, of all modules that they import, too; the functions that are loaded
libraries, hepdask           version; what was installed from a directory is the user's
strings that name a file     the string, and the bytes of the file (above 256 MB: size and time). Not directories.
                             Literals in the code, too, unless they are plainly written to
===========================  ==================================================================================

A module is the user's unless it comes with Python, or lies in site-packages with a version. If its file was edited after
the import, old code and new source make a fingerprint that nobody else will get: nothing wrong is found under it. Where
a global of such a module can't be taken apart (a lock, a compiled object that can't be pickled), its type and the source
that makes it count. In a script or a notebook it is an error.

A class can say what stands for its instances::

    def __hepdask_fingerprint__(self) -> str | bytes | tuple:
        return self.version, self.year

What is not seen: names that are put together at run time (``getattr(module, "cut_" + year)`` on a module of a script, files
named by joined strings), libraries that are changed at run time (awkward's behaviors are seen), environment variables.
"""

from __future__ import annotations

import hashlib
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hepdask.errors import OptionError
from hepdask.fingerprint.graph import digest_graph
from hepdask.fingerprint.modules import is_edited
from hepdask.fingerprint.origins import Origin, Origins
from hepdask.fingerprint.values import Root, expand
from hepdask.fingerprint.walk import Walk

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Origin",
    "Origins",
    "Sources",
    "UserCode",
    "describe_sources",
    "find_user_code",
    "fingerprint",
    "is_edited",
]

#: Part of each fingerprint; a change of the rules is a new one.
_RULES = 1


@dataclass(frozen=True, slots=True)
class Sources:
    """The code that a value uses, for the record."""

    modules: Mapping[str, str]
    """The user's modules with their absolute files, by name."""
    distributions: Mapping[str, str]
    """Libraries with their versions, by the name of the distribution; those that the user's code names itself."""


@dataclass(frozen=True, slots=True)
class UserCode:
    """What of the user's a value needs where it runs."""

    origins: Mapping[str, Origin]
    """The user's modules, by name; packages without an ``__init__``, too."""
    instances: tuple[Any, ...]
    """Objects of the wanted type that the value refers to."""
    distributions: Mapping[str, str]
    """Libraries with their versions."""


def fingerprint(value: Any, *, name: str = "processor") -> str:
    """Return a hash of a value and of the code that it uses.

    Parameters
    ----------
    value : object
        A processor, a function, options: anything.
    name : str
        What an error calls it.

    Returns
    -------
    str
        64 hexadecimal digits. The same in every process and on every machine with the same Python (3.11, say),
        libraries and sources.

    Raises
    ------
    OptionError
        If a part can't be taken apart: a lock, an open file, a generator. The text has its path.
    """
    walk = _walk(value, name)
    python = sys.implementation.name, *sys.version_info[:2]
    head = repr((_RULES, python)).encode()
    return hashlib.sha256(head + digest_graph(walk.nodes)).hexdigest()


def describe_sources(value: Any, *, name: str = "processor") -> Sources:
    """Return the modules and libraries that count in a value's fingerprint.

    Parameters
    ----------
    value : object
        As for `fingerprint`.
    name : str
        What an error calls it.

    Raises
    ------
    OptionError
        As `fingerprint` does.
    """
    walk = _walk(value, name)
    return Sources(dict(sorted(walk.modules.items())), dict(sorted(walk.distributions.items())))


def find_user_code(value: Any, kind: type | tuple[type, ...] = ()) -> UserCode:
    """Find the user's modules that a value uses, in turn with all that they import.

    Parameters
    ----------
    value : object
        As for `fingerprint`, but what can't be taken apart is passed over.
    kind : type or tuple of types
        Of the objects to be found on the way.
    """
    walk = Walk(expand)
    with suppress(OptionError):  # it has too many parts: what was found until then is what there is
        walk.run(Root(value), "processor", is_strict=False)
    instances = tuple(one for one in walk.values if isinstance(one, kind))
    return UserCode(dict(sorted(walk.user_origins.items())), instances, walk.distributions)


def _walk(value: Any, name: str) -> Walk:
    walk = Walk(expand)
    walk.run(Root(value), name)
    return walk
