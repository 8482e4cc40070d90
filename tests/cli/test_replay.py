"""``hepdask replay``, and the line of ``hepdask run`` that calls it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.calling import (
    PROCESSOR,
    REPOSITORY,
    assert_one_line_error,
    call,
    run_locally,
    run_process,
)
from tests.cli.test_interrupts import TERMINAL

if TYPE_CHECKING:
    from tests.conftest import NanoFiles

PROCESSORS = '''
import ctypes
import sys

import awkward as ak


class RaisesAt:
    """Says what it sees, and raises."""

    def __init__(self, event=163, text="bad"):
        self.event = event
        self.text = text

    def process(self, events):
        if ak.any(events.event == self.event):
            seen = {"year": events.metadata.get("year"), "fields": len(events.fields)}
            raise ZeroDivisionError(f"{self.text} {seen}")
        return {"entries": len(events)}


def crashes(events):
    ctypes.string_at(0)


def leaves(events):
    sys.exit("bye")


def nothing(events):
    pass


def breaks(events):
    return ak.flatten(events.run, axis=42)


def many(events):
    return {str(number): number for number in range(10)}


def misuses(events):
    from hepdask import LocalExecutor

    LocalExecutor(stauts=True)
'''


@pytest.fixture
def raising(processor: Path) -> Path:
    """Write processors that fail, in the current directory."""
    path = processor.with_name("cli_test_raising.py")
    path.write_text(PROCESSORS)
    return path


@pytest.fixture
def missing(raising: Path, fileset: Path, tmp_path: Path) -> Path:
    """Write what a failed run leaves: 5 ranges, of which the first raises."""
    path = tmp_path / "missing.json"
    options = ("--chunksize", 50, "--failures", path, "-q")
    assert run_locally(f"{raising}:RaisesAt", fileset, *options).exit_code == 1
    return path


def find_line(stderr: str) -> str:
    (line,) = (one for one in stderr.splitlines() if one.startswith("replay it here: "))
    return line.removeprefix("replay it here: ")


def type_in_a_shell(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command line as it is, with this Python's ``hepdask``."""
    command = line.replace("hepdask ", f"{sys.executable} -m hepdask ", 1)
    return subprocess.run(
        command,
        shell=True,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def test_the_first_range_that_failed_raises_here(missing: Path, raising: Path) -> None:
    result = call("replay", f"{raising}:RaisesAt", missing)
    assert result.exit_code == 1, result.output
    assert re.match(
        r"replaying entries 50 to 100 of 'Events' in /.*nano_1.root \(dataset 'nano'\)\n",
        result.stdout,
    )
    assert "killed its worker" in result.stderr
    shown = result.stderr[result.stderr.index("Traceback") :].splitlines()
    assert shown[0] == "Traceback (most recent call last):"
    assert shown[1].startswith(f'  File "{raising}", line ')
    assert shown[-1].startswith("ZeroDivisionError: bad {'year': 2018, ")
    assert "hepdask/" not in "\n".join(shown)


def test_a_range_that_is_fine_says_what_it_gave(missing: Path, raising: Path) -> None:
    result = call("replay", f"{raising}:RaisesAt", missing, "--index", 2)
    assert result.exit_code == 0, result.output
    assert "replaying entries 0 to 40 of 'Events' in " in result.stdout
    last = result.stdout.splitlines()[-1]
    assert re.fullmatch(r"no failure: 40 events in \d+\.\d\d s; output: dict of 'entries'", last)
    result = call("replay", f"{raising}:many", missing)
    assert "output: dict of '0', '1', '2', '3', '4', '5', '6', '7' and 2 more\n" in result.stdout


@pytest.mark.parametrize(
    ("options", "bounds"),
    [
        (("--file", "nano_1.root", "--entries", "60:70"), "entries 60 to 70 of .*nano_1"),
        (("--file", "nano_1.root"), "entries 0 to 149 of .*nano_1"),
        (("--index", "2"), "entries 0 to 40 of .*nano_2"),
        (("--dataset", "nano"), "entries 0 to 100 of .*nano_0"),
        (("--file", "nano_2.root", "--entries", "40:40"), "entries 40 to 40 of .*nano_2"),
    ],
)
def test_any_range_of_any_fileset_can_be_chosen(
    processor: Path, fileset: Path, options: tuple[str, ...], bounds: str
) -> None:
    result = call("replay", f"{processor}:count", fileset, *options)
    assert result.exit_code == 0, result.output
    assert re.match(f"replaying {bounds}", result.stdout), result.stdout


def test_a_file_may_be_named_by_any_replica(processor: Path, nano_files: NanoFiles) -> None:
    path = str(nano_files.paths[0])
    Path("replicas.json").write_text(json.dumps({"nano": [["gone.root", path]]}))
    options = ("--file", path, "--entries", "0:7", "-t", "Events")
    result = call("replay", f"{processor}:count", "replicas.json", *options)
    assert result.exit_code == 0, result.output
    assert "no failure: 7 events in " in result.stdout
    assert f"in {Path('gone.root').absolute()} (dataset" in result.stdout  # its name, as in a run


def test_root_files_are_a_dataset_with_a_name(processor: Path, nano_files: NanoFiles) -> None:
    options = ("-t", "Events", "--dataset", "dy", "--entries", "0:10")
    result = call("replay", f"{processor}:count", nano_files.paths[0], *options)
    assert result.exit_code == 0, result.output
    assert "(dataset 'dy')" in result.stdout


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--entries", "0"), "'0' is not START:STOP"),
        (("--entries", "5:1"), "'5:1' is not START:STOP"),
        (("--entries", "0:-1"), "'0:-1' is not START:STOP"),
        (("--entries", "0:5"), "--entries is about one file, and there are 3"),
        (("--entries", "0:5", "--index", "0"), "leave one out"),
        (("--entries", "90:101", "--file", "nano_0.root"), "entries 90:101 of /"),
        (("--index", "3"), "there is no range 3: their numbers are 0 to 2"),
        (("--dataset", "nanu"), "no dataset 'nanu'; did you mean 'nano'?"),
        (("--file", "ano_0.root"), "the fileset has no file 'ano_0.root'"),
        (("--schema", "NanoSchema"), "no schema 'NanoSchema'; did you mean"),
        (("--pdb",), "--pdb needs a terminal"),
        (("--arg", "x=1"), "--arg is for classes"),
    ],
)
def test_mistakes_are_one_line(
    processor: Path, fileset: Path, options: tuple[str, ...], text: str
) -> None:
    result = call("replay", f"{processor}:count", fileset, *options)
    assert_one_line_error(result, text)
    assert result.stdout == ""


def test_a_file_that_cannot_be_read_is_one_line(
    processor: Path, truncated: Path, tmp_path: Path
) -> None:
    """What a run that could not inspect a file has written."""
    written = {"bad": {"files": {str(truncated): {"object_path": "Events"}}}}
    path = tmp_path / "uninspected.json"
    path.write_text(json.dumps(written))
    result = call("replay", f"{processor}:count", path)
    assert_one_line_error(result, "truncated.root", code=1)


def test_plain_arrays_and_arguments(raising: Path, fileset: Path) -> None:
    options = ("--schema", "none", "--arg", "event=1", "--arg", "text=plain")
    result = call("replay", f"{raising}:RaisesAt", fileset, *options)
    assert result.exit_code == 1, result.output
    assert "ZeroDivisionError: plain {'year': 2018, 'fields': 1" in result.stderr  # branches


def test_mistakes_in_the_output_are_one_line(raising: Path, fileset: Path) -> None:
    result = call("replay", f"{raising}:nothing", fileset)
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    assert "hepdask: error: process() returned None" in result.stderr


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("leaves", "SystemExit: bye"),
        ("breaks", "AxisError: axis=42 exceeds"),
        # a mistake in the processor, and not in this command
        ("misuses", "OptionError: "),
    ],
)
def test_all_that_user_code_raises_is_shown_with_its_lines(
    raising: Path, fileset: Path, name: str, text: str
) -> None:
    result = call("replay", f"{raising}:{name}", fileset)
    assert result.exit_code == 1, result.output
    shown = result.stderr[result.stderr.index("Traceback") :]
    assert shown.splitlines()[1].endswith(f", in {name}")
    assert text in shown
    assert "hepdask: error" not in result.stderr


def test_a_crash_shows_the_lines_of_python(raising: Path, fileset: Path) -> None:
    done = run_process("replay", f"{raising}:crashes", fileset, "--index", 1)
    assert done.returncode < 0
    assert done.stdout.startswith("replaying entries 0 to 149 of ")
    assert "Fatal Python error: Segmentation fault" in done.stderr
    assert f'File "{raising}", line ' in done.stderr


def test_the_debugger_stands_where_it_was_raised(
    raising: Path, missing: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "hepdask", "replay", f"{raising}:RaisesAt", str(missing)]
    done = subprocess.run(
        [sys.executable, "-c", TERMINAL, *command, "--pdb"],
        input=b"p 'entry', events.MET.pt[0] > 0, self.event\nup\nq\n",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
        cwd=tmp_path,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "dumb", "COLUMNS": "200"},
    )
    screen = done.stdout.decode()
    assert done.returncode == 1, screen
    assert screen.count("Traceback (most recent call last)") == 1
    assert "-> raise ZeroDivisionError" in screen
    assert re.search(r"\('entry', \S*True_?\)?, 163\)", screen), screen
    assert "*** Oldest frame" in screen
    assert "hepdask: error" not in screen


@pytest.mark.parametrize("options", [(), ("--schema", "BaseSchema", "--xrootdtimeout", "7.5")])
def test_a_run_prints_the_line_that_replays_its_failure(
    raising: Path, fileset: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    arguments = ("--arg", "text=[it's, 1.0e-05, null]", "--chunksize", 50)
    result = run_locally(f"{raising.name}:RaisesAt", fileset.name, *arguments, *options)
    assert result.exit_code == 1
    line = find_line(result.stderr)
    assert line.startswith(
        "hepdask replay cli_test_raising.py:RaisesAt fileset.json --dataset nano "
    )
    assert "nano_1.root --entries 50:100 --arg " in line
    assert line.endswith(" ".join(options))
    assert ("--schema" in line, "--treename" in line) == (bool(options), False)
    assert result.stderr.splitlines()[-1].startswith("hepdask: error: entries 50 to 100 of ")
    done = type_in_a_shell(line, tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ZeroDivisionError: [\"it's\", 1e-05, None] {'year': 2018")
    # the events look the same: as many fields
    assert last.removeprefix("ZeroDivisionError") in result.stderr


def test_the_line_names_one_of_many_root_files(
    raising: Path, nano_files: NanoFiles, tmp_path: Path
) -> None:
    options = ("-t", "Events", "--chunksize", 50)
    result = run_locally(f"{raising.name}:RaisesAt", *nano_files.paths, *options)
    line = find_line(result.stderr)
    assert "nano_0.root" not in line
    assert line.endswith("nano_1.root --dataset nano --entries 50:100 --treename Events")
    done = type_in_a_shell(line, tmp_path)
    assert done.returncode == 1
    assert "(dataset 'nano')" in done.stdout
    assert "ZeroDivisionError: bad {'year': None" in done.stderr


@pytest.mark.parametrize("is_quiet", [True, False])
def test_only_failures_of_the_users_code_have_a_line(
    raising: Path, processor: Path, nano_files: NanoFiles, truncated: Path, is_quiet: bool
) -> None:
    options: tuple[Any, ...] = ("-t", "Events", *(["-q"] if is_quiet else []))
    sources = [str(truncated), *map(str, nano_files.paths)]
    assert run_locally(f"{processor}:count", *sources, *options).stderr.count("\n") == 1
    processor.write_text(
        PROCESSOR + "\n\ndef mixed(events):\n    return [1] if len(events) > 100 else 1\n"
    )
    result = run_locally(f"{processor}:mixed", *sources[1:], *options)
    assert result.exit_code == 1
    assert "AccumulatorError" in result.stderr
    assert "replay it here" not in result.stderr
    if is_quiet:  # prints nothing but errors
        result = run_locally(f"{raising}:RaisesAt", *sources[1:], *options)
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
