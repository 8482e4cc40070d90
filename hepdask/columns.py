"""Which branches a processor touches, found out once for each layout."""

from __future__ import annotations

import hashlib
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hepdask.errors import StoreError
from hepdask.ranges import EntryRange
from hepdask.readers.uses import Seed, Use

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping

    from hepdask.attempt import Work
    from hepdask.metadata import FileMetadata, MetadataCache
    from hepdask.store import Section

__all__ = ["CachedTraces", "KeptTraces", "Trace", "count_bytes_per_entry", "trace_columns"]

#: Entries that are really read if the processor can't do with none.
NUM_TRACED_ENTRIES = 100


@dataclass(frozen=True, slots=True)
class Trace:
    """What the automatic size of ranges is chosen from.

    Attributes
    ----------
    columns : frozenset of str
        Branches that the processor touches; empty if there are none, or none could be found.
    bytes_per_entry : float or None
        Uncompressed bytes of these branches in the file that was looked at; None if that is not known.
    layout_key : str
        The reader's, of the file that was looked at.
    seed : Seed or None
        What workers start with in files of this layout; None if nothing could be found.
    """

    columns: frozenset[str]
    bytes_per_entry: float | None
    layout_key: str = ""
    seed: Seed | None = None


@dataclass(frozen=True, slots=True)
class KeptTraces:
    """Traces, kept in the store: a finished run needs no task to plan it, and files are split as they were before.

    Results of ranges are of no use for other ranges. So what was found first counts, whatever file is the first one now,
    and also where nothing could be found.

    Attributes
    ----------
    section : Section
        For the results of this processor.
    """

    section: Section

    def load(self, layout: Hashable) -> Trace | None:
        """Return the trace for a layout; None if there is none."""
        try:
            found: Trace = self.section.load(self._key(layout))
        except StoreError:
            return None
        return found

    def save(self, layout: Hashable, trace: Trace) -> None:
        """Keep the trace for a layout; what can't be kept is found anew next time."""
        with suppress(StoreError):
            self.section.save(self._key(layout), trace, summary={})

    def _key(self, layout: Hashable) -> str:
        digest = hashlib.blake2b(repr(layout).encode(), digest_size=20, person=b"hepdask traces")
        # of no ranges: never taken for a node
        return f"{digest.hexdigest()}{0:08x}"


@dataclass(frozen=True, slots=True)
class CachedTraces:
    """Traces, noted in the metadata cache, for processors that are the same in code, arguments and schema.

    Attributes
    ----------
    cache : MetadataCache
        Where.
    processor : str
        Fingerprint of the processor, its schema and the versions.
    """

    cache: MetadataCache
    processor: str

    def load(self) -> dict[Hashable, Trace]:
        """Return the traces that there are, by layout."""
        found: dict[Hashable, Trace] = {}
        for layout, noted in self.cache.notes(self._subject).items():
            with suppress(KeyError, TypeError):  # of another version
                fields = None if noted["fields"] is None else frozenset(noted["fields"])
                use = Use(fields, frozenset(noted["branches"]))
                columns = frozenset(noted["columns"])
                found[layout] = Trace(
                    columns, noted["bytes_per_entry"], noted["layout_key"], Seed(use)
                )
        return found

    def save(self, traces: Mapping[Hashable, Trace]) -> None:
        """Note the traces of some layouts; those that found nothing are tried again next time."""
        noted = {
            str(layout): {
                "columns": sorted(one.columns),
                "bytes_per_entry": one.bytes_per_entry,
                "layout_key": one.layout_key,
                "branches": sorted(one.seed.use.branches),
                "fields": None if one.seed.use.fields is None else sorted(one.seed.use.fields),
            }
            for layout, one in traces.items()
            if one.seed is not None
        }
        self.cache.note(self._subject, noted)

    @property
    def _subject(self) -> str:
        return f"trace {self.processor}"


def trace_columns(ranges: Iterable[EntryRange], work: Work) -> list[Trace]:
    """Find the branches that the processor touches in some files.

    The processor is called with no entries: every branch that it asks for is noted, and nothing is read. A processor
    that can't do with none is called with the first `NUM_TRACED_ENTRIES`.

    Parameters
    ----------
    ranges : iterable of EntryRange
        One range of each file that is looked at.
    work : Work
        The processor and the reader.

    Returns
    -------
    list of Trace
        For each range. No columns where nothing could be found: the run itself will show the error. How many bytes they have
        is not known here.
    """
    return [_trace(entry_range, work) for entry_range in ranges]


def _trace(entry_range: EntryRange, work: Work) -> Trace:
    for attempt in _attempts(entry_range):
        try:
            with warnings.catch_warnings(), work.reader.read(attempt) as opened:
                warnings.simplefilter("ignore")
                work.process.trial()(opened.events)
                use = opened.find_use()
                form = work.reader.pack_form(opened.handle.open_file)
                return Trace(use.branches, None, opened.layout_key, Seed(use, form))
        except Exception:  # noqa: BLE001, S112  # a trace is a hint: what is wrong with the file or the code shows in the run
            continue
    return Trace(frozenset(), None)


def _attempts(entry_range: EntryRange) -> Iterator[EntryRange]:
    start = entry_range.entry_start
    yield EntryRange(entry_range.file, start, start)
    if entry_range.num_entries:
        yield EntryRange(
            entry_range.file, start, start + min(NUM_TRACED_ENTRIES, entry_range.num_entries)
        )


def count_bytes_per_entry(metadata: FileMetadata, columns: frozenset[str]) -> float | None:
    """Return the mean uncompressed bytes of some branches per entry.

    Parameters
    ----------
    metadata : FileMetadata
        Of a file, with its branches.
    columns : frozenset of str
        Names of branches in use.

    Returns
    -------
    float or None
        None if the file has no entries, or none of the branches.
    """
    sizes = [
        branch.num_uncompressed_bytes for branch in metadata.branches if branch.name in columns
    ]
    if not sizes or metadata.num_entries == 0:
        return None
    return sum(sizes) / metadata.num_entries
