"""coffea's NanoEvents, for any of its schemas."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import awkward
from coffea import nanoevents
from coffea.nanoevents import NanoEventsFactory, schemas
from coffea.nanoevents.schemas.edm4hep import podio_collection_types

from hepdask.errors import OptionError, suggest
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
    from collections.abc import Iterator

    from hepdask.opening import OpenFile, ReadOptions
    from hepdask.ranges import EntryRange

__all__ = ["NanoEventsReader", "find_schema"]


def find_schema(schema: Any) -> Any:
    """Return a class of schemas, from itself or from its name in `coffea.nanoevents`.

    Raises
    ------
    OptionError
        If there is none.
    """
    if isinstance(schema, str):
        names = [name for name in dir(nanoevents) if name.endswith("Schema")]
        if schema not in names:
            raise OptionError(f"coffea.nanoevents has no schema {schema!r}{suggest(schema, names)}")
        return getattr(nanoevents, schema)
    if isinstance(schema, type) and issubclass(schema, schemas.BaseSchema):
        return schema
    raise OptionError(
        f"schema is {schema!r}: give a class of coffea.nanoevents (NanoAODSchema, PHYSLITESchema, ...), its name, or None "
        "for plain awkward arrays"
    )


@dataclass(frozen=True, slots=True)
class _RangeSchema:
    """What NanoEventsFactory needs of a schema: a form, with the metadata of one range, and the behaviors."""

    form: Any
    schema: Any

    def behavior(self) -> Any:
        return self.schema.behavior()


@dataclass(frozen=True, slots=True)
class NanoEventsReader:
    """Reads ranges as NanoEvents.

    Attributes
    ----------
    schema : type
        A class derived from `coffea.nanoevents.BaseSchema`.
    options : ReadOptions
        How files are opened.
    """

    schema: Any
    options: ReadOptions

    @contextmanager
    def read(self, entry_range: EntryRange) -> Iterator[RangeEvents]:
        """Open a range; see `Reader`."""
        with lease(entry_range.file, self.options) as handle:
            check_unchanged(entry_range.file, handle.open_file)
            requested = handle.num_requested_bytes if handle.was_kept else 0
            started = perf_counter()
            tally = ReadTally()
            with layout_errors(entry_range, self.schema.__name__):
                source = BranchSource(handle, entry_range, tally)
                schema = self._range_schema(entry_range, handle.open_file)
                # the factory itself: cross references and nested collections find their arrays through it
                events = NanoEventsFactory(schema, source, source.key, mode="virtual").events()
            bulk_seconds = tally.read_seconds
            form_seconds = perf_counter() - started - bulk_seconds
            yield RangeEvents(events, handle, form_seconds, tally, requested)

    def _range_schema(self, entry_range: EntryRange, opened: OpenFile) -> _RangeSchema:
        form = kept_layout(self._layout_key(opened), lambda: self._build_form(opened))
        metadata = {**form.parameters["metadata"], **event_metadata(entry_range, opened.uuid)}
        return _RangeSchema(
            form.copy(parameters={**form.parameters, "metadata": metadata}), self.schema
        )

    def _layout_key(self, opened: OpenFile) -> tuple[Any, ...]:
        # podio files say in a tree of their own what their branches are: one layout a file
        file = opened.uuid if issubclass(self.schema, schemas.EDM4HEPSchema) else ""
        return ("nanoevents", self.schema, layout_key(opened), file)

    def _build_form(self, opened: OpenFile) -> Any:
        base_form = BranchSource.extract_form(opened.tree)
        base_form["typenames"] = opened.tree.typenames()
        if issubclass(self.schema, schemas.EDM4HEPSchema):
            base_form["podio_collection_types"] = podio_collection_types(opened.directory)
        with warnings.catch_warnings():
            # that a layout lacks some cross references, as those of 2012 do, is usual: using one is an error of its own
            warnings.filterwarnings(
                "ignore", "Missing cross-reference index|Branch .* already exists", RuntimeWarning
            )
            return awkward.forms.from_dict(self.schema(base_form).form)
