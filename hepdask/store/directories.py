"""A store in a local directory, which nobody else can write to.

Directories are made with mode 0700 and files with 0600, whatever the umask. A file is written under another name and then
renamed, so that a killed process leaves nothing half-written under a name that counts. There is no fsync: it would cost
more than all the rest, and a file that a crash of the machine tore is found by its checksum.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hepdask.errors import StoreError
from hepdask.store.names import README_NAME, make_temporary_name
from hepdask.store.places import Entry
from hepdask.store.readme import README

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Bytes = bytes | bytearray | memoryview

__all__ = ["LocalPlace"]

_READ = (
    os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
)  # a pipe with that name must not block
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
# a section that somebody else prunes between making it and writing into it is made again
_ATTEMPTS = 3

_FULL = "there is no space left: free some, or remove results with hepdask store prune"
_DENIED = "choose a directory that you can write to"
_ADVICE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: "your quota is used up: free some space, or remove results with hepdask store prune",
    errno.EFBIG: "the largest size of a file is reached (ulimit -f): raise it, or choose another directory",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: _DENIED,
    errno.ENOTDIR: "there is a file where a directory should be: choose another directory",
    errno.EEXIST: "there is a file where a directory should be: choose another directory",
    errno.ELOOP: "there is a link where a file of the store should be: remove it",
    errno.ENAMETOOLONG: "choose a directory with a shorter name",
}


class LocalPlace:
    """A directory as `hepdask.store.places.Place`.

    Parameters
    ----------
    root : str
        Its absolute path.
    """

    def __init__(self, root: str) -> None:
        self._root = root

    def list_entries(self, directory: str) -> list[Entry]:
        """List a directory, as it is now; nothing if it isn't there."""
        path = self._path(directory)
        with _errors_at(path, "listed"):
            try:
                self._check_private(directory)
                with os.scandir(path) as entries:
                    return [entry for one in entries if (entry := _describe(one)) is not None]
            except FileNotFoundError:
                return []

    def read(self, directory: str, name: str) -> bytes | None:
        """Read a file; None if it isn't there."""
        return self._read(directory, name, None)

    def read_start(self, directory: str, name: str, num_bytes: int) -> bytes | None:
        """Read the first bytes of a file, at most; None if it isn't there."""
        return self._read(directory, name, num_bytes)

    def write(self, directory: str, name: str, pieces: Sequence[Bytes]) -> None:
        """Write a file in one step: others see the old one or the new one. Makes the directories that it needs."""
        path = self._path(directory, name)
        with _errors_at(path, "written"):
            for attempt in range(_ATTEMPTS):
                try:
                    self._check_private(directory)
                    _write(path, self._path(directory, make_temporary_name(name)), pieces)
                except FileNotFoundError:
                    if attempt == _ATTEMPTS - 1:
                        raise
                    self._make_directories(directory)
                else:
                    return

    def touch(self, directory: str, name: str) -> None:
        """Note that a file was used, where that can be noted."""
        with contextlib.suppress(OSError):  # a store may be read-only
            os.utime(self._path(directory, name), follow_symlinks=False)

    def remove(self, directory: str, name: str) -> None:
        """Remove a file; nothing happens if it isn't there."""
        path = self._path(directory, name)
        with _errors_at(path, "removed"), contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108

    def remove_directory(self, directory: str) -> None:
        """Remove a directory if it is empty; nothing happens if it isn't."""
        with contextlib.suppress(OSError):
            os.rmdir(self._path(directory))  # noqa: PTH106

    def _path(self, *names: str) -> str:
        return os.path.join(self._root, *filter(None, names))  # noqa: PTH118

    def _check_private(self, directory: str) -> None:
        """Check that nobody else could have put something into a directory."""
        _check_owner(self._root, os.stat(self._root))  # noqa: PTH116
        if directory:
            path = self._path(directory)
            status = os.lstat(path)
            if not stat.S_ISDIR(status.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            _check_owner(path, status)

    def _make_directories(self, directory: str) -> None:
        os.makedirs(os.path.dirname(self._root), exist_ok=True)  # noqa: PTH103, PTH120
        for path in dict.fromkeys([self._root, self._path(directory)]):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)  # noqa: PTH102
                os.chmod(path, 0o700)  # noqa: PTH101  # the umask may have taken our own rights
        readme = self._path(README_NAME)
        if not os.path.lexists(readme):
            self._check_private("")
            _write(readme, self._path(make_temporary_name(README_NAME)), [README.encode()])

    def _read(self, directory: str, name: str, limit: int | None) -> bytes | None:
        path = self._path(directory, name)
        with _errors_at(path, "read"):
            try:
                self._check_private(directory)
                descriptor = os.open(path, _READ)
            except FileNotFoundError:
                return None
            with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise StoreError(f"{path} is no file of a store: remove it")
                _check_owner(path, status)
                return file.readall() if limit is None else file.read(limit)


def _check_owner(path: str, status: os.stat_result) -> None:
    if status.st_uid not in {os.geteuid(), 0}:
        raise StoreError(
            f"{path} belongs to another user (uid {status.st_uid}), and loading a result runs whatever its owner put "
            "there: choose a directory of your own as store"
        )
    if status.st_mode & stat.S_IWOTH:
        raise StoreError(
            f"everyone can write to {path}, and loading a result runs whatever somebody put there: choose another "
            f"directory as store, or, if you trust what is in it, chmod o-w {path}"
        )


def _describe(entry: os.DirEntry[str]) -> Entry | None:
    """Describe an entry of a directory; None if it is gone already."""
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    if stat.S_ISREG(status.st_mode):
        return Entry(entry.name, "file", status.st_size, status.st_mtime)
    is_directory = stat.S_ISDIR(status.st_mode)
    return Entry(entry.name, "directory" if is_directory else "other", 0, status.st_mtime)


def _write(path: str, temporary_path: str, pieces: Sequence[Bytes]) -> None:
    descriptor = os.open(temporary_path, _WRITE, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123
            os.fchmod(descriptor, 0o600)  # the umask may have taken our own rights
            file.writelines(pieces)
        os.replace(temporary_path, path)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary_path)  # noqa: PTH108
        raise


@contextmanager
def _errors_at(path: str, verb: str) -> Iterator[None]:
    """Say what an error of the operating system means for a store, and what to do."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "choose another directory if that stays so")
        reason = error.strerror or str(error)
        raise StoreError(f"the store's {path} can't be {verb} ({reason}): {advice}") from error
