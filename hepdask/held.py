"""Results that wait for their neighbours: in memory if they are small or few, otherwise in a file of their own on this machine.

A task of `n` ranges holds up to ``log2(n)`` results at a time, as the shape of the tree is fixed. With accumulators of many
megabytes that is what fills a worker. Those that wait longest are put aside: they are the largest subtrees, and there are few
of them.
"""

from __future__ import annotations

import pickle
import sys
import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hepdask.partial import PartialResult

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import IO

__all__ = ["Held", "count_bytes", "put_aside"]

#: Results that wait in memory at a time, however large; more of them only if they are small.
MAX_IN_MEMORY = 2
#: What is smaller stays in memory: a file costs about a millisecond.
MIN_BYTES = 4 * 2**20
#: Objects of an accumulator that are looked at for their size.
MAX_OBJECTS = 10_000
_TAKEN = PartialResult()


class Held:
    """A result of one task that waits for its neighbour.

    Parameters
    ----------
    result : PartialResult
        Not used by anybody else in this task.
    is_own : bool
        True if its accumulator was made by a merge in this task: nobody at all holds it.
    """

    __slots__ = ("_file", "_num_bytes", "_result", "_sizes", "is_own")

    def __init__(self, result: PartialResult, *, is_own: bool) -> None:
        self._result = result
        self.is_own = is_own
        self._file: IO[bytes] | None = None
        self._sizes: list[int] = []
        self._num_bytes: int | None = None

    @property
    def is_large(self) -> bool:
        """True if it is worth a file. Most results are never asked, as few wait at a time."""
        if self._num_bytes is None:
            self._num_bytes = count_bytes(self._result.accumulator)
        return self._num_bytes >= MIN_BYTES

    @property
    def is_in_memory(self) -> bool:
        """True until it is put aside."""
        return self._file is None

    def take(self) -> PartialResult:
        """Return the result, once: it is not held here any more."""
        result, file = self._result, self._file
        # whoever made this object may still refer to it
        self._result = _TAKEN
        if file is None:
            return result
        with file:
            file.seek(0)
            stream, *buffers = [_read(file, size) for size in self._sizes]
        self.is_own = True  # a copy that was made here
        return replace(result, accumulator=pickle.loads(stream, buffers=buffers))

    def put_aside(self, directory: str | None) -> None:
        """Write the accumulator to a file that has no name, and vanishes with this process. If that can't be, it stays here.

        Parameters
        ----------
        directory : str or None
            On this machine; None: where the system has temporary files.
        """
        buffers: list[pickle.PickleBuffer] = []
        try:
            stream = pickle.dumps(self._result.accumulator, 5, buffer_callback=buffers.append)
            pieces = [memoryview(stream), *(one.raw() for one in buffers)]
            file = tempfile.TemporaryFile(dir=directory, prefix="hepdask-")  # noqa: SIM115  # closed by take
        except Exception:  # noqa: BLE001  # what can't be pickled (or has no place) stays in memory
            self._num_bytes = 0
            return
        try:
            for piece in pieces:
                file.write(piece)
        except OSError:
            file.close()
            self._num_bytes = 0
            return
        self._sizes = [piece.nbytes for piece in pieces]
        self._file = file
        self._result = replace(self._result, accumulator=None)


def put_aside(waiting: Iterable[Held], directory: str | None) -> None:
    """Put aside what is large, but for the last few: they are needed first.

    Parameters
    ----------
    waiting : iterable of Held
        Those that are needed last come first.
    directory : str or None
        See `Held.put_aside`.
    """
    large = [one for one in waiting if one.is_large and one.is_in_memory]
    for one in large[:-MAX_IN_MEMORY]:
        one.put_aside(directory)


def _read(file: IO[bytes], size: int) -> bytearray:
    # writable, as arrays are changed in place
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        num_read = file.readinto(view)  # type: ignore[attr-defined]  # a file of bytes has it
        if not num_read:
            raise EOFError("a result that was put aside is cut off")
        view = view[num_read:]
    return buffer


def count_bytes(accumulator: Any) -> int:
    """Estimate the memory of an accumulator, of what can be large in it: arrays, histograms, texts.

    Parameters
    ----------
    accumulator : object
        Containers are looked into, up to `MAX_OBJECTS` objects.

    Returns
    -------
    int
        In bytes.
    """
    total = 0
    pending = [accumulator]
    for _ in range(MAX_OBJECTS):
        if not pending:
            break
        one = pending.pop()
        total += _own_bytes(one)
        if isinstance(one, dict):
            pending.extend(one.values())
        elif isinstance(one, (list, tuple)):
            pending.extend(one[:MAX_OBJECTS])
    return total


def _own_bytes(value: Any) -> int:
    histograms = sys.modules.get("boost_histogram")
    if histograms is not None and isinstance(value, histograms.Histogram):
        return int(value.view(flow=True).nbytes)
    size = getattr(value, "nbytes", None)
    if isinstance(size, int):
        return size
    try:
        return sys.getsizeof(value)
    except Exception:  # noqa: BLE001  # anybody's class
        return 0
