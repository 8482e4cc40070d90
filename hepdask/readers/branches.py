"""Read the branches of a range, lazily, and count what that costs.

coffea's `UprootSourceMapping` turns the buffers of an awkward form into calls of uproot. `BranchSource` is that, with
the tree of a kept file, each branch read once for a range, each read timed and counted, and each failure of a read
turned into a `FileReadError`, so that a bad file isn't taken for a mistake in the processor that touched it.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from bisect import bisect
from collections import OrderedDict
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import awkward
import numpy as np
import uproot
from coffea.nanoevents.mapping import TrivialUprootOpener, UprootSourceMapping
from coffea.nanoevents.util import quote, tuple_to_key

from hepdask.read_errors import as_read_error
from hepdask.readers.ahead import request_branches
from hepdask.readers.damage import (
    check_array,
    check_counts,
    check_offsets,
    counter_name,
    has_offsets,
    is_size_damaged,
)
from hepdask.readers.decompression import fast_decompression
from hepdask.readers.uses import Use

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from hepdask.errors import FileReadError
    from hepdask.opening import OpenFile
    from hepdask.ranges import EntryRange
    from hepdask.readers.cut import LazyEvents
    from hepdask.readers.handles import Handle

__all__ = [
    "BranchSource",
    "RangeEvents",
    "ReadTally",
    "kept_layout",
    "layout_key",
    "read_branches",
]

#: Layouts (forms) that a process keeps. One of 1,500 branches takes about 10 MB; an analysis sees few.
MAX_LAYOUTS = 8
#: What the names of buffers of offsets end with.
_OFFSETS = quote(",!offsets")


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
    touched : set of str
        Those of them that something was made of: a branch that was read at once, as it was used before, may not be among them.
    """

    read_seconds: float = 0.0
    num_compressed_bytes: int = 0
    num_uncompressed_bytes: int = 0
    columns: set[str] = field(default_factory=set)
    touched: set[str] = field(default_factory=set)


@dataclass(slots=True)
class RangeEvents:
    """The events of a range, while it is open.

    Attributes
    ----------
    lazy : LazyEvents
        Makes the events.
    handle : Handle
        The open file.
    layout_key : str
        Of the file: what is known of the use of one is good for all that have the same.
    form_seconds : float
        Wall time of building the layout and the lazy events.
    tally : ReadTally
        Grows as branches are read.
    events : awkward.Array
        What `process` is called with; lazy.
    expected : frozenset of str
        Branches that were read at once, as they are known to be used; empty if nothing is known.
    """

    lazy: LazyEvents
    handle: Handle
    layout_key: str
    form_seconds: float
    tally: ReadTally
    events: Any
    expected: frozenset[str] = frozenset()

    @property
    def num_requested_bytes(self) -> int:
        """Bytes that were requested for this range, by opening the file, too, and those for the next ones meanwhile."""
        return self.handle.num_requested_bytes - self.handle.num_requested_before

    def build_whole(self) -> None:
        """Let the events have all fields from the beginning, for a processor that can't do without."""
        self.events = self.lazy.whole()

    def find_missed(self) -> frozenset[str]:
        """Return the branches that were used unexpectedly: each cost a request of its own."""
        return frozenset(self.tally.touched) - self.expected if self.expected else frozenset()

    def find_use(self) -> Use:
        """Return what was used of the events."""
        fields = None if self.lazy.is_bypassed else frozenset(self.lazy.fields)
        return Use(fields, frozenset(self.tally.touched))


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
    expected : iterable of str
        Branches that will be used; those that the file lacks are left out.
    """

    def __init__(
        self,
        handle: Handle,
        entry_range: EntryRange,
        tally: ReadTally,
        expected: Iterable[str] = (),
    ) -> None:
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
        # lengths of lists by their counter, and offsets that were found to be right
        self._counts: dict[str, Any] = {}
        self._proven: dict[str, Any] = {}
        place, tree_key = _name_tree(opened)
        self.preload_column_source(*place, opened.tree)
        #: The prefix of the names of buffers.
        self.key = f"{tree_key}/{self._start}-{self._stop}"
        wanted = sorted({*entry_range.file.preload, *expected})
        self._expected = tuple(name for name in wanted if name in opened.tree)

    def request_expected(self) -> None:
        """Request the branches that will be used, all at once, if they are far away; don't wait for them."""
        self._request(self._expected)

    def read_expected(self) -> None:
        """Read the branches that will be used."""
        if self._expected:
            self._read(self._expected)

    def get_column_handle(self, columnsource: Any, name: str, allow_missing: bool) -> Any:
        """Keep the name by which a branch is asked for: its own may be that of another one, below another branch."""
        handle = super().get_column_handle(columnsource, name, allow_missing)
        return None if handle is None else _Column(name, handle)

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
        self._tally.touched.add(name)
        if name not in self._arrays:
            self._read((name,))
        array = self._arrays[name]
        return _as_optional(array) if allow_missing else array

    def __getitem__(self, key: str) -> Any:
        """Give what makes a buffer; called when the buffer is needed."""
        load = super().__getitem__(key)
        if not key.endswith(_OFFSETS):
            return load

        def load_offsets() -> Any:
            offsets = load()
            try:
                check_offsets(offsets)
            except ValueError as error:
                raise as_read_error(error, self._range.file, f"counts of {self._range}") from error
            return offsets

        return load_offsets

    def _request(self, names: Sequence[str]) -> None:
        if names:
            opened = self._handle.open_file
            request_branches(opened, names, self._start, self._stop, are_needed=True)

    def _read(self, names: tuple[str, ...]) -> None:
        opened = self._handle.open_file
        self._arrays.update(
            self._measure(names, lambda: read_branches(opened, names, self._start, self._stop))
        )

    def _measure(
        self, names: tuple[str, ...], read: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        tally = self._tally
        requested = self._num_read_bytes()
        started = perf_counter()
        try:
            with fast_decompression():
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
            tally.num_compressed_bytes += self._num_read_bytes() - requested
            tally.columns.update(names)
        tally.num_uncompressed_bytes += sum(_num_bytes(array) for array in arrays.values())
        return arrays

    def _num_read_bytes(self) -> int:
        """Count what was requested and read: what is requested ahead is read later."""
        remote = self._handle.open_file.remote
        requested = self._handle.num_requested_bytes
        return (
            requested
            if remote is None
            else requested - remote.num_ahead_bytes + remote.num_served_bytes
        )

    def _check(self, name: str, array: Any, known: dict[str, Any]) -> None:
        """Find what damaged bytes leave behind without an error: it would be one in the processor, or a wrong result."""
        counter = _find_counter(self._handle.open_file, name)
        if counter in self._proven and has_offsets(array, self._proven[counter]):
            return  # most lists have neighbours of the same lengths
        check_array(array, self._stop - self._start)
        if name in self._counts:
            check_counts(np.asarray(array), self._counts[name], name)
        if counter is not None and isinstance(array.layout, awkward.contents.ListOffsetArray):
            offsets = np.asarray(array.layout.offsets)
            counts = np.diff(offsets)
            # read already, or told by other lists of the same counter, or to be compared when it is read
            values = known.get(counter, self._counts.setdefault(counter, counts))
            check_counts(np.asarray(values), counts, counter)
            self._proven[counter] = offsets

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

    @classmethod
    def extract_form(cls, tree: Any) -> dict[str, Any]:
        """Return coffea's form of a tree, in which the name of each buffer says how it is read."""
        with warnings.catch_warnings():
            # branches that awkward can't represent are left out: touching one is an error of its own
            warnings.filterwarnings("ignore", "Skipping |Found duplicate branch")
            form: dict[str, Any] = cls._extract_base_form(tree)
        return form


def _find_counter(opened: OpenFile, name: str) -> str | None:
    """Name the counter of a branch; looked up once for an open file, as uproot goes through all leaves to find it."""
    counters: dict[str, str | None] = opened.notes.setdefault("counters", {})
    if name not in counters:
        counters[name] = counter_name(opened.tree[name])
    return counters[name]


def _name_tree(opened: OpenFile) -> tuple[tuple[str, str], str]:
    """Return the UUID and path of a tree, and what the names of its buffers begin with; made once for an open file."""
    if "tree_key" not in opened.notes:
        place = (opened.uuid, opened.tree.object_path)
        opened.notes["tree_key"] = place, str(tuple_to_key(place))
    name: tuple[tuple[str, str], str] = opened.notes["tree_key"]
    return name


@dataclass(frozen=True, slots=True)
class _Column:
    """A branch, with the name that it has in the tree, and its parents' before it where that is needed to find it."""

    name: str
    branch: Any


def read_branches(
    opened: OpenFile, names: Sequence[str], entry_start: int, entry_stop: int
) -> dict[str, Any]:
    """Read a range of some branches.

    Parameters
    ----------
    opened : OpenFile
        The file.
    names : sequence of str
        Branches of its tree.
    entry_start, entry_stop : int
        Half-open range.

    Returns
    -------
    dict of str to awkward.Array
        Lists have offsets of 64 bits that begin with 0.
    """
    # one by one: `tree.arrays` looks at all branches of the tree to find these, 45 ms for 1,500
    tree = opened.tree
    more = (
        {"array_cache": _find_clusters(opened, entry_start, entry_stop)} if _is_ntuple(tree) else {}
    )
    return {
        name: _with_plain_offsets(
            tree[name].array(entry_start=entry_start, entry_stop=entry_stop, **more)
        )
        for name in names
    }


def _find_clusters(opened: OpenFile, entry_start: int, entry_stop: int) -> dict[str, Any]:
    """Return what is kept of the columns of an RNTuple's clusters: those of this range, and the one after it.

    uproot reads whole clusters, and also the one that begins where a range ends (5.7): the next range finds it here. And the
    offsets of a collection are read once for all its members.
    """
    clusters: dict[str, Any] = opened.notes.setdefault("clusters", {})
    starts = [one.num_first_entry for one in opened.tree.ntuple.cluster_summaries]
    needed = range(bisect(starts, entry_start) - 1, bisect(starts, entry_stop))
    # their keys end with :cluster:column
    for key in [one for one in clusters if int(one.rsplit(":", 2)[1]) not in needed]:
        del clusters[key]
    return clusters


def _is_ntuple(tree: Any) -> bool:
    return isinstance(tree, uproot.behaviors.RNTuple.HasFields)


def _with_plain_offsets(array: Any) -> Any:
    layout = array.layout
    if isinstance(layout, awkward.contents.ListOffsetArray):
        offsets = layout.offsets.data
        if offsets.dtype == np.int64 and offsets[0] == 0:
            return array  # awkward would copy them
        return awkward.Array(layout.to_ListOffsetArray64(True))
    return array


def _as_optional(array: Any) -> Any:
    """Make the array that coffea's schemas expect of a branch which some files lack."""
    index = awkward.index.Index64(np.arange(len(array), dtype=np.int64))
    return awkward.Array(
        awkward.contents.IndexedOptionArray(index, awkward.contents.NumpyArray(np.asarray(array)))
    )


def _num_bytes(array: Any) -> int:
    return int(array.nbytes) if hasattr(array, "nbytes") else int(array.layout.nbytes)


def layout_key(opened: OpenFile) -> str:
    """Return a hash of the names, titles and types of the branches: what a form depends on."""
    if "layout_key" not in opened.notes:
        opened.notes["layout_key"] = _hash_layout(opened.tree)
    return str(opened.notes["layout_key"])


def _hash_layout(tree: Any) -> str:
    if _is_ntuple(tree):
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
