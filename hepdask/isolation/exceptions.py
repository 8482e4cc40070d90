"""Exceptions on their way from the child to the caller, with their causes and their traceback."""

from __future__ import annotations

import contextlib
import os
import pickle
import traceback
from typing import TYPE_CHECKING, Any

import cloudpickle

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["pack_failure", "unpack_reply"]


def pack_failure(error: BaseException) -> bytes:
    """Pack an exception with those that it was raised from, as pickle leaves them out."""
    text = "".join(traceback.format_exception(error)).strip()
    chain = [(*_pack_exception(one), one.__suppress_context__) for one in _chain(error)]
    return pickle.dumps((False, (chain, f"In child process {os.getpid()}:\n{text}")))


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ if current.__suppress_context__ else current.__context__


def _pack_exception(error: BaseException) -> tuple[bytes, str]:
    """Pickle an exception, or one of its nearest base class that can be; with its text, should it not load there."""
    text = "".join(traceback.format_exception_only(error)).strip()
    for candidate in _candidates(error, text):
        try:
            packed = cloudpickle.dumps(candidate)
            pickle.loads(packed)  # many classes can be pickled, but not made again
        except Exception:  # noqa: BLE001, S112  # the user's class may raise anything here
            continue
        return packed, text
    return pickle.dumps(RuntimeError(text)), text


def _candidates(error: BaseException, text: str) -> Iterator[BaseException]:
    yield error
    for kind in type(error).__mro__[1:]:
        if issubclass(kind, BaseException):
            with contextlib.suppress(Exception):
                yield kind(text)


def unpack_reply(reply: bytearray) -> Any:
    """Return the value that a child has sent.

    Raises
    ------
    BaseException
        If it has sent an exception: that one, with the child's traceback as a note.
    """
    is_value, content = pickle.loads(reply)
    if is_value:
        return content
    chain, text = content
    error = _unpack_chain(chain)
    error.add_note(text)
    raise error


def _unpack_chain(chain: list[tuple[bytes, str, bool]]) -> BaseException:
    (packed, text, is_context_suppressed), *rest = chain
    error = _unpack_exception(packed, text)
    inner = _unpack_chain(rest) if rest else None
    if is_context_suppressed:
        error.__cause__ = inner
    else:
        error.__context__ = inner
    return error


def _unpack_exception(packed: bytes, text: str) -> BaseException:
    try:
        error = pickle.loads(packed)
    except Exception:  # noqa: BLE001  # a class that only the child can import, say
        return RuntimeError(text)
    return error if isinstance(error, BaseException) else RuntimeError(text)
