"""The runner of child processes: `ChildRunner`, and the one of this process."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

import cloudpickle

from hepdask.errors import OptionError, ProcessDiedError
from hepdask.isolation.calls import Call, death_error, time_limit_error
from hepdask.isolation.ends import ChildEnd, ForkerEnd, ServerEnd, ServerEndedError
from hepdask.isolation.exceptions import unpack_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["PRELOAD", "ChildRunner", "child_runner"]

#: What the server imports, so that no child has to: names, as these modules come later than this one.
PRELOAD = (
    "hepdask.task",
    "hepdask.readers.arrays",
    "hepdask.readers.nanoevents",
    "uproot",
    "awkward",
    "hist",
)
#: Number of attempts of a call when it is the server that dies.
MAX_ATTEMPTS = 2


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
        self._server: ServerEnd | None = None
        self._child: ChildEnd | None = None
        #: a child that forks others, and what it was prepared with
        self._prepared: tuple[ForkerEnd, tuple[Any, ...]] | None = None
        #: what the last call could have begun with, if it has died
        self._died_after: tuple[Any, ...] | None = None
        _all_runners.add(self)

    def call(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        memory_bytes: int | None = None,
        timeout_seconds: float | None = None,
        what: str = "",
        first: tuple[Any, ...] | None = None,
    ) -> Any:
        """Call a function in the child.

        The child is the one of the previous call, if that one still lives and has not kept more than half of
        `memory_bytes`: what a call leaves behind in its modules, the next one finds. A new child has the environment variables of this process at that time. If the server dies
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
        what : str, optional
            What the error of a death begins with, instead of naming the function: "entries 5 to 6 of 'Events' in
            a.root" gives "entries 5 to 6 of 'Events' in a.root: the process died: killed by SIGSEGV; ...".
        first : tuple, optional
            A function, and its arguments, that does what the call would do first, and leaves it in the process: imports, an open
            file. Once a call has died, the next one with an equal `first` calls it in a child that is kept, and from which the
            children of this call and of those after it are forked, so that no other death costs it again. Not where it
            leaves a thread behind, which a fork would not have, and on Linux only.

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
        call = Call(*_subject_and_job(function, what), packed, memory_bytes, timeout_seconds, first)
        with self._lock:
            reply = self._exchange(call)
        return unpack_reply(reply)

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

    def _exchange(self, call: Call) -> bytearray:
        num_closed = self._num_closed
        reason = ""
        for _ in range(MAX_ATTEMPTS):
            try:
                return self._attempt(call, num_closed)
            except ServerEndedError as ended:
                self._close_server()
                reason = str(ended)
            if self._num_closed != num_closed:
                raise ProcessDiedError(
                    f"the runner of child processes was closed while one ran {call.job}; call again if the result is "
                    "still wanted"
                )
        raise ProcessDiedError(
            f"the process that forks the children died {MAX_ATTEMPTS} times while one was to run {call.job}: "
            f"{reason}; look for its last words in the log of this worker"
        )

    def _attempt(self, call: Call, num_closed: int) -> bytearray:
        server = self._ready_server()
        if self._num_closed != num_closed:
            raise ServerEndedError("closed")
        parent = self._keep_prepared(server, call)
        child = self._ready_child(parent)
        has_died_so, self._died_after = self._is_known(call), None
        try:
            if has_died_so and parent is server:
                parent = self._prepare(child, call) or server
                child = self._ready_child(parent)
            reply = child.ask(call)
        except TimeoutError:
            self._kill_child(parent)
            self._died_after = call.first
            raise time_limit_error(call) from None
        except (EOFError, ConnectionError):
            self._drop_child()
            death = parent.wait_for_death()
            if death is None:
                self._close_server()
            self._died_after = call.first
            raise death_error(call, death) from None
        except BaseException:
            # Ctrl-C, or no memory for the answer: it must not be taken for that of the next call
            self._kill_child(parent)
            raise
        if child.is_spent:
            self._kill_child(parent)
        return reply

    def _is_known(self, call: Call) -> bool:
        """Return whether the last call has died that could have begun as this one."""
        return call.first is not None and call.first == self._died_after

    def _keep_prepared(self, server: ServerEnd, call: Call) -> ForkerEnd:
        """Return what the child of a call is forked from, and end what is prepared for another one."""
        if self._prepared is None:
            return server
        prepared, first = self._prepared
        if first == call.first:
            return prepared
        self._drop_child()
        self._drop_prepared()
        if server.wait_for_death() is None:
            raise ServerEndedError("it does not report deaths")
        return server

    def _prepare(self, child: ChildEnd, call: Call) -> ForkerEnd | None:
        prepared = child.prepare(call)
        if prepared is not None and call.first is not None:
            self._prepared, self._child = (prepared, call.first), None
        return prepared

    def _ready_server(self) -> ServerEnd:
        if self._server is None:
            self._server = ServerEnd()
            try:
                self._server.start(self._preload)
            except BaseException:
                self._close_server()
                raise
        return self._server

    def _ready_child(self, parent: ForkerEnd) -> ChildEnd:
        if self._child is not None and (self._child.is_gone() or parent.has_news()):
            # died between two calls, which are not to blame
            self._drop_child()
            if parent.wait_for_death() is None:
                raise ServerEndedError("it does not report deaths")
        if self._child is None:
            self._child = ChildEnd(parent.fork())
        return self._child

    def _kill_child(self, parent: ForkerEnd) -> None:
        self._drop_child()
        with contextlib.suppress(ServerEndedError):
            if parent.kill_child() is not None:
                return
        self._close_server()

    def _drop_child(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None

    def _drop_prepared(self) -> None:
        """Make what is prepared end, and its child; the server reports it."""
        if self._prepared is not None:
            self._prepared[0].close()
            self._prepared = None

    def _close_server(self) -> None:
        self._drop_child()
        self._drop_prepared()
        if self._server is not None:
            self._server.close()
            self._server = None

    def _forget_parents(self) -> None:
        """Let go of what belongs to the process that this one was forked from."""
        self._drop_child()
        if self._prepared is not None:
            self._prepared[0].let_go()
            self._prepared = None
        if self._server is not None:
            self._server.let_go()
            self._server = None
        # a thread that is not in this process may hold the old one
        self._lock = threading.Lock()


def _check_limits(**limits: float | None) -> None:
    for name, value in limits.items():
        if value is not None and value <= 0:
            raise OptionError(f"{name} is {value}: give a positive number, or None for no limit")


def _subject_and_job(function: Callable[..., Any], what: str) -> tuple[str, str]:
    if what:
        return f"{what}: the process", "the call"
    name = str(getattr(function, "__qualname__", type(function).__qualname__))
    return f"the child process that ran {name}", name


_all_runners: weakref.WeakSet[ChildRunner] = weakref.WeakSet()
_RUNNER = ChildRunner()
atexit.register(_RUNNER.close)


def _forget_all() -> None:
    for runner in _all_runners:
        runner._forget_parents()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_all)
