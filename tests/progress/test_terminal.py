from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

from rich.console import Console

from hepdask.progress import LiveProgress, TerminalDisplay

if TYPE_CHECKING:
    import pytest

    from tests.progress.doubles import FakeClock


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
