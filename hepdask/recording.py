"""Record what user code says on a worker: its warnings and log records, of one thread.

`warnings.catch_warnings` changes the filters of the whole process, so it can't stand around user code in a worker with
several threads. Here two hooks are put in front of what there is, and each looks for the recorder of its own thread::

    warnings.warn -> user's filters -> hook of warnings -> what warnings.showwarning was before
    logger.error  -> levels         -> hook of records  -> what made the records before -> filters, handlers

The hook of log records is a record factory and no handler of the root logger: a handler there would turn
`logging.basicConfig` in user code into nothing, and silence `logging.lastResort`.
"""

from __future__ import annotations

import logging
import threading
import warnings
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from hepdask.masking import mask_secrets
from hepdask.messages import Message, Messages, MessageSum, clean_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

__all__ = ["Recorder", "Where", "WhereFile", "record_messages"]


class WhereFile(Protocol):
    """The file of a `Where`; an `InputFile` fits."""

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        ...

    @property
    def file_path(self) -> str:
        """Logical name of the file."""
        ...


class Where(Protocol):
    """What a recorder is told of the data being processed; an `EntryRange` fits."""

    @property
    def file(self) -> WhereFile:
        """The file that the entries are in."""
        ...

    @property
    def entry_start(self) -> int | None:
        """First entry; None where it is not known."""
        ...

    @property
    def entry_stop(self) -> int | None:
        """One past the last entry; None where it is not known."""
        ...


def record_messages(where: Where | None, worker: str) -> Recorder:
    """Record the warnings and log records that this thread issues in a ``with`` block.

    Everything goes on to where it would have gone: the worker's log, the user's handlers and `warnings.showwarning`.
    Not seen are: warnings that a filter ignores or turns into errors, or that user code catches with
    `warnings.catch_warnings(record=True)`; a warning that was shown before and that the filters show only once; log
    records below WARNING or below the level of their logger; what other threads issue. A log record that a filter
    takes out later is seen, and so is one of a logger that does not propagate.

    Of nested blocks in a thread the innermost alone records.

    Parameters
    ----------
    where : Where or None
        What is being processed; None where that is not known.
    worker : str
        Name of this worker.

    Returns
    -------
    Recorder
        The context manager; its `messages` can be read during the block and after it, also if an exception ended it.
    """
    return Recorder(where, worker)


class Recorder:
    """Records the messages of a thread; see `record_messages`."""

    __slots__ = ("_outer", "_sum", "_where", "_worker")

    def __init__(self, where: Where | None, worker: str) -> None:
        self._where = where
        self._worker = worker
        self._sum = MessageSum()
        self._outer: Recorder | None = None

    @property
    def messages(self) -> Messages:
        """What has come so far."""
        return self._sum.total()

    def __enter__(self) -> Self:
        _open_hooks()
        self._outer = _this_thread.recorder
        _this_thread.recorder = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _this_thread.recorder = self._outer
        _close_hooks()

    def _note(self, level: str, category: str, text: str, place: str) -> None:
        where = self._where
        message = Message(level, category, clean_text(text), place, worker=self._worker)
        if where is not None:
            message = replace(
                message,
                dataset=where.file.dataset,
                file_path=mask_secrets(where.file.file_path),
                entry_start=where.entry_start,
                entry_stop=where.entry_stop,
            )
        self._sum.add(message)


class _ThisThread(threading.local):
    recorder: Recorder | None = None


_this_thread = _ThisThread()


class _WarningHook:
    """Stands for `warnings.showwarning`. One for each that it was put in front of: so hooks never form a circle."""

    __slots__ = ("previous",)

    def __init__(self, previous: Callable[..., Any]) -> None:
        self.previous = previous

    def __call__(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        recorder = _this_thread.recorder
        # what comes behind may log the warning, or be an older hook: it must not be recorded twice
        _this_thread.recorder = None
        try:
            if recorder is not None:
                with suppress(Exception):  # a text that can't be made must not break user code
                    place = _place(filename, lineno)
                    recorder._note("warning", _qualified_name(category), str(message), place)
            self.previous(message, category, filename, lineno, file, line)
        finally:
            _this_thread.recorder = recorder


class _RecordHook:
    """Stands for the factory of log records; as `_WarningHook`."""

    __slots__ = ("previous",)

    def __init__(self, previous: Callable[..., logging.LogRecord]) -> None:
        self.previous = previous

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        recorder = _this_thread.recorder
        _this_thread.recorder = None
        try:
            record = self.previous(*args, **kwargs)
            if recorder is not None:
                # logging.makeLogRecord asks for a record whose level is None, to fill it in later
                with suppress(Exception):
                    _note_record(recorder, record)
            return record
        finally:
            _this_thread.recorder = recorder


_hooks_lock = threading.Lock()
_num_open = 0


def _open_hooks() -> None:
    global _num_open  # noqa: PLW0603  # of the process, as the hooks are
    with _hooks_lock:
        _num_open += 1
        # at each opening: user code in another thread may have replaced them since
        if not isinstance(warnings.showwarning, _WarningHook):
            warnings.showwarning = _WarningHook(warnings.showwarning)
        factory = logging.getLogRecordFactory()
        if not isinstance(factory, _RecordHook):
            logging.setLogRecordFactory(_RecordHook(factory))


def _close_hooks() -> None:
    global _num_open  # noqa: PLW0603
    with _hooks_lock:
        _num_open -= 1
        if _num_open:
            return
        # one that user code has put in front stays, and passes on to the hook, which then only passes on
        if isinstance(warnings.showwarning, _WarningHook):
            warnings.showwarning = warnings.showwarning.previous
        factory = logging.getLogRecordFactory()
        if isinstance(factory, _RecordHook):
            logging.setLogRecordFactory(factory.previous)


def _note_record(recorder: Recorder, record: logging.LogRecord) -> None:
    if record.levelno < logging.WARNING:
        return
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001  # arguments that don't fit: logging says so itself, on stderr
        text = f"{record.msg} (its arguments can't be filled in)"
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        text = f"{text}\n{type(error).__name__}: {error}"
    place = _place(record.pathname, record.lineno)
    recorder._note(record.levelname.lower(), record.name, text, place)


def _place(path: str, line: int) -> str:
    """Name a line of code: ``/home/me/analysis/muons.py``, 123 --> ``analysis/muons.py:123``."""
    return f"{'/'.join(path.replace(chr(92), '/').split('/')[-2:])}:{line}"


def _qualified_name(kind: type) -> str:
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
