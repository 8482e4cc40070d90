"""Facts about files, remembered for the later runs of the same user.

The cache is a convenience: whatever is wrong with it (a lock that nobody gives back, a full disk, a home directory that
is read-only on the worker), the run goes on without it after one warning.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from hepdask.metadata.branches import Branches, Layout, pack, share_layout, unpack
from hepdask.metadata.facts import FileMetadata, local_state
from hepdask.paths import local_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from hepdask.fileset import InputFile

__all__ = ["MetadataCache", "default_cache_path"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Written as SQLite's user_version. Raise it whenever the meaning of anything stored changes.
CACHE_FORMAT_VERSION = 2
_SCHEMA = (
    "CREATE TABLE layouts (digest TEXT PRIMARY KEY, packed BLOB NOT NULL) WITHOUT ROWID",
    """CREATE TABLE files (
        file_path TEXT NOT NULL, treename TEXT NOT NULL, layout TEXT NOT NULL,
        num_file_bytes INTEGER, mtime_ns INTEGER, stored_seconds INTEGER NOT NULL,
        facts BLOB NOT NULL, sizes BLOB NOT NULL, PRIMARY KEY (file_path, treename))""",
    """CREATE TABLE notes (
        subject TEXT NOT NULL, key TEXT NOT NULL, stored_seconds INTEGER NOT NULL, packed BLOB NOT NULL,
        PRIMARY KEY (subject, key)) WITHOUT ROWID""",
)
# SQLite's least limit for the '?' of a statement is 999
_PATHS_PER_QUERY = 500
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


def default_cache_path() -> Path:
    """Give the place of the user's metadata cache.

    Returns
    -------
    Path
        ``metadata.sqlite`` in ``$HEPDASK_CACHE_DIR``, or else in the platform's cache directory of the user.
    """
    chosen = os.environ.get("HEPDASK_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser() / "metadata.sqlite"
    import platformdirs

    return Path(platformdirs.user_cache_dir("hepdask", appauthor=False)) / "metadata.sqlite"


class MetadataCache:
    """`FileMetadata` kept on disk, for all runs of a user, and what was noted of processors.

    Several processes may read and write it at once: each call is one SQLite transaction of its own connection, with
    the rollback journal (a write-ahead log needs shared memory, which network file systems don't have). A process that
    is killed in mid-write leaves what was there before. An entry for a local file is used only while the file's size
    and time of modification are the same; for a remote one, the task that opens the file checks its UUID.

    Parameters
    ----------
    path : path-like, optional
        The database file; `default_cache_path` if None. Its directory is made with mode 0700, the file with 0600.
    timeout_seconds : float
        How long to wait for another process's lock before going on without the cache.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, timeout_seconds: float = 10.0
    ) -> None:
        self.path = default_cache_path() if path is None else Path(path)
        self._timeout_seconds = timeout_seconds
        self._is_readable = True
        self._is_writable = True

    def __repr__(self) -> str:
        return f"MetadataCache({str(self.path)!r})"

    def lookup(self, files: Iterable[InputFile]) -> dict[tuple[str, str], FileMetadata]:
        """Find what is known of files.

        Parameters
        ----------
        files : iterable of InputFile
            The files.

        Returns
        -------
        dict
            ``(file_path, treename)`` -> `FileMetadata`, for those that are known and, as far as can be seen from
            here, not changed.
        """
        wanted: dict[str, list[InputFile]] = {}
        for file in files:
            wanted.setdefault(_key(file.file_path), []).append(file)

        def find(connection: sqlite3.Connection) -> dict[tuple[str, str], FileMetadata]:
            layouts = _LayoutTable(connection)
            found: dict[tuple[str, str], FileMetadata] = {}
            for row in _select(connection, list(wanted)):
                for file in wanted[row.file_path]:
                    metadata = (
                        _decode(file, row, layouts) if file.treename == row.treename else None
                    )
                    if metadata is not None and not _is_stale(metadata):
                        found[file.file_path, file.treename] = metadata
            return found

        return self._read(find, {}) if wanted else {}

    def store(self, metadata: Iterable[FileMetadata]) -> None:
        """Remember facts about files, in place of what was known of the same trees."""
        now = int(time.time())
        layouts: dict[str, Layout] = {}
        rows = []
        for one in metadata:
            given = one.branches
            branches = given if isinstance(given, Branches) else Branches(given)
            layouts[branches.layout.digest] = branches.layout
            rows.append(_encode(one, branches, now))

        def insert(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "INSERT OR IGNORE INTO layouts VALUES (?, ?)",
                ((one.digest, pack([one.names, one.typenames])) for one in layouts.values()),
            )
            statement = "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            connection.executemany(statement, rows)

        if rows:
            self._write(insert, None)

    def notes(self, subject: str) -> dict[str, Any]:
        """Return what was noted of a subject.

        Parameters
        ----------
        subject : str
            Anything that names it: what a processor was found to use, under the processor's fingerprint, say.

        Returns
        -------
        dict of str to JSON value
            By key.
        """

        def find(connection: sqlite3.Connection) -> dict[str, Any]:
            statement = "SELECT key, packed FROM notes WHERE subject = ?"
            found = {}
            for key, packed in connection.execute(statement, (subject,)):
                with contextlib.suppress(ValueError, zlib.error):  # damaged: noted again
                    found[key] = unpack(packed)
            return found

        return self._read(find, {})

    def note(self, subject: str, values: Mapping[str, Any]) -> None:
        """Note something of a subject, in place of what was noted under the same keys.

        Parameters
        ----------
        subject : str
            As for `notes`.
        values : mapping of str to JSON value
            By key.
        """
        now = int(time.time())
        rows = [(subject, key, now, pack(value)) for key, value in values.items()]

        def insert(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO notes VALUES (?, ?, ?, ?)", rows)

        if rows:
            self._write(insert, None)

    def forget(self, file_path: str, treename: str) -> None:
        """Forget one tree of one file: it turned out to have changed."""
        key = (_key(file_path), treename)

        def delete(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM files WHERE file_path = ? AND treename = ?", key)

        if self.path.exists():
            self._write(delete, None)

    def prune(self, max_age_days: float) -> int:
        """Forget what was stored more than `max_age_days` ago.

        Returns
        -------
        int
            Number of trees forgotten.
        """
        oldest = int(time.time() - max_age_days * 86_400)

        def delete(connection: sqlite3.Connection) -> int:
            statement = "DELETE FROM files WHERE stored_seconds <= ?"
            num_pruned = connection.execute(statement, (oldest,)).rowcount
            unused = "DELETE FROM layouts WHERE digest NOT IN (SELECT layout FROM files)"
            connection.execute(unused)
            connection.execute("DELETE FROM notes WHERE stored_seconds <= ?", (oldest,))
            return num_pruned

        return self._write(delete, 0) if self.path.exists() else 0

    def clear(self) -> int:
        """Forget everything, and give the disk space back.

        Returns
        -------
        int
            Number of trees forgotten.
        """
        # even what a clock that was wrong dated in the future
        num_cleared = self.prune(max_age_days=-1e6)
        if num_cleared:
            self._guard("_is_writable", lambda: self._connected(_vacuum), None)
        return num_cleared

    def count(self) -> int:
        """Count the trees that are known."""

        def count(connection: sqlite3.Connection) -> int:
            (num_trees,) = connection.execute("SELECT COUNT(*) FROM files").fetchone()
            return int(num_trees)

        return self._read(count, 0)

    def _read(self, work: Callable[[sqlite3.Connection], T], default: T) -> T:
        """Do `work` in a reading transaction; `default` if there is nothing to read from."""

        def transaction(connection: sqlite3.Connection) -> T:
            connection.execute("BEGIN")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            return work(connection) if version == CACHE_FORMAT_VERSION else default

        def read() -> T:
            return self._connected(transaction) if self.path.exists() else default

        return self._guard("_is_readable", read, default)

    def _write(self, work: Callable[[sqlite3.Connection], T], default: T) -> T:
        """Do `work` in a writing transaction; `default` if nothing can be written."""

        def transaction(connection: sqlite3.Connection) -> T:
            connection.execute("BEGIN IMMEDIATE")
            _make_schema(connection)
            done = work(connection)
            connection.execute("COMMIT")
            return done

        def write() -> T:
            _make_private_file(self.path)
            return self._connected(transaction)

        return self._guard("_is_writable", write, default)

    def _connected(self, work: Callable[[sqlite3.Connection], T]) -> T:
        # a connection of its own for each call: none crosses a fork or a thread. Closing it undoes what isn't committed
        connection = sqlite3.connect(self.path, timeout=self._timeout_seconds, isolation_level=None)
        with contextlib.closing(connection):
            return work(connection)

    def _guard(
        self, flag: Literal["_is_readable", "_is_writable"], work: Callable[[], T], default: T
    ) -> T:
        """Do `work`; if the database doesn't let us, say so once and go on without it."""
        if not getattr(self, flag):
            return default
        try:
            try:
                return work()
            except sqlite3.DatabaseError as error:
                # extended codes keep the primary one in the low byte
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGED:
                    raise
                self._move_aside(error)
                return work()
        except (sqlite3.Error, OSError) as error:
            setattr(self, flag, False)
            verb = "read" if flag == "_is_readable" else "written"
            logger.warning(
                "the metadata cache %s can't be %s (%s: %s); this run goes on without it. To have it elsewhere, "
                "set HEPDASK_CACHE_DIR to a directory on a local disk",
                self.path,
                verb,
                type(error).__name__,
                error,
            )
            return default

    def _move_aside(self, error: sqlite3.DatabaseError) -> None:
        aside = self.path.with_name(self.path.name + ".damaged")
        logger.warning(
            "the metadata cache %s is damaged (%s); it is made anew, the old one is kept as %s",
            self.path,
            error,
            aside.name,
        )
        # another process may have been faster
        with contextlib.suppress(FileNotFoundError):
            self.path.replace(aside)
        # a journal that is left would be played into the new database
        self.path.with_name(self.path.name + "-journal").unlink(missing_ok=True)


class _Row(NamedTuple):
    file_path: str
    treename: str
    layout: str
    num_file_bytes: int | None
    mtime_ns: int | None
    facts: bytes
    sizes: bytes


class _LayoutTable:
    """The layouts in a database, each read and decoded when it is first asked for."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._known: dict[str, Layout] = {}

    def __getitem__(self, digest: str) -> Layout:
        if digest not in self._known:
            statement = "SELECT packed FROM layouts WHERE digest = ?"
            row = self._connection.execute(statement, (digest,)).fetchone()
            if row is None:
                raise KeyError(digest)
            names, typenames = unpack(row[0])
            self._known[digest] = share_layout(tuple(names), tuple(typenames))
        return self._known[digest]


def _encode(metadata: FileMetadata, branches: Branches, now: int) -> tuple[Any, ...]:
    facts = [metadata.num_entries, metadata.uuid, metadata.cluster_offsets, metadata.kind]
    return (
        _key(metadata.file_path),
        metadata.treename,
        branches.layout.digest,
        metadata.num_file_bytes,
        metadata.mtime_ns,
        now,
        pack(facts),
        branches.packed_sizes,
    )


def _decode(file: InputFile, row: _Row, layouts: _LayoutTable) -> FileMetadata | None:
    """Decode a row; None if it is damaged, so that the file is inspected again."""
    try:
        num_entries, uuid, offsets, kind = unpack(row.facts)
        branches = Branches.from_packed(layouts[row.layout], row.sizes)
    except (KeyError, TypeError, ValueError, zlib.error):
        return None
    return FileMetadata(
        file_path=file.file_path,
        treename=file.treename,
        num_entries=num_entries,
        uuid=uuid,
        cluster_offsets=tuple(offsets),
        branches=branches,
        kind=kind,
        num_file_bytes=row.num_file_bytes,
        mtime_ns=row.mtime_ns,
    )


def _select(connection: sqlite3.Connection, keys: list[str]) -> Iterator[_Row]:
    for first in range(0, len(keys), _PATHS_PER_QUERY):
        some = keys[first : first + _PATHS_PER_QUERY]
        marks = ",".join("?" * len(some))
        columns = "file_path, treename, layout, num_file_bytes, mtime_ns, facts, sizes"
        statement = f"SELECT {columns} FROM files WHERE file_path IN ({marks})"
        yield from map(_Row._make, connection.execute(statement, some))


def _make_schema(connection: sqlite3.Connection) -> None:
    """Make the tables, in place of those of another version."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == CACHE_FORMAT_VERSION:
        return
    old = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    for statement in (*(f'DROP TABLE "{name}"' for (name,) in old), *_SCHEMA):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {CACHE_FORMAT_VERSION}")


def _vacuum(connection: sqlite3.Connection) -> None:
    connection.execute("VACUUM")


def _make_private_file(path: Path) -> None:
    if not path.exists():
        # file paths tell what somebody works on, and URLs may hold tokens
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def _key(file_path: str) -> str:
    """Give the name under which a file is stored: a local path doesn't depend on the working directory."""
    path = local_path(file_path)
    return file_path if path is None else os.path.abspath(path)  # noqa: PTH100  (Path.absolute keeps '..')


def _is_stale(metadata: FileMetadata) -> bool:
    state = local_state(metadata.file_path)
    return state is not None and state != (metadata.num_file_bytes, metadata.mtime_ns)
