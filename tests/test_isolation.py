from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import cloudpickle
import pytest

from hepdask.errors import FileReadError, HepdaskError, OptionError, ProcessDiedError
from hepdask.isolation import ChildRunner, child_runner

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Client

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

# Far longer than anything here takes, so that a test that hangs says where.
LIMIT_SECONDS = 60.0
MIB = 2**20
NUM_DEATHS = 20


@pytest.fixture(scope="module", autouse=True)
def functions_by_value() -> Iterator[None]:
    """Send this module's functions as a notebook's: children need not import pytest."""
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture(scope="module")
def shared_runner() -> Iterator[ChildRunner]:
    """Start a server without imports; tests may kill its children."""
    runner = ChildRunner(preload=())
    yield runner
    runner.close()


@pytest.fixture
def runner(shared_runner: ChildRunner) -> ChildRunner:
    return shared_runner


@pytest.fixture
def own_runner() -> Iterator[ChildRunner]:
    """Make a runner whose server a test may kill."""
    runner = ChildRunner(preload=())
    yield runner
    runner.close()


def pids() -> tuple[int, int]:
    return os.getppid(), os.getpid()


def is_there(pid: int) -> bool:
    """Return whether there is a process, be it a zombie."""
    return Path(f"/proc/{pid}").exists()


def wait_until_gone(pid: int) -> None:
    """Wait for the end of a process that isn't a child of this one; a zombie has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    assert poll.poll(LIMIT_SECONDS * 1000), f"{pid} is still there"
    os.close(descriptor)


def test_returns_what_the_function_returned(runner: ChildRunner) -> None:
    assert runner.call(divmod, 17, 5) == (3, 2)
    offset = 40
    assert runner.call(lambda value: value + offset, 2) == 42


def test_runs_in_another_process_that_is_kept(runner: ChildRunner) -> None:
    first = runner.call(pids)
    assert os.getpid() not in first
    assert runner.call(pids) == first


def test_large_arguments_and_results(runner: ChildRunner) -> None:
    content = b"0123456789abcdef" * (100 * MIB // 16)
    assert runner.call(bytes.__add__, content, b"end") == content + b"end"


def test_an_exception_comes_back_with_its_traceback(runner: ChildRunner) -> None:
    def divide(value: int) -> float:
        return value / 0

    before = runner.call(os.getpid)
    with pytest.raises(ZeroDivisionError, match="division by zero") as raised:
        runner.call(divide, 1)
    (note,) = raised.value.__notes__
    assert note.startswith(f"In child process {before}:\nTraceback (most recent call last):")
    assert "in divide" in note
    assert runner.call(os.getpid) == before


def expire() -> NoReturn:
    raise TimeoutError("expired")


def fail_to_read() -> NoReturn:
    try:
        expire()
    except TimeoutError as error:
        raise FileReadError("can't be read") from error


def test_causes_and_contexts_come_back(runner: ChildRunner) -> None:
    def fail() -> None:
        try:
            fail_to_read()
        except FileReadError:
            raise KeyError("pt")  # noqa: B904  # as happens in an except block

    with pytest.raises(KeyError, match="pt") as raised:
        runner.call(fail)
    context = raised.value.__context__
    assert isinstance(context, FileReadError)
    assert isinstance(context.__cause__, TimeoutError)
    assert str(context.__cause__) == "expired"
    assert raised.value.__cause__ is None


def test_a_hidden_context_stays_hidden(runner: ChildRunner) -> None:
    def fail() -> None:
        try:
            expire()
        except TimeoutError:
            raise ValueError("hidden") from None

    with pytest.raises(ValueError, match="hidden") as raised:
        runner.call(fail)
    assert raised.value.__suppress_context__
    assert raised.value.__cause__ is None


def test_an_exception_that_cannot_be_pickled_comes_back_as_its_base(runner: ChildRunner) -> None:
    class BadFileError(FileReadError):
        def __init__(self, path: str, line: int) -> None:
            super().__init__(f"{path}:{line} is bad")

    def fail() -> NoReturn:
        raise BadFileError("a.root", 3)

    with pytest.raises(FileReadError, match=r"BadFileError: a\.root:3 is bad") as raised:
        runner.call(fail)
    assert type(raised.value) is FileReadError


def test_a_result_that_cannot_be_pickled_is_an_exception(runner: ChildRunner) -> None:
    with pytest.raises(TypeError, match="cannot pickle"):
        runner.call(threading.Lock)
    assert runner.call(abs, -1) == 1


def test_an_exit_of_python_is_for_the_caller_to_judge(runner: ChildRunner) -> None:
    child = runner.call(os.getpid)
    with pytest.raises(SystemExit, match="3"):
        runner.call(sys.exit, 3)
    assert runner.call(os.getpid) == child


def test_exit_code(runner: ChildRunner) -> None:
    with pytest.raises(ProcessDiedError, match="ran _exit died: exit code 3") as raised:
        runner.call(os._exit, 3)
    assert (raised.value.exit_code, raised.value.signal) == (3, None)


def test_killed(runner: ChildRunner) -> None:
    with pytest.raises(ProcessDiedError, match="killed by SIGKILL; mostly for lack of") as raised:
        runner.call(signal.raise_signal, signal.SIGKILL)
    assert (raised.value.exit_code, raised.value.signal) == (None, signal.SIGKILL)


def test_the_caller_says_what_died(runner: ChildRunner) -> None:
    what = "entries 5 to 6 of 'Events' in a.root"
    with pytest.raises(ProcessDiedError, match=f"^{what}: the process died: killed by SIGSEGV; "):
        runner.call(ctypes.string_at, 0, what=what)
    text = rf"^{what}: the process exceeded its time limit of 0\.2 s and was killed"
    with pytest.raises(ProcessDiedError, match=text):
        runner.call(signal.pause, timeout_seconds=0.2, what=what)


def test_killed_by_a_signal_without_a_name(runner: ChildRunner) -> None:
    number = signal.SIGRTMIN + 1
    with pytest.raises(ProcessDiedError, match=f"killed by signal {number};"):
        runner.call(signal.raise_signal, number)


def test_segmentation_fault_says_where_it_was(runner: ChildRunner) -> None:
    def fit_the_mass() -> None:
        ctypes.string_at(0)

    with pytest.raises(ProcessDiedError, match="killed by SIGSEGV; a crash in compiled") as raised:
        runner.call(fit_the_mass)
    assert raised.value.signal == signal.SIGSEGV
    (note,) = raised.value.__notes__
    assert "in fit_the_mass" in note
    assert "in serve" not in note


def test_the_error_survives_pickling(runner: ChildRunner) -> None:
    with pytest.raises(ProcessDiedError, match="SIGSEGV") as raised:
        runner.call(ctypes.string_at, 0)
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (str(copy), copy.signal, copy.exit_code) == (str(raised.value), signal.SIGSEGV, None)
    assert copy.__notes__ == raised.value.__notes__
    assert isinstance(copy, HepdaskError)
    assert isinstance(copy, RuntimeError)


@needs_linux
def test_memory_limit(runner: ChildRunner) -> None:
    child = runner.call(os.getpid)
    with pytest.raises(MemoryError, match="In child process"):
        runner.call(bytearray, 512 * MIB, memory_bytes=256 * MIB)
    assert len(runner.call(bytearray, 100 * MIB, memory_bytes=256 * MIB)) == 100 * MIB
    assert runner.call(lambda: len(bytearray(512 * MIB))) == 512 * MIB  # no limit left over
    assert runner.call(os.getpid) == child


def keep(num_bytes: int) -> tuple[int, int]:
    """Leak memory; return how often this process has done so, and which it is."""
    kept = sys.modules["sys"].__dict__.setdefault("_kept", [])
    kept.append(bytearray(num_bytes))
    return len(kept), os.getpid()


@needs_linux
def test_memory_limit_is_relative_to_what_the_child_has(runner: ChildRunner) -> None:
    number, child = runner.call(keep, 100 * MIB, memory_bytes=256 * MIB)
    assert number == 1
    assert runner.call(keep, 200 * MIB, memory_bytes=256 * MIB) == (2, child)
    with pytest.raises(ProcessDiedError, match="exit code 0"):
        runner.call(os._exit, 0)


@needs_linux
def test_a_child_that_has_kept_too_much_is_replaced(runner: ChildRunner) -> None:
    calls = [runner.call(keep, 20 * MIB, memory_bytes=100 * MIB) for _ in range(7)]
    assert [number for number, _ in calls] == [1, 2, 3, 1, 2, 3, 1]
    assert len({child for _, child in calls}) == 3
    assert [runner.call(keep, 20 * MIB)[0] for _ in range(4)] == [2, 3, 4, 5]  # there is no limit


@needs_linux
def test_an_error_comes_from_a_child_that_is_replaced(runner: ChildRunner) -> None:
    def keep_and_raise() -> None:
        keep(80 * MIB)
        raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            runner.call(keep_and_raise, memory_bytes=100 * MIB)
    assert runner.call(keep, MIB, memory_bytes=100 * MIB)[0] == 1


@needs_linux
def test_what_a_failed_allocation_held_is_released(runner: ChildRunner) -> None:
    def fill() -> None:
        blocks = []
        while True:
            blocks.append(bytearray(8 * MIB))

    for _ in range(3):
        with pytest.raises(MemoryError, match="In child process"):
            runner.call(fill, memory_bytes=64 * MIB)
    assert runner.call(lambda: len(bytearray(48 * MIB)), memory_bytes=64 * MIB) == 48 * MIB


def test_time_limit(runner: ChildRunner) -> None:
    text = r"ran pause exceeded its time limit of 0\.2 s and was killed"
    with pytest.raises(ProcessDiedError, match=text) as raised:
        runner.call(signal.pause, timeout_seconds=0.2)
    assert raised.value.timeout_seconds == 0.2
    assert (raised.value.exit_code, raised.value.signal) == (None, None)
    assert runner.call(abs, -1, timeout_seconds=LIMIT_SECONDS) == 1


def test_time_limit_of_a_stopped_child(runner: ChildRunner) -> None:
    with pytest.raises(ProcessDiedError, match=r"exceeded its time limit of 0\.2 s"):
        runner.call(signal.raise_signal, signal.SIGSTOP, timeout_seconds=0.2)
    assert runner.call(abs, -1) == 1


@pytest.mark.parametrize("limits", [{"memory_bytes": 0}, {"timeout_seconds": -1.0}])
def test_limits_are_positive(runner: ChildRunner, limits: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(limits))} is .*: give a positive number"):
        runner.call(abs, 1, **limits)


def test_state_is_kept_until_death(
    runner: ChildRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tally_of_calls.py").write_text("number = 0\n")
    runner.call(abs, 1)  # the child is older than the entry of sys.path
    monkeypatch.syspath_prepend(str(tmp_path))

    def count() -> int:
        import tally_of_calls  # type: ignore[import-not-found]

        tally_of_calls.number += 1
        return int(tally_of_calls.number)

    assert [runner.call(count) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(ProcessDiedError, match="exit code 1"):
        runner.call(os._exit, 1)
    assert runner.call(count) == 1


def test_a_new_child_has_the_environment_of_now(
    runner: ChildRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = runner.call(pids)
    with pytest.raises(ProcessDiedError, match="exit code 1"):
        runner.call(os._exit, 1)
    monkeypatch.setenv("X509_USER_PROXY", "x509up_u1000")
    assert runner.call(lambda: dict(os.environ)) == dict(os.environ)
    assert runner.call(pids)[0] == server


def test_deaths_cost_a_fork_and_not_a_server(runner: ChildRunner) -> None:
    server, _ = runner.call(pids)
    children = set()
    for _ in range(NUM_DEATHS):
        parent, child = runner.call(pids)
        assert parent == server
        children.add(child)
        with pytest.raises(ProcessDiedError, match="exit code 1"):
            runner.call(os._exit, 1)
    assert len(children) == NUM_DEATHS


def note_and_keep(path: Path) -> None:
    """Do what is only worth doing once."""
    with path.open("a") as file:
        file.write("x")
    sys.modules["kept_for_the_call"] = sys


def has_it() -> bool:
    return "kept_for_the_call" in sys.modules


def die(runner: ChildRunner, **options: Any) -> None:
    with pytest.raises(ProcessDiedError, match="exit code 1"):
        runner.call(os._exit, 1, **options)


@needs_linux
def test_what_comes_first_is_done_once_for_all_deaths(runner: ChildRunner, tmp_path: Path) -> None:
    path = tmp_path / "done"
    first = (note_and_keep, path)
    server, _ = runner.call(pids, first=first)
    assert not path.exists()  # as long as nothing dies, a call does it by itself
    die(runner, first=first)
    families = []
    for _ in range(NUM_DEATHS):
        families.append(runner.call(pids, first=(note_and_keep, path)))
        assert runner.call(has_it, first=first)
        die(runner, first=first)
    assert path.read_text() == "x"
    ((prepared,), children) = ({one[index] for one in families} for index in (0, 1))
    assert prepared != server
    assert len(children) == NUM_DEATHS
    # other calls know nothing of it
    assert runner.call(pids)[0] == server
    assert not is_there(prepared)
    assert not runner.call(has_it)


@needs_linux
def test_files_are_read_from_where_they_were_left_first(
    runner: ChildRunner, tmp_path: Path
) -> None:
    path = tmp_path / "lumi.csv"
    path.write_bytes(os.urandom(100_000))

    def begin(path: Path) -> None:
        file = path.open("rb")
        assert len(file.read(10)) == 10
        sys.modules["kept_file"] = file  # type: ignore[assignment]

    def go_on() -> bytes:
        return bytes(sys.modules["kept_file"].read())

    first = (begin, path)
    die(runner, first=first)
    for _ in range(3):
        # a child that has died has left it at its end
        assert runner.call(go_on, first=first) == path.read_bytes()[10:]
        die(runner, first=first)


@needs_linux
@pytest.mark.parametrize(
    ("num_mib", "is_prepared", "numbers"),
    [
        (10, True, [2, 3]),  # a child may keep half of the limit, with what it was forked with
        (40, True, [2, 2]),  # so each call has another one
        (80, False, [2, 1]),
    ],
)
def test_what_comes_first_counts_as_kept(
    runner: ChildRunner, num_mib: int, is_prepared: bool, numbers: list[int]
) -> None:
    first = (keep, num_mib * MIB)
    server, _ = runner.call(pids)
    die(runner, first=first)
    parents = []

    def call() -> int:
        number, _ = runner.call(keep, 20 * MIB, memory_bytes=100 * MIB, first=first)
        parents.append(runner.call(os.getppid, first=first))
        return int(number)

    assert [call() for _ in numbers] == numbers
    assert (server not in parents) == is_prepared


def test_what_comes_first_for_others_is_theirs(runner: ChildRunner, tmp_path: Path) -> None:
    first, second = ((note_and_keep, tmp_path / name) for name in ("a", "b"))
    die(runner, first=first)
    assert not runner.call(has_it, first=second)
    die(runner, first=second)
    assert runner.call(has_it, first=second)
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "b").read_text() == "x"


@needs_linux
def test_what_comes_first_may_leave_a_thread(runner: ChildRunner) -> None:
    def start_thread() -> None:
        threading.Thread(target=signal.pause, daemon=True).start()
        sys.modules["kept_for_the_call"] = sys

    server, _ = runner.call(pids)
    for _ in range(2):
        die(runner, first=(start_thread,))
        # a fork would not have the thread: this child has it, and is no fork of another one
        assert runner.call(pids, first=(start_thread,))[0] == server
        assert runner.call(has_it, first=(start_thread,))


def test_what_comes_first_may_fail(runner: ChildRunner) -> None:
    first = (int, "three")
    for _ in range(2):
        die(runner, first=first)
        assert runner.call(abs, -1, first=first) == 1


def test_a_death_in_what_comes_first_is_one_of_the_call(runner: ChildRunner) -> None:
    die(runner, first=(os._exit, 3))
    for _ in range(2):
        with pytest.raises(ProcessDiedError, match="this range: the process died: exit code 3"):
            runner.call(abs, -1, first=(os._exit, 3), what="this range")
    assert runner.call(abs, -1) == 1


def test_what_comes_first_has_limits(runner: ChildRunner) -> None:
    first = (signal.pause,)
    die(runner, first=first)
    with pytest.raises(ProcessDiedError, match=r"exceeded its time limit of 0\.2 s"):
        runner.call(abs, -1, first=first, timeout_seconds=0.2)
    assert runner.call(abs, -1) == 1


@needs_linux
@pytest.mark.parametrize("to_prepared", [True, False])
def test_processes_that_are_killed_from_outside(
    own_runner: ChildRunner, tmp_path: Path, to_prepared: bool
) -> None:
    first = (note_and_keep, tmp_path / "done")
    die(own_runner, first=first)
    prepared, child = own_runner.call(pids, first=first)
    os.kill(prepared if to_prepared else child, signal.SIGKILL)
    wait_until_gone(child)
    assert own_runner.call(abs, -1, first=first) == 1
    die(own_runner, first=first)
    assert own_runner.call(has_it, first=first)


@needs_linux
def test_closing_leaves_nothing_that_was_prepared(own_runner: ChildRunner, tmp_path: Path) -> None:
    first = (note_and_keep, tmp_path / "done")
    server, _ = own_runner.call(pids)
    die(own_runner, first=first)
    family = own_runner.call(pids, first=first)
    own_runner.close()
    for pid in (server, *family):
        wait_until_gone(pid)
    assert own_runner.call(abs, -1, first=first) == 1


def test_a_death_between_calls_is_no_failure(runner: ChildRunner) -> None:
    child = runner.call(os.getpid)
    os.kill(child, signal.SIGKILL)
    wait_until_gone(child)
    assert runner.call(os.getpid) != child


def test_children_draw_different_random_numbers() -> None:
    def draw() -> float:
        import numpy as np

        return float(np.random.random())  # noqa: NPY002  # as older processors do

    with contextlib.closing(ChildRunner(preload=["numpy"])) as runner:
        first = runner.call(draw)
        with pytest.raises(ProcessDiedError, match="exit code 1"):
            runner.call(os._exit, 1)
        assert runner.call(draw) != first


def test_what_is_printed_is_the_callers(capfd: pytest.CaptureFixture[str]) -> None:
    def speak() -> str:
        print("from the processor")
        os.write(1, b"from C\n" * 1000)
        print("a warning", file=sys.stderr)
        return "value"

    def speak_and_die() -> None:
        print("last words")
        os._exit(5)

    # its server starts here, with the output of this test
    with contextlib.closing(ChildRunner(preload=())) as runner:
        assert runner.call(speak) == "value"
        with pytest.raises(ProcessDiedError, match="exit code 5"):
            runner.call(speak_and_die)
    out, err = capfd.readouterr()
    assert "from the processor" in out
    assert out.count("from C") == 1000
    assert "last words" in out
    assert "a warning" in err


def test_reading_standard_input_finds_its_end(runner: ChildRunner) -> None:
    def read() -> str:
        return sys.stdin.read()

    assert runner.call(read) == ""


def test_interrupts_are_for_the_caller(runner: ChildRunner) -> None:
    server, child = runner.call(pids)
    for pid in (server, child):
        os.kill(pid, signal.SIGINT)
    assert runner.call(pids) == (server, child)


def test_a_fork_of_the_child_can_not_answer(runner: ChildRunner) -> None:
    def fork() -> str:
        pid = os.fork()
        if pid == 0:
            return "from the fork"
        os.waitpid(pid, 0)
        return "from the child"

    assert [runner.call(fork) for _ in range(3)] == ["from the child"] * 3


@needs_linux
def test_what_the_child_started_dies_with_it(runner: ChildRunner, tmp_path: Path) -> None:
    path = tmp_path / "pid"

    def start() -> None:
        process = subprocess.Popen(["sleep", "1000"])
        path.write_text(str(process.pid))
        os._exit(1)

    with pytest.raises(ProcessDiedError, match="exit code 1"):
        runner.call(start)
    wait_until_gone(int(path.read_text()))


def test_a_child_that_closes_its_connection_is_killed(
    own_runner: ChildRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hepdask.isolation.ends.DEATH_SECONDS", 0.2)

    def close_all() -> None:
        os.closerange(3, 100)
        signal.pause()

    child = own_runner.call(os.getpid)
    with pytest.raises(ProcessDiedError, match="closed its connection without ending"):
        own_runner.call(close_all)
    wait_until_gone(child)
    assert own_runner.call(abs, -1) == 1


def test_the_server_is_started_anew(own_runner: ChildRunner) -> None:
    server, child = own_runner.call(pids)
    os.kill(server, signal.SIGKILL)
    wait_until_gone(server)
    again = own_runner.call(pids)
    assert again[0] != server
    wait_until_gone(child)


def test_a_call_whose_server_dies_is_repeated_once(own_runner: ChildRunner, tmp_path: Path) -> None:
    def kill_server(path: Path, num_kills: int) -> str:
        with path.open("a") as file:
            file.write("x")
        if len(path.read_text()) <= num_kills:
            os.kill(os.getppid(), signal.SIGKILL)
            signal.pause()
        return path.read_text()

    assert own_runner.call(kill_server, tmp_path / "once", 1) == "xx"
    with pytest.raises(ProcessDiedError, match=r"died 2 times .*kill_server: killed by SIGKILL"):
        own_runner.call(kill_server, tmp_path / "always", 100)
    assert (tmp_path / "always").read_text() == "xx"
    assert own_runner.call(abs, -1) == 1


def test_a_server_that_does_not_start(
    own_runner: ChildRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ProcessDiedError, match=r"died 2 times .* not started: .*/nowhere/python"):
        own_runner.call(abs, -1)


def test_a_module_that_cannot_be_imported_is_left_out() -> None:
    with contextlib.closing(ChildRunner(preload=["no_such_module", "json.tool"])) as runner:
        assert runner.call(lambda: "json.tool" in sys.modules)


def test_calls_from_two_threads(runner: ChildRunner) -> None:
    def answer(value: int) -> tuple[int, int]:
        return os.getpid(), value

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda value: runner.call(answer, value), range(50)))
    assert [value for _, value in answers] == list(range(50))
    assert len({pid for pid, _ in answers}) == 1


def test_closing_ends_a_call_in_another_thread(own_runner: ChildRunner, tmp_path: Path) -> None:
    fifo = tmp_path / "started"
    os.mkfifo(fifo)

    def block() -> None:
        fifo.write_text("started")
        signal.pause()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(own_runner.call, block)
        assert fifo.read_text() == "started"
        own_runner.close()
        with pytest.raises(ProcessDiedError, match=r"closed while one ran .*block"):
            future.result(LIMIT_SECONDS)


@needs_linux
def test_closing_leaves_nothing(own_runner: ChildRunner) -> None:
    server, child = own_runner.call(pids)
    own_runner.close()
    assert not is_there(server)
    assert not is_there(child)
    own_runner.close()
    assert own_runner.call(pids)[0] != server


RUNS_A_CHILD = """
import os, signal, sys
from hepdask.errors import ProcessDiedError
from hepdask.isolation import ChildRunner, child_runner
runner = child_runner() if sys.argv[1] == "exit" else ChildRunner(preload=())
server, child = runner.call(lambda: (os.getppid(), os.getpid()))
if sys.argv[1] == "kill prepared":
    try:
        runner.call(os._exit, 1, first=(abs, 1))
    except ProcessDiedError:
        server, child = runner.call(lambda: (os.getppid(), os.getpid()), first=(abs, 1))
os.write(1, f"{server} {child}".encode())
caller = os.getpid()
if sys.argv[1] != "exit":
    first = (abs, 1) if sys.argv[1] == "kill prepared" else None
    runner.call(lambda: (os.kill(caller, signal.SIGKILL), signal.pause()), first=first)
"""


@needs_linux
@pytest.mark.parametrize("end", ["exit", "kill", "kill prepared"])
def test_nothing_outlives_the_caller(end: str) -> None:
    caller = subprocess.run(
        [sys.executable, "-c", RUNS_A_CHILD, end],
        stdout=subprocess.PIPE,
        timeout=LIMIT_SECONDS,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert caller.returncode == (0 if end == "exit" else -signal.SIGKILL)
    server, child = map(int, caller.stdout.split())
    if end == "exit":
        assert not is_there(server)
        assert not is_there(child)
    wait_until_gone(server)
    wait_until_gone(child)


FORKS = """
import os
from hepdask.isolation import ChildRunner
runner = ChildRunner(preload=())
server = runner.call(os.getppid)
pid = os.fork()
is_other = runner.call(os.getppid) != server
runner.close()
if pid == 0:
    os._exit(0 if is_other else 1)
_, status = os.waitpid(pid, 0)
print(is_other, os.waitstatus_to_exitcode(status))
"""


def test_a_forked_process_has_a_server_of_its_own() -> None:
    forking = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKS],
        capture_output=True,
        timeout=LIMIT_SECONDS,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        text=True,
    )
    assert forking.stdout.split() == ["False", "0"]
    assert forking.stderr == ""


def test_works_inside_a_dask_worker(client: Client) -> None:
    def on_worker() -> tuple[int, int, str]:
        runner = child_runner()
        server, _ = runner.call(pids)
        try:
            runner.call(ctypes.string_at, 0)
        except ProcessDiedError as error:
            text = str(error)
        assert runner.call(pids)[0] == server
        loaded = runner.call(lambda: {"uproot", "awkward", "dask"} & set(sys.modules))
        runner.close()
        return os.getpid(), server, f"{text} {sorted(loaded)}"

    worker, server, text = client.submit(on_worker, pure=False).result(timeout=LIMIT_SECONDS)
    assert worker != server
    assert "killed by SIGSEGV" in text
    assert "['awkward', 'uproot']" in text
