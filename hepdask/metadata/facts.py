"""What a ROOT file says of itself, read without reading any event."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hepdask.errors import FileChangedError
from hepdask.metadata.branches import Branch, Branches
from hepdask.opening import OpenFile, ReadOptions, garbage_kept, local_status, open_file
from hepdask.read_errors import as_read_error, read_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from hepdask.fileset import InputFile

__all__ = ["FileMetadata", "check_unchanged", "local_state", "read_file_metadata"]


@dataclass(frozen=True, slots=True)
class FileMetadata:
    """Facts about one tree of one file.

    Attributes
    ----------
    file_path, treename : str
        The logical name of the file (its first replica), and the tree's path in it.
    num_entries : int
        Number of entries in the tree.
    uuid : str
        The file's UUID, lower case, with hyphens.
    cluster_offsets : tuple of int
        Entries at which all branches begin a new basket or page group: 0 first, `num_entries` last, growing.
        ``(0,)`` if there are no entries.
    branches : sequence of Branch
        All that hold data, in the file's order. RNTuple: the top-level fields; a projected field counts the columns
        that it shows, so that the sum over all fields may count a column twice.
    kind : "TTree" or "RNTuple"
        How the entries are stored.
    num_file_bytes : int or None
        Size of the file; None if not known.
    mtime_ns : int or None
        Time of the last modification, in ns since 1970; None for a file that is remote or that was read from another
        replica than the first.
    """

    file_path: str
    treename: str
    num_entries: int
    uuid: str
    cluster_offsets: tuple[int, ...]
    branches: Sequence[Branch]
    kind: Literal["TTree", "RNTuple"]
    num_file_bytes: int | None = None
    mtime_ns: int | None = None


def read_file_metadata(
    file: InputFile,
    options: ReadOptions,
    opener: Callable[[InputFile, ReadOptions], AbstractContextManager[OpenFile]] = open_file,
) -> FileMetadata:
    """Open a file and read what is known of it without reading any event.

    Parameters
    ----------
    file : InputFile
        The file; what it promises (`uuid`, `num_entries`, `steps`) is checked.
    options : ReadOptions
        How to open it.
    opener : callable
        Opens it: one that keeps the file open makes its first range cheaper.

    Returns
    -------
    FileMetadata
        The facts.

    Raises
    ------
    FileReadError
        It can't be opened or its description can't be read.
    MissingTreeError
        It has no such tree.
    FileChangedError
        It is not the file that the fileset describes.
    """
    # before the file is opened: one that changes meanwhile then counts as changed at the next lookup
    state = local_state(file.file_path)
    with opener(file, options) as opened, garbage_kept():
        check_unchanged(file, opened)
        try:
            kind, offsets, branches = _describe(opened)
        except read_errors() as error:
            where = f"the description of tree {file.treename!r}"
            read_error = as_read_error(error, file, where, replica=opened.replica)
            raise read_error from read_error.__cause__
        is_first = opened.replica == file.file_path
        return FileMetadata(
            file_path=file.file_path,
            treename=file.treename,
            num_entries=opened.num_entries,
            uuid=opened.uuid,
            cluster_offsets=_clean_offsets(offsets, opened.num_entries),
            branches=Branches(branches),
            kind=kind,
            # the header has the size, a remote server would have to be asked
            num_file_bytes=state[0] if state and is_first else int(opened.directory.file.fEND),
            mtime_ns=state[1] if state and is_first else None,
        )


def check_unchanged(file: InputFile, opened: OpenFile, *, entry_stop: int | None = None) -> None:
    """Check that an open file is the one that the fileset, or an earlier inspection, describes.

    Parameters
    ----------
    file : InputFile
        What is known: `uuid`, `num_entries`, `steps`.
    opened : OpenFile
        What was opened.
    entry_stop : int, optional
        End (exclusive) of the range that will be read.

    Raises
    ------
    FileChangedError
        If the UUID is another one, or there are fewer entries.
    """
    place = f"dataset {file.dataset!r}, file {opened.replica}, tree {file.treename!r}"
    advice = "the file was replaced; run again to inspect it anew (without 'uuid', 'num_entries', 'steps' in the fileset)"
    if file.uuid is not None and opened.uuid != file.uuid:
        raise FileChangedError(
            f"{place}: its UUID is {opened.uuid}, but {file.uuid} was expected: {advice}"
        )
    stops = [stop for _, stop in file.steps or ()]
    expected = max((file.num_entries or 0, entry_stop or 0, *stops))
    if opened.num_entries < expected:
        raise FileChangedError(
            f"{place}: it has {opened.num_entries} entries, but at least {expected} were expected: {advice}"
        )


def _describe(
    opened: OpenFile,
) -> tuple[Literal["TTree", "RNTuple"], Sequence[int], list[Branch]]:
    import uproot

    if isinstance(opened.tree, uproot.behaviors.RNTuple.RNTuple):
        _check_page_lists(opened.tree)
        offsets = [int(one.num_first_entry) for one in opened.tree.cluster_summaries]
        return "RNTuple", offsets, _fields(opened.tree)
    _check_num_entries(opened.tree)
    return "TTree", opened.tree.common_entry_offsets(), _leaf_branches(opened.tree)


def _check_num_entries(tree: Any) -> None:
    """Find a damaged number of entries: splitting 2**60 of them would not end, and fewer than there are would go unnoticed."""
    counts = {one.num_entries for one in tree.itervalues() if one.num_baskets > 0} or {0}
    if tree.num_entries not in counts:
        raise ValueError(
            f"inconsistent: the tree has {tree.num_entries} entries, its branches have {max(counts)}"
        )


def _check_page_lists(ntuple: Any) -> None:
    """Compare the checksums of the lists that tell where the pages are: uproot checks header and footer alone."""
    import xxhash

    for record in ntuple.footer.cluster_group_records:
        link = record.page_list_link
        chunk, _ = ntuple.read_locator(link.locator, link.env_uncomp_size)
        content = bytes(chunk.raw_data)
        # the last 8 bytes of an envelope (ROOT, tree/ntuple/doc/BinaryFormatSpecification.md)
        if xxhash.xxh3_64_intdigest(content[:-8]) != int.from_bytes(content[-8:], "little"):
            raise ValueError("the checksum of a page list is wrong")


def _leaf_branches(tree: Any) -> list[Branch]:
    """List the branches of a TTree that have baskets; a split parent has none."""
    return [
        Branch(sys.intern(key), sys.intern(branch.typename), *_branch_bytes(branch))
        for key, branch in tree.iteritems()
        if len(branch.branches) == 0 or branch.compressed_bytes > 0
    ]


def _branch_bytes(branch: Any) -> tuple[int, int]:
    return int(branch.compressed_bytes), int(branch.uncompressed_bytes)


def _fields(ntuple: Any) -> list[Branch]:
    """List the top-level fields of an RNTuple with the bytes of their pages, from the page lists alone."""
    sizes = _column_bytes(ntuple)
    columns: dict[int, list[int]] = {}
    for index, column in enumerate(ntuple.column_records):
        columns.setdefault(column.field_id, []).append(index)
    children: dict[int, list[int]] = {}
    tops: dict[str, int] = {}
    for index, record in enumerate(ntuple.field_records):
        if record.parent_field_id == index:
            tops[record.field_name] = index
        else:
            children.setdefault(record.parent_field_id, []).append(index)

    def field_columns(index: int) -> Iterator[int]:
        # a projected field has no columns: it shows another field's
        source = ntuple.field_records[index].source_field_id
        yield from columns.get(index if source is None else source, ())
        for child in children.get(index, ()):
            yield from field_columns(child)

    found = []
    for name, top in tops.items():
        mine = [sizes[column] for column in field_columns(top)]
        typename = sys.intern(ntuple.field_records[top].type_name)
        bytes_of_field = (sum(one for one, _ in mine), sum(one for _, one in mine))
        found.append(Branch(sys.intern(name), typename, *bytes_of_field))
    return found


def _column_bytes(ntuple: Any) -> list[tuple[int, int]]:
    """Sum the (compressed, uncompressed) bytes of each column's pages over all clusters.

    Uncompressed: number of elements times the bits of an element, each page rounded up to whole bytes.
    """
    bits = [column.nbits for column in ntuple.column_records]
    totals = [[0, 0] for _ in bits]
    for cluster in ntuple.page_link_list:
        for index, column in enumerate(cluster):
            for page in column.pages:
                totals[index][0] += page.locator.num_bytes
                totals[index][1] += (page.num_elements * bits[index] + 7) // 8
    return [(compressed, uncompressed) for compressed, uncompressed in totals]


def _clean_offsets(offsets: Iterable[int], num_entries: int) -> tuple[int, ...]:
    # a tree without baskets has only 0, and an unfinished last basket may end anywhere
    inner = {int(one) for one in offsets if 0 < one < num_entries}
    return tuple(sorted({0, num_entries} | inner))


def local_state(file_path: str) -> tuple[int, int] | None:
    """Give (size in bytes, mtime_ns); None for a remote file, or one that can't be seen from here."""
    status = local_status(file_path)
    return None if status is None else (status.st_size, status.st_mtime_ns)
