"""What the child does: run calls, one after the other, until the caller hangs up, or until it is prepared to be forked."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import pickle
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import cloudpickle

from hepdask.isolation.exceptions import pack_failure
from hepdask.isolation.frames import PREPARED, READY, SPENT, read_frame, write_frame

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

__all__ = ["find_prctl", "run_child"]

_PR_SET_PDEATHSIG = 1
#: Of 1,000: how the kernel is to choose when memory runs out. First the child, then what it is forked from.
_CHILD_BADNESS = 1_000
_PREPARED_BADNESS = 900
#: Part of what a call may allocate that earlier calls may have left behind: so a child never has more than 1.5 times of it.
MAX_LEFT_BEHIND = 0.5


def run_child(
    data: socket.socket,
    crash_fd: int,
    server: int,
    prctl: Callable[..., int] | None,
    num_own_bytes: int | None,
) -> int:
    """Be the child, which ends when the caller hangs up; returns when it is prepared, and the caller was told so.

    Parameters
    ----------
    data : socket.socket
        The child's end.
    crash_fd : int
        Where the Python lines of a crash are written to.
    server : int
        The process id of the parent.
    prctl : callable or None
        As of `find_prctl`, loaded before the fork.
    num_own_bytes : int or None
        The memory of a process that has run nothing; None: what this one has now.

    Returns
    -------
    int
        `num_own_bytes`, for the children of this one.
    """
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    _die_with(server, prctl)
    _prefer_for_killing(_CHILD_BADNESS)
    _limit_core()
    _reseed()
    faulthandler.enable(crash_fd, all_threads=False)
    # what the user's code forks must not keep the connection alive when this process is dead, nor answer on it
    os.register_at_fork(after_in_child=data.close)
    if num_own_bytes is None:
        num_own_bytes = _own_bytes()
    while True:
        try:
            header = read_frame(data)
            packed = read_frame(data)
        except (EOFError, ConnectionError):
            os._exit(0)
        environment, path, memory_bytes, is_preparing = pickle.loads(header)
        reply, is_done = _answer(environment, path, memory_bytes, packed)
        del packed
        write_frame(data, reply)
        del reply
        num_left_bytes = _own_bytes() - num_own_bytes
        is_spent = memory_bytes is not None and num_left_bytes > MAX_LEFT_BEHIND * memory_bytes
        if is_preparing and is_done and not is_spent and _has_one_thread():
            _prefer_for_killing(_PREPARED_BADNESS)
            write_frame(data, PREPARED)
            return num_own_bytes
        write_frame(data, SPENT if is_spent else READY)


def find_prctl() -> Callable[..., int] | None:
    """Return prctl(2), by which a process asks to die with its parent; None where there is none, as on macOS."""
    if sys.platform != "linux":
        return None
    import ctypes

    return ctypes.CDLL(None).prctl


def _die_with(server: int, prctl: Callable[..., int] | None) -> None:
    if prctl is not None:
        # Not for the server itself: the signal comes when the *thread* ends that started it, and workers' threads do.
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != server:  # it died before
        os._exit(1)


def _prefer_for_killing(badness: int) -> None:
    # when memory runs out, the kernel is to take this process, and not the worker
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(badness), encoding="ascii")


def _limit_core() -> None:
    import resource

    # Writing a core of a GB for each death would take longer than the search; 1 and not 0, as only that also keeps
    # Linux from piping it to a program (core(5)).
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0 if hard == 0 else 1, hard))


def _has_one_thread() -> bool:
    """Tell whether a fork would be all of this process; False where that isn't known."""
    threads = Path("/proc/self/task")
    return threads.exists() and len(list(threads.iterdir())) == 1


def _reseed() -> None:
    # Python does so for its own generator; else the children of a server would draw the same numbers
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


def _answer(
    environment: dict[str, str] | None, path: list[str], memory_bytes: int | None, packed: bytearray
) -> tuple[bytes, bool]:
    """Return the answer to a call, and whether that is a value."""
    try:
        if environment is not None:
            os.environ.clear()
            os.environ.update(environment)
        sys.path.extend(entry for entry in path if entry not in sys.path)
        with _limit_memory(memory_bytes):
            function, arguments = pickle.loads(packed)
            return bytes(cloudpickle.dumps((True, function(*arguments)))), True
    except BaseException as error:  # noqa: BLE001  # SystemExit, too: it is for the caller to judge
        reply = pack_failure(error)
        is_memory_error = isinstance(error, MemoryError)
    if is_memory_error:
        gc.collect()  # what the traceback held may be most of the memory
    return reply, False


def _own_bytes() -> int:
    """Return the memory that this process shares with no file and no other program; 0 where it isn't known."""
    sizes = Path("/proc/self/statm")
    if not sizes.exists():
        return 0
    import resource

    _, resident, shared, *_ = map(int, sizes.read_text(encoding="ascii").split())
    return (resident - shared) * resource.getpagesize()


@contextlib.contextmanager
def _limit_memory(memory_bytes: int | None) -> Iterator[None]:
    sizes = Path("/proc/self/statm")
    if memory_bytes is None or not sizes.exists():
        yield
        return
    import resource  # not on Windows, where this module can be imported

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    current = int(sizes.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    limits = [one for one in (soft, current + memory_bytes) if one != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
