from __future__ import annotations

import io
from typing import TYPE_CHECKING

from hepdask.progress import LiveProgress, TextDisplay

if TYPE_CHECKING:
    from tests.progress.doubles import FakeClock


def test_plain_lines(clock: FakeClock) -> None:
    stream = io.StringIO()
    progress = LiveProgress(TextDisplay(stream), clock=clock, background=False)
    progress.start("processing", 2_000_000, "events")
    for _ in range(80):
        clock.seconds += 0.125
        progress.advance("processing", 12_500, num_bytes=1_250_000)
        progress.refresh()
    progress.advance("processing", 999_999, num_failures=2)
    clock.seconds += 0.125
    progress.finish("processing")
    progress.close()
    first, *between, last = stream.getvalue().splitlines()
    assert first == "processing: 0%, 0/2,000,000 events, 0:00 elapsed, ? left"
    assert len(between) == 2
    assert between[0].startswith("processing: 25%, 500,000/2,000,000 events, 1")
    assert " MB/s, 50.0 MB, 0:05 elapsed, 0:" in between[0]
    assert last.startswith("processing: 99%, 1,999,999/2,000,000 events, 198 kHz, ")
    assert last.endswith(", 100 MB, 2 failures, done in 0:10")
    assert "\r" not in stream.getvalue()
    assert stream.getvalue().isascii()


def test_plain_says_nothing_when_nothing_changes(clock: FakeClock) -> None:
    stream = io.StringIO()
    progress = LiveProgress(TextDisplay(stream), clock=clock, background=False)
    progress.start("inspecting", 10, "files")
    for _ in range(10):
        clock.seconds += 6.0
        progress.refresh()
    assert len(stream.getvalue().splitlines()) == 1
    progress.advance("inspecting", 1, num_failures=1)
    progress.refresh()
    assert stream.getvalue().splitlines()[1].startswith("inspecting: 10%, 1/10 files, ")
    progress.close()
    assert stream.getvalue().splitlines()[2].endswith("1 failure, stopped after 1:00")


def test_plain_keeps_the_interval_of_each_stage(clock: FakeClock) -> None:
    stream = io.StringIO()
    progress = LiveProgress(TextDisplay(stream, interval_seconds=60), clock=clock, background=False)
    progress.start("processing", 10, "events")
    clock.seconds += 1.0
    progress.advance("processing", 1)
    progress.start("merging", 10, "merges")
    assert [line.split(":")[0] for line in stream.getvalue().splitlines()] == [
        "processing",
        "merging",
    ]
    progress.close()


def test_billions_are_shortened(clock: FakeClock) -> None:
    stream = io.StringIO()
    progress = LiveProgress(TextDisplay(stream), clock=clock, background=False)
    progress.start("processing", 40_280_000_000, "events")
    progress.advance("processing", 1_500_000_000)
    progress.close()
    assert "1.50/40.28 G events" in stream.getvalue()
