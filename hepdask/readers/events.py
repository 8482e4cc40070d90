"""Open a range: what all readers do alike, whatever their events look like."""

from __future__ import annotations

import pickle
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from hepdask.metadata import check_unchanged
from hepdask.read_errors import read_errors
from hepdask.readers.ahead import request_branches
from hepdask.readers.branches import BranchSource, RangeEvents, ReadTally, kept_layout
from hepdask.readers.cut import EventsLayout, LazyEvents
from hepdask.readers.damage import layout_errors
from hepdask.readers.handles import lease, open_ahead

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from hepdask.opening import OpenFile, ReadOptions
    from hepdask.ranges import EntryRange
    from hepdask.readers.handles import Handle
    from hepdask.readers.uses import Uses

__all__ = ["EventsKind", "EventsReader"]


class EventsKind(Protocol):
    """What events look like."""

    @property
    def name(self) -> str:
        """For errors."""
        ...

    @property
    def key(self) -> Hashable:
        """Tells it from others in this process."""
        ...

    def layout_key(self, opened: OpenFile) -> str:
        """Return the same for all files whose events have the same form."""
        ...

    def build_form(self, opened: OpenFile) -> Any:
        """Build the form of the events of a file; buffers are named as coffea's `UprootSourceMapping` reads them."""
        ...

    def behavior(self) -> Mapping[Any, Any]:
        """Return awkward's behaviors."""
        ...

    def describe(
        self, form: Any, entry_range: EntryRange, uuid: str
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the parameters and attributes of the events of a range."""
        ...


@dataclass(frozen=True, slots=True)
class EventsReader:
    """Reads ranges as events of any kind; see `hepdask.readers.Reader`.

    Attributes
    ----------
    kind : EventsKind
        What the events look like.
    options : ReadOptions
        How files are opened.
    """

    kind: EventsKind
    options: ReadOptions

    def read(
        self, entry_range: EntryRange, uses: Uses | None = None, upcoming: Iterable[EntryRange] = ()
    ) -> AbstractContextManager[RangeEvents]:
        """Open a range."""
        return _open_events(self.kind, self.options, entry_range, uses, upcoming)

    def layout_key(self, opened: OpenFile) -> str:
        """Return the same for all files whose events have the same form."""
        return self.kind.layout_key(opened)

    def pack_form(self, opened: OpenFile) -> bytes:
        """Pickle the form of a file's events."""
        layout_key = self.kind.layout_key(opened)
        return pickle.dumps(_find_layout(self.kind, opened, layout_key, None).form)


@contextmanager
def _open_events(
    kind: EventsKind,
    options: ReadOptions,
    entry_range: EntryRange,
    uses: Uses | None,
    upcoming: Iterable[EntryRange],
) -> Iterator[RangeEvents]:
    with lease(entry_range.file, options) as handle:
        opened = handle.open_file
        check_unchanged(entry_range.file, opened)
        started = perf_counter()
        tally = ReadTally()
        with layout_errors(entry_range, kind.name):
            layout_key = kind.layout_key(opened)
            use = None if uses is None else uses.find(layout_key)
            expected = frozenset() if use is None else use.branches
            source = BranchSource(handle, entry_range, tally, expected)
            # what this range needs comes first, and what the next ones need is on its way when it is there
            source.request_expected()
            _look_ahead(kind, options, handle, uses, expected, entry_range, upcoming)
            source.read_expected()
            layout = _find_layout(kind, opened, layout_key, uses)
            parameters, attributes = kind.describe(layout.form, entry_range, opened.uuid)
            lazy = LazyEvents(
                layout,
                source,
                entry_range.num_entries,
                parameters=parameters,
                attributes=attributes,
                fields=frozenset() if use is None else use.fields,
            )
            events = lazy.build()
        bulk_seconds = tally.read_seconds
        form_seconds = perf_counter() - started - bulk_seconds
        try:
            yield RangeEvents(lazy, handle, layout_key, form_seconds, tally, events, expected)
        finally:
            lazy.close()


def _look_ahead(
    kind: EventsKind,
    options: ReadOptions,
    handle: Handle,
    uses: Uses | None,
    expected: frozenset[str],
    entry_range: EntryRange,
    upcoming: Iterable[EntryRange],
) -> None:
    """Request what the next ranges need; open the next file."""
    opened = handle.open_file
    if opened.remote is None:
        return

    def request(opened: OpenFile, names: frozenset[str], one: EntryRange) -> bool:
        return bool(names) and request_branches(opened, names, one.entry_start, one.entry_stop)

    def prepare(one: EntryRange, opened: OpenFile) -> None:
        use = None if uses is None else uses.find(kind.layout_key(opened))
        request(opened, frozenset() if use is None else use.branches, one)

    # what can't be requested now is requested when it is read, and an error is one then
    with suppress(*read_errors()):
        file = entry_range.file
        is_full = False
        for one in upcoming:
            if one.file != file:
                # each file once, with its first range
                file = one.file
                open_ahead(file, options, partial(prepare, one))
            elif file == entry_range.file and not is_full:
                is_full = not request(opened, expected, one)


def _find_layout(
    kind: EventsKind, opened: OpenFile, layout_key: str, uses: Uses | None
) -> EventsLayout:
    def build() -> EventsLayout:
        packed = None if uses is None else uses.form(layout_key)
        form = kind.build_form(opened) if packed is None else pickle.loads(packed)
        return EventsLayout.build(form, kind.behavior())

    layout: EventsLayout = kept_layout((kind.key, layout_key), build)
    return layout
