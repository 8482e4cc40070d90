"""What is known of a stage, and how its figures are written. Nothing is drawn here.

All texts are ASCII: a batch log in the C locale can't encode anything else.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "StageSnapshot",
    "StageState",
    "describe_failures",
    "describe_line",
    "describe_work",
    "format_duration",
    "format_percent",
    "format_rate",
    "format_si",
    "format_times",
]

Status = Literal["running", "finished", "stopped"]

SHORTEST_MEMORY_SECONDS = 30.0
"""What happened longer ago than this hardly counts in a rate, unless the stage is long."""

FIRST_RATE_SECONDS = 1.0
"""A younger stage has no rate: its first burst over a millisecond says nothing."""

LONGEST_SECONDS_LEFT = 100 * 86_400.0
"""A longer time left is unknown: a stage that stalls has a rate near zero, not a forecast."""


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


def format_si(value: float, unit: str) -> str:
    """Write a value with three digits and the SI prefix that fits.

    Parameters
    ----------
    value : float
        At least 0, in `unit`.
    unit : str
        ``"B"``, ``"Hz"``, ``"B/s"``.

    Returns
    -------
    str
        ``"1.23 GB"``, ``"27.5 MHz"``.
    """
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        # 999.6 kB is 1.00 MB when written with three digits
        if value >= 0.9995 * scale:
            return f"{_three_digits(value / scale)} {prefix}{unit}"
    return f"{_three_digits(value)} {unit}"


def _three_digits(value: float) -> str:
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def format_rate(rate: float, unit: str) -> str:
    """Write units per second; events in kHz, as the field quotes them, from 10,000 kHz in MHz.

    Parameters
    ----------
    rate : float
        Units per second, at least 0.
    unit : str
        ``"files"``, ``"events"`` or ``"merges"``.

    Returns
    -------
    str
        ``"30.7 kHz"``, ``"2.50 files/s"``.
    """
    if unit != "events":
        return f"{_three_digits(rate)} {unit}/s"
    return format_si(rate, "Hz") if rate >= 1e7 else f"{_three_digits(rate / 1e3)} kHz"


def _format_count(snapshot: StageSnapshot) -> str:
    """Write done/total; billions are shortened, as they don't fit a line."""
    if snapshot.total >= 1_000_000_000:
        return f"{snapshot.done / 1e9:,.2f}/{snapshot.total / 1e9:,.2f} G {snapshot.unit}"
    return f"{snapshot.done:,}/{snapshot.total:,} {snapshot.unit}"


def format_percent(snapshot: StageSnapshot) -> str:
    """Write the part that is done.

    Parameters
    ----------
    snapshot : StageSnapshot
        The stage at one moment.

    Returns
    -------
    str
        ``"0%"`` to ``"100%"``.
    """
    # rounded down: 100% is never shown before the last event is there
    return f"{math.floor(snapshot.fraction * 100)}%"


def format_duration(seconds: float | None) -> str:
    """Write a wall time.

    Parameters
    ----------
    seconds : float or None
        At least 0; None: not known.

    Returns
    -------
    str
        ``"1:12"`` (m:ss), ``"1:02:03"`` (h:mm:ss), ``"1d 02:03:04"``, or ``"?"`` for None.
    """
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


def format_times(snapshot: StageSnapshot) -> str:
    """Write how long a stage has run, and how long it will.

    Parameters
    ----------
    snapshot : StageSnapshot
        The stage at one moment.

    Returns
    -------
    str
        ``"0:10 elapsed, 0:33 left"``, ``"done in 0:43"`` or ``"stopped after 0:10"``.
    """
    elapsed = format_duration(snapshot.elapsed_seconds)
    if snapshot.status == "running":
        return f"{elapsed} elapsed, {format_duration(snapshot.seconds_left)} left"
    return f"done in {elapsed}" if snapshot.status == "finished" else f"stopped after {elapsed}"


def describe_work(snapshot: StageSnapshot) -> str:
    """Write count, rate and data, leaving out what isn't known.

    Parameters
    ----------
    snapshot : StageSnapshot
        The stage at one moment.

    Returns
    -------
    str
        ``"500/2,000 events, 30.7 kHz, 10.0 MB/s, 50.0 MB"``.
    """
    parts = [_format_count(snapshot)]
    if snapshot.rate is not None:
        parts.append(format_rate(snapshot.rate, snapshot.unit))
    if snapshot.num_bytes and snapshot.byte_rate is not None:
        parts.append(_format_byte_rate(snapshot.byte_rate))
    if snapshot.num_bytes:
        parts.append(format_si(snapshot.num_bytes, "B"))
    return ", ".join(parts)


def _format_byte_rate(byte_rate: float) -> str:
    """Write MB/s, so that numbers compare at a glance; GB/s from 1,000 MB/s."""
    return (
        format_si(byte_rate, "B/s")
        if byte_rate >= 1e9
        else f"{_three_digits(byte_rate / 1e6)} MB/s"
    )


def describe_failures(snapshot: StageSnapshot) -> str:
    """Write how many failures a stage has seen.

    Parameters
    ----------
    snapshot : StageSnapshot
        The stage at one moment.

    Returns
    -------
    str
        ``"1 failure"``, ``"2 failures"``, or nothing if there is none.
    """
    if not snapshot.num_failures:
        return ""
    return f"{snapshot.num_failures:,} failure{'s' if snapshot.num_failures > 1 else ''}"


def describe_line(snapshot: StageSnapshot) -> str:
    """Write a stage in one line of a log.

    Parameters
    ----------
    snapshot : StageSnapshot
        The stage at one moment.

    Returns
    -------
    str
        ``"merging: 75%, 6/8 merges, 0:04 elapsed, 0:01 left"``, without a line end.
    """
    parts = [describe_work(snapshot), describe_failures(snapshot), format_times(snapshot)]
    text = ", ".join(part for part in parts if part)
    return f"{snapshot.stage}: {format_percent(snapshot)}, {text}"
