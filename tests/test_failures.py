from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest

from hepdask.errors import (
    AccumulatorError,
    FileChangedError,
    FileReadError,
    MissingDependencyError,
    MissingTreeError,
    OptionError,
    ProcessDiedError,
    ProcessorError,
    RunError,
)
from hepdask.failures import (
    Failure,
    Failures,
    build_failure,
    classify,
    exception_chain,
    is_skippable,
)
from hepdask.fileset import InputFile, load_fileset

FILE = InputFile("dy", "a.root", "Events", ("a.root", "root://b//a.root"), {})


class MuonError(Exception):
    pass


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    """Raise and catch, so that there is a traceback."""
    try:
        raise error from cause  # noqa: TRY301  # caught at once, for its traceback
    except BaseException as caught:  # noqa: BLE001  # it is what was just raised
        return caught


def failure(start: int | None = 0, stop: int | None = 10, **more: Any) -> Failure:
    given = {"kind": "input", "exception_type": "OSError", "message": "gone", **more}
    return Failure("dy", "a.root", "Events", start, stop, **given)


@pytest.mark.parametrize(
    ("error", "cause", "kind"),
    [
        (FileReadError("x"), None, "input"),
        (FileReadError("x"), FileNotFoundError("x"), "input"),
        (MissingTreeError("x"), None, "input"),
        (FileChangedError("x"), None, "input"),
        (FileReadError("x"), TimeoutError("x"), "transient"),
        (FileReadError("x"), ConnectionResetError("x"), "transient"),
        (ProcessorError("x"), ValueError("x"), "user"),
        # the user's own connection, to a database say, is user code
        (ProcessorError("x"), ConnectionError("x"), "user"),
        (ProcessorError("x"), MemoryError("x"), "resources"),
        (FileReadError("x"), MemoryError("x"), "resources"),
        (MemoryError("x"), None, "resources"),
        (ProcessorError("x"), FileReadError("x"), "input"),
        (AccumulatorError("x"), None, "user"),
        (MissingDependencyError("x"), None, "setup"),
        (ZeroDivisionError("x"), None, "setup"),
    ],
)
def test_failures_are_classed(error: Exception, cause: Exception | None, kind: str) -> None:
    assert classify(raised(error, cause)) == kind


def test_the_chain_goes_from_the_error_to_its_reason() -> None:
    innermost = ValueError("a")
    middle = raised(KeyError("b"), innermost)
    outer = raised(ProcessorError("c"), middle)
    assert list(exception_chain(outer)) == [outer, middle, innermost]


def test_the_chain_ends_where_it_bites_its_tail() -> None:
    first, second = ValueError("a"), KeyError("b")
    first.__cause__, second.__cause__ = second, first
    assert list(exception_chain(first)) == [first, second]


def test_what_was_handled_meanwhile_is_in_the_chain_unless_the_user_hid_it() -> None:
    def fail(*, hide: bool) -> None:
        try:
            raise FileReadError("bad basket")  # noqa: TRY301  # so that it is being handled
        except FileReadError:
            if hide:
                raise MuonError("no muons") from None
            raise MuonError("no muons")  # noqa: B904  # the implicit context is the point

    chains = {}
    for hide in (False, True):
        with pytest.raises(MuonError, match="no muons") as caught:
            fail(hide=hide)
        chains[hide] = [type(one) for one in exception_chain(caught.value)]
    assert chains == {False: [MuonError, FileReadError], True: [MuonError]}


def test_skippable_looks_at_the_whole_chain() -> None:
    error = raised(ProcessorError("x"), MuonError("y"))
    assert is_skippable(error, (MuonError,))
    assert is_skippable(error, (FileReadError, ProcessorError))
    assert not is_skippable(error, (FileReadError,))
    assert not is_skippable(error, ())


def test_a_failure_shows_what_the_users_code_raised() -> None:
    error = raised(ProcessorError("process() raised"), raised(MuonError("no muons")))
    built = build_failure(
        error, FILE, (3, 7), worker="w", replica="root://b//a.root", skipped=(MuonError,)
    )
    assert built.exception_type == f"{__name__}.MuonError"
    assert built.message == "no muons"
    assert built.kind == "user"
    assert (built.dataset, built.file_path, built.treename) == ("dy", "a.root", "Events")
    assert (built.entry_start, built.entry_stop, built.num_entries) == (3, 7, 4)
    assert (built.worker, built.replica) == ("w", "root://b//a.root")
    assert built.is_skipped
    assert built.attempts == 1
    assert built.exception is error
    assert "MuonError: no muons" in built.traceback
    assert "def raised" not in built.traceback
    assert "in raised" in built.traceback


def test_a_processor_error_without_a_cause_shows_itself() -> None:
    built = build_failure(raised(ProcessorError("process() returned None")), FILE, (0, 1))
    assert built.exception_type == "hepdask.errors.ProcessorError"
    assert built.message == "process() returned None"


def test_names_of_builtin_exceptions_have_no_module() -> None:
    assert build_failure(raised(MemoryError("x")), FILE, (0, 1)).exception_type == "MemoryError"


def test_a_file_that_was_not_inspected_has_no_entries() -> None:
    built = build_failure(raised(FileReadError("gone")), FILE, None)
    assert (built.entry_start, built.entry_stop, built.num_entries) == (None, None, 0)


def test_pickling_loses_the_live_exception_alone() -> None:
    error = raised(ProcessorError("x"), raised(MuonError("y")))
    built = build_failure(error, FILE, (0, 10), worker="w")
    copy = pickle.loads(pickle.dumps(built))
    assert copy == built
    assert copy.exception is None
    assert built.exception is error


def test_an_exception_that_cannot_be_pickled_is_no_obstacle() -> None:
    built = build_failure(raised(ValueError(lambda: None)), FILE, (0, 10))
    assert pickle.loads(pickle.dumps(built)) == built


def test_failures_are_a_sequence() -> None:
    both = Failures(iter([failure(0, 10), failure(10, 20)]))
    assert len(both) == 2
    assert both[1].entry_start == 10
    assert isinstance(both[:1], Failures)
    assert list(both[:1]) == [failure(0, 10)]
    assert failure(10, 20) in both


def test_a_process_that_could_not_be_had_does_not_blame_the_range() -> None:
    assert classify(ProcessDiedError("killed", signal=11)) == "resources"
    assert classify(ProcessDiedError("exit", exit_code=0)) == "resources"
    assert classify(ProcessDiedError("no process could be forked")) == "setup"


def test_no_failures_say_so() -> None:
    assert repr(Failures()) == "<no failures>"
    assert Failures()._repr_html_() == "<p>no failures</p>"
    assert not Failures()


def test_the_table_shows_the_first_ones() -> None:
    many = Failures(failure(i, i + 1, message=f"first {i}\nsecond") for i in range(25))
    text = str(many.to_table())
    assert "Failures: 25, the first 20" in text
    assert "19 to 20" in text
    assert "20 to 21" not in text
    assert "first 0" in text
    assert "second" not in text
    assert repr(many).startswith("<25 failures>")
    assert "<table>" in many._repr_html_()
    assert "all" in str(Failures([failure(None, None)]).to_table())


def test_what_failed_can_be_run_as_a_fileset() -> None:
    other = replace(failure(None, None), dataset="tt", file_path="b.root", treename="T")
    written = Failures([failure(0, 10), failure(20, 30), other]).to_fileset()
    assert written == {
        "dy": {"files": {"a.root": {"object_path": "Events", "steps": [[0, 10], [20, 30]]}}},
        "tt": {"files": {"b.root": {"object_path": "T"}}},
    }
    loaded = load_fileset(written)
    assert [file.steps for file in loaded.files] == [((0, 10), (20, 30)), None]
    assert Failures().to_fileset() == {}


class Recorded:
    """A context that gives back what it was asked for."""

    def replay(self, failure: Failure, processor: Any, *, debug: bool = False) -> Any:
        return failure, processor, debug


def test_replay_finds_the_failure_by_number_or_itself() -> None:
    failures = Failures([failure(0, 10), failure(10, 20), failure(20, 30)], Recorded())
    assert failures.replay(1, len) == (failure(10, 20), len, False)
    assert failures.replay(-1, len, debug=True) == (failure(20, 30), len, True)
    assert failures.replay(failure(0, 10), len) == (failure(0, 10), len, False)
    assert failures[1:].replay(0, len)[0] == failure(10, 20)


@pytest.mark.parametrize("index", [3, -4, "1", None, 1.0, failure(5, 6)])
def test_replay_refuses_what_is_no_failure(index: Any) -> None:
    failures = Failures([failure(0, 10), failure(10, 20), failure(20, 30)], Recorded())
    with pytest.raises(OptionError, match=r"^there is no failure .*: give a number from 0 to 2$"):
        failures.replay(index, len)
    with pytest.raises(OptionError, match=r"^there is no failure .*: there is none at all$"):
        Failures([], Recorded()).replay(index, len)


def test_failures_without_their_run_say_what_to_type() -> None:
    odd = replace(failure(None, None), dataset="d y")
    failures = Failures([failure(0, 10), odd], Recorded())
    for one in (pickle.loads(pickle.dumps(failures)), Failures(failures)):
        assert list(one) == list(failures)
        with pytest.raises(
            RunError,
            match=r"hepdask replay PROCESSOR FILESET --dataset dy --file a\.root --entries 0:10$",
        ):
            one.replay(0, len)
        with pytest.raises(RunError, match=r"FILESET --dataset 'd y' --file a\.root$"):
            one.replay(1, len)
