"""Files kept open in a process, for its next range and its next run.

Opening a file of 1,499 branches costs 0.4 s of CPU, reading the few branches in use 0.01 s. So a file stays open when
a range is done, and the next range of the same file gets it. No handle is ever used by two threads at once: byte
counters then belong to one range, and nothing needs a lock while reading.

A kept file is never served when it has changed. A local one is compared by inode, size and time of modification at
each lease. A remote one can't be compared without asking the server, so it is kept for at most
`KeepOptions.max_remote_age_seconds` and then closed on the server and opened anew; `hepdask.metadata.check_unchanged`
compares its UUID with the one that was inspected.

A file with several replicas is taken from the kept ones if no other replica is in better health (see
`hepdask.endpoints`).
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import os
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hepdask.endpoints import process_health
from hepdask.errors import FileReadError, OptionError
from hepdask.opening import (
    OpenFile,
    ReadOptions,
    close_connection,
    forget_connections,
    local_status,
    note_failure,
    open_file,
)
from hepdask.paths import local_path

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from hepdask.fileset import InputFile

__all__ = [
    "Handle",
    "KeepOptions",
    "close_all",
    "configure",
    "drop_ahead",
    "lease",
    "lend_to_forks",
    "list_kept",
    "open_ahead",
]
#: Files that a process opens ahead: small ones are done long before the round trips of opening the next.
MAX_OPENED_AHEAD = 4
#: How long a wait for a file that is being opened takes at a time.
_WAIT_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class KeepOptions:
    """How many files a process keeps open, and for how long.

    Attributes
    ----------
    max_kept : int
        Files that are kept while nobody uses them; those in use come on top. The tree of a NanoAOD file takes some
        15 MB, and a worker works through its files one after the other: a few are enough to find the file of the
        previous run again, and 8 stay far below the 2 GB of a batch worker. 0: none is kept.
    max_idle_seconds : float
        A file that was not used for longer is closed at the next lease of any file.
    max_remote_age_seconds : float
        A remote file that was opened longer ago is not used again.
    """

    max_kept: int = 8
    max_idle_seconds: float = 300.0
    max_remote_age_seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class Handle:
    """An open file, leased to one thread.

    Attributes
    ----------
    open_file : OpenFile
        The file and its tree.
    was_kept : bool
        True if it was open already.
    open_seconds : float
        Wall time that opening took, in this lease: 0 for a kept file.
    num_requested_before : int
        Bytes that were requested before the end of the last lease; what was requested ahead since then is for this one.
    """

    open_file: OpenFile
    was_kept: bool
    open_seconds: float
    num_requested_before: int = 0

    @property
    def num_requested_bytes(self) -> int:
        """Bytes requested since the file was opened, as uproot counts them: take the difference of two values."""
        return self.open_file.num_requested_bytes

    @property
    def failed_replicas(self) -> tuple[str, ...]:
        """URLs that could not be opened, in this lease, before the one that could."""
        return () if self.was_kept else self.open_file.failed_replicas


@contextlib.contextmanager
def lease(file: InputFile, options: ReadOptions) -> Iterator[Handle]:
    """Open a file, or take it from those kept open, for the use of one thread.

    Parameters
    ----------
    file : InputFile
        The file.
    options : ReadOptions
        How to open it; a file that was opened with other options is not used.

    Yields
    ------
    Handle
        Valid inside the ``with`` block. At its end the file is kept, or closed if an exception leaves the block:
        reading with the same connection again might fail for the same reason. A `FileReadError` is held against the
        replica, so that the next lease gets another one if there is one.

    Raises
    ------
    FileReadError
        See `hepdask.opening.open_file`.
    """
    pool = _pool_of_process()
    waited_seconds = pool.wait_for_opening(file)
    kept = pool.take(file, options)
    if kept is None:
        kept = _open(file, options)
        waited_seconds += kept.open_file.open_seconds
    opened = kept.open_file
    try:
        yield Handle(
            opened,
            not kept.is_new,
            waited_seconds if kept.is_new else 0.0,
            kept.num_requested_bytes,
        )
    except BaseException as error:
        if isinstance(error, FileReadError):
            note_failure(opened.replica, error)
        _discard(kept)
        raise
    pool.put(
        replace(
            kept,
            used_seconds=time.monotonic(),
            num_requested_bytes=opened.num_requested_bytes,
            is_new=False,
            is_ahead=False,
        )
    )


def open_ahead(file: InputFile, options: ReadOptions, then: Callable[[OpenFile], None]) -> None:
    """Open a remote file in a thread, to be kept until its lease; a few at a time.

    Parameters
    ----------
    file : InputFile
        What will be leased soon. Nothing is done if it is local.
    options : ReadOptions
        How to open it.
    then : callable
        Called in that thread, with the open file; here, if the file is kept open already.
    """
    if any(local_path(replica) is not None for replica in file.replicas):
        return
    _pool_of_process().open_ahead(file, options, then)


def configure(
    *,
    max_kept: int | None = None,
    max_idle_seconds: float | None = None,
    max_remote_age_seconds: float | None = None,
) -> KeepOptions:
    """Change what this process keeps open; what is None stays as it is.

    Parameters
    ----------
    max_kept, max_idle_seconds, max_remote_age_seconds
        See `KeepOptions`.

    Returns
    -------
    KeepOptions
        What holds now.

    Raises
    ------
    OptionError
        If a value is negative.
    """
    given = {
        "max_kept": max_kept,
        "max_idle_seconds": max_idle_seconds,
        "max_remote_age_seconds": max_remote_age_seconds,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    for name, value in chosen.items():
        if value < 0:
            raise OptionError(f"{name} is {value!r}: give 0 or more")
    pool = _pool_of_process()
    pool.options = replace(pool.options, **chosen)  # type: ignore[arg-type]  # checked by the signature
    pool.close_surplus()
    return pool.options


def lend_to_forks() -> None:
    """Let processes that are forked from this one have the local files that it keeps, until it reads again itself.

    They share its read positions: only one of them at a time may be there, and it has to be put where this one has left them, as
    the child processes of `hepdask.isolation` are.
    """
    _pool_of_process().is_lent = True


def list_kept() -> list[str]:
    """List the files, as they were opened, that this process keeps open and that nobody uses at the moment."""
    pool = _pool_of_process()
    with pool.lock:
        return [one.open_file.replica for one in pool.idle]


def drop_ahead(find_wanted: Callable[[], Collection[str]] = tuple) -> None:
    """Let go of what kept files have for ranges that would come next, and don't.

    Parameters
    ----------
    find_wanted : callable
        Gives the URLs of files of which ranges will come; asked if there is a remote file.
    """
    pool = _pool_of_process()
    with pool.lock:
        idle = [one.open_file for one in pool.idle]
    wanted = find_wanted() if any(one.remote for one in idle) else ()
    pool.forget_ahead(wanted)
    for opened in idle:
        if opened.remote is None or opened.replica not in wanted:
            opened.notes.pop("clusters", None)
            if opened.remote is not None:
                opened.remote.drop()


def close_all() -> None:
    """Close the files that are kept; those in use are closed or kept at the end of their lease."""
    pool = _pool_of_process()
    with pool.lock:
        idle = list(pool.idle)
        pool.idle.clear()
    for kept in idle:
        _close(kept)


@dataclass(frozen=True, slots=True)
class _Kept:
    open_file: OpenFile
    treename: str
    options: ReadOptions
    # (device, inode, bytes, mtime in ns) of a local file as it was before it was opened; None for a remote one
    state: tuple[int, int, int, int] | None
    opened_seconds: float
    used_seconds: float
    # at the end of the last lease
    num_requested_bytes: int = 0
    # nobody has had it yet
    is_new: bool = True
    # it was opened for a range that will come
    is_ahead: bool = False


class _Pool:
    """The idle files of one process: the one used last at the right end, and behind it those that were opened for ranges to come."""

    def __init__(self, options: KeepOptions) -> None:
        self.options = options
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.idle: deque[_Kept] = deque()
        self.opening: dict[str, threading.Event] = {}
        #: True if this process leaves its files to those that are forked from it
        self.is_lent = False

    def open_ahead(
        self, file: InputFile, options: ReadOptions, then: Callable[[OpenFile], None]
    ) -> None:
        """Open a file in a thread of its own, unless it is there, or enough are being opened."""
        kept = self.take(file, options)
        if kept is not None:
            with contextlib.suppress(Exception):
                then(kept.open_file)
            self.put(kept)
            return
        with self.lock:
            # more would take the place of those that are needed sooner
            num_ahead = len(self.opening) + sum(one.is_ahead for one in self.idle)
            room = min(MAX_OPENED_AHEAD, self.options.max_kept // 2) - num_ahead
            if file.file_path in self.opening or room <= 0:
                return
            done = self.opening[file.file_path] = threading.Event()

        def run() -> None:
            try:
                # whoever needs the file then opens it again, and gets the error
                with contextlib.suppress(Exception):
                    kept = _open(file, options)
                    with contextlib.suppress(Exception):
                        then(kept.open_file)
                    self.put(replace(kept, is_ahead=True))
            finally:
                with self.lock:
                    self.opening.pop(file.file_path, None)
                done.set()

        # limits on concurrent opens come with the context
        context = contextvars.copy_context()
        threading.Thread(
            target=context.run, args=(run,), name="hepdask-open-ahead", daemon=True
        ).start()

    def wait_for_opening(self, file: InputFile) -> float:
        """Wait while a thread opens this very file; return how long that took, in seconds."""
        done = self.opening.get(file.file_path)
        if done is None:
            return 0.0
        started = time.perf_counter()
        # in short steps: a time limit can't end a wait in C
        while not done.wait(_WAIT_SECONDS):
            continue
        return time.perf_counter() - started

    def take(self, file: InputFile, options: ReadOptions) -> _Kept | None:
        """Take a file out, if there is one that is as good as newly opened."""
        self.is_lent = False
        self.close_surplus()
        while (kept := self._pop(file, options)) is not None:
            if self._is_current(kept):
                return kept
            with contextlib.suppress(Exception):
                close_connection(kept.open_file)
        return None

    def put(self, kept: _Kept) -> None:
        """Keep a file after use, the least recently used one giving way."""
        with self.lock:
            self.idle.append(kept)
        self.close_surplus()

    def forget_ahead(self, wanted: Collection[str]) -> None:
        """Keep files that were opened for what would come, and doesn't, like all others."""
        with self.lock:
            for index, one in enumerate(self.idle):
                if one.is_ahead and one.open_file.replica not in wanted:
                    self.idle[index] = replace(one, is_ahead=False)

    def close_surplus(self) -> None:
        """Close what is idle for too long or too much."""
        oldest = time.monotonic() - self.options.max_idle_seconds
        with self.lock:
            surplus = [one for one in self.idle if one.used_seconds < oldest]
            rest = [one for one in self.idle if one.used_seconds >= oldest]
            # what will be needed goes last
            rest.sort(key=lambda one: one.is_ahead)
            num_surplus = max(0, len(rest) - self.options.max_kept)
            surplus += rest[:num_surplus]
            self.idle = deque(rest[num_surplus:])
        # outside the lock: closing a remote file may wait for its server
        for kept in surplus:
            _close(kept)

    def _pop(self, file: InputFile, options: ReadOptions) -> _Kept | None:
        with self.lock:
            for index, kept in enumerate(self.idle):
                if self._fits(kept, file, options):
                    del self.idle[index]
                    return kept
        return None

    def _fits(self, kept: _Kept, file: InputFile, options: ReadOptions) -> bool:
        return (
            kept.treename == file.treename
            and kept.options == options
            and _is_good_choice(kept.open_file.replica, file)
        )

    def _is_current(self, kept: _Kept) -> bool:
        if kept.state is not None:
            return _local_state(kept.open_file.replica) == kept.state
        return time.monotonic() - kept.opened_seconds <= self.options.max_remote_age_seconds


_pool = _Pool(KeepOptions())
# pools of a parent process: never closed here, since their descriptors and connections are the parent's
_inherited: list[_Pool] = []


def _pool_of_process() -> _Pool:
    """Give this process's pool: a fork must not use the files of its parent, whose read positions it shares, unless they are lent."""
    global _pool  # one pool for a process is the point
    if _pool.pid != os.getpid():
        parent, _pool = _pool, _Pool(_pool.options)
        _inherited.append(parent)
        if parent.is_lent:
            # a connection is not: a server answers whoever asks first
            _pool.idle.extend(one for one in parent.idle if one.state is not None)
    return _pool


def _open(file: InputFile, options: ReadOptions) -> _Kept:
    # before they are opened: a file that changes meanwhile then counts as changed
    states = {replica: _local_state(replica) for replica in file.replicas}
    opened = open_file(file, options)
    now = time.monotonic()
    return _Kept(
        open_file=opened,
        treename=file.treename,
        options=options,
        state=states[opened.replica],
        opened_seconds=now,
        used_seconds=now,
    )


def _is_good_choice(replica: str, file: InputFile) -> bool:
    """Tell whether a file that is open would be opened from the same replica, or from none that is better."""
    if replica not in file.replicas:
        return False
    if file.replicas[0] != file.file_path:  # after a failure another one is asked for
        return process_health().order(file.replicas)[0] == replica
    return process_health().is_as_good(replica, file.replicas)


def _local_state(url: str) -> tuple[int, int, int, int] | None:
    status = local_status(url)
    if status is None:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _discard(kept: _Kept) -> None:
    """Close a file that must not be used again, and the connection with it."""
    _close(kept)
    forget_connections(kept.open_file.replica)


def _close(kept: _Kept) -> None:
    # a connection that is lost can't be closed in order, and nothing was written to the file
    with contextlib.suppress(Exception):
        kept.open_file.close()


atexit.register(close_all)
