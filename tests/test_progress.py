from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from hepdask.errors import MissingDependencyError, OptionError
from hepdask.progress import (
    LiveProgress,
    NotebookDisplay,
    RecordingProgress,
    SilentProgress,
    StageState,
    TerminalDisplay,
    TextDisplay,
    _build_bundle,
    _format_duration,
    _format_rate,
    _format_si,
    choose_progress,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hepdask.progress import StageSnapshot

REPOSITORY = Path(__file__).parents[1]


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


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def live_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "hepdask-progress"]


# --- the state of a stage ---


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


# --- texts ---


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
    assert _format_duration(seconds) == text


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
    assert _format_si(value, "B") == text


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
    assert _format_rate(rate, unit) == text


# --- plain lines ---


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


# --- live progress, whatever draws ---


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


# --- a terminal ---


def test_bars_in_a_terminal(clock: FakeClock) -> None:
    stream = io.StringIO()
    console = Console(
        file=stream, force_terminal=True, width=80, color_system="standard", legacy_windows=False
    )
    progress = LiveProgress(TerminalDisplay(console), clock=clock, background=False)
    progress.start("processing", 53_446_198, "events")
    clock.seconds += 10.0
    progress.advance("processing", 12_345_678, num_bytes=850_000_000, num_failures=2)
    progress.refresh()
    shown = stream.getvalue()
    assert " 23% 0:10 elapsed, 0:" in shown
    assert "12,345,678/53,446,198 events, " in shown
    assert "\x1b[1;31m2 failures\x1b[0m" in shown
    assert "\x1b[?25l" in shown
    assert "\x1b[?25h" not in shown
    progress.finish("processing")
    progress.close()
    assert "done in 0:10" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[?25h")


def test_bars_where_there_is_no_terminal_are_drawn_once(clock: FakeClock) -> None:
    stream = io.StringIO()
    progress = LiveProgress(
        TerminalDisplay(Console(file=stream, width=80, force_terminal=False)),
        clock=clock,
        background=False,
    )
    progress.start("processing", 10, "events")
    progress.refresh()
    progress.close()
    assert stream.getvalue().count("stopped after") == 1
    assert "\x1b" not in stream.getvalue()


class BreakingTerminal(io.StringIO):
    """A terminal whose reader may go away."""

    broken = False

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.broken:
            raise BrokenPipeError("nobody reads")
        return super().write(text)


def test_broken_pipe_does_not_end_the_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = BreakingTerminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", output := BreakingTerminal())
    monkeypatch.setenv("TERM", "xterm")
    progress = LiveProgress(TerminalDisplay(), background=False)
    progress.start("processing", 10, "events")
    print("a line of the user")
    assert sys.stdout is not output
    terminal.broken = True
    progress.advance("processing", 5)
    progress.refresh()
    progress.close()
    assert (sys.stdout, sys.stderr) == (output, terminal)
    assert "a line of the user" in terminal.getvalue()
    assert len([r for r in caplog.records if "BrokenPipeError" in r.getMessage()]) == 1


def test_prints_into_a_file_stay_there(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, output = BreakingTerminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setenv("TERM", "xterm")
    progress = LiveProgress(TerminalDisplay(), background=False)
    progress.start("processing", 10, "events")
    print("a line of the user")
    progress.close()
    assert output.getvalue() == "a line of the user\n"


SCRIPT = """
import sys
from hepdask.progress import choose_progress
assert not {"rich", "IPython"} & set(sys.modules), "imported before they are chosen"
progress = choose_progress()
progress.start("inspecting", 3, "files")
progress.advance("inspecting", 3)
progress.finish("inspecting")
progress.close()
print("rich" in sys.modules, "IPython" in sys.modules)
"""


def run_script(stderr: int, term: str) -> subprocess.CompletedProcess[bytes]:
    path = f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "TERM": term, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        timeout=120,
        check=True,
    )


@pytest.mark.parametrize(("term", "has_bars"), [("xterm", True), ("dumb", False)])
def test_terminal_is_detected(term: str, has_bars: bool) -> None:
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    try:
        done = run_script(slave, term)
        shown = os.read(master, 65_536).decode()
    finally:
        os.close(slave)
        os.close(master)
    assert done.stdout.decode().split() == [str(has_bars), "False"]
    assert ("\x1b[?25h" in shown) is has_bars
    assert ("inspecting: 0%, 0/3 files" in shown) is not has_bars


def test_log_is_detected() -> None:
    done = run_script(subprocess.PIPE, "xterm")
    assert done.stdout.decode().split() == ["False", "False"]
    first, last = done.stderr.decode().splitlines()
    assert first == "inspecting: 0%, 0/3 files, 0:00 elapsed, ? left"
    assert last.startswith("inspecting: 100%, 3/3 files, ")


# --- a notebook ---


def test_html_is_escaped(clock: FakeClock) -> None:
    state = StageState("<script>", 10, "<b>", clock)
    state.advance(1, num_failures=3)
    bundle = _build_bundle([state.snapshot()])
    assert set(bundle) == {"text/html", "text/plain"}
    assert "<script>" not in bundle["text/html"]
    assert "&lt;script&gt;" in bundle["text/html"]
    assert "1/10 &lt;b&gt;" in bundle["text/html"]
    assert "3 failures" in bundle["text/html"]


def test_no_kernel_is_a_display_that_gives_up(caplog: pytest.LogCaptureFixture) -> None:
    progress = choose_progress("jupyter")
    progress.start("processing", 10, "events")
    progress.close()
    assert len([r for r in caplog.records if "no Jupyter kernel" in r.getMessage()]) == 1


def test_missing_ipython_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hepdask\[notebook\]'"):
        NotebookDisplay()


CELLS = [
    """
import sys
sys.modules["ipywidgets"] = None
import threading
from hepdask.progress import LiveProgress, NotebookDisplay, choose_progress
progress = choose_progress()
progress.start("processing", 1000, "events")
progress.advance("processing", 400)
progress.refresh()
progress.advance("processing", 600, num_failures=1)
progress.finish("processing")
progress.close()
answer = 42
""",
    """
class SeenDisplay(NotebookDisplay):
    def draw(self, stages):
        super().draw(stages)
        if stages[0].done:
            seen.set()

seen = threading.Event()
progress = LiveProgress(SeenDisplay())
progress.start("merging", 8, "merges")
progress.advance("merging", 4)
assert seen.wait(60)
answer = 43
""",
    """
progress.advance("merging", 2)
progress.close()
answer
""",
]


def test_notebook_cell_is_updated_in_place() -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    nbclient.NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(REPOSITORY)}},
    ).execute()
    (first,), (second,), (third,) = (cell.outputs for cell in notebook.cells)
    assert first.output_type == second.output_type == "display_data"
    assert first.data["text/plain"].startswith("processing: 100%, 1,000/1,000 events, ")
    assert "1 failure, done in" in first.data["text/plain"]
    assert "<b>processing</b>" in first.data["text/html"]
    # drawn by the thread in the second cell, and brought up to date from the third
    assert second.data["text/plain"].startswith("merging: 75%, 6/8 merges, ")
    assert third.data["text/plain"] == "43"


# --- choosing and recording ---


@pytest.mark.parametrize("wanted", [False, "off"])
def test_off_is_silent(wanted: bool | str, capfd: pytest.CaptureFixture[str]) -> None:
    progress = choose_progress(wanted)
    assert isinstance(progress, SilentProgress)
    progress.start("processing", 10, "events")
    progress.advance("processing", 10, num_bytes=1, num_failures=1)
    progress.finish("processing")
    progress.close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("wanted", [None, True, "auto", "plain"])
def test_captured_output_is_plain(
    wanted: bool | str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = choose_progress(wanted)
    progress.start("processing", 10, "events")
    progress.close()
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith("processing: 0%, 0/10 events, 0:00 elapsed, ? left\n")


def test_no_standard_error_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert isinstance(choose_progress(), SilentProgress)


def test_an_object_passes_through() -> None:
    recording = RecordingProgress()
    assert choose_progress(recording) is recording


@pytest.mark.parametrize("wanted", ["richh", RecordingProgress, 3, object()])
def test_anything_else_is_an_error(wanted: object) -> None:
    with pytest.raises(OptionError, match="use 'auto', 'rich', 'jupyter', 'plain' or 'off'"):
        choose_progress(wanted)  # type: ignore[arg-type]


def test_recording_keeps_every_call() -> None:
    recording = RecordingProgress()
    recording.start("processing", 10, "events")
    recording.advance("processing", 4, num_bytes=100)
    recording.advance("merging", 1)
    recording.advance("processing", 7, num_failures=1)
    recording.finish("processing")
    recording.close()
    assert recording.calls == [
        ("start", "processing", 10, "events"),
        ("advance", "processing", 4, 100, 0),
        ("advance", "merging", 1, 0, 0),
        ("advance", "processing", 7, 0, 1),
        ("finish", "processing"),
        ("close",),
    ]
    assert recording.sum_advances("processing") == (11, 100, 1)
    assert recording.sum_advances("inspecting") == (0, 0, 0)
