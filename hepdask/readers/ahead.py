"""Which bytes of a remote file will be read; see `hepdask.remote`."""

from __future__ import annotations

import re
from bisect import bisect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hepdask.opening import OpenFile

__all__ = ["request_branches"]

#: A column of an RNTuple in uproot's forms.
_COLUMN = re.compile(r"\"column-(\d+)")


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
    remote = opened.remote
    if remote is None:
        return False
    present = [name for name in names if name in opened.tree]
    find = _find_pages if hasattr(opened.tree, "ntuple") else _find_baskets
    places = find(opened.tree, present, entry_start, entry_stop) if present else []
    return remote.request(places, are_needed=are_needed)


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
