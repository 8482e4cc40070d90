"""The luminosity sections of a run, dataset by dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from hepdask.errors import FileReadError
from hepdask.executors import check_reached
from hepdask.failures import Failure, build_failure
from hepdask.luminosity.files import (
    BRANCH_PAIRS,
    Bounds,
    FileLumi,
    LumiPiece,
    find_lumi_sections,
)
from hepdask.luminosity.sections import LumiSections
from hepdask.tables import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from hepdask.completeness import Span
    from hepdask.executors import Executor
    from hepdask.fileset import InputFile
    from hepdask.opening import ReadOptions
    from hepdask.progress import Progress
    from hepdask.ranges import EntryRange
    from hepdask.recovery import RecoveryPolicy

__all__ = ["DatasetLumi", "Luminosity", "collect_luminosity"]


@dataclass(frozen=True, slots=True)
class DatasetLumi:
    """The sections of a dataset.

    Attributes
    ----------
    has_branches : bool
        False: none of the files that could be read says to which section an event belongs. All sets are empty then.
    processed : LumiSections
        Those of which every event in the files was processed.
    missing : LumiSections
        Those with at least one event that was requested, but failed or was not reached. None is in `processed`.
    partial : LumiSections
        Those of which a part was processed and a part was not: the output has events of them, but not all. They are in
        `missing`, except where the rest was not asked for. None is in `processed`.
    unknown_files : tuple of Failure
        Files that could not be read for this, and why: their sections are not in the sets, unless another file has them.
    """

    has_branches: bool
    processed: LumiSections
    missing: LumiSections
    partial: LumiSections
    unknown_files: tuple[Failure, ...] = ()

    @property
    def num_files_unknown(self) -> int:
        """Number of files that could not be read for this."""
        return len(self.unknown_files)

    @property
    def is_exact(self) -> bool:
        """True if every file could be read: `processed` is then what the output has, and nothing else."""
        return self.has_branches and not self.unknown_files


class Luminosity(Mapping[str, DatasetLumi]):
    """The sections of a run, by dataset.

    Parameters
    ----------
    datasets : mapping of str to DatasetLumi
        In dataset order.
    """

    def __init__(self, datasets: Mapping[str, DatasetLumi]) -> None:
        self._datasets = dict(datasets)

    def __getitem__(self, dataset: str) -> DatasetLumi:
        return self._datasets[dataset]

    def __iter__(self) -> Iterator[str]:
        return iter(self._datasets)

    def __len__(self) -> int:
        return len(self._datasets)

    def to_table(self) -> Table:
        """Return a row for each dataset; there is no sum, as datasets of data share their sections."""
        books = list(self.items())
        flagged = (
            number for number, (_, one) in enumerate(books) if one.missing or one.unknown_files
        )
        headers = (
            "dataset",
            "runs processed",
            "sections processed",
            "missing",
            "partial",
            "unread files",
        )
        rows = tuple((name, *_figures(one)) for name, one in books)
        return Table("Luminosity sections", headers, rows, frozenset(flagged))

    def __repr__(self) -> str:
        return str(self.to_table())

    def _repr_html_(self) -> str:
        return self.to_table()._repr_html_()


def _figures(one: DatasetLumi) -> tuple[str, ...]:
    unread = f"{one.num_files_unknown:,}"
    if not one.has_branches:
        return "-", "-", "-", "-", unread
    sizes = (len(one.processed.runs), len(one.processed), len(one.missing), len(one.partial))
    open_end = " + ?" if one.unknown_files else ""
    return *(f"{size:,}{open_end}" for size in sizes), unread


def collect_luminosity(
    executor: Executor,
    files: Iterable[InputFile],
    ranges: Iterable[EntryRange],
    processed: Iterable[Span],
    *,
    options: ReadOptions,
    recovery: RecoveryPolicy,
    progress: Progress,
) -> Luminosity:
    """Find out which sections a run has processed, by tasks that read two branches of each file.

    Parameters
    ----------
    executor : Executor
        Runs the tasks.
    files, ranges, processed
        The books of the run, as `hepdask.completeness.build_completeness` takes them. What was requested and not
        processed is missing, for whatever reason. The `steps` of the files are not looked at, the ranges are.
    options : ReadOptions
        How files are opened.
    recovery : RecoveryPolicy
        How often a file is tried.
    progress : Progress
        Shows the stage "luminosity", in files.

    Returns
    -------
    Luminosity
        A `DatasetLumi` for each dataset of `files`, in their order.

    Raises
    ------
    ExecutorError
        If there is nothing to run on.
    """
    asked = list(files)
    pieces = _build_pieces(asked, ranges, processed)
    progress.start("luminosity", len(pieces), "files")

    def advance(batch: list[FileLumi | Failure]) -> None:
        num_failures = sum(isinstance(one, Failure) for one in batch)
        progress.advance("luminosity", len(batch), num_failures=num_failures)

    function = partial(find_lumi_sections, options=options, recovery=recovery)
    results = (
        executor.map(function, pieces, name="luminosity", advance=advance, recovery=recovery)
        if pieces
        else []
    )
    progress.finish("luminosity")
    check_reached(results)
    found: dict[str, list[tuple[InputFile, FileLumi | Failure | BaseException]]] = {
        file.dataset: [] for file in asked
    }
    for piece, result in zip(pieces, results, strict=True):
        found[piece.file.dataset].append((piece.file, result))
    return Luminosity({name: _conclude(one) for name, one in found.items()})


def _build_pieces(
    files: Iterable[InputFile], ranges: Iterable[EntryRange], processed: Iterable[Span]
) -> list[LumiPiece]:
    """Make a piece for each file of which anything was requested."""
    requested: dict[tuple[str, str], list[Bounds]] = {}
    for one in ranges:
        key = (one.file.dataset, one.file.file_path)
        requested.setdefault(key, []).append((one.entry_start, one.entry_stop))
    done: dict[tuple[str, str], list[Bounds]] = {}
    for span in processed:
        done.setdefault(span[:2], []).append((span.entry_start, span.entry_stop))
    pieces = []
    for file in files:
        key = (file.dataset, file.file_path)
        if key in requested:
            spans = _join(done.get(key, []))
            pieces.append(LumiPiece(file, spans, _subtract(requested[key], spans)))
        elif file.num_entries is None and file.steps is None:
            pieces.append(LumiPiece(file, (), None))
    return pieces


def _join(bounds: Iterable[Bounds]) -> tuple[Bounds, ...]:
    """Join neighbours: [0, 5) and [5, 9) --> [0, 9)."""
    joined: list[Bounds] = []
    for start, stop in sorted(bounds):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return tuple(joined)


def _subtract(wanted: Iterable[Bounds], done: Sequence[Bounds]) -> tuple[Bounds, ...]:
    """Take away what is done; the empty range of an empty file is there or not, like any other."""
    left: list[Bounds] = []
    for start, stop in _join(wanted):
        if start == stop and not done:
            left.append((start, stop))
        rest = start
        for begin, end in done:
            if begin < stop and end > rest:
                if begin > rest:
                    left.append((rest, begin))
                rest = end
        if rest < stop:
            left.append((rest, stop))
    return tuple(left)


def _conclude(found: Iterable[tuple[InputFile, FileLumi | Failure | BaseException]]) -> DatasetLumi:
    """Put the files of a dataset together."""
    known: list[tuple[InputFile, FileLumi]] = []
    unknown: list[Failure] = []
    for file, one in found:
        if isinstance(one, FileLumi):
            known.append((file, one))
        else:
            unknown.append(one if isinstance(one, Failure) else build_failure(one, file, None))
    has_branches = any(one.has_branches for _, one in known)
    if has_branches:
        unknown += [_lack_of_branches(file) for file, one in known if one.has_branches is False]
    done, lost, rest = (
        LumiSections.unite(getattr(one, state) for _, one in known)
        for state in ("processed", "missing", "unrequested")
    )
    cut = lost | rest
    return DatasetLumi(has_branches, done - cut, lost, done & cut, tuple(unknown))


def _lack_of_branches(file: InputFile) -> Failure:
    names = " or ".join(f"{run!r} and {section!r}" for run, section in BRANCH_PAIRS)
    error = FileReadError(
        f"dataset {file.dataset!r}, file {file.file_path}, tree {file.treename!r}: it lacks the branches of run and "
        f"luminosity section that other files of the dataset have ({names}); leave it out"
    )
    return build_failure(error, file, None)
