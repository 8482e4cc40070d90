"""Small immutable values as bytes, such that no two different ones look alike."""

from __future__ import annotations

import struct
from typing import Any

__all__ = ["encode_atom"]

_CONSTANTS = ((None, b"N"), (Ellipsis, b"E"), (NotImplemented, b"M"))


def encode_atom(value: Any) -> bytes | None:
    """Return an encoding of a number, string or constant.

    Returns
    -------
    bytes or None
        ``1, 1.0, True, "1"`` and ``b"1"`` have different ones; all NaNs have the same, 0.0 and -0.0 have not. None if
        the value is of another type, or of a subclass.
    """
    kind = type(value)
    if kind is str:
        return b"s" + str(value).encode("utf-8", "surrogatepass")
    if kind is int:
        return b"i%x" % value
    if kind is float:
        return b"f" + _pack(value)
    if kind is bytes:
        return b"b" + bytes(value)
    if kind is complex:
        return b"c" + _pack(value.real) + _pack(value.imag)
    if kind is bool:
        return b"T" if value else b"F"
    return next((encoded for one, encoded in _CONSTANTS if value is one), None)


def _pack(number: float) -> bytes:
    # processors differ in the sign of the NaN that 0/0 gives
    return struct.pack(">d", number) if number == number else b"nan"  # noqa: PLR0124
