"""The books of a run: what was requested, processed, failed, not reached; and the check that they add up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from hepdask.errors import AccountingError, RunError
from hepdask.tables import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from hepdask.failures import Failure
    from hepdask.fileset import InputFile
    from hepdask.ranges import EntryRange

__all__ = ["Completeness", "DatasetCompleteness", "Span", "build_completeness"]


class Span(NamedTuple):
    """Entries of one file that were processed, half-open."""

    dataset: str
    file_path: str
    treename: str
    entry_start: int
    entry_stop: int


@dataclass(frozen=True, slots=True)
class DatasetCompleteness:
    """The books of one dataset.

    Attributes
    ----------
    num_files_requested : int
        Files in the fileset, after limits.
    num_files_processed : int
        Files of which every requested entry was processed.
    num_files_failed : int
        Files of which something failed.
    num_files_not_reached : int
        Files of which nothing failed, but something was not reached, as the run ended before.
    num_files_unknown : int
        Those among the failed files, and those that were not reached, that were not inspected: how many entries they have is
        not known, and none of them is in the figures below.
    num_entries_requested, num_entries_processed, num_entries_failed, num_entries_not_reached : int
        The same in entries. Requested is the sum of the other three.
    """

    num_files_requested: int = 0
    num_files_processed: int = 0
    num_files_failed: int = 0
    num_files_not_reached: int = 0
    num_files_unknown: int = 0
    num_entries_requested: int = 0
    num_entries_processed: int = 0
    num_entries_failed: int = 0
    num_entries_not_reached: int = 0

    @property
    def is_complete(self) -> bool:
        """True if every requested entry was processed, and the entries of every file are known."""
        return self.num_files_processed == self.num_files_requested

    @property
    def fraction(self) -> float:
        """Processed entries over requested ones; 1 if none were requested. Unknown files aren't in it."""
        if self.num_entries_requested == 0:
            return 1.0
        return self.num_entries_processed / self.num_entries_requested


class Completeness(Mapping[str, DatasetCompleteness]):
    """The books of a run, by dataset.

    Parameters
    ----------
    datasets : mapping of str to DatasetCompleteness
        In dataset order.
    find_luminosity : callable or None
        Finds out the luminosity sections; None if these books are not of a run in this process. It is not pickled.
    """

    def __init__(
        self,
        datasets: Mapping[str, DatasetCompleteness],
        find_luminosity: Callable[[], Any] | None = None,
    ) -> None:
        self._datasets = dict(datasets)
        self._find_luminosity = find_luminosity

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._datasets,)

    def __getitem__(self, dataset: str) -> DatasetCompleteness:
        return self._datasets[dataset]

    def __iter__(self) -> Iterator[str]:
        return iter(self._datasets)

    def __len__(self) -> int:
        return len(self._datasets)

    @property
    def is_complete(self) -> bool:
        """True if every requested entry of every dataset was processed."""
        return all(one.is_complete for one in self._datasets.values())

    def with_luminosity(self, find: Callable[[], Any]) -> Completeness:
        """Return the same books, which know how to find out the luminosity sections."""
        return Completeness(self._datasets, find)

    def luminosity(self) -> Any:
        """Find out which runs and luminosity sections were processed, and of which something is missing.

        It reads two branches of each file, on the executor of the run; nothing of it is done unless it is asked for.

        Returns
        -------
        Luminosity
            By dataset (an awaitable of it with an asynchronous client).

        Raises
        ------
        RunError
            If these books are not of a run in this process.
        """
        if self._find_luminosity is None:
            raise RunError("these books are not of a run in this process: run the fileset again")
        return self._find_luminosity()

    @property
    def total(self) -> DatasetCompleteness:
        """The sum over the datasets."""
        names = DatasetCompleteness.__slots__
        return DatasetCompleteness(
            *(sum(getattr(one, name) for one in self._datasets.values()) for name in names)
        )

    def check(self) -> None:
        """Check that requested is processed plus failed plus not reached, in each dataset.

        Raises
        ------
        AccountingError
            If not: the output can't be trusted.
        """
        for name, one in self._datasets.items():
            for what in ("files", "entries"):
                requested, processed, failed, missed = (
                    getattr(one, f"num_{what}_{state}")
                    for state in ("requested", "processed", "failed", "not_reached")
                )
                if requested != processed + failed + missed:
                    raise AccountingError(
                        f"dataset {name!r}: {requested} {what} requested, but {processed} processed + {failed} failed "
                        f"+ {missed} not reached; this is a bug in hepdask: please report it, and don't use the output"
                    )

    def to_table(self) -> Table:
        """Return two rows for each dataset, its files and its events, and their sum."""
        books = list(self.items())
        if len(books) > 1:
            books.append(("all", self.total))
        rows = [row for name, one in books for row in _rows(name, one)]
        incomplete = [number for number, (_, one) in enumerate(books) if not one.is_complete]
        flagged = frozenset(row for number in incomplete for row in (2 * number, 2 * number + 1))
        headers = ("dataset", "", "requested", "processed", "failed", "not reached", "complete")
        return Table("Completeness", headers, tuple(rows), flagged)

    def __repr__(self) -> str:
        return str(self.to_table())

    def _repr_html_(self) -> str:
        return self.to_table()._repr_html_()


def _rows(name: str, one: DatasetCompleteness) -> list[tuple[str, ...]]:
    files = _figures(one, "files")
    events = _figures(one, "entries")
    if one.num_files_unknown:
        place = 2 if one.num_files_failed else 3
        unread = f"{files[place]} ({one.num_files_unknown:,} unread)"
        files = (*files[:place], unread, *files[place + 1 :])
        events = (f"{events[0]} + ?", *events[1:])
    # what is not complete never reads 100%
    known = 100 * one.fraction if one.num_entries_requested else 0.0
    percent = 100 * one.fraction if one.is_complete else min(known, 99.99)
    return [(name, "files", *files, ""), ("", "events", *events, f"{percent:.4g}%")]


def _figures(one: DatasetCompleteness, what: str) -> tuple[str, ...]:
    states = ("requested", "processed", "failed", "not_reached")
    return tuple(f"{getattr(one, f'num_{what}_{state}'):,}" for state in states)


def build_completeness(
    files: Iterable[InputFile],
    ranges: Iterable[EntryRange],
    processed: Iterable[Span],
    failures: Iterable[Failure],
) -> Completeness:
    """Make the books of a run from what was asked and what the workers say that they did.

    Parameters
    ----------
    files : iterable of InputFile
        All files of the fileset, those that could not be inspected too.
    ranges : iterable of EntryRange
        All ranges that were asked for.
    processed : iterable of Span
        What the tasks report as done. Nothing is derived from the plan: a range that a worker forgot, did twice or did
        unasked shows as a number that doesn't add up.
    failures : iterable of Failure
        What failed.

    Returns
    -------
    Completeness
        `num_entries_not_reached` counts the ranges that have neither a span nor a failure.
    """
    requested = _sum_entries(
        (one.file.dataset, one.file.file_path, one.num_entries) for one in ranges
    )
    done = _count_processed(processed)
    known, unknown = _failed_entries(failures)
    counts: dict[str, dict[str, int]] = {}
    for file in files:
        key = (file.dataset, file.file_path)
        # a run that was stopped early has not looked into it
        is_unseen = key not in requested and key not in unknown and file.steps != ()
        wanted, got, lost = requested.get(key, 0), done.get(key, 0), known.get(key, 0)
        is_done = got == wanted and (key in done or key not in requested) and not is_unseen
        state = (
            "failed"
            if key in known or key in unknown
            else "processed"
            if is_done
            else "not_reached"
        )
        dataset = counts.setdefault(file.dataset, defaultdict(int))
        dataset["num_files_requested"] += 1
        dataset[f"num_files_{state}"] += 1
        dataset["num_files_unknown"] += key in unknown or is_unseen
        dataset["num_entries_requested"] += wanted
        dataset["num_entries_processed"] += got
        dataset["num_entries_failed"] += lost
        dataset["num_entries_not_reached"] += max(0, wanted - got - lost)
    return Completeness({name: DatasetCompleteness(**one) for name, one in counts.items()})


def _sum_entries(items: Iterable[tuple[str, str, int]]) -> dict[tuple[str, str], int]:
    sums: dict[tuple[str, str], int] = defaultdict(int)
    for dataset, path, entries in items:
        sums[dataset, path] += entries
    return sums


def _count_processed(processed: Iterable[Span]) -> dict[tuple[str, str], int]:
    spans: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for span in processed:
        spans[span.dataset, span.file_path].append((span.entry_start, span.entry_stop))
    for (dataset, path), bounds in spans.items():
        for (_, stop), (start, _) in pairwise(sorted(bounds)):
            if start < stop:
                raise AccountingError(
                    f"dataset {dataset!r}: entries {start} to {stop} of {path} were counted twice; this is a bug in "
                    "hepdask: please report it, and don't use the output"
                )
    return {key: sum(stop - start for start, stop in bounds) for key, bounds in spans.items()}


def _failed_entries(
    failures: Iterable[Failure],
) -> tuple[dict[tuple[str, str], int], set[tuple[str, str]]]:
    known: dict[tuple[str, str], int] = defaultdict(int)
    unknown = set()
    for failure in failures:
        key = (failure.dataset, failure.file_path)
        if failure.entry_start is None:
            unknown.add(key)
        else:
            known[key] += failure.num_entries
    return known, unknown
