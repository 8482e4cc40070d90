"""Split files into half-open entry ranges: pure, no I/O.

A range is what one call of the processor sees. It never crosses a file, starts and ends at cluster edges where that
is possible (a basket is then read and decompressed once), and depends on the file and the options alone: never on
the number of workers.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hepdask.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hepdask.fileset import InputFile
    from hepdask.metadata import FileMetadata

__all__ = ["EntryRange", "SplitOptions", "choose_max_entries", "limit_ranges", "split_file"]

#: Uncompressed bytes of the branches in use that a range aims at by default. A processor's intermediate arrays take
#: several times that (ten is usual for jagged selections), and batch workers have 2 GB.
TARGET_RANGE_BYTES = 64 * 2**20
#: Entries that a range has at most by default: enough for the cost of a range (milliseconds) to vanish, and few enough
#: that a file of 50 million entries keeps many workers busy.
MAX_RANGE_ENTRIES = 2**19
#: Entries of a range by default when nothing is known of the branches (coffea's default chunk size).
UNKNOWN_RANGE_ENTRIES = 100_000


@dataclass(frozen=True, slots=True)
class EntryRange:
    """A half-open range of entries of one tree of one file.

    Attributes
    ----------
    file : InputFile
        The file, with `num_entries` and `uuid` filled in where they are known.
    entry_start, entry_stop : int
        First entry, and one past the last.
    """

    file: InputFile
    entry_start: int
    entry_stop: int

    @property
    def num_entries(self) -> int:
        """Number of entries; zero for the one range of an empty file."""
        return self.entry_stop - self.entry_start

    def __str__(self) -> str:
        return (
            f"entries {self.entry_start} to {self.entry_stop} of {self.file.treename!r} "
            f"in {self.file.file_path} (dataset {self.file.dataset!r})"
        )


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """How files are split.

    Attributes
    ----------
    chunksize : int or None
        Maximum number of entries of a range. None: chosen for each file by `choose_max_entries`.
    align_clusters : bool or None
        None (the default): ranges end at cluster edges, but a cluster larger than the maximum is cut evenly.
        True: a cluster is never cut, even if it is larger than `chunksize`.
        False: files are cut evenly, wherever the clusters are.

    Raises
    ------
    OptionError
        If `chunksize` is not a positive integer.
    """

    chunksize: int | None = None
    align_clusters: bool | None = None

    def __post_init__(self) -> None:
        size: Any = self.chunksize
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise OptionError(
                f"chunksize is {size!r}: give a positive number of entries, or None to let hepdask choose"
            )


def choose_max_entries(bytes_per_entry: float | None) -> int:
    """Choose the maximum number of entries of a range from the bytes of the branches in use.

    Parameters
    ----------
    bytes_per_entry : float or None
        Mean uncompressed bytes of the branches in use, per entry. None: not known.

    Returns
    -------
    int
        At least 1,024: `TARGET_RANGE_BYTES` over `bytes_per_entry`, but no more than `MAX_RANGE_ENTRIES`. It is a power of
        two, so that files which differ a little in size are split in the same way.
    """
    if bytes_per_entry is None:
        return UNKNOWN_RANGE_ENTRIES
    if bytes_per_entry <= 0:
        return MAX_RANGE_ENTRIES
    largest = max(1_024, int(min(MAX_RANGE_ENTRIES, TARGET_RANGE_BYTES / bytes_per_entry)))
    return 1 << (largest.bit_length() - 1)


def split_file(
    file: InputFile,
    metadata: FileMetadata | None,
    options: SplitOptions,
    *,
    bytes_per_entry: float | None = None,
) -> list[EntryRange]:
    """Split a file into entry ranges that cover each requested entry exactly once, in order.

    Parameters
    ----------
    file : InputFile
        With `num_entries` known. If it has `steps`, these are the ranges (cut further only where a `chunksize` that
        the user gave is smaller).
    metadata : FileMetadata or None
        Its cluster offsets; None if the file was not inspected, because the fileset says all that is needed.
    options : SplitOptions
        Maximum size and alignment.
    bytes_per_entry : float or None
        Mean uncompressed bytes of the branches in use, for the automatic size.

    Returns
    -------
    list of EntryRange
        A file without entries gives one empty range, so that the processor sees it as with coffea (its output has
        the right keys), and the books have it.
    """
    return [
        EntryRange(file, start, stop)
        for start, stop in _bounds(file, metadata, options, bytes_per_entry)
    ]


def limit_ranges(ranges: Iterable[EntryRange], maxchunks: int | None) -> list[EntryRange]:
    """Keep the first `maxchunks` ranges of each dataset (all of them if None)."""
    if maxchunks is None:
        return list(ranges)
    counts: dict[str, int] = {}
    kept = []
    for entry_range in ranges:
        dataset = entry_range.file.dataset
        counts[dataset] = counts.get(dataset, 0) + 1
        if counts[dataset] <= maxchunks:
            kept.append(entry_range)
    return kept


def _bounds(
    file: InputFile,
    metadata: FileMetadata | None,
    options: SplitOptions,
    bytes_per_entry: float | None,
) -> list[tuple[int, int]]:
    num_entries = file.num_entries
    if file.steps is not None and num_entries != 0:
        return [
            piece
            for start, stop in file.steps
            for piece in _split_evenly(start, stop, options.chunksize)
        ]
    if not num_entries:
        return [(0, 0)]
    max_entries = options.chunksize or choose_max_entries(bytes_per_entry)
    if metadata is None or options.align_clusters is False:
        return _split_evenly(0, num_entries, max_entries)
    offsets: Sequence[int] = metadata.cluster_offsets
    if options.align_clusters is None:
        # A cluster cut in two is decompressed twice. So where hepdask chose the maximum itself, a cluster up to twice
        # as large stays whole; where the user did, the maximum is honest.
        offsets = _refine(offsets, max_entries if options.chunksize else 2 * max_entries)
    return _group(offsets, max_entries)


def _split_evenly(start: int, stop: int, max_entries: int | None) -> list[tuple[int, int]]:
    # 149 entries at 100 --> 2 pieces, 0 to 74 and 74 to 149, and not 100 and 49: no worker waits for a longer one
    if max_entries is None or stop - start <= max_entries:
        return [(start, stop)]
    pieces = -(-(stop - start) // max_entries)
    edges = [start + (stop - start) * piece // pieces for piece in range(pieces + 1)]
    return list(pairwise(edges))


def _refine(offsets: Sequence[int], max_entries: int) -> list[int]:
    """Cut the clusters that are larger than `max_entries` evenly."""
    refined = [offsets[0]]
    for start, stop in pairwise(offsets):
        refined.extend(edge for _, edge in _split_evenly(start, stop, max_entries))
    return refined


def _group(offsets: Sequence[int], max_entries: int) -> list[tuple[int, int]]:
    """Join neighbouring clusters to as few, as equal groups of at most `max_entries` as possible."""
    packed = _pack(offsets, max_entries)
    balanced = _balance(offsets, len(packed))
    fits = balanced is not None and all(stop - start <= max_entries for start, stop in balanced)
    return balanced if fits and balanced is not None else packed


def _pack(offsets: Sequence[int], max_entries: int) -> list[tuple[int, int]]:
    """Fill group after group; a single cluster may be larger than `max_entries`."""
    groups: list[tuple[int, int]] = []
    start = stop = offsets[0]
    for edge in offsets[1:]:
        if edge - start > max_entries and stop > start:
            groups.append((start, stop))
            start = stop
        stop = edge
    groups.append((start, stop))
    return groups


def _balance(offsets: Sequence[int], num_groups: int) -> list[tuple[int, int]] | None:
    """Cut at the cluster edges nearest to `num_groups` equal parts; None if two cuts fall together."""
    first, last = offsets[0], offsets[-1]
    edges = [first]
    for group in range(1, num_groups):
        target = first + (last - first) * group / num_groups
        right = bisect_left(offsets, target)
        nearest = right if offsets[right] - target < target - offsets[right - 1] else right - 1
        edges.append(offsets[nearest])
    edges.append(last)
    pairs = list(pairwise(edges))
    return pairs if all(start < stop for start, stop in pairs) else None
