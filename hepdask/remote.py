"""Remote files: few round trips to open one, and bytes that are on their way while a range computes.

A range of a remote file costs a round trip and the transfer before its first event can be looked at. What is read next is
known, and so are the branches. So their baskets are requested, all at once, when the range before has its own bytes; the
libraries below wait for the answer in threads of theirs. Reading then finds the bytes there. What is there and never
fetched is dropped at the end of the task, or when something else is requested. Local files need none of this.

Imports uproot: import it where it is used.
"""

from __future__ import annotations

import queue
import struct
from typing import TYPE_CHECKING, Any

from uproot.source.chunk import Chunk
from uproot.source.coalesce import CoalesceConfig
from uproot.source.fsspec import FSSpecSource

from hepdask.paths import is_xrootd
from hepdask.read_errors import read_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["BEGIN_BYTES", "RemoteSource"]

#: The header, and in files that uproot writes the names of the trees and their keys: in one request.
BEGIN_BYTES = 65_536
#: ROOT writes what describes the trees last: the trees themselves (125 kB for 1,500 branches of 10 baskets), their names, the
#: classes. These are four requests of uproot, one after the other; they are one if so many bytes from the end come together.
END_BYTES = 524_288
#: Compressed bytes that a file may have on their way or waiting. A range aims at 64 MB uncompressed, some 20 MB compressed, and
#: two of them hide any round trip.
MAX_AHEAD_BYTES = 64 * 2**20
#: Files of 2 GB and more say so by their version, and have larger numbers in the header.
_FIRST_LARGE_VERSION = 1_000_000
_HEADER_BYTES = 20
#: XRootD is asked for many pieces in one request, each as it is: neighbours that come as one are copied to be put together (in
#: pieces of 2 MB, once for each that is there already), and again to be taken apart.
_VECTOR_READS = CoalesceConfig(
    max_range_gap=-1, min_first_request_bytes=CoalesceConfig.max_request_bytes
)


class RemoteSource(FSSpecSource):  # type: ignore[misc]  # uproot has no types
    """An uproot source that can be asked for bytes before they are read.

    Parameters
    ----------
    file_path : str
        URL of the file.
    **options
        Of `uproot.open` and of fsspec.

    Attributes
    ----------
    num_ahead_bytes : int
        Bytes that were requested before they were read.
    num_served_bytes : int
        Those of them that then were read.
    """

    def __init__(self, file_path: str, **options: Any) -> None:
        config = _VECTOR_READS if is_xrootd(file_path) else None
        super().__init__(file_path, coalesce_config=config, **options)
        self._ahead: dict[tuple[int, int], Any] = {}
        self._is_new = True
        #: where the file ends, and what it ends with; as long as it is being opened
        self._file_end = 0
        self._end: Any = None
        self.num_ahead_bytes = 0
        self.num_served_bytes = 0

    def __exit__(self, *exception: object) -> None:
        self.drop()
        super().__exit__(*exception)

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
        return [*found, *(super().chunks(missing, notifications) if missing else ())]

    def chunk(self, start: int, stop: int) -> Any:
        """Give one piece of the file, as uproot asks for what describes it, and for the pages of an RNTuple.

        Parameters
        ----------
        start, stop : int
            Half-open range of bytes.
        """
        found = self._take((start, stop))
        if found is None and self._file_end:
            found = self._take_from_end(start, stop)
        if found is None:
            found = super().chunk(start, stop)
            if self._is_new:
                self._is_new = False
                self._file_end = _find_end(found.future.result()[:_HEADER_BYTES])
        return found

    def end_opening(self) -> None:
        """Let go of the end of the file: the tree is there."""
        self._end, self._file_end = None, 0

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
        new = [one for one in ranges if one not in self._ahead]
        num_waiting = sum(stop - start for start, stop in self._ahead)
        num_new = sum(stop - start for start, stop in new)
        if not are_needed and num_waiting + num_new > MAX_AHEAD_BYTES:
            return False
        if new:
            for chunk in super().chunks(new, queue.Queue()):
                self._ahead[chunk.start, chunk.stop] = chunk
                self.num_ahead_bytes += chunk.stop - chunk.start
        return True

    def drop(self) -> None:
        """Let go of what was requested and not read; what is still on its way is thrown away when it comes."""
        self._ahead = {}

    def _take(self, one: tuple[int, int]) -> Any:
        chunk = self._ahead.pop((int(one[0]), int(one[1])), None)
        if chunk is None:
            return None
        try:
            chunk.wait()
        except read_errors():
            return None  # it is requested again, and an error then is one of reading
        self.num_served_bytes += chunk.stop - chunk.start
        return chunk

    def _take_from_end(self, start: int, stop: int) -> Any:
        """Give a piece that is near the end of the file; None if it is not, or the file ends before its header says so."""
        if self._end is None:
            first = max(self._file_end - END_BYTES, BEGIN_BYTES)
            if not (first <= start and stop <= self._file_end):
                return None
            data = super().chunk(first, self._file_end).future.result()
            self._end = Chunk.wrap(self, data, first)
        if (start, stop) not in self._end:
            return None
        piece = slice(start - self._end.start, stop - self._end.start)
        return Chunk.wrap(self, self._end.raw_data[piece], start)


def _find_end(header: bytes) -> int:
    """Tell where a file ends, from what it begins with: https://root.cern/doc/master/classTFile.html, "fEND"."""
    if len(header) < _HEADER_BYTES:
        return 0
    version, _ = struct.unpack_from(">ii", header, 4)
    form = ">q" if version >= _FIRST_LARGE_VERSION else ">i"
    return int(struct.unpack_from(form, header, 12)[0])
