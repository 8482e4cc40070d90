"""Bytes that are on their way while a range computes.

A range of a remote file costs a round trip and the transfer before its first event can be looked at. What is read next is
known, and so are the branches. So their baskets are requested, all at once, when the range before has its own bytes; the
libraries below wait for the answer in threads of theirs. Reading then finds the bytes there. What is there and never
fetched is dropped at the end of the task, or when something else is requested. Local files need none of this.
"""

from __future__ import annotations

import queue
import re
from bisect import bisect
from typing import TYPE_CHECKING, Any

from hepdask.paths import local_path
from hepdask.read_errors import read_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hepdask.opening import OpenFile

__all__ = ["AheadSource", "find_ahead", "request_branches"]

#: Compressed bytes that a file may have on their way or waiting. A range aims at 64 MB uncompressed, some 20 MB compressed, and
#: two of them hide any round trip.
MAX_AHEAD_BYTES = 64 * 2**20
_NOTE = "ahead"
#: A column of an RNTuple in uproot's forms.
_COLUMN = re.compile(r"\"column-(\d+)")


class AheadSource:
    """An uproot source that can be asked for bytes before they are read.

    Parameters
    ----------
    source : uproot.source.chunk.Source
        Of an open remote file. Whatever is not found here is asked of it.

    Attributes
    ----------
    num_ahead_bytes : int
        Bytes that were requested before they were read.
    num_served_bytes : int
        Those of them that then were read.
    """

    def __init__(self, source: Any) -> None:
        self._source = source
        self._chunks: dict[tuple[int, int], Any] = {}
        self.num_ahead_bytes = 0
        self.num_served_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __enter__(self) -> Any:
        return self._source.__enter__()

    def __exit__(self, *exception: object) -> None:
        self.drop()
        self._source.__exit__(*exception)

    def close(self) -> None:
        """Close the file."""
        self.drop()
        self._source.close()

    def chunks(self, ranges: Sequence[tuple[int, int]], notifications: Any) -> list[Any]:
        """Give pieces of the file, as uproot asks for them: those that were requested before, and all others now.

        Parameters
        ----------
        ranges : sequence of (int, int)
            Half-open ranges of bytes.
        notifications : queue.Queue
            Where each piece is put when it is there.
        """
        found = [chunk for one in ranges if (chunk := self._take(one)) is not None]
        known = {(chunk.start, chunk.stop) for chunk in found}
        for chunk in found:
            notifications.put(chunk)
        missing = [one for one in ranges if tuple(one) not in known]
        return [*found, *(self._source.chunks(missing, notifications) if missing else ())]

    def chunk(self, start: int, stop: int) -> Any:
        """Give one piece of the file, as uproot asks for the pages of an RNTuple.

        Parameters
        ----------
        start, stop : int
            Half-open range of bytes.
        """
        found = self._take((start, stop))
        return self._source.chunk(start, stop) if found is None else found

    def request(self, ranges: Iterable[tuple[int, int]], *, are_needed: bool = False) -> bool:
        """Request pieces of the file, and don't wait for them.

        Parameters
        ----------
        ranges : iterable of (int, int)
            Half-open ranges of bytes.
        are_needed : bool
            True if they are read next, so that there is room for them anyway.

        Returns
        -------
        bool
            False if that would be more than may be on its way: nothing was requested.
        """
        new = [one for one in ranges if one not in self._chunks]
        num_waiting = sum(stop - start for start, stop in self._chunks)
        num_new = sum(stop - start for start, stop in new)
        if not are_needed and num_waiting + num_new > MAX_AHEAD_BYTES:
            return False
        if new:
            for chunk in self._source.chunks(new, queue.Queue()):
                self._chunks[chunk.start, chunk.stop] = chunk
                self.num_ahead_bytes += chunk.stop - chunk.start
        return True

    def drop(self) -> None:
        """Let go of what was requested and not read; what is still on its way is thrown away when it comes."""
        self._chunks = {}

    def _take(self, one: tuple[int, int]) -> Any:
        chunk = self._chunks.pop((int(one[0]), int(one[1])), None)
        if chunk is None:
            return None
        try:
            chunk.wait()
        except read_errors():
            return None  # it is requested again, and an error then is one of reading
        self.num_served_bytes += chunk.stop - chunk.start
        return chunk


def find_ahead(opened: OpenFile) -> AheadSource | None:
    """Return what bytes of an open file can be requested from ahead; None for a local one."""
    if _NOTE not in opened.notes:
        is_remote = local_path(opened.replica) is None
        opened.notes[_NOTE] = _install(opened.directory.file) if is_remote else None
    ahead: AheadSource | None = opened.notes[_NOTE]
    return ahead


def request_branches(
    opened: OpenFile,
    names: Iterable[str],
    entry_start: int,
    entry_stop: int,
    *,
    are_needed: bool = False,
) -> bool:
    """Request the baskets of some branches of a remote file, all at once, and don't wait for them.

    Parameters
    ----------
    opened : OpenFile
        The file.
    names : iterable of str
        Branches of its tree.
    entry_start, entry_stop : int
        Half-open range.
    are_needed : bool
        True if they are read next.

    Returns
    -------
    bool
        False if nothing was requested: the file is local, has no baskets, or too much is on its way already.
    """
    ahead = find_ahead(opened)
    if ahead is None:
        return False
    present = [name for name in names if name in opened.tree]
    find = _find_pages if hasattr(opened.tree, "ntuple") else _find_baskets
    places = find(opened.tree, present, entry_start, entry_stop) if present else []
    return ahead.request(places, are_needed=are_needed)


def _find_baskets(
    tree: Any, names: list[str], entry_start: int, entry_stop: int
) -> list[tuple[int, int]]:
    return [
        (int(place[0]), int(place[1]))
        for name in names
        for _, place in tree[name].entries_to_ranges_or_baskets(entry_start, entry_stop)
        if isinstance(place, tuple)  # else it was read with the tree
    ]


def _find_pages(
    tree: Any, names: list[str], entry_start: int, entry_stop: int
) -> list[tuple[int, int]]:
    """Find the pages that uproot will read: of whole clusters, and of the one that begins where the range ends."""
    form, _ = tree.to_akform(filter_name=names)
    columns = {int(found) for found in _COLUMN.findall(form.to_json())}
    ntuple = tree.ntuple
    starts = [one.num_first_entry for one in ntuple.cluster_summaries]
    places: dict[tuple[int, int], None] = {}
    for cluster in range(bisect(starts, entry_start) - 1, bisect(starts, entry_stop)):
        links = ntuple.page_link_list[max(cluster, 0)]
        for column in columns:
            # a column that was added later has none in the first clusters
            for page in links[column].pages if column < len(links) else ():
                start = int(page.locator.offset)
                places[start, start + int(page.locator.num_bytes)] = None
    return list(places)


def _install(file: Any) -> AheadSource:
    # uproot has no public way to wrap the source of an open file
    ahead = AheadSource(file.source)
    file._source = ahead
    return ahead
