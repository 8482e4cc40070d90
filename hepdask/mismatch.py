"""Copy values of an output, and say why two of them can't be added or one can't be copied."""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Callable, MutableMapping
from collections.abc import Set as AbstractSet
from typing import Any

__all__ = [
    "IMMUTABLE",
    "Mismatch",
    "copy_deeply",
    "copy_with",
    "describe",
    "describe_cause",
    "shorten",
]

IMMUTABLE = frozenset({type(None), bool, int, float, complex, str, bytes})
"""Types whose values are shared, not copied: nothing in them can be changed in place."""


class Mismatch(Exception):
    """Why values can't be added or copied; collects the path to them while it goes up.

    Parameters
    ----------
    problem : str
        What doesn't fit, with both sides.
    advice : str
        What the user can do about it.

    Attributes
    ----------
    steps : list of str
        The path in the nested output, innermost step first: ``'["mass"]'``, ``'["dy"]'``.
    """

    def __init__(self, problem: str = "", *, advice: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.advice = advice
        self.steps: list[str] = []  # innermost first

    def text(self) -> str:
        """Return the text of the error, which starts with the path: ``output["dy"]["mass"]: ...``."""
        return f"output{''.join(reversed(self.steps))}: {self.problem}; {self.advice}"


def copy_deeply(a: Any) -> Any:
    """Copy a value with all that it holds.

    Parameters
    ----------
    a : object
        Any value of an output.

    Returns
    -------
    object
        The copy, which shares nothing with the value that could be changed in place.

    Raises
    ------
    Mismatch
        If it can't be copied (an open file, a lock, a generator).
    """
    return copy_with(a, copy.deepcopy)


def copy_with(a: Any, how: Callable[[Any], Any]) -> Any:
    """Copy a value in a given way.

    Parameters
    ----------
    a : object
        Any value of an output.
    how : callable
        Takes the value and returns the copy: `copy.copy` or `copy.deepcopy`.

    Returns
    -------
    object
        What `how` returned.

    Raises
    ------
    Mismatch
        If `how` raised anything but a `MemoryError`, to which the run has an answer of its own.
    """
    try:
        return how(a)
    except MemoryError:
        raise
    except Exception as error:
        raise Mismatch(
            f"can't copy {describe(a)} ({describe_cause(error)})",
            advice="leave it out of the output: only what can be copied and pickled can be merged",
        ) from error


_short = reprlib.Repr()
_short.maxother = _short.maxstring = 60


def shorten(value: Any) -> str:
    """Write a value as ``repr`` does, but for the middle of what is long.

    Parameters
    ----------
    value : object
        Anything.

    Returns
    -------
    str
        At most 60 characters of a text or an object, a few items of a container.
    """
    return _short.repr(value)


def describe(value: Any) -> str:
    """Write what a value is, for an error text.

    Parameters
    ----------
    value : object
        Anything.

    Returns
    -------
    str
        Its type, its length if it is a container, and its shortened ``repr``, in one line.
    """
    text = " ".join(shorten(value).split())
    size = f" of {len(value)}" if isinstance(value, (MutableMapping, AbstractSet, list)) else ""
    return f"{type(value).__name__}{size} {text}"


def describe_cause(error: Exception) -> str:
    """Write the type and the first line of an error.

    Parameters
    ----------
    error : Exception
        What was raised.

    Returns
    -------
    str
        ``"TypeError: unsupported operand"``.
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
