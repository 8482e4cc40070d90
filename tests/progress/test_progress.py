from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hepdask.errors import OptionError
from hepdask.progress import RecordingProgress, SilentProgress, choose_progress

REPOSITORY = Path(__file__).parents[2]


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
