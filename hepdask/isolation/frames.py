"""Messages over sockets: orders of one byte, and frames, a length and as many bytes."""

from __future__ import annotations

import select
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

__all__ = [
    "FORK",
    "KILL",
    "PREPARED",
    "READY",
    "SPENT",
    "is_readable",
    "now",
    "read_frame",
    "write_frame",
]

#: Orders to the server, or to a prepared child: to fork a child, sent with the child's end of its socket; to kill it.
FORK = b"F"
KILL = b"K"
#: What a child says after each answer: it may have another call, or has kept too much memory, or is prepared and takes orders
#: to fork from now on.
READY = b"R"
SPENT = b"S"
PREPARED = b"P"
_LENGTH = struct.Struct("!Q")


def now() -> float:
    """Return the time in seconds of the clock that deadlines are of."""
    return time.monotonic()


def is_readable(connection: socket.socket) -> bool:
    """Return whether there is something to be read, or the other end is closed."""
    poll = select.poll()  # a worker's descriptors may be too large for select()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def write_frame(connection: socket.socket, payload: bytes, deadline: float | None = None) -> None:
    """Send a frame.

    Parameters
    ----------
    connection : socket.socket
        To whom.
    payload : bytes
        What.
    deadline : float, optional
        As of `now`, in seconds. None: wait for ever.

    Raises
    ------
    TimeoutError
        If the time is up.
    ConnectionError
        If the other end is closed.
    """
    _limit_wait(connection, deadline)
    connection.sendall(_LENGTH.pack(len(payload)))
    _limit_wait(connection, deadline)
    connection.sendall(payload)


def read_frame(connection: socket.socket, deadline: float | None = None) -> bytearray:
    """Wait for a frame and return what is in it.

    Parameters
    ----------
    connection : socket.socket
        From whom.
    deadline : float, optional
        As of `now`, in seconds. None: wait for ever.

    Raises
    ------
    TimeoutError
        If the time is up.
    EOFError or ConnectionError
        If the other end is closed.
    """
    (length,) = _LENGTH.unpack(_read_exactly(connection, _LENGTH.size, deadline))
    return _read_exactly(connection, length, deadline)


def _limit_wait(connection: socket.socket, deadline: float | None) -> None:
    if deadline is None:
        connection.settimeout(None)
        return
    remaining = deadline - now()
    if remaining <= 0:  # 0 would mean "don't block"
        raise TimeoutError
    connection.settimeout(remaining)


def _read_exactly(connection: socket.socket, length: int, deadline: float | None) -> bytearray:
    payload = bytearray(length)
    rest = memoryview(payload)
    while rest:
        _limit_wait(connection, deadline)
        num_bytes = connection.recv_into(rest)
        if num_bytes == 0:
            raise EOFError
        rest = rest[num_bytes:]
    return payload
