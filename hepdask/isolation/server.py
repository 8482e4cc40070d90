"""What the server does, and a prepared child: fork a child when it is told to, and report how it died."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import traceback
from pathlib import Path
from typing import NoReturn

from hepdask.allocator import keep_freed_memory
from hepdask.isolation.calls import Death
from hepdask.isolation.child import find_prctl, run_child
from hepdask.isolation.frames import FORK, KILL, read_frame, write_frame

__all__ = ["serve"]

#: How often the server looks whether its parent is still there, in case the end of its socket was kept open by a third.
PARENT_CHECK_SECONDS = 5.0


def serve(control_fd: int) -> None:
    """Be the server; returns when the caller is gone.

    Parameters
    ----------
    control_fd : int
        The inherited end of the socket pair.
    """
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(control_fd, False)  # what the user's code starts is not to have it
    keep_freed_memory()
    with (
        socket.socket(fileno=control_fd) as control,
        contextlib.suppress(EOFError, ConnectionError),
    ):
        for name in ("resource", *json.loads(read_frame(control))):
            # whoever needs it gets the error in the child, where it can be told
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        write_frame(control, b"{}")
        _Forker(control, parent).run()


class _Forker:
    """Forks one child at a time when it is told to, and reports how it died."""

    def __init__(
        self, control: socket.socket, parent: int, num_own_bytes: int | None = None
    ) -> None:
        self._control = control
        self._parent = parent
        self._num_own_bytes = num_own_bytes
        self._pid: int | None = None
        self._crash_fd = -1
        self._prctl = find_prctl()  # here, as it takes milliseconds
        self._positions = _read_positions()
        self._wakeup_fd, write_fd = os.pipe()
        os.set_blocking(self._wakeup_fd, False)
        os.set_blocking(write_fd, False)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        # the default action of SIGCHLD is not to wake up
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> None:
        # a collection in a child would touch, and so copy, all that is shared with it
        gc.collect()
        gc.freeze()
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wakeup_fd, select.POLLIN)
        try:
            while os.getppid() == self._parent:
                ready = dict(poll.poll(PARENT_CHECK_SECONDS * 1000))
                if self._wakeup_fd in ready:
                    os.read(self._wakeup_fd, 4096)
                    self._report_death()
                if self._control.fileno() in ready and not self._obey():
                    return
        finally:
            self._end_child()

    def _obey(self) -> bool:
        order, descriptors, _, _ = socket.recv_fds(self._control, 1, 1)
        if order == FORK:
            self._fork(socket.socket(fileno=descriptors[0]))
        elif order == KILL:
            self._kill()
        return bool(order)

    def _fork(self, data: socket.socket) -> None:
        os.set_inheritable(data.fileno(), False)
        server = os.getpid()
        self._crash_fd, crash_fd = os.pipe()
        with data:
            try:
                self._pid = os.fork()
            except OSError as error:
                self._send(Death(None, f"{error}{self._read_crash()}"))
            if self._pid == 0:
                self._become_child(data, crash_fd, server)
        os.close(crash_fd)
        if self._pid is not None:
            with contextlib.suppress(OSError):  # the child does so, too: whoever comes first
                os.setpgid(self._pid, self._pid)

    def _become_child(self, data: socket.socket, crash_fd: int, server: int) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            os.close(self._crash_fd)
            _restore(self._positions)
            num_own_bytes = run_child(data, crash_fd, server, self._prctl, self._num_own_bytes)
            with contextlib.suppress(EOFError, ConnectionError):
                _Forker(data, server, num_own_bytes).run()
        except BaseException:  # noqa: BLE001  # nothing may return into the loop that it was forked from
            traceback.print_exc()
        finally:
            os._exit(1)

    def _kill(self) -> None:
        if self._pid is not None:
            os.kill(self._pid, signal.SIGKILL)

    def _end_child(self) -> None:
        if self._pid is not None:
            self._kill()
            os.waitpid(self._pid, 0)
            _kill_group(self._pid)

    def _report_death(self) -> None:
        if self._pid is None:
            return
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if pid == 0:
            return
        self._pid = None
        _kill_group(pid)
        self._send(Death(os.waitstatus_to_exitcode(status), self._read_crash()))

    def _read_crash(self) -> str:
        os.set_blocking(self._crash_fd, False)
        with os.fdopen(self._crash_fd, "rb") as pipe:
            text = (pipe.read(65536) or b"").decode(errors="replace")
        # the list of all compiled modules says nothing about the crash, nor do the lines of this package
        text = text.partition("\nExtension modules:")[0]
        return text.partition(f'\n  File "{Path(__file__).parent}{os.sep}')[0].strip()

    def _send(self, death: Death) -> None:
        content = {"exit_code": death.exit_code, "text": death.text}
        write_frame(self._control, json.dumps(content).encode())


def _read_positions() -> dict[int, int]:
    """Find out where the files are that are open for reading: a fork shares the position, and what it has read before it."""
    positions = {}
    descriptors = Path("/proc/self/fd")
    for descriptor in (
        [int(one.name) for one in descriptors.iterdir()] if descriptors.exists() else ()
    ):
        with contextlib.suppress(OSError):  # a pipe has none, and the list itself is closed
            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                positions[descriptor] = os.lseek(descriptor, 0, os.SEEK_CUR)
    return positions


def _restore(positions: dict[int, int]) -> None:
    """Put files where they were, and buffers believe them to be, before a child that is dead has read them."""
    for descriptor, position in positions.items():
        with contextlib.suppress(OSError):
            os.lseek(descriptor, position, os.SEEK_SET)


def _kill_group(child: int) -> None:
    """Kill what a dead child had started; without a process that has left its group, as daemons do."""
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)
