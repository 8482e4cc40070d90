"""A call, how its child may end, and what the user is told of it."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any

from hepdask.errors import ProcessDiedError

__all__ = ["Call", "Death", "death_error", "describe_end", "time_limit_error"]


@dataclass(frozen=True, slots=True)
class Call:
    """A call on its way.

    Attributes
    ----------
    subject : str
        Who died, if it dies: an error begins with it.
    job : str
        What the child was there for, for the errors of those that never came to run it.
    packed : bytes
        The function and its arguments.
    memory_bytes : int or None
        What it may allocate.
    timeout_seconds : float or None
        What it may take.
    first : tuple or None
        The function, and its arguments, that a child may be prepared with.
    """

    subject: str
    job: str
    packed: bytes
    memory_bytes: int | None
    timeout_seconds: float | None
    first: tuple[Any, ...] | None = None


@dataclass(frozen=True, slots=True)
class Death:
    """How a child ended.

    Attributes
    ----------
    exit_code : int or None
        As of `os.waitstatus_to_exitcode`, -11 for SIGSEGV; None if it could not be forked.
    text : str
        The Python lines that a crash came from, or why there was no fork; empty if not known.
    """

    exit_code: int | None
    text: str


def time_limit_error(call: Call) -> ProcessDiedError:
    """Make the error of a child that was killed as its time was up."""
    return ProcessDiedError(
        f"{call.subject} exceeded its time limit of {call.timeout_seconds:g} s and was killed; "
        "give it more time, or find out what it waits for",
        timeout_seconds=call.timeout_seconds,
    )


def death_error(call: Call, death: Death | None) -> ProcessDiedError:
    """Make the error of a child that died during a call; None is for one that only seemed to."""
    if death is None:
        return ProcessDiedError(
            f"{call.subject} closed its connection without ending, and was killed; does the "
            "code close files that it didn't open?"
        )
    if death.exit_code is None:
        return ProcessDiedError(
            f"no child process could be forked to run {call.job}: {death.text}; are there too many processes?"
        )
    error = ProcessDiedError(
        f"{call.subject} died: {describe_end(death.exit_code)}; {_advice(death.exit_code)}",
        exit_code=death.exit_code if death.exit_code >= 0 else None,
        signal=-death.exit_code if death.exit_code < 0 else None,
    )
    if death.text:
        error.add_note(f"Where it was in Python:\n{death.text}")
    return error


def _advice(exit_code: int) -> str:
    if exit_code >= 0:
        return "the code must not end its process, it called os._exit() or exit() of C"
    if exit_code == -signal.SIGKILL:
        return "mostly for lack of memory: use smaller ranges (chunksize), or ask for more memory"
    return "a crash in compiled code: run it alone under a debugger, or look for a newer version"


def describe_end(exit_code: int | None) -> str:
    """Say how a process ended: ``killed by SIGSEGV``; None is for one that hasn't."""
    if exit_code is None:
        return "not ended, but silent"
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:  # real-time signals have no names
        return f"killed by signal {-exit_code}"
