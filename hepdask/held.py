"""Large results that wait for their neighbours: in files of their own on this machine, and few of them in memory.

A task of `n` ranges holds up to ``log2(n)`` results at a time, as the shape of the tree is fixed, and those of finished tasks wait
for each other. With accumulators of many megabytes that is what fills a worker. In a task those that wait longest are put aside:
they are the largest subtrees, and few. What a task hands on is put aside in any case.
"""

from __future__ import annotations

import pickle
import sys
import tempfile
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hepdask.partial import PartialResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import IO

__all__ = ["Aside", "Held", "bring_back", "count_bytes", "hand_on", "put_aside"]

#: Results that wait in memory at a time, however large; more of them only if they are small.
MAX_IN_MEMORY = 2
#: What is smaller stays in memory.
MIN_BYTES = 16 * 2**20
#: Objects of an accumulator that are looked at for their size.
MAX_OBJECTS = 10_000
_TAKEN = PartialResult()


class Aside:
    """An accumulator in a file that has no name, and vanishes with this object or its process.

    It can be loaded any number of times, each time as a new object. Pickled, it is what is in the file.

    Parameters
    ----------
    pieces : sequence of bytes-like
        The pickle of the accumulator and its buffers.
    directory : str or None
        On this machine; None: where the system has temporary files.

    Attributes
    ----------
    num_bytes : int
        In the file.
    """

    __slots__ = ("_file", "_lock", "_sizes", "num_bytes")

    def __init__(self, pieces: Sequence[Any], directory: str | None = None) -> None:
        views = [memoryview(piece).cast("B") for piece in pieces]
        self._sizes = [view.nbytes for view in views]
        self.num_bytes = sum(self._sizes)
        # dask may send it from one thread while another one merges it, and a file has one position
        self._lock = threading.Lock()
        self._file = tempfile.TemporaryFile(dir=directory, prefix="hepdask-")  # noqa: SIM115  # as long as this object
        try:
            for view in views:
                self._file.write(view)
            self._file.flush()
        except OSError:
            self._file.close()
            raise

    def __del__(self) -> None:
        file = getattr(self, "_file", None)
        if file is not None:
            file.close()

    def load(self) -> Any:
        """Return the accumulator: a new object, that nobody else holds."""
        stream, *buffers = self._read_all()
        return pickle.loads(stream, buffers=buffers)

    def _read_all(self) -> list[bytearray]:
        with self._lock:
            self._file.seek(0)
            return [_read(self._file, size) for size in self._sizes]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # dask asks for the protocol that has buffers, and sends them as they are
        kind = pickle.PickleBuffer if protocol >= 5 else bytes
        return _receive, tuple(map(kind, self._read_all()))


def _receive(*pieces: Any) -> Any:
    """Put what came from another process aside here; what has no place stays in memory."""
    try:
        return Aside(pieces)
    except OSError:
        stream, *buffers = (bytearray(piece) for piece in pieces)
        return pickle.loads(stream, buffers=buffers)


def _write(accumulator: Any, directory: str | None) -> Aside | None:
    """Put an accumulator aside; None if it can't be pickled, or has no place there."""
    buffers: list[pickle.PickleBuffer] = []
    try:
        stream = pickle.dumps(accumulator, 5, buffer_callback=buffers.append)
        return Aside([stream, *(one.raw() for one in buffers)], directory)
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
