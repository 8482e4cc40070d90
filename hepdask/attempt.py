"""Process one range, once, and measure around the calls."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import MutableMapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hepdask.endpoints import endpoint_of
from hepdask.errors import ExecutorError, FileReadError, ProcessorError
from hepdask.metrics import Counters, PartialMetrics, count_peak_memory, host_name
from hepdask.readers.cut import plain_behavior
from hepdask.readers.damage import find_read_error
from hepdask.readers.uses import Uses
from hepdask.recovery import RecoveryPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from hepdask.processor import ProcessorCopies
    from hepdask.ranges import EntryRange
    from hepdask.readers import Reader
    from hepdask.readers.branches import RangeEvents

__all__ = ["Attempt", "Work", "materialize"]

_PLAIN = frozenset({bool, int, float, str})


@dataclass(frozen=True, slots=True)
class Work:
    """What is done with each range: the same for a whole run, and sent once.

    Attributes
    ----------
    process : ProcessorCopies
        Calls the user's ``process(events)``.
    reader : Reader
        Gives the events.
    skipped : tuple of exception types
        What `skipbadfiles` lets pass.
    recovery : RecoveryPolicy
        What is done with a range that failed.
    uses : Uses
        What the processor is known to use of the events; each process learns more of it.
    """

    process: ProcessorCopies
    reader: Reader
    skipped: tuple[type[BaseException], ...] = ()
    recovery: RecoveryPolicy = field(default_factory=RecoveryPolicy)
    uses: Uses = field(default_factory=Uses)


class Attempt:
    """One attempt to process a range.

    Parameters
    ----------
    entry_range : EntryRange
        What to process.
    upcoming : iterable of EntryRange
        What comes next, as far as that is known.
    """

    def __init__(self, entry_range: EntryRange, upcoming: Iterable[EntryRange] = ()) -> None:
        self._range = entry_range
        self._upcoming = upcoming
        self._start = time.time()
        self._wall = time.perf_counter()
        self._cpu = time.thread_time()
        self._counters = Counters(num_ranges=1)
        self._columns: frozenset[str] = frozenset()
        self._missed: frozenset[str] = frozenset()
        self._failed_replicas: tuple[str, ...] = ()
        self.replica = ""

    @property
    def num_requested_bytes(self) -> int:
        """Bytes requested from the file."""
        return self._counters.num_requested_bytes

    def process(self, work: Work) -> Any:
        """Read the range and call the processor.

        Returns
        -------
        object
            The accumulator; nothing in it is lazy any more.

        Raises
        ------
        FileReadError
            If the file can't be read.
        ProcessorError
            If the processor raises, or returns None.
        """
        with work.reader.read(self._range, work.uses, self._upcoming) as opened:
            self.replica = opened.handle.open_file.replica
            started = time.perf_counter()
            read_before = opened.tally.read_seconds
            try:
                return self._call_as_often_as_needed(work, opened)
            finally:
                lazy_seconds = opened.tally.read_seconds - read_before
                self._note(opened, time.perf_counter() - started - lazy_seconds)

    def _call_as_often_as_needed(self, work: Work, opened: RangeEvents) -> Any:
        """Call the processor; once more if it can't do with the fields that were built."""
        try:
            accumulator = self._call(work.process, opened.events)
        except ProcessorError as error:
            if not (opened.lazy.is_bypassed or (opened.lazy.unbuilt and _is_of_awkward(error))):
                raise
            # a layout may have something else where a field was not built: whose mistake it is shows when all are
            opened.lazy.is_bypassed = True
        if opened.lazy.is_bypassed:  # whatever came of it
            opened.build_whole()
            accumulator = self._call(work.process, opened.events)
        if self._range.num_entries:
            work.uses.note(opened.layout_key, opened.find_use())
        return accumulator

    def _call(self, process: Callable[[Any], Any], events: Any) -> Any:
        try:
            accumulator = process(events)
            # what is still lazy is read here: it may fail as well
            made = None if accumulator is None else materialize(accumulator)
        except (FileReadError, ExecutorError):
            raise  # noticed when the processor touched the branch; or there is no processor
        except (Exception, SystemExit) as error:
            read_error = find_read_error(error, self._range)
            if read_error is not None:
                raise read_error from read_error.__cause__
            raise ProcessorError(f"process() raised {type(error).__name__}") from error
        if made is None:
            raise ProcessorError(
                "process() returned None: return an accumulator, a dict of histograms say"
            )
        return made

    def _note(self, opened: RangeEvents, process_seconds: float) -> None:
        handle, tally = opened.handle, opened.tally
        self._columns = frozenset(tally.columns)
        self._missed = opened.find_missed()
        self._failed_replicas = handle.failed_replicas
        self._counters = replace(
            self._counters,
            num_opens=0 if handle.was_kept else 1,
            num_failed_opens=len(handle.failed_replicas),
            open_seconds=handle.open_seconds,
            form_seconds=opened.form_seconds,
            read_seconds=tally.read_seconds,
            process_seconds=process_seconds,
            num_requested_bytes=opened.num_requested_bytes,
            num_compressed_bytes=tally.num_compressed_bytes,
            num_uncompressed_bytes=tally.num_uncompressed_bytes,
        )

    def metrics(self, num_entries: int) -> PartialMetrics:
        """Return what it cost, until now.

        Parameters
        ----------
        num_entries : int
            Entries that were processed: zero after a failure.
        """
        counters = replace(
            self._counters,
            num_entries=num_entries,
            wall_seconds=time.perf_counter() - self._wall,
            cpu_seconds=time.thread_time() - self._cpu,
        )
        host = host_name()
        file = self._range.file
        key = (file.dataset, file.file_path)
        is_first = self.replica in {"", file.file_path}
        return PartialMetrics(
            files={key: counters},
            hosts={host: counters},
            endpoints=self._endpoints(counters),
            served={} if is_first else {key: frozenset({self.replica})},
            peak_memory_bytes={host: count_peak_memory()},
            columns=self._columns,
            missed=self._missed,
            first_start=self._start,
        )

    def _endpoints(self, counters: Counters) -> dict[str, Counters]:
        """Give the costs to the endpoint that served the range, and each failed open to the one that failed."""
        if not self.replica:
            return {}
        served = replace(counters, num_failed_opens=0) if self._failed_replicas else counters
        endpoints = {endpoint_of(self.replica): served}
        for failed in map(endpoint_of, self._failed_replicas):
            endpoints[failed] = endpoints.get(failed, Counters()) + Counters(num_failed_opens=1)
        return endpoints


def _is_of_awkward(error: ProcessorError) -> bool:
    """Return whether awkward raised what ended the processor, and not the user's own code."""
    cause = error.__cause__
    if cause is None or cause.__traceback__ is None:
        return False
    *_, (frame, _) = traceback.walk_tb(cause.__traceback__)
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] == "awkward"


def materialize(accumulator: Any) -> Any:
    """Read what is still lazy in an output, as long as its file is open, and let go of the events it comes from.

    Awkward arrays in mappings, lists and tuples are looked for; everything else stays as it is.
    """
    if isinstance(accumulator, MutableMapping):
        for key, value in accumulator.items():
            made = materialize(value)
            if made is not value:
                accumulator[key] = made
    elif isinstance(accumulator, list):
        if not all(type(one) in _PLAIN for one in accumulator):
            accumulator[:] = map(materialize, accumulator)
    elif isinstance(accumulator, tuple):
        parts = map(materialize, accumulator)
        kind = type(accumulator)
        return kind(*parts) if hasattr(accumulator, "_fields") else kind(parts)
    elif "awkward" in sys.modules:
        return _materialize_array(accumulator)
    return accumulator


def _materialize_array(array: Any) -> Any:
    import awkward

    if not isinstance(array, awkward.Array):
        return array
    # attributes with an @ hold on to the whole range of events (awkward leaves them out of pickles for that)
    attributes = {name: value for name, value in array.attrs.items() if not name.startswith("@")}
    layout = awkward.materialize(array).layout
    return awkward.Array(layout, behavior=plain_behavior(array.behavior), attrs=attributes)
