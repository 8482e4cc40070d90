"""The URL of a store, and the place that it stands for: a directory, or what fsspec knows."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from hepdask.errors import OptionError, suggest
from hepdask.paths import split_query
from hepdask.store.directories import LocalPlace
from hepdask.store.remote import RemotePlace

if TYPE_CHECKING:
    from hepdask.store.places import Place

__all__ = ["make_absolute", "open_place"]

_LOCAL_PREFIXES = ("file://localhost", "file://", "local://")
# with the '::' of chained ones; a path may have a colon anywhere else
_SCHEME = re.compile(r"[A-Za-z][\w+.-]*(?:::|://)", re.ASCII)


def make_absolute(url: str) -> str:
    """Give the one spelling of a store's URL that means the same in every process.

    Parameters
    ----------
    url : str
        A directory, perhaps relative or below ``~``, or an fsspec URL.

    Returns
    -------
    str
        An absolute path, or the URL without slashes at its end.

    Raises
    ------
    OptionError
        If it is empty, fsspec doesn't know its protocol or lacks a package for it, or it has a query.
    """
    if not url or "\0" in url:
        raise OptionError(f"store is {url!r}: give a directory or a URL")
    for prefix in _LOCAL_PREFIXES:
        url = url.removeprefix(prefix)
    if not _SCHEME.match(url):
        return os.path.abspath(os.path.expanduser(url))  # noqa: PTH100, PTH111  (Path.absolute keeps '..')
    if split_query(url)[1]:
        raise OptionError(
            f"store is {url!r}: a store's URL can't have a query, as names are added to it"
        )
    _check_protocol(url)
    stem = url.rstrip("/")
    return url if stem.endswith(":") else stem  # memory:// is a place, too


def _check_protocol(url: str) -> None:
    import fsspec

    for link in url.split("::"):
        protocol = link.partition("://")[0]
        try:
            fsspec.get_filesystem_class(protocol)
        except ImportError as error:
            command = 'pip install "hepdask[xrootd]"' if protocol == "root" else str(error)
            raise OptionError(f"store is {url!r}: for {protocol}:// URLs: {command}") from error
        except ValueError as error:
            hint = suggest(protocol, ["file", "root", "s3", "gs", "abfs", "memory"])
            raise OptionError(
                f"store is {url!r}: fsspec knows no protocol {protocol!r}{hint}"
            ) from error


def open_place(url: str) -> Place:
    """Return the place of a URL of `make_absolute`; nothing is opened or made yet."""
    if os.path.isabs(url):  # noqa: PTH117  (of a URL no Path is made)
        return LocalPlace(url)
    return RemotePlace(url)
