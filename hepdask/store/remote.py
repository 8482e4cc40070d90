"""A store on any file system that fsspec knows.

Object stores write a file in one step. On others it is written under another name and then renamed; some of them copy instead
of renaming, and then a reader may see half a file, which its checksum tells.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hepdask.errors import StoreError
from hepdask.store.names import README_NAME, make_temporary_name
from hepdask.store.places import Entry
from hepdask.store.readme import README

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Bytes = bytes | bytearray | memoryview

__all__ = ["RemotePlace"]

#: Protocols whose files appear when they are whole.
_OBJECT_STORES = frozenset(
    {"memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "tos"}
)
# XRootD takes less than 4 GB in one request
_WRITE_BYTES = 64 << 20
# fsspec's file systems have no common key for it
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
# fsspec-xrootd has one type for all errors; the server's text is the only sign
_MISSING_TEXTS = ("no such file or directory", "[3011]")

# places at which this process has seen the README
_explained: set[str] = set()


class RemotePlace:
    """A URL of fsspec as `hepdask.store.places.Place`.

    Parameters
    ----------
    url : str
        An absolute one; credentials and options come from fsspec's own configuration.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def list_entries(self, directory: str) -> list[Entry]:
        """List a directory, as it is now; nothing if it isn't there."""
        with self._opened(directory, "", "listed") as (file_system, path):
            _forget(file_system, path)
            try:
                entries = file_system.ls(path, detail=True)
            except Exception as error:
                if not _is_missing(error):
                    raise
                return []
            finally:
                # fsspec-xrootd takes the size of a file from old listings
                _forget(file_system, path)
            return _describe(entries, path, file_system)

    def read(self, directory: str, name: str) -> bytes | None:
        """Read a file; None if it isn't there."""
        return self._read(directory, name)

    def read_start(self, directory: str, name: str, num_bytes: int) -> bytes | None:
        """Read the first bytes of a file, at most; None if it isn't there."""
        return self._read(directory, name, num_bytes)

    def write(self, directory: str, name: str, pieces: Sequence[Bytes]) -> None:
        """Write a file in one step: others see the old one or the new one. Makes the directories that it needs."""
        self._write(directory, name, b"".join(pieces))
        if self._url not in _explained:
            if self._read("", README_NAME) is None:
                self._write("", README_NAME, README.encode())
            _explained.add(self._url)

    def touch(self, directory: str, name: str) -> None:
        """Do nothing: the time of the last use can't be noted here, only that of writing is known."""

    def remove(self, directory: str, name: str) -> None:
        """Remove a file; nothing happens if it isn't there."""
        with self._opened(directory, name, "removed") as (file_system, path):
            try:
                file_system.rm_file(path)
            except Exception as error:
                if not _is_missing(error):
                    raise

    def remove_directory(self, directory: str) -> None:
        """Remove a directory if it is empty; nothing happens if it isn't."""
        with (
            contextlib.suppress(StoreError),
            self._opened(directory, "", "removed") as (file_system, path),
        ):
            # an object store has no directories, and some would remove a bucket
            if not _is_object_store(file_system) and not self.list_entries(directory):
                file_system.rmdir(path)

    def _write(self, directory: str, name: str, data: bytes) -> None:
        with self._opened(directory, name, "written") as (file_system, path):
            if _is_object_store(file_system):
                file_system.pipe_file(path, data)
                return
            parent = path.rpartition("/")[0]
            file_system.makedirs(parent, exist_ok=True)
            temporary_path = f"{parent}/{make_temporary_name(name)}"
            try:
                # not every file system has pipe_file
                with file_system.open(temporary_path, "wb") as file:
                    for start in range(0, len(data), _WRITE_BYTES):
                        file.write(data[start : start + _WRITE_BYTES])
                _rename(file_system, temporary_path, path)
            except BaseException:
                with contextlib.suppress(Exception):
                    file_system.rm_file(temporary_path)
                raise

    def _read(self, directory: str, name: str, end: int | None = None) -> bytes | None:
        with self._opened(directory, name, "read") as (file_system, path):
            try:
                return bytes(file_system.cat_file(path, start=0 if end else None, end=end))
            except Exception as error:
                if not _is_missing(error):
                    raise
                return None
            finally:
                # fsspec-xrootd keeps the file open, and the server then shows its old content to all
                _forget(file_system, path)

    @contextmanager
    def _opened(self, directory: str, name: str, verb: str) -> Iterator[tuple[Any, str]]:
        """Give the file system and its spelling of a path; whatever it raises becomes a `StoreError`."""
        import fsspec

        url = "/".join(part for part in (self._url.rstrip("/"), directory, name) if part)
        try:
            file_system, root = fsspec.core.url_to_fs(self._url)
            path = "/".join(part for part in (root.rstrip("/"), directory, name) if part)
            yield file_system, path or file_system.root_marker
        except (StoreError, MemoryError):
            raise
        except Exception as error:  # each file system has its own types
            text = " ".join(str(error).split()) or "no reason given"
            raise StoreError(
                f"the store's {url} can't be {verb} ({type(error).__name__}: {text}): check the URL, your credentials and "
                "that the place can be written to, or choose another store"
            ) from error


def _is_object_store(file_system: Any) -> bool:
    protocol = file_system.protocol
    return bool(_OBJECT_STORES & ({protocol} if isinstance(protocol, str) else set(protocol)))


def _is_missing(error: Exception) -> bool:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return True
    return isinstance(error, OSError) and any(one in str(error).lower() for one in _MISSING_TEXTS)


def _forget(file_system: Any, path: str) -> None:
    """Drop cached listings and handles; what is dead already can't be closed."""
    with contextlib.suppress(Exception):
        file_system.invalidate_cache(path)


def _rename(file_system: Any, source: str, target: str) -> None:
    try:
        file_system.mv(source, target)
    except Exception:  # noqa: BLE001  # each file system has its own types
        # a server that doesn't rename over a file; whoever wrote that one wrote the same
        file_system.rm_file(target)
        file_system.mv(source, target)


def _describe(entries: list[dict[str, Any]], path: str, file_system: Any) -> list[Entry]:
    named = [(str(entry["name"]).rstrip("/"), entry) for entry in entries]
    # a file, and the marker of a directory in an object store, are listed as their own content
    inside = [(name.rpartition("/")[2], entry) for name, entry in named if name != path]
    if named and not inside and file_system.protocol == "root":
        raise PermissionError("the server does not open this directory")
    return [
        Entry(
            name,
            entry["type"] if entry["type"] in {"file", "directory"} else "other",
            int(entry.get("size") or 0),
            _find_time(entry),
        )
        for name, entry in inside
    ]


def _find_time(entry: dict[str, Any]) -> float | None:
    found = next((entry[key] for key in _TIME_KEYS if entry.get(key) is not None), None)
    if isinstance(found, str):
        with contextlib.suppress(ValueError):
            found = dt.datetime.fromisoformat(found)
    if isinstance(found, dt.datetime):
        return found.timestamp()
    return float(found) if isinstance(found, int | float) else None
