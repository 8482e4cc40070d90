"""coffea's NanoEvents, for any of its schemas."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import awkward
from coffea import nanoevents
from coffea.nanoevents import schemas
from coffea.nanoevents.schemas.edm4hep import podio_collection_types

from hepdask.errors import OptionError, suggest
from hepdask.readers import event_metadata
from hepdask.readers.branches import BranchSource, layout_key

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from hepdask.opening import OpenFile
    from hepdask.ranges import EntryRange

__all__ = ["NanoEvents", "find_schema"]


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
class NanoEvents:
    """Events are coffea's NanoEvents, for one of its schemas.

    Attributes
    ----------
    schema : type
        A class derived from `coffea.nanoevents.BaseSchema`.
    """

    schema: Any

    @property
    def name(self) -> str:
        """Of the schema."""
        return str(self.schema.__name__)

    @property
    def key(self) -> Hashable:
        """Tells it from other readers."""
        return ("nanoevents", self.schema)

    def layout_key(self, opened: OpenFile) -> str:
        """Return the same for all files whose events have the same form."""
        # podio files say in a tree of their own what their branches are: one layout a file
        file = opened.uuid if issubclass(self.schema, schemas.EDM4HEPSchema) else ""
        return layout_key(opened) + file

    def behavior(self) -> Mapping[Any, Any]:
        """Return the behaviors of the schema."""
        behavior: Mapping[Any, Any] = self.schema.behavior()
        return behavior

    def describe(
        self, form: Any, entry_range: EntryRange, uuid: str
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the parameters and attributes of the events of a range."""
        known = form.parameters["metadata"]
        return {"metadata": {**known, **event_metadata(entry_range, uuid)}}, {}

    def build_form(self, opened: OpenFile) -> Any:
        """Build coffea's form."""
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
