"""Watch a run: stages in events, files or merges, in a terminal, a notebook or a batch log.

Whoever works (an executor, the runner) calls the four methods of `Progress`, from any thread. What
is known of a stage lives in `StageState`, which is pure; a `Display` only draws its snapshots.
`LiveProgress` joins the two: its thread draws at the pace of the display, so that `advance` costs a
lock and a few additions, however often it is called.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Protocol, runtime_checkable

from hepdask.errors import OptionError
from hepdask.progress.live import Display, LiveProgress
from hepdask.progress.notebook import NotebookDisplay, is_jupyter
from hepdask.progress.state import StageSnapshot, StageState
from hepdask.progress.terminal import TerminalDisplay, is_terminal
from hepdask.progress.text import TextDisplay

__all__ = [
    "Display",
    "LiveProgress",
    "NotebookDisplay",
    "Progress",
    "RecordingProgress",
    "SilentProgress",
    "StageSnapshot",
    "StageState",
    "TerminalDisplay",
    "TextDisplay",
    "choose_progress",
]


@runtime_checkable
class Progress(Protocol):
    """What executors and the runner tell about a run; all methods may be called from any thread."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """Open a stage of `total` units.

        Parameters
        ----------
        stage : str
            What is done: ``"inspecting"``, ``"processing"``, ``"merging"``. A name that was used
            before starts anew.
        total : int
            How many units there are to do.
        unit : str
            ``"files"``, ``"events"`` or ``"merges"``.
        """

    def advance(
        self, stage: str, amount: int, *, num_bytes: int = 0, num_failures: int = 0
    ) -> None:
        """Add to a stage what was just done; a stage that isn't open is ignored.

        Parameters
        ----------
        stage : str
            A stage that was started.
        amount : int
            Units done; negative to take back what has to be done again.
        num_bytes : int
            Bytes read for it.
        num_failures : int
            Failures seen in it.
        """

    def finish(self, stage: str) -> None:
        """Declare a stage done, whatever its count says."""

    def close(self) -> None:
        """End the run, also after an error; a later `start` begins a new one."""


class SilentProgress:
    """Show nothing."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """Do nothing."""

    def advance(
        self, stage: str, amount: int, *, num_bytes: int = 0, num_failures: int = 0
    ) -> None:
        """Do nothing."""

    def finish(self, stage: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class RecordingProgress:
    """Keep every call, for tests of what reports progress.

    Attributes
    ----------
    calls : list of tuple
        In order: ``("start", stage, total, unit)``,
        ``("advance", stage, amount, num_bytes, num_failures)``, ``("finish", stage)``,
        ``("close",)``.
    """

    def __init__(self) -> None:
        # appending to a list is atomic: no lock
        self.calls: list[tuple[Any, ...]] = []

    def start(self, stage: str, total: int, unit: str) -> None:
        """Record the call."""
        self.calls.append(("start", stage, total, unit))

    def advance(
        self, stage: str, amount: int, *, num_bytes: int = 0, num_failures: int = 0
    ) -> None:
        """Record the call."""
        self.calls.append(("advance", stage, amount, num_bytes, num_failures))

    def finish(self, stage: str) -> None:
        """Record the call."""
        self.calls.append(("finish", stage))

    def close(self) -> None:
        """Record the call."""
        self.calls.append(("close",))

    def sum_advances(self, stage: str) -> tuple[int, int, int]:
        """Return units, bytes and failures that a stage was advanced by, not clamped."""
        sums = [0, 0, 0]
        for name, *arguments in tuple(self.calls):
            if name == "advance" and arguments[0] == stage:
                sums = [total + step for total, step in zip(sums, arguments[1:], strict=True)]
        return sums[0], sums[1], sums[2]


def choose_progress(wanted: bool | str | Progress | None = None) -> Progress:
    """Choose how a run is watched.

    Parameters
    ----------
    wanted : bool, str, Progress or None
        None, True or ``"auto"``: bars in a terminal, a table in a Jupyter notebook, plain lines
        elsewhere. False or ``"off"``: nothing. ``"rich"``, ``"jupyter"`` or ``"plain"``: that one.
        An object with the methods of `Progress` is used as it is.

    Returns
    -------
    Progress
        Not started yet; whoever starts it closes it.

    Raises
    ------
    OptionError
        If `wanted` is none of these.
    MissingDependencyError
        If ``"jupyter"`` is wanted and IPython isn't installed.
    """
    if wanted is None or isinstance(wanted, bool):
        wanted = "off" if wanted is False else "auto"
    if wanted == "auto":
        wanted = _detect_display()
    match wanted:
        case "off":
            return SilentProgress()
        case "rich":
            return LiveProgress(TerminalDisplay())
        case "jupyter":
            return LiveProgress(NotebookDisplay())
        case "plain":
            return LiveProgress(TextDisplay())
    # a class has the methods, too, but can't be called like this
    if isinstance(wanted, Progress) and not isinstance(wanted, type):
        return wanted
    raise OptionError(
        f"progress={wanted!r} is no way to show progress; use 'auto', 'rich', 'jupyter', 'plain' "
        "or 'off', None, True or False, or an object with the methods start, advance, finish and "
        "close"
    )


def _detect_display() -> str:
    """Name the display that fits where this process runs, without importing any."""
    if is_jupyter():
        return "jupyter"
    if is_terminal(sys.stderr) and os.environ.get("TERM", "").lower() not in {"dumb", "unknown"}:
        return "rich"
    return "plain" if sys.stderr is not None else "off"
