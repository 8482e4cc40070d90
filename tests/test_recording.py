from __future__ import annotations

import logging
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from hepdask import recording as module
from hepdask.fileset import InputFile
from hepdask.messages import MAX_MESSAGES, MAX_TEXT_LENGTH, Message, Messages
from hepdask.ranges import EntryRange
from hepdask.recording import record_messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hepdask.recording import Recorder

WHERE = EntryRange(InputFile("dy", "a.root", "Events", ("a.root",), {}), 10, 20)
logger = logging.getLogger("tests.recording")

# the warnings that are issued here are shown, as often as they come
pytestmark = pytest.mark.filterwarnings("always::UserWarning", "always::RuntimeWarning")


@pytest.fixture(autouse=True)
def hooks_are_taken_away() -> Iterator[None]:
    """Check after each test that nothing of it is left in the process."""
    before = warnings.showwarning, logging.getLogRecordFactory()
    yield
    assert (warnings.showwarning, logging.getLogRecordFactory()) == before
    assert module._num_open == 0
    assert module._this_thread.recorder is None


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the warnings that reach the hook which was there before."""
    texts: list[str] = []

    def show(message: Warning | str, *_: Any) -> None:
        texts.append(str(message))

    monkeypatch.setattr(warnings, "showwarning", show)
    return texts


def warn(text: str = "low pt", category: type[Warning] = UserWarning) -> None:
    warnings.warn(text, category, stacklevel=1)


def recorded(act: Callable[[], object]) -> Messages:
    with record_messages(WHERE, "w1") as recorder:
        act()
    return recorder.messages


# what is recorded


def test_a_warning_has_all_that_is_known(shown: list[str]) -> None:
    (one,) = recorded(warn)
    line = warn.__code__.co_firstlineno + 1
    assert one == Message(
        "warning", "UserWarning", "low pt", f"tests/test_recording.py:{line}", 1, "dy", "a.root", 10, 20, "w1"
    )  # fmt: skip


def test_a_log_record_has_all_that_is_known() -> None:
    (one,) = recorded(lambda: logger.error("%s has %d muons", "event 7", 3))
    assert (one.level, one.category, one.text) == (
        "error",
        "tests.recording",
        "event 7 has 3 muons",
    )
    line = test_a_log_record_has_all_that_is_known.__code__.co_firstlineno + 1
    assert one.place == f"tests/test_recording.py:{line}"
    assert (one.dataset, one.entry_start, one.entry_stop, one.worker) == ("dy", 10, 20, "w1")


def test_where_may_be_unknown(shown: list[str]) -> None:
    with record_messages(None, worker="w1") as recorder:
        warn()
    (one,) = recorder.messages
    assert (one.dataset, one.file_path, one.entry_start, one.entry_stop) == (None,) * 4


def test_a_category_is_named_with_its_module(shown: list[str]) -> None:
    class MuonWarning(UserWarning):
        pass

    (one,) = recorded(lambda: warn("x", MuonWarning))
    assert one.category == f"{__name__}.{MuonWarning.__qualname__}"


def test_records_below_warning_or_below_the_level_of_their_logger_are_not_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    assert not recorded(lambda: logger.info("fine"))
    assert len(recorded(lambda: logger.warning("not fine"))) == 1
    logger.manager._clear_cache()  # type: ignore[attr-defined]  # as Logger.setLevel does
    monkeypatch.setattr(logger, "level", logging.ERROR)
    assert not recorded(lambda: logger.warning("not fine"))
    monkeypatch.undo()
    logger.manager._clear_cache()  # type: ignore[attr-defined]


def test_a_logger_that_does_not_propagate_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "handlers", [logging.NullHandler()])
    assert len(recorded(lambda: logger.warning("x"))) == 1


def test_a_logged_exception_is_named() -> None:
    def act() -> None:
        try:
            [].pop()
        except IndexError:
            logger.exception("no jets")

    (one,) = recorded(act)
    assert one.text == "no jets\nIndexError: pop from empty list"


def test_messages_can_be_read_during_the_block(shown: list[str]) -> None:
    with record_messages(WHERE, "w1") as recorder:
        warn()
        first = recorder.messages
        warn()
    assert [one.count for one in first] == [1]
    assert [one.count for one in recorder.messages] == [2]


def test_nothing_is_recorded_after_the_block(shown: list[str]) -> None:
    with record_messages(WHERE, "w1") as recorder:
        pass
    warn()
    logger.warning("late")
    assert not recorder.messages


def test_an_exception_keeps_what_came_before(shown: list[str]) -> None:
    recorder = record_messages(WHERE, "w1")

    def act() -> None:
        with recorder:
            warn()
            logger.warning("about to fail")
            raise ValueError("no jets")

    with pytest.raises(ValueError, match="no jets"):
        act()
    assert [one.text for one in recorder.messages] == ["low pt", "about to fail"]


def test_of_nested_blocks_the_innermost_records(shown: list[str]) -> None:
    with record_messages(None, "outer") as outer:
        warn("a")
        with record_messages(None, "inner") as inner:
            warn("b")
        warn("c")
    assert [one.text for one in outer.messages] == ["a", "c"]
    assert [one.text for one in inner.messages] == ["b"]


# what user code notices: nothing


def test_all_goes_on_to_what_was_there(shown: list[str], caplog: pytest.LogCaptureFixture) -> None:
    def act() -> None:
        warn("a")
        logger.warning("b")

    recorded(act)
    assert shown == ["a"]
    assert caplog.messages == ["b"]


def test_a_filter_that_ignores(shown: list[str]) -> None:
    warnings.simplefilter("ignore")
    assert not recorded(warn)


def test_a_filter_that_raises(shown: list[str]) -> None:
    warnings.simplefilter("error")
    with pytest.raises(UserWarning, match="low pt"):
        recorded(warn)


def test_a_filter_that_shows_once(shown: list[str]) -> None:
    warnings.simplefilter("default")

    def act() -> None:
        for _ in range(3):
            warn("shown once for its line of code")

    assert [one.count for one in recorded(act)] == [1]
    assert shown == ["shown once for its line of code"]


def test_warnings_that_user_code_catches_are_its_own(shown: list[str]) -> None:
    def act() -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn("caught")
        assert [str(one.message) for one in caught] == ["caught"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warn("ignored")
        with pytest.warns(UserWarning, match="expected"):
            warn("expected")
        warn("seen")

    assert [one.text for one in recorded(act)] == ["seen"]
    assert shown == ["seen"]


def test_a_block_in_one_that_catches(recwarn: pytest.WarningsRecorder) -> None:
    assert len(recorded(warn)) == 1
    assert [str(one.message) for one in recwarn] == ["low pt"]


def test_what_is_shown_by_logging_is_recorded_once(caplog: pytest.LogCaptureFixture) -> None:
    logging.captureWarnings(True)
    try:
        (one,) = recorded(warn)
    finally:
        logging.captureWarnings(False)
    assert (one.category, one.text, one.count) == ("UserWarning", "low pt", 1)
    assert "UserWarning: low pt" in caplog.text


def test_hooks_of_the_user_stay(shown: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """User code puts its own in front, within a block: it stays, and no circle forms in the blocks that follow."""
    mine: list[str] = []

    def act() -> None:
        behind = warnings.showwarning

        def show(message: Warning | str, *more: Any) -> None:
            mine.append(str(message))
            behind(message, *more)

        monkeypatch.setattr(warnings, "showwarning", show)

    recorded(act)
    for number in range(3):
        in_front = warnings.showwarning
        assert len(recorded(lambda: warn("x"))) == 1
        assert warnings.showwarning is in_front
        assert len(mine) == len(shown) == number + 1
    warn("outside")
    assert (mine[-1], shown[-1]) == ("outside", "outside")


def test_a_factory_of_the_user_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    before = logging.getLogRecordFactory()

    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        record.msg = f"[run 1] {record.msg}"
        return record

    logging.setLogRecordFactory(make)
    try:
        (one,) = recorded(lambda: logger.warning("x"))
        assert logging.getLogRecordFactory() is make
    finally:
        logging.setLogRecordFactory(before)
    assert one.text == "[run 1] x"


def test_a_record_that_is_filled_in_later_is_none_yet() -> None:
    made: list[logging.LogRecord] = []
    attributes = {"msg": "from elsewhere", "levelno": logging.ERROR}
    assert not recorded(lambda: made.append(logging.makeLogRecord(attributes)))
    assert made[0].getMessage() == "from elsewhere"


def test_arguments_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        logger, "propagate", False
    )  # pytest's handler raises what logging would print
    monkeypatch.setattr(logger, "handlers", [logging.NullHandler()])
    (one,) = recorded(lambda: logger.warning("%d muons", "two"))  # that's the point
    assert one.text == "%d muons (its arguments can't be filled in)"


def test_a_text_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    class Muon:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "handlers", [logging.NullHandler()])
    assert not recorded(lambda: logger.warning(Muon()))


def test_what_raises_behind_is_raised(monkeypatch: pytest.MonkeyPatch, shown: list[str]) -> None:
    def show(*_: Any) -> None:
        raise OSError("the terminal is gone")

    def act() -> None:
        with pytest.raises(OSError, match="the terminal is gone"):
            warn("a")
        logger.warning("b")

    with monkeypatch.context() as patch:
        patch.setattr(warnings, "showwarning", show)
        found = recorded(act)
    assert [one.text for one in found] == ["a", "b"]


@pytest.mark.parametrize(
    "code",
    [
        "import warnings; warnings.warn('low pt', stacklevel=1)",
        # without any handler: logging.lastResort writes it
        "import logging; logging.getLogger('x').warning('no jets')",
        "import logging; logging.warning('no jets')",
        "import logging; logging.basicConfig(level='INFO', format='mine: %(message)s'); logging.info('fine')",
        "import logging; logging.getLogger('x').warning('%d', 'two')",
    ],
)
def test_stderr_is_what_it_is_without(code: str) -> None:
    script = f"""
import sys
from contextlib import nullcontext
from hepdask.recording import record_messages
with record_messages(None, "w1") if sys.argv[1] == "on" else nullcontext():
    exec(compile({code!r}, "cell", "exec"))
"""
    off, on = (
        subprocess.run(
            [sys.executable, "-c", script, switch],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stderr
        for switch in ("off", "on")
    )
    assert off
    assert on == off


# threads


def test_threads_do_not_hear_each_other(shown: list[str]) -> None:
    num_threads, num_rounds = 4, 20
    barrier = threading.Barrier(num_threads, timeout=60)

    def work(number: int) -> list[Messages]:
        name = "abcd"[number]
        found = []
        for _ in range(num_rounds):
            barrier.wait()  # all are outside: the hooks are put there and taken away in each round
            with record_messages(WHERE, name) as recorder:
                barrier.wait()
                warn(f"from {name}")
                logger.warning("from %s", name)
                barrier.wait()
            found.append(recorder.messages)
        return found

    with ThreadPoolExecutor(num_threads) as pool:
        for number, rounds in enumerate(pool.map(work, range(num_threads))):
            name = "abcd"[number]
            for found in rounds:
                assert [(one.text, one.count) for one in found] == [(f"from {name}", 1)] * 2
                assert {one.worker for one in found} == {name}
    assert len(shown) == num_threads * num_rounds


def test_a_thread_without_recorder_is_left_alone(shown: list[str]) -> None:
    with record_messages(WHERE, "w1") as recorder:
        other = threading.Thread(target=warn, args=("from another thread",))
        other.start()
        other.join()
    assert not recorder.messages
    assert shown == ["from another thread"]


def test_hooks_stay_until_the_last_block_ends(shown: list[str]) -> None:
    is_open, may_end = threading.Event(), threading.Event()
    found: list[Messages] = []

    def work() -> None:
        with record_messages(WHERE, "w2") as recorder:
            is_open.set()
            assert may_end.wait(60)
            warn("late")
        found.append(recorder.messages)

    other = threading.Thread(target=work)
    with record_messages(WHERE, "w1"):
        other.start()
        assert is_open.wait(60)
    may_end.set()
    other.join()
    assert [one.text for one in found[0]] == ["late"]


def test_a_hook_that_comes_back_late_does_no_harm(shown: list[str]) -> None:
    """Another thread's catch_warnings saves the hook during a block, and puts it back after it."""
    before = warnings.showwarning
    catching = warnings.catch_warnings()
    with record_messages(WHERE, "w1") as recorder:
        catching.__enter__()
    catching.__exit__(None, None, None)
    assert warnings.showwarning is not before
    warn("passed on")
    assert shown == ["passed on"]
    assert not recorder.messages
    assert len(recorded(warn)) == 1
    assert shown == ["passed on", "low pt"]
    assert warnings.showwarning is before


def test_a_hook_that_was_replaced_is_put_in_front_by_the_next_block(
    shown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = warnings.showwarning
    with record_messages(WHERE, "w1"):
        warnings.showwarning = before  # user code of another thread
        assert len(recorded(warn)) == 1
    assert shown == ["low pt"]


# what is kept


def test_long_texts_are_cut() -> None:
    def act() -> None:
        for number in (1, 1_000_000):
            logger.warning("event %d: %s", number, "x" * 3_000_000)

    (one,) = recorded(act)
    assert one.count == 2
    assert len(one.text) == MAX_TEXT_LENGTH
    assert one.text.startswith("event 1: xxx")
    assert one.text.endswith("xxx ... (cut)")


def test_a_recorder_keeps_a_bounded_number() -> None:
    names = [chr(ord("a") + n // 26) + chr(ord("a") + n % 26) for n in range(MAX_MESSAGES + 5)]

    def act() -> None:
        for name in [*names, *names]:
            logger.warning(name)

    found = recorded(act)
    assert [one.text for one in found] == names[:MAX_MESSAGES]
    assert found.num_dropped == 10
    assert found.num_issued == 2 * len(names)


def test_secrets_in_messages_and_file_paths_are_masked(shown: list[str]) -> None:
    file = InputFile("dy", "root://h//f.root?authz=hunter2", "Events", (), {})
    with record_messages(EntryRange(file, 0, 1), "w1") as recorder:
        warn("token=hunter2")
        logger.warning("password=%s", "hunter2")
    assert [one.text for one in recorder.messages] == ["token=***", "password=***"]
    assert "hunter2" not in repr(recorder.messages.to_dict())


def test_a_recorder_can_be_named_as_a_type() -> None:
    recorder: Recorder = record_messages(None, "w1")
    assert recorder.messages == Messages()
