"""Events that are built as far as they are used.

Building the lazy events of 1,500 branches takes ten times as long as reading the few that are used. So only fields that
the processor is known to use are built. In the place of each other one stands a column that says which event of the range
is which: it goes with the events through slices and masks. Asking for such a field builds it, and takes it for just these
events. So nothing need be known beforehand; a wrong guess costs a fraction of a millisecond.

`awkward` functions that take the events apart without asking for a field by its name can't be helped in this way. The column
notices that it was taken out or read, and the processor is called again, with all fields, whatever came of it.
"""

from __future__ import annotations

import copyreg
import weakref
from abc import ABCMeta
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import awkward
import numpy as np
from awkward._backends.numpy import NumpyBackend
from awkward._nplikes.virtual import VirtualNDArray
from coffea.nanoevents.factory import NanoEventsFactory, _key_formatter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["EventsLayout", "LazyEvents", "UnbuiltFieldError", "plain_behavior"]

#: The name of a column that stands for a field, and where the attributes of events have who knows of them.
_MARK = "hepdask_unbuilt"
_KEY = "@hepdask"
#: An array of such a column must notice that it was made. In a version of awkward where it can't, nothing is cut.
_CAN_NOTICE = "__awkward_validation__" in awkward.Array._update_class.__code__.co_consts
_BACKEND = NumpyBackend.instance()
#: Cut forms that a layout keeps: a processor uses the same fields in every range, and asks for each alone in the first.
_MAX_CUTS = 64


class UnbuiltFieldError(RuntimeError):
    """A field was read that was not built, by something that does not ask for it by name."""


@dataclass(frozen=True, slots=True)
class EventsLayout:
    """What the events of all ranges of a layout have in common.

    Attributes
    ----------
    form : awkward.forms.RecordForm
        Of all fields.
    behavior : mapping
        With the class of events that notes what it is asked for.
    """

    form: Any
    behavior: Mapping[Any, Any]
    _cuts: dict[frozenset[str], Any] = field(default_factory=dict)

    @classmethod
    def build(cls, form: Any, behavior: Mapping[Any, Any]) -> EventsLayout:
        """Make it from a form and the behaviors of its schema."""
        record = form.parameters.get("__record__")
        base = awkward.behavior.get(("*", record), awkward.Array)
        base = behavior.get(("*", record), base)
        classes = {("*", record): _noting_class(base), ("*", _MARK): _Unbuilt}
        return cls(form, {**behavior, **classes})

    @property
    def can_be_cut(self) -> bool:
        """False if its events are no records with a name."""
        is_record = isinstance(self.form, awkward.forms.RecordForm) and not self.form.is_tuple
        has_name = is_record and isinstance(self.form.parameters.get("__record__"), str)
        return has_name and _CAN_NOTICE

    def cut(self, fields: frozenset[str]) -> Any:
        """Return the form of these fields alone."""
        found = self._cuts.get(fields)
        if found is None:
            names = [name for name in self.form.fields if name in fields]
            found = awkward.forms.RecordForm([self.form.content(name) for name in names], names)
            while len(self._cuts) >= _MAX_CUTS:
                self._cuts.pop(next(iter(self._cuts)), None)
            self._cuts[fields] = found
        return found


class LazyEvents:
    """The events of one range, and what they are asked for.

    Parameters
    ----------
    layout : EventsLayout
        Theirs.
    source : mapping
        Makes their buffers.
    num_entries : int
        Of the range.
    parameters, attributes : mapping
        Of the events.
    fields : frozenset of str or None
        What to build; None: everything.

    Attributes
    ----------
    unbuilt : frozenset of str
        Fields that something else stands for.
    fields : set of str
        What was asked for so far.
    missed : set of str
        Those of them that had not been built.
    is_bypassed : bool
        True if an unbuilt field was read without being asked for: what came of it can't be used.
    """

    def __init__(
        self,
        layout: EventsLayout,
        source: Any,
        num_entries: int,
        *,
        parameters: Mapping[str, Any],
        attributes: Mapping[str, Any],
        fields: frozenset[str] | None,
    ) -> None:
        self._layout = layout
        self._source = source
        self._num_entries = num_entries
        self._parameters = parameters
        self._attributes = attributes
        self._cut = fields if layout.can_be_cut else None
        self._whole: Any = None
        self._taken: dict[str, Any] = {}
        self._buffer_key: Callable[..., str] = partial(_key_formatter, source.key)
        self._factory = _Factory(self)
        self._can_read = False
        self.unbuilt: frozenset[str] = frozenset()
        self.fields: set[str] = set()
        self.missed: set[str] = set()
        self.is_bypassed = False

    def build(self) -> Any:
        """Make what the processor is called with."""
        return self.whole() if self._cut is None else self._build_cut(self._cut)

    def whole(self) -> Any:
        """Make the events with all fields, once."""
        if self._whole is None:
            content = self._from_buffers(self._layout.form)
            if self._layout.can_be_cut:
                parameters = {**content.parameters, **self._parameters}
                content = self._build_record(content.contents, parameters)
            self._whole = self._wrap(content)
        return self._whole

    def take(self, name: str, unbuilt: Any) -> Any:
        """Give a field that was not built, for the events whose positions are in its place."""
        layout = self.take_layout(name, unbuilt)
        return awkward.Array(layout, behavior=self._layout.behavior, attrs=self._build_attributes())

    def take_layout(self, name: str, unbuilt: Any) -> Any:
        """Do the same without its behavior."""
        self.missed.add(name)
        with self.reading():
            positions = awkward.without_parameters(awkward.materialize(unbuilt).layout)
        if positions.ndim != 1:
            self._refuse()
        is_all = len(positions) == self._num_entries and bool(
            awkward.all(awkward.fill_none(positions, -1) == np.arange(self._num_entries))
        )
        layout = self.build_field(name)
        return layout if is_all else awkward.Array(layout)[positions].layout

    def close(self) -> None:
        """Let go of the events: what refers to itself would stay in memory until Python looks for such circles."""
        self._whole = None
        self._taken.clear()

    def build_field(self, name: str) -> Any:
        """Build one field, once."""
        if name not in self._taken:
            form = self._layout.cut(frozenset({name}))
            self._taken[name] = self._from_buffers(form).content(name)
        return self._taken[name]

    def _build_cut(self, fields: frozenset[str]) -> Any:
        form = self._layout.cut(fields)
        contents = {}
        if form.fields:  # awkward takes its time for nothing, too
            built = self._from_buffers(form)
            contents = dict(zip(built.fields, built.contents, strict=True))
        unbuilt = awkward.contents.NumpyArray(
            VirtualNDArray(
                _BACKEND.nplike,
                (self._num_entries,),
                np.dtype(np.int64),
                self._positions,
                __enable_caching__=False,
            ),
            parameters={"__record__": _MARK},
            backend=_BACKEND,
        )
        names = self._layout.form.fields
        self.unbuilt = frozenset(names) - fields
        parameters = {**self._layout.form.parameters, **self._parameters}
        columns = [contents.get(name, unbuilt) for name in names]
        return self._wrap(self._build_record(columns, parameters))

    def _build_record(self, contents: list[Any], parameters: Mapping[str, Any]) -> Any:
        record = _NotingRecord(
            contents,
            self._layout.form.fields,
            length=self._num_entries,
            parameters=dict(parameters),
            backend=_BACKEND,
        )
        record.hepdask_lazy = self
        return record

    def _from_buffers(self, form: Any) -> Any:
        return awkward.from_buffers(
            form,
            self._num_entries,
            self._source,
            buffer_key=self._buffer_key,
            highlevel=False,
        )

    def _wrap(self, content: Any) -> Any:
        attributes = self._build_attributes()
        events = awkward.Array(content, behavior=self._layout.behavior, attrs=attributes)
        self._factory.keep(events)
        return events

    def _build_attributes(self) -> dict[str, Any]:
        return {
            # cross references find the events through it
            "@events_factory": self._factory,
            "@form": self._layout.form,
            "@buffer_key": self._buffer_key,
            _KEY: self,
            **self._attributes,
        }

    def _positions(self) -> Any:
        self.check_reading()
        return np.arange(self._num_entries, dtype=np.int64)

    def check_reading(self) -> None:
        """Refuse what is not asked for by name.

        Raises
        ------
        UnbuiltFieldError
            If an unbuilt column is taken or read by anybody else.
        """
        if not self._can_read:
            self._refuse()

    def _refuse(self) -> None:
        self.is_bypassed = True
        raise UnbuiltFieldError("a field was read that was not built; the range is processed again")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let unbuilt columns be taken and read in the ``with`` block."""
        before, self._can_read = self._can_read, True
        try:
            yield
        finally:
            self._can_read = before


class _Factory(NanoEventsFactory):  # type: ignore[misc]  # coffea has no types
    """Gives the events of a range to their own cross references."""

    def __init__(self, lazy: LazyEvents) -> None:
        super().__init__(lazy._layout, lazy._source, lazy._source.key, mode="virtual")
        self._lazy = lazy
        self._kept: Any = None

    def keep(self, events: Any) -> None:
        """Remember the events, as long as somebody else does."""
        self._kept = weakref.ref(events)

    def events(self) -> Any:
        """Return the events, or make them anew."""
        kept = self._kept()
        return self._lazy.build() if kept is None else kept


class _NotingRecord(awkward.contents.RecordArray):  # type: ignore[misc]  # awkward has no types for subclasses
    """The layout of events: it notes, too, what it is asked for by name (``events.layout["Jet"]``); awkward itself uses other ways."""

    hepdask_lazy: LazyEvents

    def __getitem__(self, where: Any) -> Any:
        found = super().__getitem__(where)
        if isinstance(where, str):
            lazy = self.hepdask_lazy
            lazy.fields.add(where)
            if found.parameter("__record__") == _MARK:
                lazy.missed.add(where)
                return lazy.build_field(where)
        return found


class _Unbuilt(awkward.Array):  # type: ignore[misc]  # awkward has no types for subclasses
    """A column that stands for a field."""

    def __awkward_validation__(self) -> None:  # awkward's name: called for each array that is made
        lazy = self.attrs.get(_KEY)
        if lazy is not None:
            lazy.check_reading()


class _NotingMeta(ABCMeta):
    """The class of classes that are made here: pickle finds them by what they are made from."""

    hepdask_base: type


@cache
def _noting_class(base: type) -> Any:
    """Make the class of events that notes which fields it is asked for."""
    body = {"__getitem__": _getitem, "hepdask_base": base, "__module__": base.__module__}
    return _NotingMeta(base.__name__, (base,), body)


copyreg.pickle(_NotingMeta, lambda made: (_noting_class, (made.hepdask_base,)))


def plain_behavior(behavior: Any) -> Any:
    """Return behaviors with the classes that they had before: nothing that leaves the range refers to it."""
    if behavior is None or not any(isinstance(one, _NotingMeta) for one in behavior.values()):
        return behavior
    return {
        key: one.hepdask_base if isinstance(one, _NotingMeta) else one
        for key, one in behavior.items()
    }


def _getitem(events: Any, where: Any) -> Any:
    lazy = events.attrs.get(_KEY)
    plain = _find_plain(events)
    if lazy is None:
        return plain(where)
    if isinstance(where, str):
        lazy.fields.add(where)
        if where not in lazy.unbuilt:
            return plain(where)
        with lazy.reading():
            found = plain(where)
        return lazy.take(where, found) if _is_unbuilt(found) else found
    names = _names_in(where)
    lazy.fields.update(names)
    for name in lazy.unbuilt.intersection(names):
        with lazy.reading():
            found = plain(name)
        if _is_unbuilt(found):
            events = awkward.with_field(events, lazy.take_layout(name, found), name)
    return _find_plain(events)(where)


def _names_in(where: Any) -> list[str]:
    """List the fields of events that a slice asks for: by a list of names, or somewhere in a tuple."""
    if isinstance(where, list):
        return where if where and all(isinstance(one, str) for one in where) else []
    if not isinstance(where, tuple):
        return []
    # only the first ones are of the events: those that follow are of what is in there
    first = next((one for one in where if isinstance(one, str) or _names_in(one)), None)
    return [first] if isinstance(first, str) else _names_in(first)


def _find_plain(events: Any) -> Callable[[Any], Any]:
    """Return the method that is called if nothing is noted; the class of the events may itself inherit from the noting one."""
    noting: Any = next(one for one in type(events).__mro__ if "hepdask_base" in vars(one))
    plain: Callable[[Any], Any] = super(noting, events).__getitem__
    return plain


def _is_unbuilt(found: Any) -> bool:
    return isinstance(found, _Unbuilt)
