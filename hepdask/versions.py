"""Versions of what decides about results."""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version

__all__ = ["library_versions"]

#: What reads, computes and adds between a file and a histogram. Dask only moves it.
_LIBRARIES = (
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


def library_versions() -> dict[str, str]:
    """Return the versions of Python, hepdask, and the libraries that results depend on, as far as they are installed."""
    return dict(_find_versions())


@cache
def _find_versions() -> dict[str, str]:
    # each takes a look through the installed distributions, 8 ms for all
    found = {"python": f"{sys.version_info[0]}.{sys.version_info[1]}"}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
