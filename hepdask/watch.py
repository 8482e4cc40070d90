"""A time limit for what this thread does, enforced by another one.

An exception is raised in the middle of the Python code that takes too long. What hangs in C (a read that the server never
answers) takes no notice of it: then the caller is told, and a worker ends its own process.
"""

from __future__ import annotations

import ctypes
import math
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["TimeLimitReached", "time_limit"]

#: From the exception to the moment when code that takes no notice of it counts as hung.
GRACE_SECONDS = 5.0


class TimeLimitReached(BaseException):
    """Raised in a thread whose time is up; not an `Exception`, which user code often catches."""


@dataclass(slots=True)
class _Watch:
    """One block of code and its limit."""

    thread_id: int
    deadline: float
    on_hang: Callable[[], None] | None
    is_over: bool = False
    is_raised: bool = False


class _Watchdog:
    """Watches all blocks of this process from one thread, which sleeps until the next deadline."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._watches: list[_Watch] = []
        self._thread: threading.Thread | None = None

    def begin(self, watch: _Watch) -> None:
        with self._condition:
            self._watches.append(watch)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="hepdask-watchdog", daemon=True
                )
                self._thread.start()
            self._condition.notify()

    def end(self, watch: _Watch) -> None:
        with self._condition:
            self._watches = [one for one in self._watches if one is not watch]
            if watch.is_raised:
                # one that was not delivered yet must not come later, in the middle of something else
                _raise_in_thread(watch.thread_id, None)
            watch.is_over = True

    def _run(self) -> None:
        with self._condition:
            while True:
                now = time.monotonic()
                for watch in [one for one in self._watches if one.deadline <= now]:
                    self._act(watch, now)
                deadlines = [one.deadline for one in self._watches if one.deadline < math.inf]
                self._condition.wait(min(deadlines) - now if deadlines else None)

    def _act(self, watch: _Watch, now: float) -> None:
        if not watch.is_raised:
            watch.is_raised = True
            watch.deadline = now + GRACE_SECONDS
            _raise_in_thread(watch.thread_id, TimeLimitReached)
            return
        watch.deadline = math.inf
        if watch.on_hang is not None:
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
    _watchdog.begin(watch)
    try:
        yield
    finally:
        while not watch.is_over:
            # it may be raised right here: the watch is ended all the same
            with suppress(TimeLimitReached):
                _watchdog.end(watch)


def _raise_in_thread(thread_id: int, kind: type[BaseException] | None) -> None:
    argument = ctypes.py_object(kind) if kind is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), argument)
