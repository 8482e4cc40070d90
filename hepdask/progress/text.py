"""Show progress as plain lines, where nothing can be drawn in place: batch logs, files, pipes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from hepdask.progress.state import describe_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hepdask.progress.state import StageSnapshot

__all__ = ["TextDisplay"]


class TextDisplay:
    """Write one line per stage and interval, for batch logs.

    The first and the last line of a stage are always written; in between there is none while
    nothing changes.

    Parameters
    ----------
    stream : text stream, optional
        Where to write; the default is the standard error of now.
    interval_seconds : float
        The least wall time between two lines of a stage.
    """

    def __init__(self, stream: TextIO | None = None, interval_seconds: float = 5.0) -> None:
        self.refresh_seconds = min(1.0, interval_seconds)
        self._stream = sys.stderr if stream is None else stream
        self._interval_seconds = interval_seconds
        self._written: dict[str, StageSnapshot] = {}

    def draw(self, stages: Sequence[StageSnapshot]) -> None:
        """Write the lines that are due."""
        for snapshot in stages:
            if self._is_due(snapshot):
                # one call per line: lines of several processes in one log stay whole
                self._stream.write(f"{describe_line(snapshot)}\n")
                self._stream.flush()
                self._written[snapshot.stage] = snapshot

    def end(self) -> None:
        """Forget what was written."""
        self._written.clear()

    def _is_due(self, snapshot: StageSnapshot) -> bool:
        last = self._written.get(snapshot.stage)
        waited_seconds = snapshot.elapsed_seconds - (last.elapsed_seconds if last else 0.0)
        if last is None or last.status != snapshot.status or waited_seconds < 0:
            return True  # less elapsed than before: the stage was started anew
        changed = (last.done, last.num_bytes, last.num_failures) != (
            snapshot.done,
            snapshot.num_bytes,
            snapshot.num_failures,
        )
        return changed and waited_seconds >= self._interval_seconds
