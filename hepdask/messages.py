"""What workers say: warnings and log records that come back with the result, equal ones counted together.

`warnings.catch_warnings` changes the filters of the whole process, so it can't stand around user code in a worker with
several threads. Here two hooks are put in front of what there is, and each looks for the recorder of its own thread::

    warnings.warn -> user's filters -> hook of warnings -> what warnings.showwarning was before
    logger.error  -> levels         -> hook of records  -> what made the records before -> filters, handlers

The hook of log records is a record factory and no handler of the root logger: a handler there would turn
`logging.basicConfig` in user code into nothing, and silence `logging.lastResort`.
"""

from __future__ import annotations

import logging
import re
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TextIO, overload

from hepdask.tables import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

__all__ = [
    "Message",
    "Messages",
    "Recorder",
    "Where",
    "WhereFile",
    "mask_secrets",
    "record_messages",
]

#: Distinct messages that are kept; what comes later is only counted.
MAX_MESSAGES = 100
#: Characters of a text that are kept.
MAX_TEXT_LENGTH = 2_000
#: Characters that decide whether two texts are equal. Fewer than are kept: where a text is cut depends on its numbers.
NUM_COMPARED_CHARACTERS = 500
#: Characters of a text that stand in a table.
MAX_SHOWN_LENGTH = 300

# Each search is linear in the length of the text: a repetition begins at a fixed text or behind a separator.
# A value ends with its quote, or before a space. What is cut off may have no end.
_VALUE = r"""(?:[bru]{0,2}\\?"(?:\\.|[^"\\])*"?|[bru]{0,2}\\?'(?:\\.|[^'\\])*'?|[^\s"'&]+)"""
_SECRET_NAMES = "token|secret|secret_key|access_key|private_key|api_?key|password|passwd|passphrase|authz|x509_user_proxy"
_SECRETS = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), replacement)
    for pattern, replacement in (
        # a proxy certificate with its key
        (r"-----BEGIN [A-Z ]{1,40}-----.*?(?:-----END [A-Z ]{1,40}-----|\Z)", "***"),
        (
            r"(?<![\w-])eyJ[\w-]{5,}\.[\w-]+(?:\.[\w-]*)?",
            "***",
        ),  # a JSON web token, wherever it stands
        (rf"(\bbearer(?:\s+|%20)(?!tokens?\b)){_VALUE}", r"\1***"),
        (
            rf"""(\bauthorization(?:\\?["'])?\s*[=:]\s*(?:\\?["'])?(?:(?:basic|bearer)\s+)?){_VALUE}""",
            r"\1***",
        ),
        (rf"""((?:{_SECRET_NAMES})(?:\\?["'])?\s*[=:]+\s*){_VALUE}""", r"\1***"),
        (
            rf"([?&][\w-]{{0,40}}signature=){_VALUE}",
            r"\1***",
        ),  # URLs that object stores have signed
        (r"""(?<![^\s/@"'(<=])[^\s/@:"'(<=]{1,100}:[^\s/]{1,1000}@""", "***@"),  # user:password@
    )
)
_NUMBER = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]+|\d[\d.,_]*(?:[eE][+-]?\d+)?)")

_Key = tuple[str, str, str, str]


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


@dataclass(frozen=True, slots=True)
class Message:
    """A warning or a log record, and how often it came.

    Attributes
    ----------
    level : str
        "warning" for warnings; for log records the name of their level, in lower case.
    category : str
        Qualified name of the class of the warning, or name of the logger.
    text : str
        As it was written the first time, cut to `MAX_TEXT_LENGTH` characters, without secrets.
    place : str
        Line of code that it came from, with the file's directory: ``analysis/muons.py:123``; empty if it has none.
    count : int
        How often it was shown. Python's default filter shows a warning once for each line of code and process.
    dataset, file_path : str or None
        What was being processed the first time; None where that is not known.
    entry_start, entry_stop : int or None
        Half-open range that was being processed the first time; None where it is not known.
    worker : str
        On which worker it came the first time.
    """

    level: str
    category: str
    text: str
    place: str
    count: int = 1
    dataset: str | None = None
    file_path: str | None = None
    entry_start: int | None = None
    entry_stop: int | None = None
    worker: str = ""


class Messages(Sequence[Message]):
    """Distinct messages, in the order in which they first came; immutable.

    Two messages are one if level, category and place are the same, and the first `NUM_COMPARED_CHARACTERS` of their
    texts but for numbers. The first `MAX_MESSAGES` are kept.

    Parameters
    ----------
    messages : iterable of Message
        Equal ones are counted together, the first is kept as the example.
    num_dropped : int
        How many more came.
    """

    __slots__ = ("_by_key", "_num_dropped")

    def __init__(self, messages: Iterable[Message] = (), num_dropped: int = 0) -> None:
        self._by_key: dict[_Key, Message] = {}
        self._num_dropped = num_dropped
        for message in messages:
            self._num_dropped += _put(self._by_key, _key(message), message)

    @classmethod
    def of(
        cls, level: str, category: str, text: str, *, place: str = "", worker: str = ""
    ) -> Messages:
        """Return a single message, of which nothing more is known.

        Parameters
        ----------
        level, category, text, place, worker : str
            As in `Message`. The text may have secrets, and any length.
        """
        return cls([Message(level, category, _clean(text), place, worker=worker)])

    @property
    def num_dropped(self) -> int:
        """How many came beyond the `MAX_MESSAGES` distinct ones, each as often as it was shown."""
        return self._num_dropped

    @property
    def num_issued(self) -> int:
        """How many came in all, each as often as it was shown."""
        return sum(message.count for message in self) + self._num_dropped

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> Messages: ...
    def __getitem__(self, index: int | slice) -> Message | Messages:
        chosen = tuple(self)[index]
        return chosen if isinstance(chosen, Message) else Messages(chosen)

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Message]:
        return iter(self._by_key.values())

    def __add__(self, right: Messages) -> Messages:
        """Return the messages of both: `right` comes after this one in dataset order."""
        if not isinstance(right, Messages):
            return NotImplemented
        # they are immutable, so the sum with none may be the same object
        if not right._by_key and not right._num_dropped:
            return self
        if not self._by_key and not self._num_dropped:
            return right
        return _merge(self._by_key, right._by_key, self._num_dropped + right._num_dropped)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Messages):
            return NotImplemented
        return tuple(self) == tuple(other) and self._num_dropped == other._num_dropped

    def __hash__(self) -> int:
        return hash((tuple(self), self._num_dropped))

    def __reduce__(self) -> tuple[Any, ...]:
        # the keys are made anew: they are as long as the texts
        return type(self), (tuple(self), self._num_dropped)

    def __repr__(self) -> str:
        if not self:
            return f"<no messages{self._dropped_text()}>"
        return f"<{len(self)} message{'s' if len(self) > 1 else ''}>\n{self.to_table()}"

    def _repr_html_(self) -> str:
        return (
            self.to_table()._repr_html_() if self else f"<p>no messages{self._dropped_text()}</p>"
        )

    def to_table(self, max_rows: int = 20) -> Table:
        """Return the first messages, one a row; errors in red."""
        shown = tuple(self)[:max_rows]
        rows = tuple(
            (f"{message.count:,}", message.level, _what(message), _whence(message))
            for message in shown
        )
        title = f"Messages: {len(self)}" + (
            f", the first {max_rows}" if len(self) > max_rows else ""
        )
        flagged = (n for n, one in enumerate(shown) if one.level in {"error", "critical"})
        headers = ("count", "level", "what", "first from")
        return Table(title + self._dropped_text(), headers, rows, frozenset(flagged))

    def to_dict(self) -> dict[str, Any]:
        """Return them as plain values: ``{"messages": [{"level", "category", ...}], "num_dropped"}``."""
        return {"messages": [asdict(message) for message in self], "num_dropped": self._num_dropped}

    def _dropped_text(self) -> str:
        return f"; {self._num_dropped:,} more of other kinds" if self._num_dropped else ""


_NONE = Messages()


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

    __slots__ = ("_by_key", "_num_dropped", "_outer", "_where", "_worker")

    def __init__(self, where: Where | None, worker: str) -> None:
        self._where = where
        self._worker = worker
        self._by_key: dict[_Key, Message] = {}
        self._num_dropped = 0
        self._outer: Recorder | None = None

    @property
    def messages(self) -> Messages:
        """What has come so far."""
        if not self._by_key and not self._num_dropped:
            return _NONE
        return _merge(self._by_key, {}, self._num_dropped)

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
        message = Message(level, category, _clean(text), place, worker=self._worker)
        if where is not None:
            message = replace(
                message,
                dataset=where.file.dataset,
                file_path=mask_secrets(where.file.file_path),
                entry_start=where.entry_start,
                entry_stop=where.entry_stop,
            )
        self._num_dropped += _put(self._by_key, _key(message), message)


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


def _put(by_key: dict[_Key, Message], key: _Key, message: Message) -> int:
    """Add a message; return how many are dropped as there are too many already."""
    known = by_key.get(key)
    if known is not None:
        by_key[key] = replace(known, count=known.count + message.count)
    elif len(by_key) < MAX_MESSAGES:
        by_key[key] = message
    else:
        return message.count
    return 0


def _merge(
    left: Mapping[_Key, Message], right: Mapping[_Key, Message], num_dropped: int
) -> Messages:
    merged = Messages((), num_dropped)
    merged._by_key.update(left)
    for key, message in right.items():
        merged._num_dropped += _put(merged._by_key, key, message)
    return merged


def _key(message: Message) -> _Key:
    text = _NUMBER.sub("#", message.text)[:NUM_COMPARED_CHARACTERS]
    return message.level, message.category, text, message.place


def mask_secrets(text: str) -> str:
    """Return a text with ``***`` for tokens, passwords and proxies that can be told by what stands around them.

    Parameters
    ----------
    text : str
        Anything that is to be shown or logged.
    """
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def _clean(text: str) -> str:
    # cut twice: a text of megabytes is not searched, and a secret at the final edge is masked as a whole
    return _cut(mask_secrets(text[: 4 * MAX_TEXT_LENGTH]), MAX_TEXT_LENGTH)


def _cut(text: str, max_length: int) -> str:
    end = " ... (cut)"
    return text if len(text) <= max_length else text[: max_length - len(end)] + end


def _place(path: str, line: int) -> str:
    """Name a line of code: ``/home/me/analysis/muons.py``, 123 --> ``analysis/muons.py:123``."""
    return f"{'/'.join(path.replace(chr(92), '/').split('/')[-2:])}:{line}"


def _qualified_name(kind: type) -> str:
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def _what(message: Message) -> str:
    first_line = message.text.strip().partition("\n")[0]
    place = f"\n{message.place}" if message.place else ""
    return f"{message.category}: {_cut(first_line, MAX_SHOWN_LENGTH)}{place}"


def _whence(message: Message) -> str:
    bounds = (
        ""
        if message.entry_start is None
        else f"entries {message.entry_start} to {message.entry_stop}"
    )
    worker = f"on {message.worker}" if message.worker else ""
    lines = (message.dataset, message.file_path, bounds, worker)
    return "\n".join(line for line in lines if line)
