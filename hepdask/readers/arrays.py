"""Plain awkward arrays: the branches as uproot names them, with no schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import awkward

from hepdask.readers import event_metadata
from hepdask.readers.branches import BranchSource, layout_key

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from hepdask.opening import OpenFile
    from hepdask.ranges import EntryRange

__all__ = ["EventArray", "PlainArrays"]


class EventArray(awkward.Array):  # type: ignore[misc]  # awkward has no types for subclasses
    """An array of events that knows where they are from."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The dataset, file and range, and what the user wrote in the fileset."""
        metadata: Mapping[str, Any] = self.attrs["metadata"]
        return metadata


_BEHAVIOR = {("*", "Events"): EventArray}


@dataclass(frozen=True, slots=True)
class PlainArrays:
    """Events are records of branches."""

    @property
    def name(self) -> str:
        """For errors."""
        return "plain arrays"

    @property
    def key(self) -> Hashable:
        """Tells it from other readers."""
        return "arrays"

    def layout_key(self, opened: OpenFile) -> str:
        """Return the same for all files whose events have the same form."""
        return layout_key(opened)

    def build_form(self, opened: OpenFile) -> Any:
        """Build the form of the branches."""
        base_form = BranchSource.extract_form(opened.tree)
        base_form["parameters"]["__record__"] = "Events"
        return awkward.forms.from_dict(base_form)

    def behavior(self) -> Mapping[Any, Any]:
        """Return the class of the events."""
        return _BEHAVIOR

    def describe(
        self,
        form: Any,  # noqa: ARG002  # other readers' forms know more
        entry_range: EntryRange,
        uuid: str,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the parameters and attributes of the events of a range."""
        return {}, {"metadata": event_metadata(entry_range, uuid)}
