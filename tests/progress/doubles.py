"""What the tests of progress share: a clock that is set, a display that keeps what it is given."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hepdask.progress import StageSnapshot


class FakeClock:
    """A clock that goes only when told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class DrawnDisplay:
    """Keeps what it was given, and fails when told to."""

    refresh_seconds = 0.001

    def __init__(self) -> None:
        self.drawings: list[tuple[StageSnapshot, ...]] = []
        self.num_ends = 0
        self.error: BaseException | None = None
        self.saw_progress = threading.Event()

    def draw(self, stages: Sequence[StageSnapshot]) -> None:
        if self.error is not None:
            raise self.error
        self.drawings.append(tuple(stages))
        if any(stage.done for stage in stages):
            self.saw_progress.set()

    def end(self) -> None:
        self.num_ends += 1


def live_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "hepdask-progress"]
