"""The contents of files as digests, each file read once.

A digest is kept under the file's path, inode, size and times, so that an edit is seen. A file that changed less than
`SETTLED_SECONDS` ago is read again each time: a second edit within the clock's tick would leave all of these as they are.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time

__all__ = ["MAX_READ_BYTES", "FileState", "digest_file", "find_file", "state_of"]

#: Larger files count by size and time of modification: reading them takes longer than a notebook's user waits.
MAX_READ_BYTES = 256 * 1024**2
SETTLED_SECONDS = 2.0
_MAX_NAME_LENGTH = 4096

FileState = tuple[str, int, int, int, int]

_DIGESTS: dict[FileState, bytes] = {}


def state_of(path: str, status: os.stat_result) -> FileState | None:
    """Return what changes when a file is edited; None if it was edited a moment ago."""
    if abs(time.time() - max(status.st_mtime, status.st_ctime)) < SETTLED_SECONDS:
        return None
    return (path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def find_file(name: str, directory: str = "") -> str | None:
    """Return the absolute path of the local file that a string names.

    Parameters
    ----------
    name : str
        Any string of the user's; most are no file's name.
    directory : str, optional
        Where a relative name starts; by default the current directory.

    Returns
    -------
    str or None
        None if there is no regular file of this name.
    """
    if not name or len(name) > _MAX_NAME_LENGTH or "\n" in name or "://" in name:
        return None
    path = os.path.join(directory, name)  # noqa: PTH118  # for every string: a Path costs ten times more
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return os.path.abspath(path) if stat.S_ISREG(status.st_mode) else None  # noqa: PTH100


def digest_file(path: str) -> bytes:
    """Return the digest of a file's bytes, or of its size and time if it is larger than `MAX_READ_BYTES`.

    Raises
    ------
    OSError
        If it can't be read.
    """
    status = os.stat(path)  # noqa: PTH116
    if status.st_size > MAX_READ_BYTES:
        facts = f"{status.st_size} {status.st_mtime_ns}"
        return hashlib.sha256(b"large file " + facts.encode()).digest()
    state = state_of(path, status)
    if state is not None and state in _DIGESTS:
        return _DIGESTS[state]
    with open(path, "rb") as stream:  # noqa: PTH123
        digest = hashlib.file_digest(stream, "sha256").digest()
    if state is not None:
        _DIGESTS[state] = digest
    return digest
