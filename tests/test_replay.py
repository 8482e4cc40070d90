"""Failures replayed here: the same range, the user's own exception, a debugger at the user's frame."""

from __future__ import annotations

import io
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import awkward as ak
import numpy as np
import pytest
import uproot

from hepdask import DaskExecutor, FileReadError, LocalExecutor, OptionError, RunError, Runner
from hepdask.errors import FileChangedError, MissingTreeError, ProcessorError
from hepdask.failures import Failure, Failures
from hepdask.fileset import InputFile, load_fileset
from hepdask.opening import ReadOptions
from hepdask.ranges import EntryRange
from hepdask.readers import build_reader
from hepdask.readers.handles import close_all
from hepdask.replay import (
    ReplayContext,
    find_user_traceback,
    format_user_error,
    replay_range,
)
from tests import example_processors as examples

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import NanoFiles

REPOSITORY = Path(__file__).resolve().parent.parent
BAD_EVENT = 163  # the 63rd entry of the second file


@pytest.fixture(params=["local", "dask"])
def executor(request: pytest.FixtureRequest) -> Any:
    if request.param == "local":
        return LocalExecutor()
    return DaskExecutor(client=request.getfixturevalue("client"))


def run_failing(fileset: Any, processor: Any, executor: Any = None, **options: Any) -> Failures:
    """Run what fails, and return its failures."""
    given = {"progress": False, "metadata_cache": False, "chunksize": 50, **options}
    with pytest.raises(RunError, match=r".") as caught:
        Runner(executor or LocalExecutor(), **given)(
            fileset, "Events", processor_instance=processor
        )
    failures = caught.value.partial_result.failures
    assert isinstance(failures, Failures)
    return failures


def range_of(nano_files: NanoFiles, start: int = 0, stop: int = 50, number: int = 0) -> EntryRange:
    return EntryRange(load_fileset(nano_files.fileset).files[number], start, stop)


def reader(schema: Any = None) -> Any:
    return build_reader(schema, ReadOptions())


def names_of(error: BaseException) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


def raised_by(call: Callable[[], Any], kind: type[Exception], match: str) -> Exception:
    with pytest.raises(kind, match=match) as caught:
        call()
    return caught.value


def returns_none(events: Any) -> None:
    """Forget the return statement."""


def raises_at(event: int) -> Callable[[Any], Any]:
    """Make a processor for both readers, which workers need not import."""

    def process(events: Any) -> int:
        if ak.any(events.event == event):
            raise ZeroDivisionError(f"event {event}")
        return len(events)

    return process


class Nested:
    """Has processors in it, one of which raises through a library."""

    def __init__(self) -> None:
        self.children = [examples.Weighted(), Transforms()]

    def process(self, events: Any) -> Any:
        return [child.process(events) for child in self.children]


class Transforms:
    threshold = 17

    def process(self, events: Any) -> Any:
        def look(layout: Any, **_: Any) -> None:
            if layout.is_numpy:
                raise KeyError(f"threshold {self.threshold}")

        return ak.transform(look, events.Jet.pt)


def reads_then_raises(events: Any) -> Any:
    total = float(ak.sum(events.MET_pt))
    raise ValueError(f"total of {len(events)}: {total > 0}")


@pytest.mark.parametrize("schema", ["NanoAODSchema", None])
def test_the_range_that_failed_raises_the_users_exception(
    nano_files: NanoFiles, executor: Any, schema: str | None
) -> None:
    processor = raises_at(BAD_EVENT)
    failures = run_failing(nano_files.fileset, processor, executor, schema=schema)
    failure = next(one for one in failures if one.kind == "user")
    error = raised_by(
        lambda: failures.replay(failure, processor), ZeroDivisionError, f"^event {BAD_EVENT}$"
    )
    assert type(error) is ZeroDivisionError
    assert error.__cause__ is None
    assert error.__context__ is None
    assert names_of(error)[-3:] == ["replay", "replay_range", "process"]


@pytest.mark.parametrize("schema", ["NanoAODSchema", None])
def test_the_events_are_those_of_the_run(
    nano_files: NanoFiles, executor: Any, schema: str | None
) -> None:
    fileset = {"nano": {**nano_files.fileset["nano"], "metadata": {"xsec": 1.5}}}
    failures = run_failing(fileset, raises_at(BAD_EVENT), executor, schema=schema)

    def look(events: Any) -> dict[str, Any]:
        return {**events.metadata, "event": events.event, "fields": events.fields}

    seen = failures.replay(0, look)
    with uproot.open(nano_files.paths[1]) as file:
        uuid = str(file.file.uuid)
    expected = {
        "dataset": "nano",
        "filename": str(nano_files.paths[1]),
        "treename": "Events",
        "entrystart": 50,
        "entrystop": 100,
        "fileuuid": uuid,
        "xsec": 1.5,
    }
    assert {key: seen[key] for key in expected} == expected
    # lazy in the processor, an array here
    assert seen["event"].tolist() == list(range(151, 201))
    assert ("Muon" in seen["fields"]) == (schema is not None)
    assert ("Muon_pt" in seen["fields"]) == (schema is None)


def test_the_processor_itself_is_called(nano_files: NanoFiles) -> None:
    class Marks:
        seen: tuple[int, ...] = ()

        def process(self, events: Any) -> int:
            self.seen = (*self.seen, len(events))
            return len(events)

    processor = Marks()
    processor.seen = (1,)
    assert replay_range(range_of(nano_files), processor, reader()) == 50
    assert processor.seen == (1, 50)


def test_frames_end_in_nested_processors(nano_files: NanoFiles) -> None:
    failures = run_failing(nano_files.fileset, Nested())
    error = raised_by(lambda: failures.replay(0, Nested()), KeyError, "threshold 17")
    names = names_of(error)
    assert "__call__" not in names[: names.index("process")]  # of hepdask
    assert names[names.index("replay_range") + 1] == "process"
    assert names[-1] == "look"
    assert names.count("process") == 2
    text = format_user_error(error, Nested())
    assert text.startswith("Traceback (most recent call last):\n")
    assert "hepdask/replay.py" not in text
    assert 'raise KeyError(f"threshold {self.threshold}")' in text


def test_unread_branches_can_be_read_when_the_debugger_comes_later(nano_files: NanoFiles) -> None:
    close_all()
    error = raised_by(
        lambda: replay_range(range_of(nano_files), reads_then_raises, reader()),
        ValueError,
        "total of 50: True",
    )
    assert error.__traceback__ is not None
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    phi = frame.f_locals["events"].MET_phi
    with uproot.open(nano_files.paths[0]) as file:
        expected = file["Events/MET_phi"].array(entry_stop=50)
    assert phi.tolist() == expected.tolist()
    close_all()


def test_replicas_are_those_of_the_run(nano_files: NanoFiles, tmp_path: Path) -> None:
    """The one that was read comes first, even if the first is there again."""
    missing = tmp_path / "missing.root"
    content = nano_files.paths[0].read_bytes()
    replicas = [str(missing), str(nano_files.paths[0]), str(tmp_path / "never.root")]
    failures = run_failing({"nano": [replicas]}, reads_then_raises, schema=None)
    assert failures[0].replica == replicas[1]
    missing.write_bytes(b"not a ROOT file any more")
    seen = failures.replay(0, lambda events: dict(events.metadata))
    assert seen["filename"] == str(missing)
    # and if that has gone meanwhile, the others are tried
    moved = InputFile("nano", str(missing), "Events", tuple(replicas[::-1]), {})
    missing.write_bytes(content)
    context = ReplayContext(reader(), ReadOptions(), (moved,))
    gone = Failure("nano", str(missing), "Events", 0, 50, "user", "E", "m", replica=replicas[2])
    assert Failures([gone], context).replay(0, len) == 50


def test_uproot_options_are_those_of_the_run(nano_files: NanoFiles) -> None:
    options = {"num_workers": 1, "handler": uproot.source.file.MultithreadedFileSource}
    failures = run_failing(
        nano_files.fileset, reads_then_raises, schema=None, uproot_options=options
    )
    assert failures._context is not None
    assert failures._context.reader.options.uproot_options == options  # type: ignore[attr-defined]
    assert failures.replay(0, len) == 50


def test_slices_can_be_replayed_and_resumed_runs_too(nano_files: NanoFiles) -> None:
    switch = {"on": True}

    def fails_twice(events: Any) -> int:
        if switch["on"] and events.metadata["entrystart"] == 50:
            raise ValueError("on")
        return len(events)

    run = Runner(LocalExecutor(), progress=False, metadata_cache=False, chunksize=50, schema=None)
    error = raised_by(lambda: run.run(nano_files.fileset, fails_twice), RunError, "on")
    assert isinstance(error, RunError)
    again = raised_by(error.partial_result.resume, RunError, "on")
    assert isinstance(again, RunError)
    for failures in (error.partial_result.failures, again.partial_result.failures):
        raised_by(lambda some=failures: some[:1].replay(-1, fails_twice), ValueError, "^on$")  # type: ignore[misc]
    switch["on"] = False
    assert again.partial_result.failures.replay(0, fails_twice) == 50


@pytest.mark.parametrize("index", [1, -2, "0", None, 0.0])
def test_a_wrong_index_says_which_are_right(nano_files: NanoFiles, index: Any) -> None:
    failures = run_failing(nano_files.fileset, reads_then_raises, schema=None)
    assert len(failures) == 1
    with pytest.raises(OptionError, match=rf"no failure {index!r}: give a number from 0 to 0"):
        failures.replay(index, reads_then_raises)
    with pytest.raises(OptionError, match="the processor is the class Nested"):
        failures.replay(0, Nested)


def test_a_failure_of_another_run_is_refused(nano_files: NanoFiles) -> None:
    other = Failure("dy", "a.root", "Events", 0, 1, "user", "E", "m")
    failures = run_failing(nano_files.fileset, reads_then_raises, schema=None)
    with pytest.raises(OptionError, match=r"there is no failure Failure\(dataset='dy'.*0 to 0"):
        failures.replay(other, len)
    context = ReplayContext(reader(), ReadOptions(), ())
    with pytest.raises(OptionError, match=r"a\.root .*this run has no such file"):
        Failures([other], context).replay(other, len)


def test_pickled_failures_say_what_to_type(nano_files: NanoFiles) -> None:
    failures = pickle.loads(
        pickle.dumps(run_failing(nano_files.fileset, reads_then_raises, schema=None))
    )
    path = str(nano_files.paths[0])
    typed = f"hepdask replay PROCESSOR FILESET --dataset nano --file {path} --entries 0:50"
    with pytest.raises(RunError, match=f"type: {typed}$"):
        failures.replay(0, reads_then_raises)


def test_a_file_that_was_not_inspected_is_opened(nano_files: NanoFiles, tmp_path: Path) -> None:
    path = tmp_path / "late.root"
    failures = run_failing({"late": [str(path)]}, len)
    assert failures[0].entry_start is None
    raised_by(lambda: failures.replay(0, len), FileReadError, "late.root: can't be opened")
    path.write_bytes(nano_files.paths[0].read_bytes())
    with pytest.raises(RunError, match=r"can be opened now, and 'Events' has 100 entries.*resume"):
        failures.replay(0, len)
    with uproot.recreate(path) as file:
        file["other"] = {"x": np.arange(3)}
    raised_by(lambda: failures.replay(0, len), MissingTreeError, "other")


def test_a_file_that_was_replaced_is_noticed(nano_files: NanoFiles, tmp_path: Path) -> None:
    path = tmp_path / "changing.root"
    path.write_bytes(nano_files.paths[0].read_bytes())
    failures = run_failing({"a": [str(path)]}, reads_then_raises, schema=None)
    path.write_bytes(nano_files.paths[1].read_bytes())
    raised_by(lambda: failures.replay(0, len), FileChangedError, "the file was replaced")


def damage(path: Path, source: Path, branch: str) -> Path:
    """Copy a file, and overwrite a branch's first basket."""
    with uproot.open(source) as file:
        found = file[f"Events/{branch}"]
        start, size = (int(found.member(name)[0]) for name in ("fBasketSeek", "fBasketBytes"))
    content = bytearray(source.read_bytes())
    content[start : start + size] = b"\xff" * size
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("schema", ["NanoAODSchema", None])
def test_what_cannot_be_read_is_raised_as_such(
    nano_files: NanoFiles, tmp_path: Path, schema: str | None
) -> None:
    path = damage(tmp_path / "bad.root", nano_files.paths[0], "genWeight")

    def touches(events: Any) -> float:
        return float(ak.sum(events.genWeight))

    failures = run_failing({"a": [str(path)]}, touches, schema=schema)
    assert failures[0].kind == "input"
    error = raised_by(lambda: failures.replay(0, touches), FileReadError, "'genWeight'")
    assert "touches" in names_of(error)
    assert failures.replay(0, len) == 50


def test_outputs_that_are_none_and_calls_of_exit_are_mistakes(nano_files: NanoFiles) -> None:
    def leaves(events: Any) -> None:
        sys.exit("bye")

    none = raised_by(
        lambda: replay_range(range_of(nano_files), returns_none, reader()),
        ProcessorError,
        r"process\(\) returned None",
    )
    assert none.__cause__ is None
    left = raised_by(
        lambda: replay_range(range_of(nano_files), leaves, reader()),
        ProcessorError,
        r"process\(\) raised SystemExit",
    )
    assert isinstance(left.__cause__, SystemExit)


def test_an_output_that_all_ranges_would_share_is_a_mistake(nano_files: NanoFiles) -> None:
    failures = run_failing(nano_files.fileset, Shares())
    raised_by(lambda: failures.replay(0, Shares()), ProcessorError, "global or a class attribute")


class Shares:
    total: dict[str, int] = {}  # noqa: RUF012  # the mistake

    def process(self, events: Any) -> dict[str, int]:
        self.total["entries"] = len(events)
        return self.total


def test_users_code_may_be_installed_itself(tmp_path: Path, nano_files: NanoFiles) -> None:
    package = tmp_path / "site-packages" / "replay_analysis"
    package.mkdir(parents=True)
    source = "def process(events):\n    return inner(events)\n\ndef inner(events):\n    return events.nothing\n"
    (package / "__init__.py").write_text(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(package.parent))
        import replay_analysis  # type: ignore[import-not-found]

        process = replay_analysis.process
        error = raised_by(
            lambda: replay_range(range_of(nano_files), process, reader()), AttributeError, "nothing"
        )
        patch.delitem(sys.modules, "replay_analysis")
    found = find_user_traceback(error, process)
    assert found is not None
    assert found.tb_frame.f_code.co_name == "process"  # and not this test, which has called it
    names = names_of(error)
    assert names[names.index("replay_range") + 1 :][:2] == ["process", "inner"]
    assert find_user_traceback(ValueError("never raised"), process) is None


def test_the_debugger_stands_in_the_users_frame(
    nano_files: NanoFiles, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Below are frames of awkward, above those of hepdask; branches that were not read yet can be."""

    def breaks(events: Any) -> Any:
        mine = 6 * 7
        return ak.flatten(events.run, axis=mine)

    failures = run_failing(nano_files.fileset, breaks, schema=None)
    monkeypatch.delenv("PYTHONBREAKPOINT", raising=False)
    typed = "p mine\nl\np len(events.MET_phi), bool(events.MET_phi[0] < 4)\nup\nq\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    screen = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", screen)
        raised_by(lambda: failures.replay(0, breaks, debug=True), ValueError, "axis")
    shown = screen.getvalue()
    assert "42" in shown
    assert "return ak.flatten(events.run, axis=mine)" in shown
    assert "(50, " in shown
    assert "True)" in shown
    assert "Oldest frame" in shown
    assert "Traceback (most recent call last):" in capfd.readouterr().err


def test_the_debugger_is_not_started_where_nothing_of_the_user_failed(
    nano_files: NanoFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("never read\n"))
    assert replay_range(range_of(nano_files), len, reader(), debug=True) == 50
    raised_by(
        lambda: replay_range(range_of(nano_files), returns_none, reader(), debug=True),
        ProcessorError,
        "returned None",
    )
    assert sys.stdin.read() == "never read\n"


def test_another_debugger_can_be_chosen(
    nano_files: NanoFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "stood = []\ndef post_mortem(frames):\n    stood.append(frames.tb_frame.f_code.co_name)\n"
    )
    (tmp_path / "replay_debugger.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONBREAKPOINT", "replay_debugger.set_trace")
    raised_by(
        lambda: replay_range(range_of(nano_files), reads_then_raises, reader(), debug=True),
        ValueError,
        "total",
    )
    assert sys.modules["replay_debugger"].stood == ["reads_then_raises"]
    monkeypatch.delitem(sys.modules, "replay_debugger")


SCRIPT = """
import ctypes, os, sys
from hepdask.failures import Failure, Failures
from hepdask.fileset import load_fileset
from hepdask.opening import ReadOptions
from hepdask.readers import build_reader
from hepdask.replay import ReplayContext

def breaks(events):
    mine = 6 * 7
    raise ValueError("broken")

def crashes(events):
    ctypes.string_at(0)

def replay(processor, kind, debug):
    files = load_fileset({"a": [sys.argv[1]]}, "Events").files
    context = ReplayContext(build_reader(None, ReadOptions()), ReadOptions(), files)
    failure = Failure("a", sys.argv[1], "Events", 0, 50, "resources", kind, "m")
    Failures([failure], context).replay(0, processor, debug=debug)
"""


def run_script(
    directory: Path, ending: str, path: Path, typed: str = ""
) -> subprocess.CompletedProcess[str]:
    script = directory / "replay_script.py"
    script.write_text(SCRIPT + textwrap.dedent(ending))
    return subprocess.run(
        [sys.executable, script, path],
        input=typed,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=directory,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "IPYTHONDIR": str(directory)},
    )


def test_a_crash_shows_the_lines_of_the_processor(nano_files: NanoFiles, tmp_path: Path) -> None:
    ending = "replay(crashes, 'hepdask.errors.ProcessDiedError', False)"
    done = run_script(tmp_path, ending, nano_files.paths[0])
    assert done.returncode == -signal.SIGSEGV
    assert "Segmentation fault" in done.stderr
    assert "in crashes" in done.stderr


def test_the_debugger_is_that_of_ipython_where_it_runs(
    nano_files: NanoFiles, tmp_path: Path
) -> None:
    ending = """
        import IPython
        sys.modules["script"] = sys.modules["__main__"]
        path = sys.argv[1]
        code = "import sys, script; script.replay(script.breaks, 'ValueError', True)"
        options = ["--simple-prompt", "--no-banner", "--colors=NoColor", "-c", code]
        IPython.start_ipython(argv=options)
        """
    done = run_script(tmp_path, ending, nano_files.paths[0], "p mine\nq\n")
    assert "ipdb> 42" in done.stdout, done
    assert "ValueError: broken" in done.stderr


def test_no_place_to_write_a_crash_to_is_no_obstacle() -> None:
    code = (
        "import faulthandler, sys; from hepdask.replay import enable_faulthandler\n"
        "sys.stderr, kept = None, sys.stderr; sys.__stderr__ = None; enable_faulthandler()\n"
        "print(faulthandler.is_enabled()); sys.__stderr__ = kept; enable_faulthandler()\n"
        "print(faulthandler.is_enabled())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        check=True,
    )
    assert done.stdout.split() == ["False", "True"]
