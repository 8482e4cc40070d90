"""Show progress as live bars in a terminal, drawn by rich, which is imported with the first bar."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from hepdask.progress.state import (
    describe_failures,
    describe_work,
    format_percent,
    format_times,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, RenderableType
    from rich.live import Live

    from hepdask.progress.state import StageSnapshot

__all__ = ["TerminalDisplay", "is_terminal"]


class TerminalDisplay:
    """Draw live bars in a terminal, two lines per stage; what the user prints appears above them.

    Parameters
    ----------
    console : rich.console.Console, optional
        Where to draw; the default is the standard error. A console that isn't a terminal gets the
        last state only.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.refresh_seconds = 0.1
        self._console = _build_console() if console is None else console
        self._live: Live | None = None

    def draw(self, stages: Sequence[StageSnapshot]) -> None:
        """Draw the bars in place."""
        if self._live is None:
            self._live = self._start_live()
        self._live.update(_render_bars(stages), refresh=True)

    def end(self) -> None:
        """Leave the bars where they are and give the cursor back."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _start_live(self) -> Live:
        from rich.live import Live

        live = Live(
            console=self._console,
            auto_refresh=False,
            # with `> out.txt` the user's prints belong into the file, not among the bars
            redirect_stdout=is_terminal(sys.stdout),
            redirect_stderr=is_terminal(sys.stderr),
        )
        live.start()
        return live


def _build_console() -> Console:
    from rich.console import Console

    class ErrorConsole(Console):
        def on_broken_pipe(self) -> None:
            # rich would redirect the user's stdout to /dev/null and exit
            raise  # noqa: PLE0704  # called while the BrokenPipeError is handled

    return ErrorConsole(stderr=True, force_jupyter=False)


def _render_bars(stages: Sequence[StageSnapshot]) -> RenderableType:
    from rich.console import Group
    from rich.constrain import Constrain

    # wider bars say no more, and the eye has to travel
    return Constrain(Group(*(_render_stage(snapshot) for snapshot in stages)), 100)


def _render_stage(snapshot: StageSnapshot) -> RenderableType:
    from rich.console import Group
    from rich.padding import Padding
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    row = Table.grid(padding=(0, 1), expand=True)
    row.add_column(min_width=10, no_wrap=True)
    row.add_column(ratio=1)
    row.add_column(width=4, justify="right")
    # the width of "12:34:56 elapsed, 12:34:56 left": the bars of all stages are of one length
    row.add_column(min_width=31)
    color = {"running": "cyan", "finished": "green", "stopped": "yellow"}[snapshot.status]
    row.add_row(
        Text(snapshot.stage, style="bold"),
        ProgressBar(
            total=1.0, completed=snapshot.fraction, complete_style=color, finished_style=color
        ),
        Text(format_percent(snapshot)),
        Text(format_times(snapshot)),
    )
    details = Text(describe_work(snapshot))
    if snapshot.num_failures:
        details.append(", ").append(describe_failures(snapshot), style="bold red")
    return Group(row, Padding(details, (0, 0, 0, 11)))


def is_terminal(stream: TextIO | None) -> bool:
    """Tell if a stream is a terminal.

    Parameters
    ----------
    stream : text stream or None
        ``sys.stderr`` and the like, which are None in a process without them.

    Returns
    -------
    bool
        False also for None and for a closed stream.
    """
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False
