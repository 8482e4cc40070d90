"""From an entry range to the events that a processor sees: one seam, one file for each way.

`Reader` is the seam. ``nanoevents`` gives coffea's NanoEvents for any of its schemas, ``arrays`` the plain branches.
Both are lazy: a branch is read when the processor touches it. `handles` keeps files open, `branches` reads and counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from hepdask.opening import OpenFile, ReadOptions
    from hepdask.ranges import EntryRange
    from hepdask.readers.branches import RangeEvents
    from hepdask.readers.uses import Uses

__all__ = ["Reader", "build_reader", "event_metadata"]


class Reader(Protocol):
    """Gives the events of a range. Pickled once for a run; what it keeps between ranges is kept per process."""

    def read(
        self, entry_range: EntryRange, uses: Uses | None = None, upcoming: Iterable[EntryRange] = ()
    ) -> AbstractContextManager[RangeEvents]:
        """Open a range; its events may be used until the context ends.

        Parameters
        ----------
        entry_range : EntryRange
            What to read.
        uses : Uses or None
            What the processor is known to use: read at once, and built. None: nothing is known.
        upcoming : iterable of EntryRange
            What is read next, as far as that is known: if it is far away, its bytes are requested meanwhile.

        Raises
        ------
        FileReadError
            Here, or as soon as the processor touches a branch that can't be read.
        """
        ...

    def layout_key(self, opened: OpenFile) -> str:
        """Return the same for all files whose events have the same form."""
        ...

    def pack_form(self, opened: OpenFile) -> bytes:
        """Pickle the form of a file's events, as `Seed` has it."""
        ...


def build_reader(schema: Any, options: ReadOptions) -> Reader:
    """Choose the reader for a schema.

    Parameters
    ----------
    schema : type of coffea schema, str, or None
        A class derived from `coffea.nanoevents.BaseSchema`, or the name of one there; None for plain awkward arrays.
    options : ReadOptions
        How files are opened.

    Raises
    ------
    OptionError
        If `schema` is something else.
    """
    from hepdask.readers.events import EventsReader

    if schema is None:
        from hepdask.readers.arrays import PlainArrays

        return EventsReader(PlainArrays(), options)
    from hepdask.readers.nanoevents import NanoEvents, find_schema

    return EventsReader(NanoEvents(find_schema(schema)), options)


def event_metadata(entry_range: EntryRange, uuid: str) -> dict[str, Any]:
    """Return what ``events.metadata`` holds: coffea's keys, and what the user wrote.

    Parameters
    ----------
    entry_range : EntryRange
        Where the events are from.
    uuid : str
        That of the file which was opened.
    """
    file = entry_range.file
    return {
        "dataset": file.dataset,
        "filename": file.file_path,
        "treename": file.treename,
        "entrystart": entry_range.entry_start,
        "entrystop": entry_range.entry_stop,
        "fileuuid": uuid,
        **file.metadata,
    }
