r"""The format of one object: bytes that show whether they are whole.

::

    hepdask-object 1\n        the version of this format
    CHECKSUM\n                xxh3_128 of all that follows, 32 hex digits
    {"key": ..., ...}\n       the header, one line of JSON
    payload

The header says which key the object was saved under, what the caller wrote as summary, the versions of what wrote it, and how
the payload is cut. The payload is the pickle of the value (protocol 5), and then its large buffers, those of histograms
for instance, which pickle hands out instead of copying them. Each of these parts is cut into blocks of `BLOCK_BYTES`. A block is
compressed by LZ4 if that pays; then it is shorter than it was, and so each block's length says whether it is compressed.

The checksum finds every accident: a file that was cut, a flipped bit. It is no signature: **whoever can write an object
decides what is run when it is loaded**, as unpickling runs code. Nothing is unpickled before everything else is checked.

Values are pickled by pickle. What it can't pickle, and whatever refers to ``__main__``, is pickled by cloudpickle: pickle
would write the classes of a notebook as names, and no other process could look them up.
"""

from __future__ import annotations

import functools
import json
import pickle
import platform
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from hepdask.blocks import cut, shrink, unpack
from hepdask.errors import DamagedObjectError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    Bytes = bytes | bytearray | memoryview

__all__ = [
    "BLOCK_BYTES",
    "FORMAT_VERSION",
    "HEAD_BYTES",
    "Header",
    "check_object",
    "decode_value",
    "encode_object",
    "read_summary",
]

#: Raise it whenever the meaning of anything stored changes.
FORMAT_VERSION = 1
#: Every header of an object without thousands of blocks is in so many first bytes.
HEAD_BYTES = 16_384
#: Blocks are compressed one by one: LZ4 takes 2 GB at most, and often only a part of a buffer is filled.
BLOCK_BYTES = 4 << 20

_MAGIC = b"hepdask-object %d\n" % FORMAT_VERSION
_CHECKSUM_BYTES = 32
_CHECKED_FROM = len(_MAGIC) + _CHECKSUM_BYTES + 1
# below that, a buffer of its own costs more than it saves
_MIN_BUFFER_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of an object without unpickling it.

    Attributes
    ----------
    key : str
        What the object was saved under.
    summary : dict
        What the caller wrote about the value.
    versions : dict of str to str
        Of hepdask, Python and numpy, as they were when it was saved.
    block_bytes : int
        Length of all blocks but the last of each part, before compression.
    parts : list of (int, bool, list of int)
        For the pickle and each buffer: its bytes, whether it is read-only, and the bytes of each block as stored.
    """

    key: str
    summary: dict[str, Any]
    versions: dict[str, str]
    block_bytes: int
    parts: list[tuple[int, bool, list[int]]]


def encode_object(key: str, value: Any, summary: Mapping[str, Any]) -> list[Bytes]:
    """Turn a value into the bytes of an object.

    Parameters
    ----------
    key : str
        What it is saved under.
    value : object
        Anything that can be pickled.
    summary : mapping
        What JSON can write; numpy's numbers, too.

    Returns
    -------
    list of bytes-like
        To be written one after the other. Buffers that don't shrink are those of the value, not copies.

    Raises
    ------
    StoreError
        If the value can't be pickled.
    """
    import xxhash

    parts = _pickle(value)
    blocks = [[shrink(block) for block in cut(part, BLOCK_BYTES)] for part in parts]
    sizes = [
        (len(part), part.readonly, [len(block) for block in stored])
        for part, stored in zip(parts, blocks, strict=True)
    ]
    header = {
        "key": key,
        "summary": dict(summary),
        "versions": _versions(),
        "codec": "lz4 block",
        "block_bytes": BLOCK_BYTES,
        "parts": sizes,
    }
    line = json.dumps(header, default=_to_plain, separators=(",", ":")).encode() + b"\n"
    payload = [block for stored in blocks for block in stored]
    checksum = xxhash.xxh3_128(line)
    for block in payload:
        checksum.update(block)
    return [_MAGIC + checksum.hexdigest().encode() + b"\n" + line, *payload]


def check_object(data: Bytes, key: str, where: str) -> tuple[Header, memoryview]:
    """Check an object without unpickling it.

    Parameters
    ----------
    data : bytes-like
        All of it.
    key : str
        What it has to be saved under.
    where : str
        Where it comes from, for the error.

    Returns
    -------
    header : Header
        What it says of itself.
    payload : memoryview
        What follows, for `decode_value`.

    Raises
    ------
    DamagedObjectError
        If it is not exactly what was written under this key by this version of the format.
    """
    import xxhash

    view = memoryview(data).cast("B").toreadonly()
    if view[: len(_MAGIC)] != _MAGIC:
        first = bytes(view[: len(_MAGIC)])
        raise _damaged(where, f"it starts with {first!r} instead of {_MAGIC!r}")
    checksum = xxhash.xxh3_128(view[_CHECKED_FROM:]).hexdigest().encode() + b"\n"
    if view[len(_MAGIC) : _CHECKED_FROM] != checksum:
        raise _damaged(where, f"the checksum of its {len(view):,} bytes is not what it should be")
    header, start = _parse_header(view, where)
    if header.key != key:
        raise _damaged(where, f"it was saved as {header.key!r}")
    payload = view[start:]
    if len(payload) != sum(sum(sizes) for _, _, sizes in header.parts):
        raise _damaged(where, "its header and its length don't fit together")
    return header, payload


def read_summary(head: Bytes) -> dict[str, Any] | None:
    """Read the summary from the first bytes of an object, without checking anything.

    Parameters
    ----------
    head : bytes-like
        At least `HEAD_BYTES`, or all of the object.

    Returns
    -------
    dict or None
        None if it can't be read from that. For showing only: nobody has looked at the checksum.
    """
    try:
        return _parse_header(memoryview(head), "")[0].summary
    except DamagedObjectError:
        return None


def decode_value(header: Header, payload: memoryview, where: str) -> Any:
    """Unpickle the value of an object that was checked.

    Parameters
    ----------
    header, payload : Header, memoryview
        From `check_object`.
    where : str
        Where they come from, for the error.

    Raises
    ------
    DamagedObjectError
        If it can't be unpickled: a class is not there any more, or not in this process.
    """
    try:
        stream, *buffers = _unpack(header, payload)
        return pickle.loads(stream, buffers=buffers)
    except MemoryError:
        raise
    except Exception as error:
        written_by = ", ".join(f"{name} {version}" for name, version in header.versions.items())
        text = f"it can't be unpickled ({type(error).__name__}: {error}); written by {written_by}"
        raise _damaged(where, text) from error


def _damaged(where: str, reason: str) -> DamagedObjectError:
    return DamagedObjectError(
        f"{where} is damaged: {reason}. It has to be computed again; "
        "hepdask store prune --damaged removes what was damaged on the way"
    )


def _pickle(value: Any) -> list[memoryview]:
    """Pickle a value into the stream and its large buffers."""
    import cloudpickle

    buffers: list[memoryview] = []

    def keep_inside(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < _MIN_BUFFER_BYTES:
            return True
        buffers.append(raw)
        return False

    try:
        stream = pickle.dumps(value, 5, buffer_callback=keep_inside)
        is_for_all = b"__main__" not in stream
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  # whatever __reduce__ of the user's class raises: cloudpickle's turn
        is_for_all = False
    if not is_for_all:
        buffers.clear()
        try:
            stream = cloudpickle.dumps(value, 5, buffer_callback=keep_inside)
        except MemoryError:
            raise
        except Exception as error:
            raise StoreError(
                f"a result of type {type(value).__qualname__} can't be stored, as it can't be pickled "
                f"({type(error).__name__}: {error}); run without a store, or return something else"
            ) from error
    return [memoryview(stream), *buffers]


def _unpack(header: Header, payload: memoryview) -> Iterator[memoryview]:
    """Copy each part into memory of its own, writable if it was: arrays can be filled, and none keeps all in memory."""
    start = 0
    for num_bytes, is_readonly, sizes in header.parts:
        part = memoryview(bytearray(num_bytes))
        for block, size in zip(cut(part, header.block_bytes), sizes, strict=True):
            unpack(payload[start : start + size], block)
            start += size
        yield part.toreadonly() if is_readonly else part


def _parse_header(view: memoryview, where: str) -> tuple[Header, int]:
    """Return the header and where it ends."""
    head = bytes(view[_CHECKED_FROM : _CHECKED_FROM + HEAD_BYTES])
    if b"\n" not in head:  # thousands of blocks
        head = bytes(view[_CHECKED_FROM:])
    line, newline, _ = head.partition(b"\n")
    try:
        known = json.loads(line)
        names = ("key", "summary", "versions", "block_bytes", "parts")
        header = Header(*(known[name] for name in names))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(where, f"its header can't be read ({error})") from error
    return header, _CHECKED_FROM + len(line) + len(newline)


def _to_plain(value: Any) -> Any:
    """Write numpy's numbers as numbers, and what JSON doesn't know as text."""
    return value.item() if hasattr(value, "item") else str(value)


@functools.cache
def _versions() -> dict[str, str]:
    packages: Iterable[str] = ("hepdask", "numpy")
    return {"python": platform.python_version()} | {
        name: metadata.version(name) for name in packages
    }
