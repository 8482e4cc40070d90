"""Take the paths and URLs of files apart, as text: nothing is opened, listed or resolved."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = [
    "canonical_path",
    "has_glob",
    "is_xrootd",
    "local_path",
    "split_authority",
    "split_object_path",
    "split_query",
]

# in these, '?' starts a query and is no wildcard
_QUERY_SCHEMES = frozenset({"http", "https", "dav", "davs", "root", "roots", "xroot", "xroots"})
_XROOTD = re.compile(r"(?:^|::)x?roots?://")
_DEFAULT_PORTS = {"root": ":1094", "roots": ":1094", "http": ":80", "https": ":443"}

_ROOT_THEN_TREE = re.compile(r"(.+\.root(?:\.\d+)?):(.*)", re.IGNORECASE | re.DOTALL)
_ENDS_AS_FILE = re.compile(r"\.root(?:\.\d+)?(?:\?.*)?$", re.IGNORECASE)
_TREE_AFTER_QUERY = re.compile(r"[A-Za-z_][\w/;.-]*")
_TREE_AFTER_BARE_PATH = re.compile(r"[A-Za-z_]\w*(?:;\d+)?")


def split_authority(path: str) -> tuple[str, str]:
    """Split a URL after its host.

    Parameters
    ----------
    path : str
        A path or URL.

    Returns
    -------
    authority, path : str
        ``"root://host:1094"`` and ``"//x"``; the first is empty for a local path.
    """
    scheme_end = path.rfind("://")
    if scheme_end < 0 or "?" in path[:scheme_end]:  # a URL inside a query is data
        scheme_end = path.find("://")
    if scheme_end < 0:
        return "", path
    slash = path.find("/", scheme_end + 3)
    return (path, "") if slash < 0 else (path[:slash], path[slash:])


def _url_scheme(path: str) -> str:
    """Return the lower-case scheme of a URL, the last one of ``simplecache::root://``."""
    authority, _ = split_authority(path)
    return authority.partition("://")[0].rpartition("::")[2].lower()


def split_query(path: str) -> tuple[str, str]:
    """Split a URL before its query.

    Parameters
    ----------
    path : str
        A path or URL.

    Returns
    -------
    path, query : str
        The query starts with ``?``. It is empty where ``?`` has another meaning (local paths,
        object stores).
    """
    if _url_scheme(path) not in _QUERY_SCHEMES:
        return path, ""
    start = path.find("?")
    return (path, "") if start < 0 else (path[:start], path[start:])


def has_glob(path: str) -> bool:
    """Tell whether a path or URL is a pattern, with ``*``, ``?`` or ``[``.

    Parameters
    ----------
    path : str
        A path or URL, without a tree name.

    Returns
    -------
    bool
        False for the ``?`` of a query (HTTP, WebDAV, XRootD) and for the brackets of an IPv6 host.
    """
    _, rest = split_authority(split_query(path)[0])
    return "*" in rest or "?" in rest or "[" in rest


def is_xrootd(url: str) -> bool:
    """Tell whether files are read from a server by XRootD: ``root://host//a.root``, also in ``simplecache::root://``."""
    return bool(_XROOTD.search(url))


def local_path(url: str) -> Path | None:
    """Give the local path of a URL, or None if it is remote.

    ``/data/a.root``, ``a.root`` and ``file:///data/a.root`` are local; anything else with ``://`` is not.
    """
    if "://" not in url:
        return Path(url)
    if url.startswith("file://"):
        return Path(unquote(urlsplit(url).path))
    return None


def canonical_path(path: str) -> str:
    """Return a text that is the same for spellings that surely name the same file.

    Parameters
    ----------
    path : str
        A path or URL.

    Returns
    -------
    str
        A key for comparisons, not a path to open: without default port, XRootD query and ``./``.
    """
    authority, rest = split_authority(path)
    if not authority:
        return posixpath.normpath(path)
    scheme, _, host = authority.partition("://")
    scheme = scheme.lower()
    if scheme in {"file", "local"}:
        return posixpath.normpath(rest)
    if scheme in {"xroot", "xroots"}:
        scheme = scheme[1:]
    if scheme in {"root", "roots"}:
        rest = rest.partition("?")[0]
    host = host.lower().removesuffix(_DEFAULT_PORTS.get(scheme, ":"))
    return f"{scheme}://{host}{rest}"


def split_object_path(path: str, *, certain_only: bool = False) -> tuple[str, str | None]:
    """Split ``file.root:tree`` into the file and the tree name.

    A colon after ``.root`` (or ``.root.1``, as ATLAS names files) is certain. After a query, or in
    a path without ``.root``, what follows the last colon counts as a tree name if it looks like
    one: it starts with a letter, and has no slash if there is no query. A port is none, and
    neither is what follows a colon in a directory.

    Parameters
    ----------
    path : str
        A path, URL or pattern, perhaps with a tree name.
    certain_only : bool
        Split only where ``.root`` stands before the colon.

    Returns
    -------
    file_path : str
        The part before the colon.
    treename : str or None
        The tree name without outer slashes; None if there is none, ``""`` if it is empty.
    """
    if ":" not in path:
        return path, None
    authority, rest = split_authority(path)
    certain = _ROOT_THEN_TREE.fullmatch(rest)
    if certain is not None and not _ENDS_AS_FILE.search(certain[2]):
        return authority + certain[1], re.sub(r"/+", "/", certain[2].strip()).strip("/")
    if certain_only:
        return path, None
    head, _, tail = rest.rpartition(":")
    after_query = bool(split_query(authority + head)[1])
    tree_pattern = _TREE_AFTER_QUERY if after_query else _TREE_AFTER_BARE_PATH
    # one letter before the colon is a drive of Windows
    if len(head) > 1 and not head.endswith("/") and tree_pattern.fullmatch(tail):
        return authority + head, tail.rstrip("/")
    return path, None
