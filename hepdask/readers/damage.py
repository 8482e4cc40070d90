"""What damaged bytes leave behind where uproot reads them without an error, or awkward notices it too late.

A branch that is too short, or lists that don't fit their counter, would be an exception in the processor, and be taken for
its mistake; or a wrong result that nobody notices. Here they are found, and become a `FileReadError`.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from hepdask.failures import exception_chain
from hepdask.read_errors import as_read_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from hepdask.errors import FileReadError
    from hepdask.ranges import EntryRange

__all__ = [
    "check_array",
    "check_counts",
    "check_offsets",
    "counter_name",
    "find_read_error",
    "has_offsets",
    "is_size_damaged",
    "layout_errors",
]


def check_array(array: Any, num_entries: int) -> None:
    """Check that an array has the right length, and that what its lists point to is there.

    Parameters
    ----------
    array : awkward.Array
        As uproot gave it; not lazy.
    num_entries : int
        What was asked for.

    Raises
    ------
    ValueError
        If not.
    """
    import awkward

    if len(array) != num_entries:
        raise ValueError(f"inconsistent: {len(array)} entries instead of {num_entries}")
    layout = array.layout
    if isinstance(layout, awkward.contents.NumpyArray):
        return
    if isinstance(layout, awkward.contents.ListOffsetArray) and isinstance(
        layout.content, awkward.contents.NumpyArray
    ):
        # what most branches are: twice as fast as awkward's general check
        offsets = np.asarray(layout.offsets)
        check_offsets(offsets)
        flaw = "lists go beyond the content" if offsets[-1] > layout.content.length else ""
    else:
        flaw = awkward.validity_error(array)
    if flaw:
        raise ValueError(f"inconsistent: {flaw}")


def check_counts(values: Any, counts: Any, counter: str) -> None:
    """Check that lists are as long as their counter says.

    Parameters
    ----------
    values : array of shape (num_entries,)
        Of the counter.
    counts : array of shape (num_entries,)
        Lengths of the lists.
    counter : str
        Name of the counter.

    Raises
    ------
    ValueError
        If not.
    """
    if not np.array_equal(values, counts):
        raise ValueError(f"inconsistent: the lists are not as long as {counter!r} says")


def check_offsets(offsets: Any) -> None:
    """Check that no list has a negative length.

    Raises
    ------
    ValueError
        If one has.
    """
    if np.any(offsets[1:] < offsets[:-1]):
        raise ValueError("inconsistent: there are negative counts")


def has_offsets(array: Any, offsets: Any) -> bool:
    """Tell whether an array has lists of numbers with exactly these offsets, and all content that they point to.

    Parameters
    ----------
    array : awkward.Array
        As uproot gave it.
    offsets : array of shape (num_entries + 1,)
        Of an array that was checked.
    """
    import awkward

    layout = array.layout
    return (
        isinstance(layout, awkward.contents.ListOffsetArray)
        and isinstance(layout.content, awkward.contents.NumpyArray)
        and bool(np.array_equal(layout.offsets.data, offsets))
        and int(offsets[-1]) <= layout.content.length
    )


def counter_name(branch: Any) -> str | None:
    """Name the branch that has the lengths of a branch's lists, as ``nMuon`` has of ``Muon_pt``; None if there is none."""
    # fields of an RNTuple have none; and the "counter" of a split object's member may be another member
    found = branch.count_branch if getattr(branch, "classname", "") == "TBranch" else None
    return None if found is None else str(found.name)


def is_size_damaged(error: MemoryError, branches: Sequence[Any], num_entries: int) -> bool:
    """Tell whether an array was to be made that is far larger than all that its branches have.

    Smaller ranges, the cure for a lack of memory, would not help then.

    Parameters
    ----------
    error : MemoryError
        numpy's own says what was asked for; of any other, nothing is known.
    branches : sequence of uproot.TBranch
        What was read. Fields of an RNTuple don't know their size.
    num_entries : int
        Of the tree.
    """
    shape, dtype = getattr(error, "shape", None), getattr(error, "dtype", None)
    sizes = [getattr(branch, "uncompressed_bytes", None) for branch in branches]
    known = [int(size) for size in sizes if size is not None]
    if shape is None or dtype is None or len(known) < len(sizes):
        return False
    # offsets and converted numbers may take some times as much as what is stored
    return bool(math.prod(shape) * dtype.itemsize > 16 * (sum(known) + 8 * num_entries))


@contextmanager
def layout_errors(entry_range: EntryRange, events: str) -> Iterator[None]:
    """Turn any exception into a `FileReadError`: no user code runs while a layout is made of a file's description.

    Parameters
    ----------
    entry_range : EntryRange
        What is to be read.
    events : str
        What the branches are made into, "NanoAODSchema" say.
    """
    try:
        yield
    except (MemoryError, ImportError):
        raise  # say nothing about the file
    except Exception as error:  # noqa: BLE001  # a damaged description raises anything
        read_error = as_read_error(error, entry_range.file, f"its branches as {events}")
        raise read_error from read_error.__cause__


def find_read_error(error: BaseException, entry_range: EntryRange) -> FileReadError | None:
    """Find out whether an exception of a processor comes from the file: it was raised while a lazy array was made.

    Parameters
    ----------
    error : BaseException
        What the processor raised.
    entry_range : EntryRange
        What it was called with.

    Returns
    -------
    FileReadError or None
        To be raised from its ``__cause__``; None if the file has nothing to do with it.
    """
    for one in exception_chain(error):
        if _is_from_lazy_array(one.__traceback__) and not isinstance(one, MemoryError):
            return as_read_error(one, entry_range.file, str(entry_range))
    return None


def _is_from_lazy_array(traceback: TracebackType | None) -> bool:
    """Tell whether awkward was turning what a reader gave it into an array: sizes that don't fit are found there."""
    while traceback is not None:
        frame = traceback.tb_frame
        module = frame.f_globals.get("__name__")
        if module == "awkward.operations.ak_from_buffers" and frame.f_code.co_name == "generator":
            return True
        traceback = traceback.tb_next
    return False
