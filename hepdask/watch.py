"""A time limit for what this thread does, enforced by another one.

An exception is raised in the middle of the Python code that takes too long. What hangs in C (a read that the server never
answers) takes no notice of it: then the caller is told, and a worker ends its own process.
"""

from __future__ import annotations

import ctypes
import math
import queue
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["TimeLimitReached", "time_limit"]

#: From the exception to the moment when code that takes no notice of it counts as hung.
GRACE_SECONDS = 5.0


class TimeLimitReached(BaseException):
    """Raised in a thread whose time is up; not an `Exception`, which user code often catches."""


@dataclass(slots=True, eq=False)
class _Watch:
    """One block of code and its limit.

    Whoever claims it first decides: the thread that its block has ended, or the watchdog that its time is up.
    """

    thread_id: int
    deadline: float
    on_hang: Callable[[], None] | None
    is_over: bool = False
    is_raised: bool = False
    _owner: dict[str, str] = field(default_factory=dict)

    def claim(self, name: str) -> bool:
        """Return whether a name is the first that has claimed this watch; in one step, and without a lock."""
        return self._owner.setdefault("name", name) == name


class _Watchdog:
    """Watches all blocks of this process from one thread, which sleeps until the next deadline.

    A block whose deadline is later than that wakes nobody: it is found when the thread looks again. Waking a thread for each of
    many short ranges costs more than all else around them.


    A watched thread takes no lock that others need: the exception may come between the moment when it has got the lock and
    the one when Python has noted that the lock is to be given back, and then nobody would ever get it again.
    """

    def __init__(self) -> None:
        # the blocks that are going on, by identity: entries of a dict come and go in one step, without a lock
        self._watches: dict[int, _Watch] = {}
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()
        #: what begins with a deadline before this has to wake the thread
        self._sleeps_until = math.inf
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self, watch: _Watch) -> None:
        # while there is no watchdog (at first, and in a forked process), no exception can come: the lock is safe
        if not self._is_running():
            with self._start_lock:
                if not self._is_running():
                    self._start()
        self._watches[id(watch)] = watch
        if watch.deadline < self._sleeps_until:
            self._wakes.put(None)

    def end(self, watch: _Watch) -> None:
        if not watch.claim("thread"):
            while not watch.is_raised:
                time.sleep(1e-4)
            # one that was not delivered yet must not come later, in the middle of something else
            _raise_in_thread(watch.thread_id, None)
        watch.is_over = True
        self._watches.pop(id(watch), None)

    def _is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _start(self) -> None:
        # of a parent process are the blocks that go on there
        self._watches, self._wakes, self._sleeps_until = {}, queue.SimpleQueue(), math.inf
        self._thread = threading.Thread(
            target=self._run,
            args=(self._watches, self._wakes),
            name="hepdask-watchdog",
            daemon=True,
        )
        self._thread.start()

    def _run(self, watches: dict[int, _Watch], wakes: queue.SimpleQueue[None]) -> None:
        while True:
            # first of all: what begins from now on is among the watches below, or wakes this thread
            self._sleeps_until = math.inf
            now = time.monotonic()
            current = watches.copy()
            for watch in current.values():
                if watch.deadline <= now:
                    self._act(watch, now)
            nearest = min((one.deadline for one in current.values()), default=math.inf)
            self._sleeps_until = nearest
            with suppress(queue.Empty):
                wakes.get(timeout=None if nearest == math.inf else max(0.0, nearest - now))

    def _act(self, watch: _Watch, now: float) -> None:
        if not watch.is_raised:
            watch.deadline = math.inf
            if watch.claim("watchdog"):
                _raise_in_thread(watch.thread_id, TimeLimitReached)
                watch.is_raised = True
                watch.deadline = now + GRACE_SECONDS
            return
        watch.deadline = math.inf
        if watch.on_hang is not None and not watch.is_over:
            watch.on_hang()


_watchdog = _Watchdog()


@contextmanager
def time_limit(seconds: float | None, on_hang: Callable[[], None] | None = None) -> Iterator[None]:
    """Limit the time of a block of code.

    Parameters
    ----------
    seconds : float or None
        None: no limit.
    on_hang : callable or None
        Called from another thread if the block goes on for `GRACE_SECONDS` after the exception.

    Raises
    ------
    TimeLimitReached
        In the block. If the block ends meanwhile, it may be raised in the last lines of it, or not at all.
    """
    if seconds is None:
        yield
        return
    watch = _Watch(threading.get_ident(), time.monotonic() + seconds, on_hang)
    try:
        _watchdog.begin(watch)
        yield
    finally:
        try:
            _watchdog.end(watch)
        finally:
            # it may be raised in the middle of that, but only once
            _watchdog.end(watch)


def _raise_in_thread(thread_id: int, kind: type[BaseException] | None) -> None:
    argument = ctypes.py_object(kind) if kind is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), argument)
