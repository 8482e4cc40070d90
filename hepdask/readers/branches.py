"""Read the branches of a range, lazily, and count what that costs.

coffea's `UprootSourceMapping` turns the buffers of an awkward form into calls of uproot. `BranchSource` is that, with
the tree of a kept file, each branch read once for a range, each read timed and counted, and each failure of a read
turned into a `FileReadError`, so that a bad file isn't taken for a mistake in the processor that touched it.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import awkward
import numpy as np
import uproot
from coffea.nanoevents.mapping import TrivialUprootOpener, UprootSourceMapping
from coffea.nanoevents.util import tuple_to_key

from hepdask.opening import as_read_error
from hepdask.readers.damage import (
    check_array,
    check_counts,
    check_offsets,
    counter_name,
    is_size_damaged,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from hepdask.errors import FileReadError
    from hepdask.opening import OpenFile
    from hepdask.ranges import EntryRange
    from hepdask.readers.handles import Handle

__all__ = [
    "BranchSource",
    "RangeEvents",
    "ReadTally",
    "kept_layout",
    "layout_key",
]

#: Layouts (forms) that a process keeps. One of 1,500 branches takes about 10 MB; an analysis sees few.
MAX_LAYOUTS = 8


@dataclass(slots=True)
class ReadTally:
    """What reading branches cost; filled while the processor touches them.

    Attributes
    ----------
    read_seconds : float
        Wall time in uproot.
    num_compressed_bytes : int
        Bytes requested for baskets or pages.
    num_uncompressed_bytes : int
        Bytes of the arrays in memory.
    columns : set of str
        Names of the branches.
    """

    read_seconds: float = 0.0
    num_compressed_bytes: int = 0
    num_uncompressed_bytes: int = 0
    columns: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class RangeEvents:
    """The events of a range, while it is open.

    Attributes
    ----------
    events : awkward.Array
        What `process` is called with; lazy.
    handle : Handle
        The open file.
    form_seconds : float
        Wall time of building the layout and the lazy events.
    tally : ReadTally
        Grows as branches are read.
    num_requested_before : int
        What was requested from a kept file for earlier ranges.
    """

    events: Any
    handle: Handle
    form_seconds: float
    tally: ReadTally
    num_requested_before: int

    @property
    def num_requested_bytes(self) -> int:
        """Bytes that were requested for this range, by opening the file, too."""
        return self.handle.num_requested_bytes - self.num_requested_before


class BranchSource(UprootSourceMapping):  # type: ignore[misc]  # coffea has no types
    """The branches of one range of an open file.

    Parameters
    ----------
    handle : Handle
        The open file, used by nobody else meanwhile.
    entry_range : EntryRange
        What to read.
    tally : ReadTally
        Where to count.
    """

    def __init__(self, handle: Handle, entry_range: EntryRange, tally: ReadTally) -> None:
        opened = handle.open_file
        super().__init__(
            TrivialUprootOpener({opened.uuid: opened.replica}),
            entry_range.entry_start,
            entry_range.entry_stop,
            cache={},
            file_handle=opened.directory,
            use_ak_forth=True,
            virtual=True,
        )
        self._handle = handle
        self._range = entry_range
        self._tally = tally
        self._arrays: dict[str, Any] = {}
        self._counts: dict[str, Any] = {}
        self.partition_key = (opened.uuid, opened.tree.object_path, f"{self._start}-{self._stop}")
        self.preload_column_source(*self.partition_key[:2], opened.tree)
        self._read_bulk(entry_range.file.preload)

    def extract_column(
        self,
        columnhandle: Any,
        start: int,
        stop: int,
        allow_missing: bool,
        use_ak_forth: bool = True,
    ) -> Any:
        """Read one branch, once: coffea asks for offsets and content separately."""
        if columnhandle is None:  # a branch that some files lack
            return super().extract_column(columnhandle, start, stop, allow_missing, use_ak_forth)
        name = columnhandle.name
        if name not in self._arrays:
            read = super().extract_column
            arrays = self._measure(
                (name,),
                lambda: {name: read(columnhandle, start, stop, allow_missing, use_ak_forth)},
            )
            self._arrays.update(arrays)
        return self._arrays[name]

    def __getitem__(self, key: str) -> Any:
        """Give what makes a buffer; called when the buffer is needed."""
        load = super().__getitem__(key)
        if self.interpret_key(key)[-1][-1] != "!offsets":
            return load

        def load_offsets() -> Any:
            offsets = load()
            try:
                check_offsets(offsets)
            except ValueError as error:
                raise as_read_error(error, self._range.file, f"counts of {self._range}") from error
            return offsets

        return load_offsets

    def _read_bulk(self, names: tuple[str, ...]) -> None:
        tree = self._handle.open_file.tree
        present = [name for name in names if name in tree]
        if not present:
            return
        arrays = self._measure(
            tuple(present),
            lambda: tree.arrays(
                filter_name=present,
                entry_start=self._start,
                entry_stop=self._stop,
                ak_add_doc=True,
                how=dict,
            ),
        )
        for name, array in arrays.items():
            jagged = isinstance(array.layout, awkward.contents.ListOffsetArray)
            self._arrays[name] = (
                awkward.Array(array.layout.to_ListOffsetArray64(True)) if jagged else array
            )

    def _measure(
        self, names: tuple[str, ...], read: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        tally = self._tally
        requested = self._handle.num_requested_bytes
        started = perf_counter()
        try:
            arrays = read()
            known = {**self._arrays, **arrays}
            for name, array in arrays.items():
                self._check(name, array, known)
        except Exception as error:
            # damaged data raise anything; it is raised again, with the place
            read_error = self._read_error(error, names)
            if read_error is None:
                raise
            raise read_error from read_error.__cause__
        finally:
            tally.read_seconds += perf_counter() - started
            tally.num_compressed_bytes += self._handle.num_requested_bytes - requested
            tally.columns.update(names)
        tally.num_uncompressed_bytes += sum(_num_bytes(array) for array in arrays.values())
        return arrays

    def _check(self, name: str, array: Any, known: dict[str, Any]) -> None:
        """Find what damaged bytes leave behind without an error: it would be one in the processor, or a wrong result."""
        check_array(array, self._stop - self._start)
        if name in self._counts:
            check_counts(np.asarray(array), self._counts[name], name)
        counter = counter_name(self._handle.open_file.tree[name])
        if counter is not None and isinstance(array.layout, awkward.contents.ListOffsetArray):
            counts = np.diff(np.asarray(array.layout.offsets))
            # read already, or told by other lists of the same counter, or to be compared when it is read
            values = known.get(counter, self._counts.setdefault(counter, counts))
            check_counts(np.asarray(values), counts, counter)

    def _read_error(self, error: Exception, names: tuple[str, ...]) -> FileReadError | None:
        """Say what is wrong with the file; None if nothing is."""
        if isinstance(error, MemoryError):
            tree = self._handle.open_file.tree
            if not is_size_damaged(error, [tree[name] for name in names], tree.num_entries):
                return None
            # nobody shall take it for a lack of memory
            error = ValueError(f"inconsistent: {error}")
        where = f"branch {', '.join(map(repr, names[:3]))} of {self._range}"
        return as_read_error(error, self._range.file, where)

    @property
    def key(self) -> str:
        """The prefix of the names of buffers."""
        return str(tuple_to_key(self.partition_key))

    @classmethod
    def extract_form(cls, tree: Any) -> dict[str, Any]:
        """Return coffea's form of a tree, in which the name of each buffer says how it is read."""
        with warnings.catch_warnings():
            # branches that awkward can't represent are left out: touching one is an error of its own
            warnings.filterwarnings("ignore", "Skipping |Found duplicate branch")
            form: dict[str, Any] = cls._extract_base_form(tree)
        return form


def _num_bytes(array: Any) -> int:
    return int(array.nbytes) if hasattr(array, "nbytes") else int(array.layout.nbytes)


def layout_key(opened: OpenFile) -> str:
    """Return a hash of the names, titles and types of the branches: what a form depends on."""
    if "layout_key" not in opened.notes:
        opened.notes["layout_key"] = _hash_layout(opened.tree)
    return str(opened.notes["layout_key"])


def _hash_layout(tree: Any) -> str:
    if isinstance(tree, uproot.behaviors.RNTuple.HasFields):
        fields = [
            (one.field_name, one.type_name, one.parent_field_id, one.struct_role)
            for one in tree.field_records
        ]
        parts = [*fields, *((one.type, one.field_id) for one in tree.column_records)]
    else:
        parts = [
            (
                name,
                branch.member("fTitle"),
                branch.all_members.get("fClassName"),
                tuple((leaf.classname, leaf.member("fLen")) for leaf in branch.member("fLeaves")),
            )
            for name, branch in tree.iteritems()
        ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


_layouts: OrderedDict[Hashable, Any] = OrderedDict()
_layouts_lock = threading.Lock()


def kept_layout(key: Hashable, build: Callable[[], Any]) -> Any:
    """Return what depends on a layout alone, built once in this process.

    Parameters
    ----------
    key : hashable
        Of the reader, its schema, and `layout_key`.
    build : callable
        Makes it. Two threads may both make it at first; it is the same.
    """
    with _layouts_lock:
        if key in _layouts:
            _layouts.move_to_end(key)
            return _layouts[key]
    layout = build()
    with _layouts_lock:
        _layouts[key] = layout
        while len(_layouts) > MAX_LAYOUTS:
            _layouts.popitem(last=False)
    return layout
