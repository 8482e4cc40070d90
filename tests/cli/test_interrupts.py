"""Ctrl-C in a real terminal, which sends it to the command and to all of its workers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

from hepdask import load_fileset
from tests.cli.calling import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CTRL_C = b"\x03"
TIMEOUT_SECONDS = 120
PROCESSOR = '''
from __future__ import annotations

from pathlib import Path

from hepdask.executors import dask_monitor
from tests.example_processors import wait_for


class Stopped:
    """Stands for a path that exists once the run of this worker is stopped."""

    def exists(self):
        return bool(dask_monitor._stopped)


def finishes(events):
    """Go on when the run is stopped, so that this range is done and no other."""
    Path("begun").touch()
    wait_for(Stopped())
    return {"num_events": len(events)}


def hangs(events):
    """Say that the run is stopped, and take no notice of it."""
    Path("begun").touch()
    wait_for(Stopped())
    Path("stopped").touch()
    wait_for(Path("never"))
'''
# Its child has a terminal of its own; what comes in by the standard input is typed there.
TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"


def has_appeared(path: Path, process: subprocess.Popen[bytes]) -> bool:
    """Wait until a file is there, or the process has ended."""
    while not path.exists() and process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    return path.exists()


def press_ctrl_c(name: str, fileset: Path, waiting_for: Sequence[str]) -> tuple[int, str]:
    """Run a processor, and press Ctrl-C as each of some files appears; return exit code and screen."""
    directory = fileset.parent
    (directory / "cli_test_waiting.py").write_text(PROCESSOR)
    command = [sys.executable, "-m", "hepdask", "run", f"cli_test_waiting.py:{name}", str(fileset)]
    options = ["-w", "2", "--chunksize", "50", "-o", "out.json", "--failures", "missing.json"]
    with subprocess.Popen(
        [sys.executable, "-c", TERMINAL, *command, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm", "COLUMNS": "200"},
    ) as process:
        assert process.stdin is not None
        for file_name in waiting_for:
            if has_appeared(directory / file_name, process):
                process.stdin.write(CTRL_C)
                process.stdin.flush()
        screen, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    return process.returncode, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.decode())


def test_ctrl_c_finishes_what_has_begun(fileset: Path, tmp_path: Path) -> None:
    code, screen = press_ctrl_c("finishes", fileset, ["begun"])
    assert code == 1, screen
    written = json.loads((tmp_path / "out.json").read_text())["num_events"]
    assert 0 < written < 289
    assert f"INCOMPLETE: {written} of 289 events processed" in screen
    assert "Completeness" in screen
    assert "Metrics" in screen
    assert "wrote out.json (" in screen
    assert f"hepdask: error: interrupted; {written} of 289 events were processed" in screen
    assert "Traceback" not in screen
    missing = load_fileset(tmp_path / "missing.json").files
    steps = [step for one in missing for step in one.steps or ()]
    assert sum(stop - start for start, stop in steps) == 289 - written


def test_second_ctrl_c_waits_for_nothing(fileset: Path, tmp_path: Path) -> None:
    code, screen = press_ctrl_c("hangs", fileset, ["begun", "stopped"])
    assert code == 130, screen
    assert "INCOMPLETE: 0 of 289 events processed" in screen
    assert "nothing was processed: there is no output to write" in screen
    assert "Traceback" not in screen
    assert not (tmp_path / "out.json").exists()
