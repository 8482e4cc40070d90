"""Call functions in a child process that may crash, without harm to the process that calls.

A processor may take its process with it: SIGSEGV in C++ code, a kill for memory. To find the event that does it, ranges
are run over and over in a process that may die, so a death has to be cheap. Three processes::

    caller     a dask worker: threads, open sockets, daemonic (`multiprocessing` refuses to start a process there)
      | subprocess.Popen, once
    server     has imported what ranges need, has one thread, never runs user code: it can be forked at any time
      | os.fork, again after each death: some milliseconds
    child      runs the calls, one after the other, so that its open files stay open; dies or not

The caller and the child speak over a socket pair of their own, new for each child: half a message of a dead one can't
be mistaken for the next one's. The caller makes it, and sends one end to the server over the socket that the server
inherited; there the server reports how a child died. Nobody else can connect to any of them. Standard output and error
are those of the caller, and carry nothing of this.

Nothing outlives the caller: the server sees the end of its socket, and kills the child; and on Linux the child dies
with the server. Needs fork, so Linux or macOS.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import importlib
import json
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import cloudpickle

from hepdask.errors import OptionError, ProcessDiedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["PRELOAD", "ChildRunner", "child_runner", "serve"]

#: What the server imports, so that no child has to: names, as these modules come later than this one.
PRELOAD = (
    "hepdask.task",
    "hepdask.readers.arrays",
    "hepdask.readers.nanoevents",
    "uproot",
    "awkward",
    "hist",
)
#: Longest time for the imports of `PRELOAD`: 3 s from a local disk, minutes from a busy shared one.
START_SECONDS = 600.0
#: Longest time between the end of a child's socket, or the order to kill it, and the report of its death. More than
#: milliseconds are only needed to free many GB, or if the child hangs in the kernel.
DEATH_SECONDS = 10.0
#: How often the server looks whether its parent is still there, in case the end of its socket was kept open by a third.
PARENT_CHECK_SECONDS = 5.0
#: Number of attempts of a call when it is the server that dies.
MAX_ATTEMPTS = 2

_FORK = b"F"
_KILL = b"K"
_LENGTH = struct.Struct("!Q")
_PR_SET_PDEATHSIG = 1

# Read by libraries when they are loaded; the child then gets the caller's environment. One thread, as threads don't
# survive a fork, and Python warns of them; one malloc arena, as each reserves address space that counts as memory.
_SERVER_ENVIRONMENT = {
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "MALLOC_ARENA_MAX": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# Not "-m hepdask.isolation": the caller's sys.path comes first, so that this is the hepdask of the caller.
_BOOT = (
    "import json, os, sys; control = int(sys.argv[1]); "
    "sys.path[:] = json.loads(os.fdopen(control, 'rb', 0, closefd=False).readline()); "
    "from hepdask.isolation import serve; serve(control)"
)


@dataclass(frozen=True, slots=True)
class _Death:
    """How a child ended.

    Attributes
    ----------
    exit_code : int or None
        As of `os.waitstatus_to_exitcode`, -11 for SIGSEGV; None if it could not be forked.
    text : str
        The Python lines that a crash came from, or why there was no fork; empty if not known.
    """

    exit_code: int | None
    text: str


@dataclass(frozen=True, slots=True)
class _Call:
    """A call on its way.

    Attributes
    ----------
    name : str
        Of the function, for errors.
    packed : bytes
        The function and its arguments.
    memory_bytes : int or None
        What it may allocate.
    timeout_seconds : float or None
        What it may take.
    """

    name: str
    packed: bytes
    memory_bytes: int | None
    timeout_seconds: float | None


class _ServerEndedError(Exception):
    """The server is gone, and with it the child."""


def child_runner() -> ChildRunner:
    """Return the runner of this process.

    Its server starts at the first call, and ends with this process. A process that is forked from this one has one of
    its own.
    """
    return _RUNNER


class ChildRunner:
    """Calls functions in a child process.

    All methods may be used from several threads; calls run one after the other.

    Parameters
    ----------
    preload : sequence of str, optional
        Modules that are imported before children are forked; one that is missing is left out. They must start no
        threads.
    """

    def __init__(self, *, preload: Sequence[str] = PRELOAD) -> None:
        self._preload = tuple(preload)
        self._num_closed = 0
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._child: _Child | None = None
        _all_runners.add(self)

    def call(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        memory_bytes: int | None = None,
        timeout_seconds: float | None = None,
    ) -> Any:
        """Call a function in the child.

        The child is the one of the previous call, if that one still lives: what a call leaves behind in its modules,
        the next one finds. A new child has the environment variables of this process at that time. If the server dies
        during a call, it is started anew, and the function is called a second time.

        Parameters
        ----------
        function : callable
            It and its arguments are sent by cloudpickle, and so is what it returns.
        *arguments : object
            What it is called with.
        memory_bytes : int, optional
            How much address space the call may add to what the child has; beyond, allocating raises MemoryError. Each
            thread that is started takes 8 MiB of it. Linux only. None: no limit.
        timeout_seconds : float, optional
            The child is killed if it has not answered by then, even if it is stopped. The time that the server takes to
            start, and that other calls take, isn't in it. None: no limit.

        Returns
        -------
        object
            A copy of what the function returned.

        Raises
        ------
        ProcessDiedError
            If the child died or was killed. A note of it has the Python lines that a crash came from.
        OptionError
            If a limit isn't positive.
        BaseException
            What the function raised, with its causes, and with the traceback of the child as a note. One that can't be
            pickled is replaced by one of its nearest base class that can.
        """
        _check_limits(memory_bytes=memory_bytes, timeout_seconds=timeout_seconds)
        packed = cloudpickle.dumps((function, arguments))
        call = _Call(_name_of(function), packed, memory_bytes, timeout_seconds)
        with self._lock:
            reply = self._exchange(call)
        return _unpack_reply(reply)

    def close(self) -> None:
        """End the server and the child; a call that is under way raises ProcessDiedError, the next one starts anew.

        After it, what children had imported is imported again, for instance because it has changed.
        """
        self._num_closed += 1
        server = self._server
        if server is not None:
            server.hang_up()
        with self._lock:
            self._close_server()

    def _exchange(self, call: _Call) -> bytearray:
        num_closed = self._num_closed
        reason = ""
        for _ in range(MAX_ATTEMPTS):
            try:
                return self._attempt(call, num_closed)
            except _ServerEndedError as ended:
                self._close_server()
                reason = str(ended)
            if self._num_closed != num_closed:
                raise ProcessDiedError(
                    f"the runner of child processes was closed while one ran {call.name}; call again if the result is "
                    "still wanted"
                )
        raise ProcessDiedError(
            f"the process that forks the children died {MAX_ATTEMPTS} times while one was to run {call.name}: "
            f"{reason}; look for its last words in the log of this worker"
        )

    def _attempt(self, call: _Call, num_closed: int) -> bytearray:
        server = self._ready_server()
        if self._num_closed != num_closed:
            raise _ServerEndedError("closed")
        child = self._ready_child(server)
        try:
            return child.ask(call)
        except TimeoutError:
            self._kill_child(server)
            raise _time_limit_error(call) from None
        except (EOFError, ConnectionError):
            self._drop_child()
            death = server.wait_for_death()
            if death is None:
                self._close_server()
            raise _death_error(call, death) from None
        except BaseException:
            # Ctrl-C, or no memory for the answer: it must not be taken for that of the next call
            self._kill_child(server)
            raise

    def _ready_server(self) -> _Server:
        if self._server is None:
            self._server = _Server()
            try:
                self._server.start(self._preload)
            except BaseException:
                self._close_server()
                raise
        return self._server

    def _ready_child(self, server: _Server) -> _Child:
        if self._child is not None and (self._child.is_gone() or server.has_news()):
            # died between two calls, which are not to blame
            self._drop_child()
            if server.wait_for_death() is None:
                raise _ServerEndedError("it does not report deaths")
        if self._child is None:
            self._child = _Child(server.fork())
        return self._child

    def _kill_child(self, server: _Server) -> None:
        self._drop_child()
        with contextlib.suppress(_ServerEndedError):
            if server.kill_child() is not None:
                return
        self._close_server()

    def _drop_child(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None

    def _close_server(self) -> None:
        self._drop_child()
        if self._server is not None:
            self._server.close()
            self._server = None

    def _forget_parents(self) -> None:
        """Let go of what belongs to the process that this one was forked from."""
        self._drop_child()
        if self._server is not None:
            self._server.let_go()
            self._server = None
        # a thread that is not in this process may hold the old one
        self._lock = threading.Lock()


def _check_limits(**limits: float | None) -> None:
    for name, value in limits.items():
        if value is not None and value <= 0:
            raise OptionError(f"{name} is {value}: give a positive number, or None for no limit")


def _name_of(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


class _Child:
    """The caller's end of a child."""

    def __init__(self, data: socket.socket) -> None:
        self._data = data
        self._is_new = True

    def ask(self, call: _Call) -> bytearray:
        """Send a call and wait for its answer.

        Raises
        ------
        TimeoutError
            If the time is up.
        EOFError or ConnectionError
            If the child is gone.
        """
        deadline = None if call.timeout_seconds is None else _now() + call.timeout_seconds
        # not again for a kept child: what its modules have set is to stay
        environment = dict(os.environ) if self._is_new else None
        header = pickle.dumps((environment, _text_entries(sys.path), call.memory_bytes))
        self._is_new = False
        _write_frame(self._data, header, deadline)
        _write_frame(self._data, call.packed, deadline)
        return _read_frame(self._data, deadline)

    def is_gone(self) -> bool:
        """Return whether the child is dead, when it has nothing to answer."""
        return _is_readable(self._data)

    def close(self) -> None:
        self._data.close()


class _Server:
    """The caller's end of the server."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-P", "-c", _BOOT, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**_SERVER_ENVIRONMENT, **os.environ},
                process_group=0,  # Ctrl-C in a terminal is for the caller, from the first moment
            )
        except OSError as error:
            self._control.close()
            raise _ServerEndedError(f"not started: {error}") from None
        finally:
            theirs.close()

    def start(self, preload: Sequence[str]) -> None:
        """Hand over what the server is to know, and wait until it is ready."""
        with self._report_end():
            self._control.sendall(json.dumps(_text_entries(sys.path)).encode() + b"\n")
            _write_frame(self._control, json.dumps(preload).encode())
            try:
                _read_frame(self._control, _now() + START_SECONDS)
            except TimeoutError:
                raise _ServerEndedError(f"not ready after {START_SECONDS:g} s") from None

    def fork(self) -> socket.socket:
        """Return the caller's end of a new child."""
        ours, theirs = socket.socketpair()
        try:
            with theirs, self._report_end():
                socket.send_fds(self._control, [_FORK], [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        return ours

    def has_news(self) -> bool:
        """Return whether the child died, or the server."""
        return _is_readable(self._control)

    def wait_for_death(self) -> _Death | None:
        """Return how the child died; None if it seems that it didn't."""
        with self._report_end():
            try:
                return _Death(**json.loads(_read_frame(self._control, _now() + DEATH_SECONDS)))
            except TimeoutError:
                return None

    def kill_child(self) -> _Death | None:
        """Kill the child by the server, who alone knows that its process id wasn't given to another one."""
        with self._report_end():
            self._control.sendall(_KILL)
        return self.wait_for_death()

    def hang_up(self) -> None:
        """Make the server kill the child and end; wakes up a thread that waits for either."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.hang_up()
        try:
            self._process.wait(DEATH_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._control.close()

    def let_go(self) -> None:
        """Close the copies that a forked process has; it isn't the one to wait for the server."""
        self._control.close()
        self._process.returncode = 0

    @contextlib.contextmanager
    def _report_end(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, ConnectionError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(DEATH_SECONDS)
            raise _ServerEndedError(_describe_end(self._process.returncode)) from None


def _text_entries(path: Sequence[object]) -> list[str]:
    """Leave out what isn't text: import skips it, JSON doesn't."""
    return [entry for entry in path if isinstance(entry, str)]


def _describe_end(exit_code: int | None) -> str:
    if exit_code is None:
        return "not ended, but silent"
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:  # real-time signals have no names
        return f"killed by signal {-exit_code}"


def _time_limit_error(call: _Call) -> ProcessDiedError:
    return ProcessDiedError(
        f"the child process that ran {call.name} exceeded its time limit of {call.timeout_seconds:g} s and was killed; "
        "give it more time, or find out what it waits for",
        timeout_seconds=call.timeout_seconds,
    )


def _death_error(call: _Call, death: _Death | None) -> ProcessDiedError:
    if death is None:
        return ProcessDiedError(
            f"the child process that ran {call.name} closed its connection without ending, and was killed; does the "
            "code close files that it didn't open?"
        )
    if death.exit_code is None:
        return ProcessDiedError(
            f"no child process could be forked to run {call.name}: {death.text}; are there too many processes?"
        )
    error = ProcessDiedError(
        f"the child process that ran {call.name} died: {_describe_end(death.exit_code)}; {_advice(death.exit_code)}",
        exit_code=death.exit_code if death.exit_code >= 0 else None,
        signal=-death.exit_code if death.exit_code < 0 else None,
    )
    if death.text:
        error.add_note(f"Where it was in Python:\n{death.text}")
    return error


def _advice(exit_code: int) -> str:
    if exit_code >= 0:
        return "the code must not end its process, it called os._exit() or exit() of C"
    if exit_code == -signal.SIGKILL:
        return "mostly for lack of memory: use smaller ranges (chunksize), or ask for more memory"
    return "a crash in compiled code: run it alone under a debugger, or look for a newer version"


def _now() -> float:
    return time.monotonic()


def _limit_wait(connection: socket.socket, deadline: float | None) -> None:
    if deadline is None:
        connection.settimeout(None)
        return
    remaining = deadline - _now()
    if remaining <= 0:  # 0 would mean "don't block"
        raise TimeoutError
    connection.settimeout(remaining)


def _is_readable(connection: socket.socket) -> bool:
    """Return whether there is something to be read, or the other end is closed."""
    poll = select.poll()  # a worker's descriptors may be too large for select()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def _write_frame(connection: socket.socket, payload: bytes, deadline: float | None = None) -> None:
    _limit_wait(connection, deadline)
    connection.sendall(_LENGTH.pack(len(payload)))
    _limit_wait(connection, deadline)
    connection.sendall(payload)


def _read_frame(connection: socket.socket, deadline: float | None = None) -> bytearray:
    (length,) = _LENGTH.unpack(_read_exactly(connection, _LENGTH.size, deadline))
    return _read_exactly(connection, length, deadline)


def _read_exactly(connection: socket.socket, length: int, deadline: float | None) -> bytearray:
    payload = bytearray(length)
    rest = memoryview(payload)
    while rest:
        _limit_wait(connection, deadline)
        num_bytes = connection.recv_into(rest)
        if num_bytes == 0:
            raise EOFError
        rest = rest[num_bytes:]
    return payload


def _pack_failure(error: BaseException) -> bytes:
    """Pack an exception with those that it was raised from, as pickle leaves them out."""
    text = "".join(traceback.format_exception(error)).strip()
    chain = [(*_pack_exception(one), one.__suppress_context__) for one in _chain(error)]
    return pickle.dumps((False, (chain, f"In child process {os.getpid()}:\n{text}")))


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ if current.__suppress_context__ else current.__context__


def _pack_exception(error: BaseException) -> tuple[bytes, str]:
    """Pickle an exception, or one of its nearest base class that can be; with its text, should it not load there."""
    text = "".join(traceback.format_exception_only(error)).strip()
    for candidate in _candidates(error, text):
        try:
            packed = cloudpickle.dumps(candidate)
            pickle.loads(packed)  # many classes can be pickled, but not made again
        except Exception:  # noqa: BLE001, S112  # the user's class may raise anything here
            continue
        return packed, text
    return pickle.dumps(RuntimeError(text)), text


def _candidates(error: BaseException, text: str) -> Iterator[BaseException]:
    yield error
    for kind in type(error).__mro__[1:]:
        if issubclass(kind, BaseException):
            with contextlib.suppress(Exception):
                yield kind(text)


def _unpack_reply(reply: bytearray) -> Any:
    is_value, content = pickle.loads(reply)
    if is_value:
        return content
    chain, text = content
    error = _unpack_chain(chain)
    error.add_note(text)
    raise error


def _unpack_chain(chain: list[tuple[bytes, str, bool]]) -> BaseException:
    (packed, text, is_context_suppressed), *rest = chain
    error = _unpack_exception(packed, text)
    inner = _unpack_chain(rest) if rest else None
    if is_context_suppressed:
        error.__cause__ = inner
    else:
        error.__context__ = inner
    return error


def _unpack_exception(packed: bytes, text: str) -> BaseException:
    try:
        error = pickle.loads(packed)
    except Exception:  # noqa: BLE001  # a class that only the child can import, say
        return RuntimeError(text)
    return error if isinstance(error, BaseException) else RuntimeError(text)


def serve(control_fd: int) -> None:
    """Be the server; returns when the caller is gone.

    Parameters
    ----------
    control_fd : int
        The inherited end of the socket pair.
    """
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(control_fd, False)  # what the user's code starts is not to have it
    with (
        socket.socket(fileno=control_fd) as control,
        contextlib.suppress(EOFError, ConnectionError),
    ):
        for name in ("resource", *json.loads(_read_frame(control))):
            # whoever needs it gets the error in the child, where it can be told
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        # a collection in a child would touch, and so copy, all that is shared with it
        gc.collect()
        gc.freeze()
        _Forker(control, parent).run()


class _Forker:
    """Forks one child at a time when it is told to, and reports how it died."""

    def __init__(self, control: socket.socket, parent: int) -> None:
        self._control = control
        self._parent = parent
        self._pid: int | None = None
        self._crash_fd = -1
        self._prctl = _find_prctl()  # here, as it takes milliseconds
        self._wakeup_fd, write_fd = os.pipe()
        os.set_blocking(self._wakeup_fd, False)
        os.set_blocking(write_fd, False)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        # the default action of SIGCHLD is not to wake up
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> None:
        _write_frame(self._control, b"{}")
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wakeup_fd, select.POLLIN)
        try:
            while os.getppid() == self._parent:
                ready = dict(poll.poll(PARENT_CHECK_SECONDS * 1000))
                if self._wakeup_fd in ready:
                    os.read(self._wakeup_fd, 4096)
                    self._report_death()
                if self._control.fileno() in ready and not self._obey():
                    return
        finally:
            self._end_child()

    def _obey(self) -> bool:
        order, descriptors, _, _ = socket.recv_fds(self._control, 1, 1)
        if order == _FORK:
            self._fork(socket.socket(fileno=descriptors[0]))
        elif order == _KILL:
            self._kill()
        return bool(order)

    def _fork(self, data: socket.socket) -> None:
        os.set_inheritable(data.fileno(), False)
        server = os.getpid()
        self._crash_fd, crash_fd = os.pipe()
        with data:
            try:
                self._pid = os.fork()
            except OSError as error:
                self._send(_Death(None, f"{error}{self._read_crash()}"))
            if self._pid == 0:
                self._become_child(data, crash_fd, server)
        os.close(crash_fd)
        if self._pid is not None:
            with contextlib.suppress(OSError):  # the child does so, too: whoever comes first
                os.setpgid(self._pid, self._pid)

    def _become_child(self, data: socket.socket, crash_fd: int, server: int) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            os.close(self._crash_fd)
            _run_child(data, crash_fd, server, self._prctl)
        except BaseException:  # noqa: BLE001  # nothing may return into the server's loop
            traceback.print_exc()
        finally:
            os._exit(1)

    def _kill(self) -> None:
        if self._pid is not None:
            os.kill(self._pid, signal.SIGKILL)

    def _end_child(self) -> None:
        if self._pid is not None:
            self._kill()
            os.waitpid(self._pid, 0)
            _kill_group(self._pid)

    def _report_death(self) -> None:
        if self._pid is None:
            return
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if pid == 0:
            return
        self._pid = None
        _kill_group(pid)
        self._send(_Death(os.waitstatus_to_exitcode(status), self._read_crash()))

    def _read_crash(self) -> str:
        os.set_blocking(self._crash_fd, False)
        with os.fdopen(self._crash_fd, "rb") as pipe:
            text = (pipe.read(65536) or b"").decode(errors="replace")
        # the list of all compiled modules says nothing about the crash, nor do the lines of this module
        text = text.partition("\nExtension modules:")[0]
        return text.partition(f'\n  File "{__file__}"')[0].strip()

    def _send(self, death: _Death) -> None:
        content = {"exit_code": death.exit_code, "text": death.text}
        _write_frame(self._control, json.dumps(content).encode())


def _kill_group(child: int) -> None:
    """Kill what a dead child had started; without a process that has left its group, as daemons do."""
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)


def _run_child(
    data: socket.socket, crash_fd: int, server: int, prctl: Callable[..., int] | None
) -> None:
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    _die_with(server, prctl)
    _prefer_for_killing()
    _reseed()
    faulthandler.enable(crash_fd, all_threads=False)
    # what the user's code forks must not keep the connection alive when this process is dead, nor answer on it
    os.register_at_fork(after_in_child=data.close)
    while True:
        try:
            header = _read_frame(data)
            packed = _read_frame(data)
        except (EOFError, ConnectionError):
            os._exit(0)
        reply = _answer(header, packed)
        del packed
        _write_frame(data, reply)


def _find_prctl() -> Callable[..., int] | None:
    if sys.platform != "linux":
        return None
    import ctypes

    return ctypes.CDLL(None).prctl


def _die_with(server: int, prctl: Callable[..., int] | None) -> None:
    if prctl is not None:
        # Not for the server itself: the signal comes when the *thread* ends that started it, and workers' threads do.
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != server:  # it died before
        os._exit(1)


def _prefer_for_killing() -> None:
    import resource

    # when memory runs out, the kernel is to take this process, and not the worker
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    # Writing a core of a GB for each death would take longer than the search; 1 and not 0, as only that also keeps
    # Linux from piping it to a program (core(5)).
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0 if hard == 0 else 1, hard))


def _reseed() -> None:
    # Python does so for its own generator; else the children of a server would draw the same numbers
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


def _answer(header: bytearray, packed: bytearray) -> bytes:
    try:
        environment, path, memory_bytes = pickle.loads(header)
        if environment is not None:
            os.environ.clear()
            os.environ.update(environment)
        sys.path.extend(entry for entry in path if entry not in sys.path)
        with _limit_memory(memory_bytes):
            function, arguments = pickle.loads(packed)
            return bytes(cloudpickle.dumps((True, function(*arguments))))
    except BaseException as error:  # noqa: BLE001  # SystemExit, too: it is for the caller to judge
        reply = _pack_failure(error)
        is_memory_error = isinstance(error, MemoryError)
    if is_memory_error:
        gc.collect()  # what the traceback held may be most of the memory
    return reply


@contextlib.contextmanager
def _limit_memory(memory_bytes: int | None) -> Iterator[None]:
    sizes = Path("/proc/self/statm")
    if memory_bytes is None or not sizes.exists():
        yield
        return
    import resource  # not on Windows, where this module can be imported

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    current = int(sizes.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    limits = [one for one in (soft, current + memory_bytes) if one != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


_all_runners: weakref.WeakSet[ChildRunner] = weakref.WeakSet()
_RUNNER = ChildRunner()
atexit.register(_RUNNER.close)


def _forget_all() -> None:
    for runner in _all_runners:
        runner._forget_parents()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_all)
