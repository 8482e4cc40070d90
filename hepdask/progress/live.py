"""Keep the stages of a run and have a display draw them at its own pace."""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import logging
import threading
import time
from typing import TYPE_CHECKING, Protocol

from hepdask.progress.state import StageState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hepdask.progress.state import StageSnapshot

__all__ = ["Display", "LiveProgress"]

logger = logging.getLogger(__name__)


class Display(Protocol):
    """Something that can show stages; never called by two threads at once, and may raise."""

    refresh_seconds: float
    """Wall time between two drawings."""

    def draw(self, stages: Sequence[StageSnapshot]) -> None:
        """Show all stages of the run, in the order in which they were started."""

    def end(self) -> None:
        """Leave what was drawn last as it is; the next `draw` belongs to another run."""


class LiveProgress:
    """Keep the stages of a run and have a display draw them, from a thread of its own.

    The thread lives from the first `start` to `close`. A display that fails is logged once and
    gives up; the run goes on without it.

    Parameters
    ----------
    display : Display
        What draws the stages, and how often.
    clock : callable
        Returns seconds that never go back.
    background : bool
        False: no thread; draw when a stage starts or ends and when `refresh` is called.
    """

    def __init__(
        self,
        display: Display,
        *,
        clock: Callable[[], float] = time.monotonic,
        background: bool = True,
    ) -> None:
        self._display: Display | None = display
        self._clock = clock
        self._background = background
        self._stages: dict[str, StageState] = {}
        # two locks: `advance` must not wait for a slow terminal. Reentrant, as a signal handler or
        # a finalizer may call in while its own thread holds them. Order: drawing before stages
        self._stages_lock = threading.RLock()
        self._drawing_lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def start(self, stage: str, total: int, unit: str) -> None:
        """Open a stage and draw it; see `Progress.start`."""
        with self._stages_lock:
            # taken out first: a stage that starts anew is drawn last
            self._stages.pop(stage, None)
            self._stages[stage] = StageState(stage, total, unit, self._clock)
        self.refresh()
        if self._background:
            self._start_thread()

    def advance(
        self, stage: str, amount: int, *, num_bytes: int = 0, num_failures: int = 0
    ) -> None:
        """Add to a stage what was just done, without drawing; see `Progress.advance`."""
        with self._stages_lock:
            state = self._stages.get(stage)
            # callbacks of tasks may come after the end of the run
            if state is not None:
                state.advance(amount, num_bytes, num_failures)

    def finish(self, stage: str) -> None:
        """Declare a stage done and draw it; see `Progress.finish`."""
        with self._stages_lock:
            state = self._stages.get(stage)
            if state is not None:
                state.finish()
        self.refresh()

    def refresh(self) -> None:
        """Draw the stages now; nothing happens before the first one is open."""
        with self._drawing_lock:
            with self._stages_lock:
                snapshots = tuple(state.snapshot() for state in self._stages.values())
            if snapshots and self._display is not None:
                display = self._display
                self._attempt(lambda: display.draw(snapshots))

    def close(self) -> None:
        """End the thread, draw the last state, and be ready for another run."""
        self._stop_thread()
        with self._stages_lock:
            for state in self._stages.values():
                state.stop()
        self.refresh()
        with self._drawing_lock:
            with self._stages_lock:
                self._stages.clear()
            if self._display is not None:
                self._attempt(self._display.end)

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001  # whatever a display does, the run goes on
            display, self._display = self._display, None
            self._closing.set()
            if display is not None:
                # it may have redirected the user's stdout or hidden the cursor
                with contextlib.suppress(Exception):
                    display.end()
            logger.warning(
                "the progress display stopped (%s: %s); the run goes on without it",
                type(error).__name__,
                error,
            )

    def _start_thread(self) -> None:
        with self._stages_lock:
            if self._thread is not None or self._display is None:
                return
            self._closing = threading.Event()
            # a notebook finds the cell to write to in the context of whoever started the run
            context = contextvars.copy_context()
            arguments = (self._draw_until, self._closing, self._display.refresh_seconds)
            thread = threading.Thread(
                target=context.run, args=arguments, name="hepdask-progress", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:  # the limit of the process, or Python in a browser
                logger.debug("progress is drawn between stages only: %s", error)
                return
            self._thread = thread
        # whoever dies without `close` still gets the cursor back, and no thread that writes while
        # Python ends
        atexit.register(self.close)

    def _draw_until(self, closing: threading.Event, refresh_seconds: float) -> None:
        while not closing.wait(refresh_seconds):
            self.refresh()

    def _stop_thread(self) -> None:
        atexit.unregister(self.close)
        with self._stages_lock:
            thread, self._thread = self._thread, None
            self._closing.set()
        if thread is not None:
            # bounded: a terminal on hold (Ctrl-S) blocks whoever writes to it
            thread.join(timeout=5.0)
