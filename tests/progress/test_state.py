from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hepdask.progress.state import StageState, format_duration, format_rate, format_si

if TYPE_CHECKING:
    from tests.progress.doubles import FakeClock


def test_new_stage_knows_no_rate(clock: FakeClock) -> None:
    snapshot = StageState("processing", 100, "events", clock).snapshot()
    assert (snapshot.done, snapshot.total, snapshot.fraction) == (0, 100, 0.0)
    assert (snapshot.rate, snapshot.byte_rate, snapshot.seconds_left) == (None, None, None)
    assert snapshot.status == "running"


def test_steady_stage_has_its_rate_and_time_left(clock: FakeClock) -> None:
    state = StageState("processing", 10_000, "events", clock)
    for _ in range(50):
        clock.seconds += 1.0
        state.advance(100, num_bytes=2_000)
    snapshot = state.snapshot()
    assert snapshot.rate == pytest.approx(100, rel=0.02)
    assert snapshot.byte_rate == pytest.approx(2_000, rel=0.02)
    assert snapshot.seconds_left == pytest.approx(50, rel=0.02)
    assert snapshot.elapsed_seconds == 50.0
    assert snapshot.num_bytes == 100_000


def test_rate_does_not_depend_on_the_size_of_the_steps_at_first(clock: FakeClock) -> None:
    state = StageState("processing", 10_000, "events", clock)
    clock.seconds += 2.0
    state.advance(100)
    # 100 units in 2 s; the sum of seconds has faded a little, the units have not
    assert state.snapshot().rate == pytest.approx(50, rel=0.05)


def test_rate_forgets_the_wait_for_workers(clock: FakeClock) -> None:
    state = StageState("processing", 1_000_000, "events", clock)
    clock.seconds += 600.0
    for _ in range(900):
        clock.seconds += 1.0
        state.advance(100)
    rate = state.snapshot().rate
    assert rate is not None
    assert rate > 1.4 * (90_000 / 1_500)
    state.finish()
    assert state.snapshot().rate == pytest.approx(90_000 / 1_500)


def test_rate_fades_when_nothing_comes(clock: FakeClock) -> None:
    state = StageState("processing", 1_000, "events", clock)
    clock.seconds += 10.0
    state.advance(500)
    before = state.snapshot()
    clock.seconds += 60.0
    after = state.snapshot()
    assert before.rate is not None
    assert after.rate is not None
    assert after.rate < 0.3 * before.rate
    clock.seconds += 86_400.0
    seconds_left = state.snapshot().seconds_left
    assert seconds_left is not None
    assert seconds_left > 86_400.0
    clock.seconds += 100 * 86_400.0
    assert state.snapshot().seconds_left is None


def test_first_burst_has_no_rate(clock: FakeClock) -> None:
    state = StageState("inspecting", 1_000, "files", clock)
    clock.seconds += 0.001
    state.advance(900)
    assert state.snapshot().rate is None
    assert state.snapshot().seconds_left is None


@pytest.mark.parametrize(
    ("amounts", "done"), [([80, 80], 100), ([-5], 0), ([60, -20], 40), ([150, -20], 100)]
)
def test_what_is_shown_stays_within_the_total(
    clock: FakeClock, amounts: list[int], done: int
) -> None:
    state = StageState("processing", 100, "events", clock)
    for amount in amounts:
        clock.seconds += 5.0
        state.advance(amount, num_bytes=amount)
    snapshot = state.snapshot()
    assert snapshot.done == done
    assert snapshot.num_bytes >= 0
    assert snapshot.rate is None or snapshot.rate >= 0
    assert snapshot.seconds_left is None or snapshot.seconds_left >= 0


def test_overshoot_is_no_rate(clock: FakeClock) -> None:
    state = StageState("processing", 100, "events", clock)
    clock.seconds += 10.0
    state.advance(100)
    rate = state.snapshot().rate
    state.advance(1_000_000)
    assert state.snapshot().rate == rate
    assert state.snapshot().seconds_left == 0.0


def test_finished_stage_stands_still(clock: FakeClock) -> None:
    state = StageState("merging", 4, "merges", clock)
    clock.seconds += 8.0
    state.advance(3, num_failures=1)
    state.finish()
    clock.seconds += 100.0
    state.stop()
    snapshot = state.snapshot()
    assert (snapshot.status, snapshot.elapsed_seconds) == ("finished", 8.0)
    assert (snapshot.done, snapshot.num_failures) == (3, 1)
    assert snapshot.rate == pytest.approx(3 / 8)
    assert snapshot.seconds_left is None


def test_empty_stage_is_done_when_finished(clock: FakeClock) -> None:
    state = StageState("merging", 0, "merges", clock)
    assert state.snapshot().fraction == 0.0
    state.finish()
    assert state.snapshot().fraction == 1.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "?"),
        (0.9, "0:00"),
        (72, "1:12"),
        (3_723, "1:02:03"),
        (93_784, "1d 02:03:04"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.00 B"),
        (999.6, "1.00 kB"),
        (999_600, "1.00 MB"),
        (531_200_000, "531 MB"),
        (29.88e12, "29.9 TB"),
    ],
)
def test_si(value: float, text: str) -> None:
    assert format_si(value, "B") == text


@pytest.mark.parametrize(
    ("rate", "unit", "text"),
    [
        (520.0, "events", "0.52 kHz"),
        (30_700.0, "events", "30.7 kHz"),
        (1_234_000.0, "events", "1,234 kHz"),
        (27.5e6, "events", "27.5 MHz"),
        (2.5, "files", "2.50 files/s"),
    ],
)
def test_rate_in_the_words_of_the_field(rate: float, unit: str, text: str) -> None:
    assert format_rate(rate, unit) == text
