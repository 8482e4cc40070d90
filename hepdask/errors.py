"""Everything that hepdask raises.

::

    HepdaskError
    ├── FilesetError (ValueError)          what the user wrote in a fileset
    ├── OptionError (ValueError)           an option of the Runner, an executor or the command line
    ├── MissingDependencyError (ImportError)   an extra that is not installed
    ├── FileReadError (OSError)            a file that can't be opened or read
    │   ├── MissingTreeError               the file has no such tree
    │   └── FileChangedError               the file is not the one that was inspected
    ├── ProcessorError (RuntimeError)      user code that raised or returned nothing
    ├── AccumulatorError (TypeError)       two outputs that can't be added
    ├── ExecutorError (RuntimeError)       the cluster went away, or never came
    ├── ProcessDiedError (RuntimeError)    a child process that crashed, was killed or took too long
    ├── RangeTimeoutError (TimeoutError)   a range that took longer than it may
    ├── StoreError (OSError)               a store that can't be read or written, or isn't safe to read
    │   └── DamagedObjectError             a stored result that is not what was written
    ├── RunError (RuntimeError)            a run that ended before all was processed
    └── AccountingError (RuntimeError)     the books of a run don't add up: a bug in hepdask

Each text says what happened, where, and what to do next. All of them cross process borders: the message
is the only positional argument, everything else is a keyword with a default, so that they survive pickling.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "AccountingError",
    "AccumulatorError",
    "DamagedObjectError",
    "ExecutorError",
    "FileChangedError",
    "FileReadError",
    "FilesetError",
    "HepdaskError",
    "MissingDependencyError",
    "MissingTreeError",
    "OptionError",
    "ProcessDiedError",
    "ProcessorError",
    "RangeTimeoutError",
    "RunError",
    "StoreError",
    "suggest",
]


class HepdaskError(Exception):
    """Base class of all errors that hepdask raises on purpose."""


class FilesetError(HepdaskError, ValueError):
    """Something is wrong in what the user wrote in a fileset."""


class OptionError(HepdaskError, ValueError):
    """An option has a wrong name, type or value."""


class MissingDependencyError(HepdaskError, ImportError):
    """An optional library is not installed; the text is the command that installs it."""


class FileReadError(HepdaskError, OSError):
    """A file can't be opened or read: missing, truncated, damaged, denied, timed out."""


class MissingTreeError(FileReadError):
    """The file opens but has no such tree; the text lists those that it has."""


class FileChangedError(FileReadError):
    """The file is not the one that was inspected (another uuid, fewer entries)."""


class ProcessorError(HepdaskError, RuntimeError):
    """The user's processor raised, or returned nothing."""


class AccumulatorError(HepdaskError, TypeError):
    """Two accumulators don't fit together.

    The text starts with the path in the nested output, ``output["dy"]["mass"]: axes differ: ...``.
    """


class ExecutorError(HepdaskError, RuntimeError):
    """The executor can't run tasks: no client, a lost scheduler, a closed cluster."""


class ProcessDiedError(HepdaskError, RuntimeError):
    """A child process died before it had an answer, or had to be killed.

    Parameters
    ----------
    message : str
        What it ran, how it ended, and what to do next.
    exit_code : int or None
        What it passed to ``exit``; None if it didn't end by itself.
    signal : int or None
        Number of the signal that killed it, 11 for SIGSEGV; None if none did.
    timeout_seconds : float or None
        The time limit that it exceeded; None if it didn't.
    """

    def __init__(
        self,
        message: str = "",
        *,
        exit_code: int | None = None,
        signal: int | None = None,
        timeout_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.signal = signal
        self.timeout_seconds = timeout_seconds

    @property
    def is_by_call(self) -> bool:
        """True if the call ended its process; False if no process could be had for it."""
        return (self.exit_code, self.signal, self.timeout_seconds) != (None, None, None)


class RangeTimeoutError(HepdaskError, TimeoutError):
    """A range took longer than `RecoveryPolicy.max_range_seconds`."""


class StoreError(HepdaskError, OSError):
    """A store can't be read or written, or others could have put something into it."""


class DamagedObjectError(StoreError):
    """A stored result is not what was written: cut short, changed, misplaced, or no longer readable."""


class AccountingError(HepdaskError, RuntimeError):
    """Requested entries are not processed plus failed plus not reached: a bug in hepdask."""


class RunError(HepdaskError, RuntimeError):
    """A run ended before everything was processed.

    Parameters
    ----------
    message : str
        What failed first, where, and how to go on.
    partial_result : RunResult or None
        Everything that was computed until then, with its completeness and failures. It stays in the process
        that ran the `Runner`: it is not pickled with the error.
    """

    def __init__(self, message: str = "", *, partial_result: Any = None) -> None:
        super().__init__(message)
        self.partial_result = partial_result

    def __reduce__(self) -> tuple[type[RunError], tuple[str]]:
        return type(self), (str(self),)


def suggest(wrong: str, right: Iterable[str]) -> str:
    """Write the end of an error text: the nearest right name, or all of them.

    Parameters
    ----------
    wrong : str
        The name that was written.
    right : iterable of str
        The names that exist.

    Returns
    -------
    str
        ``"; did you mean 'files'?"``, or a list of at most ten names, or nothing if there is none.
    """
    names = list(right)
    near = get_close_matches(wrong, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    if not names:
        return ""
    listed = ", ".join(repr(name) for name in names[:10])
    return f"; there is {listed}{', ...' if len(names) > 10 else ''}"
