"""Plain awkward arrays: the branches as uproot names them, with no schema."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import awkward
from coffea.nanoevents.factory import _key_formatter

from hepdask.metadata import check_unchanged
from hepdask.readers import event_metadata
from hepdask.readers.branches import (
    BranchSource,
    RangeEvents,
    ReadTally,
    kept_layout,
    layout_key,
)
from hepdask.readers.damage import layout_errors
from hepdask.readers.handles import lease

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hepdask.opening import ReadOptions
    from hepdask.ranges import EntryRange

__all__ = ["ArraysReader", "EventArray"]


class EventArray(awkward.Array):  # type: ignore[misc]  # awkward has no types for subclasses
    """An array of events that knows where they are from."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The dataset, file and range, and what the user wrote in the fileset."""
        metadata: Mapping[str, Any] = self.attrs["metadata"]
        return metadata


_BEHAVIOR = {("*", "Events"): EventArray}


@dataclass(frozen=True, slots=True)
class ArraysReader:
    """Reads ranges as records of branches, each read when it is touched.

    Attributes
    ----------
    options : ReadOptions
        How files are opened.
    """

    options: ReadOptions

    @contextmanager
    def read(self, entry_range: EntryRange) -> Iterator[RangeEvents]:
        """Open a range; see `Reader`."""
        with lease(entry_range.file, self.options) as handle:
            opened = handle.open_file
            check_unchanged(entry_range.file, opened)
            requested = handle.num_requested_bytes if handle.was_kept else 0
            started = perf_counter()
            tally = ReadTally()
            with layout_errors(entry_range, "plain arrays"):
                source = BranchSource(handle, entry_range, tally)
                form = kept_layout(("arrays", layout_key(opened)), lambda: _build_form(opened.tree))
                events = awkward.from_buffers(
                    form=form,
                    length=entry_range.num_entries,
                    container=source,
                    buffer_key=partial(_key_formatter, source.key),
                    behavior=_BEHAVIOR,
                    attrs={"metadata": event_metadata(entry_range, opened.uuid)},
                )
            bulk_seconds = tally.read_seconds
            form_seconds = perf_counter() - started - bulk_seconds
            yield RangeEvents(events, handle, form_seconds, tally, requested)


def _build_form(tree: Any) -> Any:
    base_form = BranchSource.extract_form(tree)
    base_form["parameters"]["__record__"] = "Events"
    return awkward.forms.from_dict(base_form)
