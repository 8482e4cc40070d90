"""Large results that wait for their neighbours: in files of their own on this machine, and few of them in memory.

A task of `n` ranges holds up to ``log2(n)`` results at a time, as the shape of the tree is fixed, and those of finished tasks wait
for each other. With accumulators of many megabytes that is what fills a worker. In a task those that wait longest are put aside:
they are the largest subtrees, and few. What a task hands on is put aside in any case.
"""

from __future__ import annotations

import itertools
import pickle
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hepdask.blocks import cut, shrink, unpack
from hepdask.partial import PartialResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import IO

__all__ = ["Aside", "Held", "bring_back", "count_bytes", "hand_on", "put_aside"]

#: Results that wait in memory at a time, however large; more of them only if they are small.
MAX_IN_MEMORY = 2
#: What is smaller stays in memory.
MIN_BYTES = 16 * 2**20
#: What is compressed at a time.
BLOCK_BYTES = 4 * 2**20
#: Objects of an accumulator that are looked at for their size.
MAX_OBJECTS = 10_000
_TAKEN = PartialResult()
_Part = tuple[int, Sequence[int]]


class Aside:
    """An accumulator in a file that has no name, and vanishes with this object or its process.

    It can be loaded any number of times, each time as a new object. Pickled, it is what is in the file: compressed, where that pays.

    Parameters
    ----------
    parts : sequence of (int, sequence of int)
        Of the pickle of the accumulator and of each of its buffers: the bytes, and what the blocks of it take in the file.
    blocks : iterable of bytes-like
        What goes to the file.
    directory : str or None
        On this machine; None: where the system has temporary files.

    Attributes
    ----------
    num_bytes : int
        In memory.
    """

    __slots__ = ("_file", "_lock", "_num_stored", "_parts", "num_bytes")

    def __init__(
        self, parts: Sequence[_Part], blocks: Iterable[Any], directory: str | None = None
    ) -> None:
        self._parts = parts
        self.num_bytes = sum(num_bytes for num_bytes, _ in parts)
        self._num_stored = sum(sum(sizes) for _, sizes in parts)
        # dask may send it from one thread while another one merges it, and a file has one position
        self._lock = threading.Lock()
        self._file = tempfile.TemporaryFile(dir=directory, prefix="hepdask-")  # noqa: SIM115  # as long as this object
        try:
            for block in blocks:
                self._file.write(block)
            self._file.flush()
        except OSError:
            self._file.close()
            raise

    @classmethod
    def pack(cls, pieces: Sequence[Any], directory: str | None) -> Aside:
        """Put pieces aside, each block of them compressed if that pays."""
        views = [memoryview(piece).cast("B") for piece in pieces]
        shrunk = [[shrink(block) for block in cut(view, BLOCK_BYTES)] for view in views]
        parts = [
            (view.nbytes, tuple(map(len, blocks)))
            for view, blocks in zip(views, shrunk, strict=True)
        ]
        return cls(parts, itertools.chain.from_iterable(shrunk), directory)

    def __del__(self) -> None:
        file = getattr(self, "_file", None)
        if file is not None:
            file.close()

    def load(self) -> Any:
        """Return the accumulator: a new object, that nobody else holds."""
        return _unpack(self._parts, self._read)

    def _read(self) -> memoryview:
        with self._lock:
            self._file.seek(0)
            return memoryview(_read(self._file, self._num_stored))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # dask asks for the protocol that has buffers, and sends them as they are
        kind = pickle.PickleBuffer if protocol >= 5 else bytes
        return _receive, (self._parts, kind(self._read()))


def _receive(parts: Sequence[_Part], stored: Any) -> Any:
    """Put what came from another process aside here; what has no place stays in memory."""
    try:
        return Aside(parts, [stored])
    except OSError:
        return _unpack(parts, lambda: memoryview(stored).cast("B"))


def _unpack(parts: Sequence[_Part], read: Callable[[], memoryview]) -> Any:
    stored = read()
    start = 0
    pieces = []
    for num_bytes, sizes in parts:
        # writable, as arrays are changed in place
        piece = memoryview(bytearray(num_bytes))
        for block, size in zip(cut(piece, BLOCK_BYTES), sizes, strict=True):
            unpack(stored[start : start + size], block)
            start += size
        pieces.append(piece)
    stream, *buffers = pieces
    return pickle.loads(stream, buffers=buffers)


def _write(accumulator: Any, directory: str | None) -> Aside | None:
    """Put an accumulator aside; None if it can't be pickled, or has no place there."""
    buffers: list[pickle.PickleBuffer] = []
    try:
        stream = pickle.dumps(accumulator, 5, buffer_callback=buffers.append)
        return Aside.pack([stream, *(one.raw() for one in buffers)], directory)
    except Exception:  # noqa: BLE001  # pickling runs anybody's code
        return None


def hand_on(result: PartialResult, directory: str | None) -> PartialResult:
    """Put the accumulator of a finished task aside if it is large, until the next one needs it.

    Parameters
    ----------
    result : PartialResult
        Of the task.
    directory : str or None
        On this machine.
    """
    if count_bytes(result.accumulator) < MIN_BYTES:
        return result
    aside = _write(result.accumulator, directory)
    return result if aside is None else replace(result, accumulator=aside)


def bring_back(result: PartialResult) -> PartialResult:
    """Undo `hand_on`."""
    accumulator = result.accumulator
    return (
        replace(result, accumulator=accumulator.load())
        if isinstance(accumulator, Aside)
        else result
    )


class Held:
    """A result of one task that waits for its neighbour.

    Parameters
    ----------
    result : PartialResult
        Not used by anybody else in this task.
    is_own : bool
        True if its accumulator was made by a merge in this task: nobody at all holds it.
    """

    __slots__ = ("_num_bytes", "_result", "is_own")

    def __init__(self, result: PartialResult, *, is_own: bool) -> None:
        self._result = result
        self.is_own = is_own
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
        return not isinstance(self._result.accumulator, Aside)

    def take(self) -> PartialResult:
        """Return the result, once: it is not held here any more."""
        # whoever made this object may still refer to it
        result, self._result = self._result, _TAKEN
        if isinstance(result.accumulator, Aside):
            self.is_own = True  # a copy that was made here
        return bring_back(result)

    def put_aside(self, directory: str | None) -> None:
        """Write the accumulator to a file. If that can't be, it stays here.

        Parameters
        ----------
        directory : str or None
            On this machine; None: where the system has temporary files.
        """
        aside = _write(self._result.accumulator, directory)
        if aside is None:
            self._num_bytes = 0
        else:
            self._result = replace(self._result, accumulator=aside)


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
    if isinstance(value, Aside):
        return value.num_bytes
    if histograms is not None and isinstance(value, histograms.Histogram):
        return int(value.view(flow=True).nbytes)
    size = getattr(value, "nbytes", None)
    if isinstance(size, int):
        return size
    try:
        return sys.getsizeof(value)
    except Exception:  # noqa: BLE001  # anybody's class
        return 0
