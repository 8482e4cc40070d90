"""Versions of what decides about results."""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LIBRARIES", "TRANSPORT", "find_versions", "library_versions"]

#: What reads, computes and adds between a file and a histogram.
LIBRARIES = (
    "awkward",
    "boost-histogram",
    "coffea",
    "hepdask",
    "hist",
    "numba",
    "numpy",
    "uproot",
    "vector",
)


#: What moves it between client, scheduler and workers.
TRANSPORT = ("cloudpickle", "dask", "distributed", "msgpack")


def library_versions() -> dict[str, str]:
    """Return the versions of Python, hepdask, and the libraries that results depend on, as far as they are installed."""
    return {"python": f"{sys.version_info[0]}.{sys.version_info[1]}", **find_versions(LIBRARIES)}


@cache
def find_versions(names: tuple[str, ...]) -> Mapping[str, str]:
    """Return the versions of distributions, of those that are installed."""
    # each takes a look through the installed ones, 8 ms for all that results depend on
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
