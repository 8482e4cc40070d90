"""What workers said: warnings and log records that come back with the result, equal ones counted together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, overload

from hepdask.masking import mask_secrets
from hepdask.tables import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["Message", "MessageSum", "Messages", "clean_text"]

#: Distinct messages that are kept; what comes later is only counted.
MAX_MESSAGES = 100
#: Characters of a text that are kept.
MAX_TEXT_LENGTH = 2_000
#: Characters that decide whether two texts are equal. Fewer than are kept: where a text is cut depends on its numbers.
NUM_COMPARED_CHARACTERS = 500
#: Characters of a text that stand in a table.
MAX_SHOWN_LENGTH = 300

_NUMBER = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]+|\d[\d.,_]*(?:[eE][+-]?\d+)?)")

_Key = tuple[str, str, str, str]


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
        return cls([Message(level, category, clean_text(text), place, worker=worker)])

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


class MessageSum:
    """Adds messages up in place, without a `Messages` for each sum: where they come, one at a time."""

    __slots__ = ("_by_key", "_num_dropped")

    def __init__(self) -> None:
        self._by_key: dict[_Key, Message] = {}
        self._num_dropped = 0

    def add(self, message: Message) -> None:
        """Add a message."""
        self._num_dropped += _put(self._by_key, _key(message), message)

    def total(self) -> Messages:
        """Return what has come so far; it stays as it is when more is added."""
        if not self._by_key and not self._num_dropped:
            return _NONE
        return _merge(self._by_key, {}, self._num_dropped)


def clean_text(text: str) -> str:
    """Return a text as a `Message` has it: without secrets, cut to `MAX_TEXT_LENGTH` characters."""
    # cut twice: a text of megabytes is not searched, and a secret at the final edge is masked as a whole
    return _cut(mask_secrets(text[: 4 * MAX_TEXT_LENGTH]), MAX_TEXT_LENGTH)


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


def _cut(text: str, max_length: int) -> str:
    end = " ... (cut)"
    return text if len(text) <= max_length else text[: max_length - len(end)] + end


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
