"""Watch a run: stages in events, files or merges, in a terminal, a notebook or a batch log.

Whoever works (an executor, the runner) calls the four methods of `Progress`, from any thread. What
is known of a stage lives in `StageState`, which is pure; a `Display` only draws its snapshots.
`LiveProgress` joins the two: its thread draws at the pace of the display, so that `advance` costs a
lock and a few additions, however often it is called.

All texts are ASCII: a batch log in the C locale can't encode anything else.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import html
import logging
import math
import os
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO, runtime_checkable

from hepdask.errors import MissingDependencyError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console, RenderableType
    from rich.live import Live

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

logger = logging.getLogger(__name__)

Status = Literal["running", "finished", "stopped"]

SHORTEST_MEMORY_SECONDS = 30.0
"""What happened longer ago than this hardly counts in a rate, unless the stage is long."""

FIRST_RATE_SECONDS = 1.0
"""A younger stage has no rate: its first burst over a millisecond says nothing."""

LONGEST_SECONDS_LEFT = 100 * 86_400.0
"""A longer time left is unknown: a stage that stalls has a rate near zero, not a forecast."""


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


@dataclass(frozen=True, slots=True)
class StageSnapshot:
    """One stage at one moment, as a display draws it."""

    stage: str
    """What is done, e.g. ``"processing"``."""
    unit: str
    """``"files"``, ``"events"`` or ``"merges"``."""
    total: int
    """Units to do; at least 0."""
    done: int
    """Units done, from 0 to `total`, both included."""
    num_bytes: int
    """Bytes read; at least 0."""
    num_failures: int
    """Failures seen; at least 0."""
    elapsed_seconds: float
    """Wall time from the start to now, or to the end of the stage."""
    rate: float | None
    """Units per second: recent while running, the mean afterwards; None until known."""
    byte_rate: float | None
    """Bytes per second, like `rate`."""
    seconds_left: float | None
    """Wall time to the end at this rate; None until known, and once the stage has ended."""
    status: Status
    """``"stopped"`` is a stage that was still open when the run ended."""

    @property
    def fraction(self) -> float:
        """Return the part that is done, from 0 to 1; an empty stage is done once it is finished."""
        if self.total == 0:
            return 1.0 if self.status == "finished" else 0.0
        return self.done / self.total


class StageState:
    """Count one stage and work out its rates; pure but for the clock it is given, and not locked.

    Amounts may overshoot (a task that ran twice) or be taken back: what a snapshot shows stays in
    ``[0, total]``.

    The rates are exponentially smoothed over irregular steps: sums of units, bytes and seconds that
    all fade with the same time constant, so that their quotient is the plain mean at first and the
    recent rate later. The time constant is 30 s or a third of the stage, whichever is longer: tasks
    of minutes report in bursts.

    Parameters
    ----------
    stage, total, unit
        As in `Progress.start`.
    clock : callable
        Returns seconds that never go back.
    """

    __slots__ = (
        "_changed_at",
        "_clock",
        "_done",
        "_ended_at",
        "_faded",
        "_num_bytes",
        "_num_failures",
        "_started_at",
        "_status",
        "stage",
        "total",
        "unit",
    )

    def __init__(
        self, stage: str, total: int, unit: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stage = stage
        self.total = max(total, 0)
        self.unit = unit
        self._clock = clock
        self._started_at = self._changed_at = clock()
        self._ended_at: float | None = None
        self._status: Status = "running"
        self._done = self._num_bytes = self._num_failures = 0
        self._faded = (0.0, 0.0, 0.0)

    def advance(self, amount: int, num_bytes: int = 0, num_failures: int = 0) -> None:
        """Add what was just done: units, bytes, failures."""
        now = self._clock()
        before = self._shown_done()
        self._done += amount
        self._num_bytes += num_bytes
        self._num_failures += num_failures
        units, read, seconds = self._fade_to(now)
        self._faded = (units + self._shown_done() - before, read + num_bytes, seconds)
        self._changed_at = now

    def finish(self) -> None:
        """End the stage; its clock stops."""
        self._end("finished")

    def stop(self) -> None:
        """End the stage unless it is finished, as one that was cut short."""
        self._end("stopped")

    def snapshot(self) -> StageSnapshot:
        """Return the stage as it is now."""
        rate, byte_rate = self._rates()
        return StageSnapshot(
            stage=self.stage,
            unit=self.unit,
            total=self.total,
            done=self._shown_done(),
            num_bytes=max(self._num_bytes, 0),
            num_failures=max(self._num_failures, 0),
            elapsed_seconds=self._elapsed_seconds(),
            rate=rate,
            byte_rate=byte_rate,
            seconds_left=self._seconds_left(rate),
            status=self._status,
        )

    def _end(self, status: Status) -> None:
        if self._status == "running":
            self._status = status
            self._ended_at = self._clock()

    def _shown_done(self) -> int:
        return min(max(self._done, 0), self.total)

    def _elapsed_seconds(self) -> float:
        end = self._clock() if self._ended_at is None else self._ended_at
        return max(end - self._started_at, 0.0)

    def _fade_to(self, now: float) -> tuple[float, float, float]:
        memory_seconds = max(SHORTEST_MEMORY_SECONDS, (now - self._started_at) / 3)
        kept = math.exp(-max(now - self._changed_at, 0.0) / memory_seconds)
        units, read, seconds = self._faded
        # the integral of exp(-t / memory) over the step: its early seconds have faded, too
        return units * kept, read * kept, seconds * kept + memory_seconds * (1.0 - kept)

    def _rates(self) -> tuple[float | None, float | None]:
        elapsed_seconds = self._elapsed_seconds()
        if self._shown_done() == 0 or elapsed_seconds == 0.0:
            return None, None
        if self._status != "running":
            return self._shown_done() / elapsed_seconds, max(self._num_bytes, 0) / elapsed_seconds
        if elapsed_seconds < FIRST_RATE_SECONDS:
            return None, None
        units, read, seconds = self._fade_to(self._clock())
        return max(units, 0.0) / seconds, max(read, 0.0) / seconds

    def _seconds_left(self, rate: float | None) -> float | None:
        if self._status != "running":
            return None
        num_left = self.total - self._shown_done()
        if num_left == 0:
            return 0.0
        if not rate or num_left / rate > LONGEST_SECONDS_LEFT:
            return None
        return num_left / rate


def _format_si(value: float, unit: str) -> str:
    """Write a value with three digits and the SI prefix that fits: ``1.23 GB``, ``27.5 MHz``."""
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        # 999.6 kB is 1.00 MB when written with three digits
        if value >= 0.9995 * scale:
            return f"{_three_digits(value / scale)} {prefix}{unit}"
    return f"{_three_digits(value)} {unit}"


def _three_digits(value: float) -> str:
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _format_rate(rate: float, unit: str) -> str:
    """Write units per second; events in kHz, as the field quotes them, from 10,000 kHz in MHz."""
    if unit != "events":
        return f"{_three_digits(rate)} {unit}/s"
    return _format_si(rate, "Hz") if rate >= 1e7 else f"{_three_digits(rate / 1e3)} kHz"


def _format_count(snapshot: StageSnapshot) -> str:
    """Write done/total; billions are shortened, as they don't fit a line."""
    if snapshot.total >= 1_000_000_000:
        return f"{snapshot.done / 1e9:,.2f}/{snapshot.total / 1e9:,.2f} G {snapshot.unit}"
    return f"{snapshot.done:,}/{snapshot.total:,} {snapshot.unit}"


def _format_percent(snapshot: StageSnapshot) -> str:
    # rounded down: 100% is never shown before the last event is there
    return f"{math.floor(snapshot.fraction * 100)}%"


def _format_duration(seconds: float | None) -> str:
    """Write ``m:ss``, ``h:mm:ss`` or ``1d 02:03:04``; ``?`` for None."""
    if seconds is None:
        return "?"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if not hours:
        return f"{minute}:{second:02}"
    days, hour = divmod(hours, 24)
    return (
        f"{days}d {hour:02}:{minute:02}:{second:02}" if days else f"{hour}:{minute:02}:{second:02}"
    )


def _format_times(snapshot: StageSnapshot) -> str:
    elapsed = _format_duration(snapshot.elapsed_seconds)
    if snapshot.status == "running":
        return f"{elapsed} elapsed, {_format_duration(snapshot.seconds_left)} left"
    return f"done in {elapsed}" if snapshot.status == "finished" else f"stopped after {elapsed}"


def _describe_work(snapshot: StageSnapshot) -> str:
    """Write count, rate and data, leaving out what isn't known."""
    parts = [_format_count(snapshot)]
    if snapshot.rate is not None:
        parts.append(_format_rate(snapshot.rate, snapshot.unit))
    if snapshot.num_bytes and snapshot.byte_rate is not None:
        parts.append(_format_byte_rate(snapshot.byte_rate))
    if snapshot.num_bytes:
        parts.append(_format_si(snapshot.num_bytes, "B"))
    return ", ".join(parts)


def _format_byte_rate(byte_rate: float) -> str:
    """Write MB/s, so that numbers compare at a glance; GB/s from 1,000 MB/s."""
    return (
        _format_si(byte_rate, "B/s")
        if byte_rate >= 1e9
        else f"{_three_digits(byte_rate / 1e6)} MB/s"
    )


def _describe_failures(snapshot: StageSnapshot) -> str:
    """Write ``1 failure``, ``2 failures``, or nothing."""
    if not snapshot.num_failures:
        return ""
    return f"{snapshot.num_failures:,} failure{'s' if snapshot.num_failures > 1 else ''}"


def _describe_line(snapshot: StageSnapshot) -> str:
    """Write a stage in one line of a log."""
    parts = [_describe_work(snapshot), _describe_failures(snapshot), _format_times(snapshot)]
    text = ", ".join(part for part in parts if part)
    return f"{snapshot.stage}: {_format_percent(snapshot)}, {text}"


class Display(Protocol):
    """Something that can show stages; never called by two threads at once, and may raise."""

    refresh_seconds: float
    """Wall time between two drawings."""

    def draw(self, stages: Sequence[StageSnapshot]) -> None:
        """Show all stages of the run, in the order in which they were started."""

    def end(self) -> None:
        """Leave what was drawn last as it is; the next `draw` belongs to another run."""


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
                self._stream.write(f"{_describe_line(snapshot)}\n")
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
            redirect_stdout=_is_terminal(sys.stdout),
            redirect_stderr=_is_terminal(sys.stderr),
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
        Text(_format_percent(snapshot)),
        Text(_format_times(snapshot)),
    )
    details = Text(_describe_work(snapshot))
    if snapshot.num_failures:
        details.append(", ").append(_describe_failures(snapshot), style="bold red")
    return Group(row, Padding(details, (0, 0, 0, 11)))


class NotebookDisplay:
    """Show a table with bars in a Jupyter notebook and update it in place.

    It is an output of the cell that started the run, wherever in the cell that stands; it needs no
    widgets.

    Raises
    ------
    MissingDependencyError
        If IPython isn't installed.
    """

    def __init__(self) -> None:
        try:
            import IPython.display  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError(
                "progress='jupyter' needs IPython: pip install 'hepdask[notebook]'"
            ) from error
        self.refresh_seconds = 0.5
        self._display_id: str | None = None
        self._shown: dict[str, str] = {}

    def draw(self, stages: Sequence[StageSnapshot]) -> None:
        """Send the table to the notebook unless it looks as before.

        Raises
        ------
        RuntimeError
            Outside of a Jupyter kernel, where there is nothing to send it to.
        """
        from IPython.display import display, update_display

        if not _is_jupyter():
            raise RuntimeError("there is no Jupyter kernel")
        bundle = _build_bundle(stages)
        if bundle == self._shown:
            return
        if self._display_id is None:
            self._display_id = f"hepdask-progress-{uuid.uuid4().hex}"
            display(bundle, raw=True, display_id=self._display_id)
        else:
            update_display(bundle, raw=True, display_id=self._display_id)
        self._shown = bundle

    def end(self) -> None:
        """Leave the table as it is; the next run gets its own."""
        self._display_id = None
        self._shown = {}


def _build_bundle(stages: Sequence[StageSnapshot]) -> dict[str, str]:
    rows = "".join(_render_row(snapshot) for snapshot in stages)
    return {
        "text/html": f'<table style="font-variant-numeric: tabular-nums">{rows}</table>',
        "text/plain": "\n".join(_describe_line(snapshot) for snapshot in stages),
    }


def _render_row(snapshot: StageSnapshot) -> str:
    color = {"running": "#1976d2", "finished": "#388e3c", "stopped": "#f57c00"}[snapshot.status]
    # one decimal more than the percentage: the bar of a long stage should move
    width = f"{math.floor(snapshot.fraction * 1000) / 10:g}%"
    bar = (
        '<div style="width: 12em; height: 0.7em; background: rgba(128, 128, 128, 0.3)">'
        f'<div style="width: {width}; height: 100%; background: {color}"></div></div>'
    )
    failures = f'<b style="color: #d32f2f">{html.escape(_describe_failures(snapshot))}</b>'
    cells = [
        f"<b>{html.escape(snapshot.stage)}</b>",
        bar,
        _format_percent(snapshot),
        html.escape(_describe_work(snapshot)),
        failures if snapshot.num_failures else "",
        _format_times(snapshot),
    ]
    columns = "".join(f'<td style="text-align: left">{cell}</td>' for cell in cells)
    return f"<tr>{columns}</tr>"


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
    if _is_jupyter():
        return "jupyter"
    if _is_terminal(sys.stderr) and os.environ.get("TERM", "").lower() not in {"dumb", "unknown"}:
        return "rich"
    return "plain" if sys.stderr is not None else "off"


def _is_jupyter() -> bool:
    """Tell if this process is a Jupyter kernel; a process that never imported IPython isn't one."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False
