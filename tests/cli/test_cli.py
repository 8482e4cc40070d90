from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.cli.calling import REPOSITORY, assert_one_line_error, call, run_process

if TYPE_CHECKING:
    from pathlib import Path


def test_help_is_light() -> None:
    code = (
        "import sys; from hepdask.cli import main\n"
        "try: main(['run', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'coffea', 'uproot', 'awkward', 'dask', 'distributed', 'rich', 'hist', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, timeout=60)


def test_version() -> None:
    import hepdask

    result = call("--version")
    assert (result.exit_code, result.output) == (0, f"hepdask {hepdask.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["rn"], "No such command 'rn'"),
        (["run"], "Missing argument 'PROCESSOR'. (see hepdask run --help)"),
        (["run", "a:b", "c", "--chunksize", "0"], "'--chunksize': 0 is not in the range"),
        (["run", "a:b", "c", "--arg", "x"], "'x' is not name=value"),
        (["run", "a:b", "c", "--arg", "x=[1"], "is no YAML"),
        (["run", "a:b", "c", "--test", "-e", "dask"], "--test runs in this process"),
        (["run", "a:b", "c", "-o", "out.txt"], "'out.txt' has no suffix"),
        (["run", "a:b", "c", "--metrics", "m.pkl"], "use one of .json, .json.gz"),
        (["run", "a:b", "c", "--plot", "nowhere/p.png"], "make its directory"),
        (["run", "cli_test_nothing:b", "c"], "there is no module 'cli_test_nothing'"),
        (["inspect"], "no file: write hepdask inspect FILE"),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], text: str) -> None:
    assert_one_line_error(call(*arguments), text)


def test_exit_codes_of_the_process(processor: Path, fileset: Path, tmp_path: Path) -> None:
    options = ("-e", "local", "--progress", "off", "-q")
    done = run_process("run", f"{processor}:Muon", fileset, *options, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    bad = ("--arg", "bad_file=nano_0")
    done = run_process("run", f"{processor}:MuonPt", fileset, *options, *bad, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
