"""A processor for the command line, and ways to call it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from click.testing import CliRunner

from hepdask.cli import main

if TYPE_CHECKING:
    from click.testing import Result

REPOSITORY = Path(__file__).resolve().parent.parent.parent

PROCESSOR = '''
from __future__ import annotations

import awkward as ak
from hist import Hist
from cli_test_helper import DOUBLE

unit = "GeV"


class MuonPt:
    """Fails at a file on demand."""

    def __init__(self, scale: float = 1.0, bad_file: str = "none") -> None:
        self.scale = scale
        self.bad_file = bad_file

    def process(self, events):
        if self.bad_file in events.metadata["filename"]:
            raise ValueError("no good [muons]")
        histogram = Hist.new.Reg(10, 0, 200, name="pt").Double()
        histogram.fill(ak.flatten(events.Muon.pt) * self.scale * DOUBLE)
        return {"pt": histogram, "num_events": len(events)}


def count(events):
    return {"num_events": len(events)}


ready = MuonPt(scale=3.0)
'''


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def run_locally(*arguments: object) -> Result:
    return call("run", *arguments, "--executor", "iterative", "--progress", "off")


def run_process(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hepdask", *(str(one) for one in arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=cwd,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def assert_one_line_error(result: Result, text: str, code: int = 2) -> None:
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("hepdask: error: ")
    assert text in result.stderr
    assert result.stderr.count("\n") == 1
