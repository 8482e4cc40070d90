from __future__ import annotations

import io
import logging
import threading
from typing import TYPE_CHECKING

import pytest

from hepdask.progress import LiveProgress, TextDisplay
from tests.progress.doubles import DrawnDisplay, live_threads

if TYPE_CHECKING:
    from tests.progress.doubles import FakeClock


def test_display_is_drawn_from_a_thread_that_ends() -> None:
    display = DrawnDisplay()
    progress = LiveProgress(display)
    progress.start("processing", 10, "events")
    assert len(live_threads()) == 1
    progress.advance("processing", 5)
    assert display.saw_progress.wait(60)
    progress.close()
    assert live_threads() == []
    assert display.drawings[-1][0].status == "stopped"
    assert display.num_ends == 1


def test_advance_never_draws(clock: FakeClock) -> None:
    display = DrawnDisplay()
    progress = LiveProgress(display, clock=clock, background=False)
    progress.start("processing", 10_000, "events")
    for _ in range(10_000):
        clock.seconds += 1.0
        progress.advance("processing", 1)
    assert len(display.drawings) == 1
    progress.finish("processing")
    assert display.drawings[-1][0].done == 10_000


def test_threads_lose_nothing() -> None:
    display = DrawnDisplay()
    progress = LiveProgress(display)
    progress.start("processing", 100_000, "events")

    def work() -> None:
        for _ in range(1_000):
            progress.advance("processing", 3, num_bytes=2, num_failures=1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    progress.close()
    last = display.drawings[-1][0]
    assert (last.done, last.num_bytes, last.num_failures) == (24_000, 16_000, 8_000)


def test_stages_keep_their_order_and_may_start_anew(clock: FakeClock) -> None:
    display = DrawnDisplay()
    progress = LiveProgress(display, clock=clock, background=False)
    progress.start("inspecting", 3, "files")
    progress.start("processing", 9, "events")
    progress.advance("processing", 9)
    progress.finish("processing")
    assert [stage.stage for stage in display.drawings[-1]] == ["inspecting", "processing"]
    progress.start("processing", 5, "events")
    assert [(s.done, s.total, s.status) for s in display.drawings[-1]] == [
        (0, 3, "running"),
        (0, 5, "running"),
    ]


def test_late_calls_are_ignored_and_another_run_may_follow(clock: FakeClock) -> None:
    display = DrawnDisplay()
    progress = LiveProgress(display, clock=clock, background=False)
    progress.start("processing", 9, "events")
    progress.close()
    num_drawings = len(display.drawings)
    progress.advance("processing", 1)
    progress.finish("processing")
    progress.close()
    assert len(display.drawings) == num_drawings
    progress.start("merging", 2, "merges")
    assert [stage.stage for stage in display.drawings[-1]] == ["merging"]


def test_failing_display_is_logged_once(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    display = DrawnDisplay()
    progress = LiveProgress(display, clock=clock, background=False)
    progress.start("processing", 9, "events")
    display.error = OSError("the terminal went away")
    with caplog.at_level(logging.WARNING, logger="hepdask.progress"):
        progress.refresh()
        progress.advance("processing", 9)
        progress.finish("processing")
        progress.close()
    assert [record.getMessage() for record in caplog.records] == [
        "the progress display stopped (OSError: the terminal went away); the run goes on without it"
    ]
    assert display.num_ends == 1


def test_closed_stream_does_not_break_a_run(caplog: pytest.LogCaptureFixture) -> None:
    stream = io.StringIO()
    progress = LiveProgress(TextDisplay(stream))
    progress.start("processing", 9, "events")
    stream.close()
    progress.finish("processing")
    progress.close()
    assert len([r for r in caplog.records if "closed file" in r.getMessage()]) == 1
    assert live_threads() == []


def test_ctrl_c_in_a_drawing_is_not_swallowed(clock: FakeClock) -> None:
    display = DrawnDisplay()
    progress = LiveProgress(display, clock=clock, background=False)
    progress.start("processing", 9, "events")
    display.error = KeyboardInterrupt("Ctrl-C")
    with pytest.raises(KeyboardInterrupt, match="Ctrl-C"):
        progress.refresh()


def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    display = DrawnDisplay()
    progress = LiveProgress(display)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        progress.start("processing", 9, "events")
    progress.advance("processing", 9)
    progress.finish("processing")
    progress.close()
    assert display.drawings[-1][0].done == 9
