from __future__ import annotations

import os
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from hepdask import load_fileset
from tests.cli.calling import REPOSITORY, assert_one_line_error, call, run_process

if TYPE_CHECKING:
    from pathlib import Path


def test_sample_is_written_once(tmp_path: Path) -> None:
    directory = tmp_path / "sample"
    options = ("sample", directory, "--events", 100, "--files", 2)
    result = call(*options)
    assert result.exit_code == 0, result.output
    assert "wrote 100 events in 2 files" in result.stdout
    assert f"{directory / 'fileset.json'} --plot spectrum.png" in result.stdout
    assert len(load_fileset(directory / "fileset.json").files) == 2
    assert_one_line_error(call(*options), "exists already: choose another directory, or --force")
    assert call(*options, "--force").exit_code == 0


def test_sample_explains_wrong_numbers(tmp_path: Path) -> None:
    result = call("sample", tmp_path, "--events", 1, "--files", 2)
    assert_one_line_error(result, "num_files=2 must be between 1 and num_events=1")


def print_next_command(*start: str, cwd: Path) -> str:
    """Make a sample by a command as typed, and return the next one that it proposes."""
    done = subprocess.run(
        [*start, "sample", "sample", "--events", "100", "--files", "1"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    return done.stdout.splitlines()[-1].removeprefix("next: ")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make a directory that looks like a checkout, with an environment in it."""
    (tmp_path / "processors").symlink_to(REPOSITORY / "processors")
    program = tmp_path / ".venv" / "bin" / "hepdask"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{sys.executable}\nfrom hepdask.cli import main\nmain()\n")
    program.chmod(0o755)
    return tmp_path


def test_next_command_is_that_of_the_readme(checkout: Path) -> None:
    printed = print_next_command(".venv/bin/hepdask", cwd=checkout)
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert f"&& {printed}\n" in readme


def test_next_command_works_as_printed(checkout: Path) -> None:
    printed = print_next_command(sys.executable, "-m", "hepdask", cwd=checkout)
    python, *words = shlex.split(printed)
    assert python == sys.executable
    assert words[:3] == ["-m", "hepdask", "run"]
    done = run_process(*words[2:], "--test", cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert "wrote spectrum.png (" in done.stdout
