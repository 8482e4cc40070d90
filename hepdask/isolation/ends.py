"""The caller's ends of the connections to the server and to its children."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import cloudpickle

from hepdask.isolation.calls import Death, describe_end
from hepdask.isolation.frames import (
    FORK,
    KILL,
    PREPARED,
    SPENT,
    is_readable,
    now,
    read_frame,
    write_frame,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from hepdask.isolation.calls import Call

__all__ = ["ChildEnd", "ForkerEnd", "ServerEnd", "ServerEndedError"]

#: Longest time for the imports of `PRELOAD`: 3 s from a local disk, minutes from a busy shared one.
START_SECONDS = 600.0
#: Longest time between the end of a child's socket, or the order to kill it, and the report of its death. More than
#: milliseconds are only needed to free many GB, or if the child hangs in the kernel.
DEATH_SECONDS = 10.0

# Read by libraries when they are loaded; the child then gets the caller's environment. One thread, as threads don't
# survive a fork, and Python warns of them; one malloc arena, as each reserves address space that counts as memory.
_SERVER_ENVIRONMENT = {
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "MALLOC_ARENA_MAX": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# Not "-m hepdask.isolation.server": the caller's sys.path comes first, so that this is the hepdask of the caller.
_BOOT = (
    "import json, os, sys; control = int(sys.argv[1]); "
    "sys.path[:] = json.loads(os.fdopen(control, 'rb', 0, closefd=False).readline()); "
    "from hepdask.isolation.server import serve; serve(control)"
)


class ServerEndedError(Exception):
    """What children are forked from is gone, and with it the child."""


class ChildEnd:
    """The caller's end of a child."""

    def __init__(self, data: socket.socket) -> None:
        self._data = data
        self._is_new = True
        #: True if earlier calls have left so much in its memory that it is to be replaced
        self.is_spent = False

    def ask(self, call: Call) -> bytearray:
        """Send a call and wait for its answer.

        Raises
        ------
        TimeoutError
            If the time is up.
        EOFError or ConnectionError
            If the child is gone.
        """
        reply, state = self._exchange(call.packed, call)
        # the answer is here, whatever has happened since
        self.is_spent = state in (SPENT, b"")
        return reply

    def prepare(self, call: Call) -> ForkerEnd | None:
        """Let the child do what comes first in a call; return the end of what it is then, None if it is a child as before.

        Raises
        ------
        TimeoutError, EOFError, ConnectionError
            As for `ask`.
        """
        _, state = self._exchange(cloudpickle.dumps((_call_first, call.first)), call, True)
        return ForkerEnd(self._data) if state == PREPARED else None

    def _exchange(
        self, packed: bytes, call: Call, is_preparing: bool = False
    ) -> tuple[bytearray, bytes]:
        deadline = None if call.timeout_seconds is None else now() + call.timeout_seconds
        # not again for a kept child: what its modules have set is to stay
        environment = dict(os.environ) if self._is_new else None
        header = (environment, _text_entries(sys.path), call.memory_bytes, is_preparing)
        self._is_new = False
        write_frame(self._data, pickle.dumps(header), deadline)
        write_frame(self._data, packed, deadline)
        reply = read_frame(self._data, deadline)
        with contextlib.suppress(EOFError, OSError):
            return reply, bytes(read_frame(self._data, deadline))
        return reply, b""

    def is_gone(self) -> bool:
        """Return whether the child is dead, when it has nothing to answer."""
        return is_readable(self._data)

    def close(self) -> None:
        """Close the connection; a child that has nothing to do ends by it."""
        self._data.close()


class ForkerEnd:
    """The caller's end of what children are forked from: the server, or a prepared child.

    Parameters
    ----------
    control : socket.socket
        The caller's end of the connection, for orders and reports of deaths.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control

    def fork(self) -> socket.socket:
        """Return the caller's end of a new child."""
        ours, theirs = socket.socketpair()
        try:
            with theirs, self._report_end():
                socket.send_fds(self._control, [FORK], [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        return ours

    def has_news(self) -> bool:
        """Return whether the child died, or what it was forked from."""
        return is_readable(self._control)

    def wait_for_death(self) -> Death | None:
        """Return how the child died; None if it seems that it didn't."""
        with self._report_end():
            try:
                return Death(**json.loads(read_frame(self._control, now() + DEATH_SECONDS)))
            except TimeoutError:
                return None

    def kill_child(self) -> Death | None:
        """Kill the child by its parent, which alone knows that its process id wasn't given to another one."""
        with self._report_end():
            self._control.sendall(KILL)
        return self.wait_for_death()

    def hang_up(self) -> None:
        """Make it kill the child and end; wakes up a thread that waits for either."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up, and let go."""
        self.hang_up()
        self._control.close()

    def let_go(self) -> None:
        """Close the copy that a forked process has."""
        self._control.close()

    @contextlib.contextmanager
    def _report_end(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, ConnectionError):
            raise ServerEndedError(self._describe_end()) from None

    def _describe_end(self) -> str:
        return "it was prepared for this call, and is gone"


class ServerEnd(ForkerEnd):
    """The caller's end of the server, which it starts."""

    def __init__(self) -> None:
        control, theirs = socket.socketpair()
        super().__init__(control)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-P", "-c", _BOOT, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**_SERVER_ENVIRONMENT, **os.environ},
                process_group=0,  # Ctrl-C in a terminal is for the caller, from the first moment
            )
        except OSError as error:
            control.close()
            raise ServerEndedError(f"not started: {error}") from None
        finally:
            theirs.close()

    def start(self, preload: Sequence[str]) -> None:
        """Hand over what the server is to know, and wait until it is ready."""
        with self._report_end():
            self._control.sendall(json.dumps(_text_entries(sys.path)).encode() + b"\n")
            write_frame(self._control, json.dumps(preload).encode())
            try:
                read_frame(self._control, now() + START_SECONDS)
            except TimeoutError:
                raise ServerEndedError(f"not ready after {START_SECONDS:g} s") from None

    def close(self) -> None:
        """Hang up and wait until the server has ended."""
        self.hang_up()
        try:
            self._process.wait(DEATH_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._control.close()

    def let_go(self) -> None:
        """Close the copies that a forked process has; it isn't the one to wait for the server."""
        super().let_go()
        self._process.returncode = 0

    def _describe_end(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(DEATH_SECONDS)
        return describe_end(self._process.returncode)


def _call_first(function: Callable[..., object], *arguments: Any) -> None:
    function(*arguments)


def _text_entries(path: Sequence[object]) -> list[str]:
    """Leave out what isn't text: import skips it, JSON doesn't."""
    return [entry for entry in path if isinstance(entry, str)]
