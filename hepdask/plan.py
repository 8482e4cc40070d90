"""What a run will do: files, facts, ranges; before anything is processed."""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from hepdask.columns import CachedTraces, KeptTraces, Trace, count_bytes_per_entry, trace_columns
from hepdask.costs import FileLayout, Prediction, Rates, predict, weigh
from hepdask.discovery import expand_globs, make_absolute
from hepdask.executors import NotReached
from hepdask.failures import Failure, build_failure
from hepdask.fileset import load_fileset
from hepdask.metadata import FileMetadata
from hepdask.metadata.branches import Branches
from hepdask.paths import local_path
from hepdask.ranges import EntryRange, limit_ranges, split_file
from hepdask.tables import Table
from hepdask.task import inspect_files, warm_files

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

    from hepdask.attempt import Work
    from hepdask.executors import Executor
    from hepdask.fileset import Fileset, InputFile
    from hepdask.metadata import MetadataCache
    from hepdask.opening import ReadOptions
    from hepdask.progress import Progress
    from hepdask.ranges import SplitOptions
    from hepdask.readers.uses import Seed
    from hepdask.recovery import RecoveryPolicy
    from hepdask.store import Section

__all__ = ["Limits", "Plan", "Planner"]

#: How often facts about files that were inspected are noted in the cache meanwhile.
CACHE_SECONDS = 10.0


#: Files that workers with nothing to do open while others inspect them.
MAX_WARM_FILES = 1


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a fileset is processed.

    Attributes
    ----------
    max_files : int or None
        Files of each dataset, at most; the first ones.
    max_ranges : int or None
        Ranges of each dataset, at most; the first ones (coffea's ``maxchunks``).
    """

    max_files: int | None = None
    max_ranges: int | None = None


@dataclass(frozen=True)
class Plan:
    """The ranges of a run, in dataset order, and what could not be planned.

    Attributes
    ----------
    files : tuple of InputFile
        All files that are asked for, with `num_entries` and `uuid` where they are known.
    ranges : tuple of EntryRange
        The leaves of the tree.
    stopped_by : str
        Why not all files were inspected, in words; empty if they were.
    failures : tuple of Failure
        Files that could not be inspected.
    columns : frozenset of str
        Branches that the processor was seen to touch; empty if that wasn't looked for.
    num_bytes : int or None
        Uncompressed bytes of these branches in all ranges; None if that is not known.
    num_inspected : int
        Files that were opened to know their entries; the others were known from the fileset or the cache.
    seeds : mapping of str to Seed
        What workers start with, by the readers' keys of layouts.
    layouts : mapping of (file_path, treename) to FileLayout
        Of the files of which it is known.
    rates : mapping of str to Rates
        What earlier runs of the processor took, by digest of the layout.
    """

    files: tuple[InputFile, ...]
    ranges: tuple[EntryRange, ...]
    stopped_by: str = field(default="", kw_only=True)
    failures: tuple[Failure, ...] = ()
    columns: frozenset[str] = frozenset()
    num_bytes: int | None = None
    num_inspected: int = 0
    seeds: Mapping[str, Seed] = field(default_factory=dict)
    layouts: Mapping[tuple[str, str], FileLayout] = field(default_factory=dict)
    rates: Mapping[str, Rates] = field(default_factory=dict)

    def weigh(self) -> Sequence[float]:
        """Return the seconds that each range is expected to take on one core."""
        return weigh(self.ranges, self.layouts, self.rates)

    def predict(self) -> Prediction:
        """Predict what the run takes, from earlier runs of the processor as far as there are any."""
        return predict(self.ranges, self.weigh(), self.layouts, self.rates)

    @property
    def num_entries(self) -> int:
        """Number of entries of all ranges."""
        return sum(one.num_entries for one in self.ranges)

    def to_table(self) -> Table:
        """Return one row for each dataset, and their sum."""
        files: dict[str, int] = defaultdict(int)
        sizes: dict[str, list[int]] = defaultdict(list)
        for file in self.files:
            files[file.dataset] += 1
        for one in self.ranges:
            sizes[one.file.dataset].append(one.num_entries)
        rows = [_row(dataset, count, sizes[dataset]) for dataset, count in files.items()]
        if len(rows) > 1:
            rows.append(_row("all", len(self.files), [one.num_entries for one in self.ranges]))
        headers = ("dataset", "files", "events", "ranges", "smallest", "largest")
        return Table("Plan", headers, tuple(rows))

    def __repr__(self) -> str:
        return str(self.to_table())

    def _repr_html_(self) -> str:
        return self.to_table()._repr_html_()


def _row(dataset: str, num_files: int, sizes: list[int]) -> tuple[str, ...]:
    figures = (num_files, sum(sizes), len(sizes), min(sizes, default=0), max(sizes, default=0))
    return (dataset, *(f"{figure:,}" for figure in figures))


@dataclass(frozen=True, slots=True)
class Planner:
    """Makes a plan from what the user wrote.

    Attributes
    ----------
    executor : Executor
        Inspects the files.
    options : ReadOptions
        How files are opened.
    split : SplitOptions
        How they are split.
    limits : Limits
        How much of them is taken.
    skipped : tuple of exception types
        What `skipbadfiles` lets pass.
    recovery : RecoveryPolicy
        How often a file is tried whose server does not answer.
    cache : MetadataCache or None
        Where facts about files are kept.
    progress : Progress
        Shows the inspection.
    section : Section or None
        Of the store. Files are then known by their UUIDs, so those without one are inspected.
    cached : CachedTraces or None
        Where it is noted what the processor uses.
    rates : mapping of str to Rates
        What earlier runs of the processor took.
    stops : list of str
        Why a plan was stopped: filled while it is made.
    """

    executor: Executor
    options: ReadOptions
    split: SplitOptions
    limits: Limits
    skipped: tuple[type[BaseException], ...]
    recovery: RecoveryPolicy
    cache: MetadataCache | None
    progress: Progress
    section: Section | None = None
    cached: CachedTraces | None = None
    rates: Mapping[str, Rates] = field(default_factory=dict)
    stops: list[str] = field(default_factory=list)

    def load(self, source: object, treename: str | None) -> Fileset:
        """Load a fileset of any dialect, expand its globs, take the files that are wanted.

        Raises
        ------
        FilesetError
            If something is wrong in it.
        """
        fileset = make_absolute(expand_globs(load_fileset(source, treename)))  # type: ignore[arg-type]  # it checks the type
        return fileset.limit(self.limits.max_files)

    def plan(self, files: Sequence[InputFile], work: Work | None) -> Plan:
        """Inspect files as far as that is needed, and split them.

        Parameters
        ----------
        files : sequence of InputFile
            In dataset order.
        work : Work or None
            To find out which branches are in use, for the automatic size of ranges.
        """
        # where bad files are skipped, a limit on ranges says nothing about how many files are needed
        wanted = files if self.skipped else _first_files(files, self.limits.max_ranges)
        facts, failures, num_inspected = self._inspect(
            [file for file in wanted if not self._is_known(file)], work
        )
        known = [_with_facts(file, facts.get(_key(file))) for file in wanted]
        traces = self._trace(known, facts, work)
        sizes = {layout: one.bytes_per_entry for layout, one in traces.items()}
        ranges = limit_ranges(self._split(known, facts, sizes), self.limits.max_ranges)
        self._warn_oversized(ranges)
        if self.limits.max_ranges is not None and not self.stops:
            reached = {_dataset_key(one.file) for one in ranges} | {
                (one.dataset, one.file_path) for one in failures
            }
            known = [file for file in known if _dataset_key(file) in reached]
        return Plan(
            tuple(known),
            tuple(ranges),
            tuple(failures),
            frozenset(name for one in traces.values() for name in one.columns),
            _count_bytes(ranges, facts, sizes),
            num_inspected,
            {one.layout_key: one.seed for one in traces.values() if one.seed is not None},
            _find_layouts(facts, sizes),
            self.rates,
            stopped_by=next(iter(self.stops), ""),
        )

    def _map(self, function: Any, items: Sequence[Any], name: str, advance: Any) -> list[Any]:
        """Apply a function to all items; none of those that follow is begun once one was stopped."""
        if self.stops:
            return [NotReached(self.stops[0])] * len(items)
        results = self.executor.map(
            function, items, name=name, advance=advance, recovery=self.recovery
        )
        self.stops.extend({str(one) for one in results if isinstance(one, NotReached)})
        return results

    def count_known(self, files: Sequence[InputFile]) -> int | None:
        """Return the number of entries of files, from what is known without opening one; None if that isn't all."""
        facts = self._look_up(list(files))
        numbers = [
            facts[_key(file)].num_entries if _key(file) in facts else file.num_entries
            for file in files
        ]
        known = [one for one in numbers if one is not None]
        return sum(known) if len(known) == len(numbers) else None

    def _inspect(
        self, files: list[InputFile], work: Work | None
    ) -> tuple[dict[tuple[str, str], FileMetadata], list[Failure], int]:
        facts = self._look_up(files)
        # a file in two datasets is opened once
        missing = list({_key(file): file for file in files if _key(file) not in facts}.values())
        failures: list[Failure] = []
        if missing:
            if work is not None and len(missing) <= MAX_WARM_FILES:
                warm = partial(warm_files, reader=work.reader)
                self.executor.warm(warm, missing, self.recovery)
            results = self._inspect_now(missing)
            failed = {
                _key(file): one
                for file, one in zip(missing, results, strict=True)
                if isinstance(one, Failure)
            }
            failures = [
                replace(failed[_key(file)], dataset=file.dataset)
                for file in files
                if _key(file) in failed
            ]
            fresh = [one for one in results if isinstance(one, FileMetadata)]
            facts.update({(one.file_path, one.treename): one for one in fresh})
        return facts, failures, len(missing)

    def _look_up(self, files: list[InputFile]) -> dict[tuple[str, str], FileMetadata]:
        if self.cache is None or not files:
            return {}
        facts = dict(self.cache.lookup(files))
        # a remote file that was replaced is in the cache as it was: the UUID in the fileset may know better
        for file in files:
            fact = facts.get(_key(file))
            if fact is not None and file.uuid not in (None, fact.uuid):
                del facts[_key(file)]
        return facts

    def _inspect_now(self, files: list[InputFile]) -> list[FileMetadata | Failure]:
        self.progress.start("inspecting", len(files), "files")
        fresh = _Fresh(self.cache)

        def advance(batch: list[FileMetadata | Failure]) -> None:
            num_failures = sum(isinstance(one, Failure) for one in batch)
            self.progress.advance("inspecting", len(batch), num_failures=num_failures)
            fresh.add(batch)

        function = partial(
            inspect_files, options=self.options, skipped=self.skipped, recovery=self.recovery
        )
        try:
            results = self._map(function, files, "inspect", advance)
        finally:
            fresh.store()
        self.progress.finish("inspecting")
        return [
            build_failure(one, file, None, skipped=self.skipped, kinds=self.recovery.kinds)
            if isinstance(one, BaseException) and not isinstance(one, NotReached)
            else one
            for file, one in zip(files, results, strict=True)
        ]

    def _trace(
        self,
        files: list[InputFile],
        facts: Mapping[tuple[str, str], FileMetadata],
        work: Work | None,
    ) -> dict[Hashable, Trace]:
        """Find out for each layout, in its first file with entries, what the processor uses."""
        if work is None:
            return {}
        firsts: dict[Hashable, InputFile] = {}
        for file in files:
            fact = facts.get(_key(file))
            if fact is not None and fact.num_entries and file.steps is None:
                firsts.setdefault(_layout(fact), file)
        return self._find_traces(firsts, facts, work)

    def _find_traces(
        self,
        firsts: Mapping[Hashable, InputFile],
        facts: Mapping[tuple[str, str], FileMetadata],
        work: Work,
    ) -> dict[Hashable, Trace]:
        """Find the branches that the processor touches, for one file of each layout.

        They are looked for only where the size of ranges depends on them, or each branch would be a round trip of its own: else
        the first range of each process shows them, too.
        """
        kept = None if self.section is None else KeptTraces(self.section)
        known = {} if kept is None else {layout: kept.load(layout) for layout in firsts}
        traces = {layout: found for layout, found in known.items() if found is not None}
        cached = {} if self.cached is None else self.cached.load()
        new = {
            layout: cached[layout] for layout in firsts if layout not in traces and layout in cached
        }
        missing = [layout for layout in firsts if layout not in traces and layout not in new]
        far = any(local_path(firsts[layout].file_path) is None for layout in missing)
        if missing and (far or self.split.chunksize is None):
            found = self._trace_now({layout: firsts[layout] for layout in missing}, facts, work)
            new.update(found)
            if self.cached is not None:
                self.cached.save(found)
        for layout, trace in new.items():
            if kept is not None:
                kept.save(layout, trace)
        return {**traces, **new}

    def _trace_now(
        self,
        firsts: Mapping[Hashable, InputFile],
        facts: Mapping[tuple[str, str], FileMetadata],
        work: Work,
    ) -> dict[Hashable, Trace]:
        files = list(firsts.values())
        ranges = [EntryRange(file, 0, file.num_entries or 0) for file in files]
        found = self._map(partial(trace_columns, work=work), ranges, "trace", lambda _: None)
        traces: dict[Hashable, Trace] = {}
        for layout, file, one in zip(firsts, files, found, strict=True):
            if isinstance(one, BaseException):
                continue
            columns = one.columns | frozenset(file.preload)
            num_bytes = count_bytes_per_entry(facts[_key(file)], columns)
            traces[layout] = replace(one, columns=columns, bytes_per_entry=num_bytes)
        return traces

    def _split(
        self,
        files: Iterable[InputFile],
        facts: Mapping[tuple[str, str], FileMetadata],
        sizes: Mapping[Hashable, float | None],
    ) -> Iterable[EntryRange]:
        for file in files:
            fact = facts.get(_key(file))
            if fact is None and not self._is_known(file):
                continue  # it could not be inspected
            bytes_per_entry = sizes.get(_layout(fact)) if fact is not None else None
            yield from split_file(file, fact, self.split, bytes_per_entry=bytes_per_entry)

    def _is_known(self, file: InputFile) -> bool:
        is_planned = file.num_entries is not None or file.steps is not None
        return is_planned and (self.section is None or file.uuid is not None)

    def _warn_oversized(self, ranges: Iterable[EntryRange]) -> None:
        size = self.split.chunksize
        if size is None or not self.split.align_clusters:
            return
        oversized = [one for one in ranges if one.num_entries > size]
        if oversized:
            largest = max(oversized, key=lambda one: one.num_entries)
            warnings.warn(
                f"{len(oversized)} ranges are larger than chunksize={size}, as align_clusters=True keeps clusters whole; "
                f"the largest is {largest}",
                UserWarning,
                stacklevel=2,
            )


@dataclass(slots=True)
class _Fresh:
    """Facts on their way into the cache: in parts, as what a client that is killed has inspected need not be done again."""

    cache: MetadataCache | None
    waiting: list[FileMetadata] = field(default_factory=list)
    last_seconds: float = field(default_factory=time.monotonic)

    def add(self, batch: Iterable[FileMetadata | Failure]) -> None:
        self.waiting.extend(one for one in batch if isinstance(one, FileMetadata))
        if time.monotonic() - self.last_seconds > CACHE_SECONDS:
            self.store()

    def store(self) -> None:
        if self.cache is not None and self.waiting:
            self.cache.store(self.waiting)
        self.waiting = []
        self.last_seconds = time.monotonic()


def _count_bytes(
    ranges: Iterable[EntryRange],
    facts: Mapping[tuple[str, str], FileMetadata],
    sizes: Mapping[Hashable, float | None],
) -> int | None:
    total = 0.0
    for one in ranges:
        fact = facts.get(_key(one.file))
        bytes_per_entry = sizes.get(_layout(fact)) if fact is not None else None
        if bytes_per_entry is None and one.num_entries:
            return None
        total += (bytes_per_entry or 0.0) * one.num_entries
    return int(total)


def _find_layouts(
    facts: Mapping[tuple[str, str], FileMetadata], sizes: Mapping[Hashable, float | None]
) -> dict[tuple[str, str], FileLayout]:
    shared: dict[Hashable, FileLayout] = {}
    found = {}
    for key, fact in facts.items():
        layout = _layout(fact)
        if layout not in shared:
            # freshly inspected, it has none yet
            digest = layout if isinstance(layout, str) else Branches(fact.branches).layout.digest
            shared[layout] = FileLayout(digest, sizes.get(layout))
        found[key] = shared[layout]
    return found


def _key(file: InputFile) -> tuple[str, str]:
    return file.file_path, file.treename


def _dataset_key(file: InputFile) -> tuple[str, str]:
    return file.dataset, file.file_path


def _layout(fact: FileMetadata) -> Hashable:
    """Give the same key for all files of one layout."""
    # the digest, where there is one: hashing 1,500 names for each range of 60,000 files takes longer than the rest of it
    layout = getattr(fact.branches, "layout", None)
    return layout.digest if layout is not None else tuple(one.name for one in fact.branches)


def _with_facts(file: InputFile, fact: FileMetadata | None) -> InputFile:
    return file if fact is None else replace(file, num_entries=fact.num_entries, uuid=fact.uuid)


def _first_files(files: Sequence[InputFile], max_files: int | None) -> Sequence[InputFile]:
    """Take as many files of each dataset as can be needed for that many ranges.

    Each has at least one, except those of which no entry is wanted.
    """
    if max_files is None:
        return files
    counts: dict[str, int] = defaultdict(int)
    first = []
    for file in files:
        if counts[file.dataset] < max_files:
            first.append(file)
            counts[file.dataset] += file.steps != ()
    return first
