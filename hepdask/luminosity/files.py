"""The luminosity sections of a file, read on a worker."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from hepdask.failures import Failure, build_failure
from hepdask.luminosity.sections import LumiSections
from hepdask.metadata import check_unchanged
from hepdask.partial import process_name
from hepdask.read_errors import as_read_error
from hepdask.readers.handles import lease

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hepdask.fileset import InputFile
    from hepdask.opening import OpenFile, ReadOptions
    from hepdask.recovery import RecoveryPolicy

__all__ = ["BRANCH_PAIRS", "FileLumi", "LumiPiece", "find_lumi_sections"]

#: Branches of run and section: CMS, flat ATLAS ntuples, ATLAS PHYSLITE as TTree and as RNTuple. The first pair wins.
BRANCH_PAIRS = (
    ("run", "luminosityBlock"),
    ("runNumber", "lumiBlock"),
    ("EventInfoAuxDyn.runNumber", "EventInfoAuxDyn.lumiBlock"),
    ("EventInfoAuxDyn:runNumber", "EventInfoAuxDyn:lumiBlock"),
)
#: NanoAOD's tree with one entry for each section that went into the file, beside the tree of events.
SECTION_TREE = "LuminosityBlocks"
#: Entries that are read at once: 34 MB for two branches of 32 bits.
MAX_BLOCK_ENTRIES = 2**22

_TREE_CLASSES = frozenset({"TTree", "ROOT::RNTuple", "ROOT::Experimental::RNTuple"})

Bounds = tuple[int, int]
State = Literal["processed", "missing", "unrequested"]


@dataclass(frozen=True, slots=True)
class LumiPiece:
    """What a task is asked about one file.

    Attributes
    ----------
    file : InputFile
        The file.
    processed : tuple of (int, int)
        Half-open ranges of entries that are in the output, in order; ``((0, 0),)`` for an empty file.
    missing : tuple of (int, int) or None
        Half-open ranges that were requested and are not in the output, in order. None: all entries, however many there
        are, since the file could not be inspected.
    """

    file: InputFile
    processed: tuple[Bounds, ...]
    missing: tuple[Bounds, ...] | None


@dataclass(frozen=True, slots=True)
class FileLumi:
    """Sections of one file; one that is cut is in several of the sets.

    Attributes
    ----------
    has_branches : bool or None
        False: the file has events, but not their runs and sections; the sets are empty. None: it has neither.
    processed : LumiSections
        Those with events that were processed, and those without any, if the whole file was processed.
    missing : LumiSections
        Those with events that were requested and not processed, and those without any, if there are such events.
    unrequested : LumiSections
        Those with events that nobody asked for, and those without any, if there are such events and none is missing.
    """

    has_branches: bool | None
    processed: LumiSections = field(default_factory=LumiSections)
    missing: LumiSections = field(default_factory=LumiSections)
    unrequested: LumiSections = field(default_factory=LumiSections)


def find_lumi_sections(
    pieces: Sequence[LumiPiece], *, options: ReadOptions, recovery: RecoveryPolicy
) -> list[FileLumi | Failure]:
    """Read which sections the entries of some files belong to.

    Of each file the two branches are read, from end to end: where a section was cut is seen only by what is beyond.

    Parameters
    ----------
    pieces : sequence of LumiPiece
        They are opened one after the other.
    options : ReadOptions
        How.
    recovery : RecoveryPolicy
        How often a file is tried.

    Returns
    -------
    list of FileLumi or Failure
        For each file; a failure if it, or one of the two branches anywhere, can't be read, or if it was replaced.
    """
    return [_find(piece, options, recovery) for piece in pieces]


def _find(piece: LumiPiece, options: ReadOptions, recovery: RecoveryPolicy) -> FileLumi | Failure:
    file = piece.file
    attempt = 1
    while True:
        replica = ""
        try:
            with lease(file, options) as handle:
                replica = handle.open_file.replica
                return _read_file(piece, handle.open_file)
        except Exception as error:  # noqa: BLE001  # whatever it is, it becomes a failure of this file
            failure = build_failure(
                error, file, None, worker=process_name(), replica=replica, kinds=recovery.kinds
            )
        step = recovery.decide(failure, attempt=attempt, num_replicas=len(piece.file.replicas))
        if step.action != "retry":
            return replace(failure, attempts=attempt)
        threading.Event().wait(step.wait_seconds)
        if step.next_replica:
            file = replace(file, replicas=_order_replicas(file.replicas, failure))
        attempt += 1


def _order_replicas(replicas: tuple[str, ...], failure: Failure) -> tuple[str, ...]:
    """Let the replica that failed come last; a bad file is not tried again."""
    others = tuple(one for one in replicas if one != failure.replica)
    if failure.kind == "input":
        return others
    return (*others, failure.replica) if failure.replica else (*replicas[1:], replicas[0])


def _read_file(piece: LumiPiece, opened: OpenFile) -> FileLumi:
    """Read the sections of a file.

    Raises
    ------
    FileReadError
        If it can't be read, or is not the one that was processed.
    """
    stops = [stop for _, stop in (*piece.processed, *(piece.missing or ()))]
    check_unchanged(piece.file, opened, entry_stop=max(stops, default=0))
    pair = _find_pair(opened.tree)
    if pair is None and opened.num_entries:
        return FileLumi(has_branches=False)
    try:
        found = _read_events(piece, opened, pair or BRANCH_PAIRS[0])  # any, for no entries
        listed = _read_section_tree(opened, piece.file.treename)
    except MemoryError:
        raise  # says nothing about the file
    except Exception as error:  # noqa: BLE001  # damaged data raise anything; it is raised again, with the place
        where = "the branches of run and luminosity section"
        read_error = as_read_error(error, piece.file, where, replica=opened.replica)
        raise read_error from read_error.__cause__
    if listed is not None:
        state = _state_of_file(piece, opened.num_entries)
        found[state] |= listed - LumiSections.unite(found.values())
    has_branches = None if pair is None and listed is None else True
    return FileLumi(has_branches, found["processed"], found["missing"], found["unrequested"])


def _find_pair(tree: Any) -> tuple[str, str] | None:
    """Find the branches of run and section at the top of a tree."""
    names = {one.name for one in (tree.fields if _is_ntuple(tree) else tree.branches)}
    return next((pair for pair in BRANCH_PAIRS if names.issuperset(pair)), None)


def _is_ntuple(tree: Any) -> bool:
    import uproot

    return isinstance(tree, uproot.behaviors.RNTuple.HasFields)


def _read_events(
    piece: LumiPiece, opened: OpenFile, pair: tuple[str, str]
) -> dict[State, LumiSections]:
    """Sort the sections of a file's events by what became of the events."""
    found: dict[State, list[LumiSections]] = {"processed": [], "missing": [], "unrequested": []}
    stretches = list(_label(piece, opened.num_entries))
    for block_start in range(0, opened.num_entries, MAX_BLOCK_ENTRIES):
        block_stop = min(block_start + MAX_BLOCK_ENTRIES, opened.num_entries)
        runs, sections = _read_pair(opened.tree, pair, block_start, block_stop)
        for start, stop, state in stretches:
            if start < block_stop and stop > block_start:
                inside = slice(max(0, start - block_start), stop - block_start)
                found[state].append(LumiSections.from_arrays(runs[inside], sections[inside]))
    return {state: LumiSections.unite(many) for state, many in found.items()}


def _label(piece: LumiPiece, num_entries: int) -> Iterator[tuple[int, int, State]]:
    """Cut a file into stretches of entries that had the same fate: each entry is in exactly one."""
    missing = ((0, num_entries),) if piece.missing is None else piece.missing
    asked: list[tuple[int, int, State]] = [(*bounds, "processed") for bounds in piece.processed]
    asked += [(*bounds, "missing") for bounds in missing]
    end = 0
    for start, stop, state in sorted(asked):
        if end < start:
            yield end, start, "unrequested"
        yield start, stop, state
        end = stop
    if end < num_entries:
        yield end, num_entries, "unrequested"


def _state_of_file(piece: LumiPiece, num_entries: int) -> State:
    """Say what became of the sections without events: they have no entry that could be looked up."""
    if piece.missing is None or piece.missing:
        return "missing"
    is_whole = all(state == "processed" for _, _, state in _label(piece, num_entries))
    return "processed" if is_whole else "unrequested"


def _read_section_tree(opened: OpenFile, treename: str) -> LumiSections | None:
    """Read the sections that NanoAOD says went into a file; None if it doesn't say."""
    folder, slash, _ = treename.rpartition("/")
    path = f"{folder}{slash}{SECTION_TREE}"
    try:
        class_name = opened.directory.classname_of(path)
    except KeyError:
        return None
    tree = opened.directory[path] if class_name in _TREE_CLASSES else None
    pair = _find_pair(tree) if tree is not None else None
    if tree is None or pair is None:
        return None
    return LumiSections.from_arrays(*_read_pair(tree, pair, 0, tree.num_entries))


def _read_pair(tree: Any, pair: tuple[str, str], start: int, stop: int) -> tuple[Any, Any]:
    bounds = {"entry_start": start, "entry_stop": stop, "library": "np"}
    if _is_ntuple(tree):
        # arrays() looks at all fields, which takes 4 s where there are 1,500
        return tree[pair[0]].array(**bounds), tree[pair[1]].array(**bounds)
    # one request for both
    arrays = tree.arrays(filter_name=list(pair), how=dict, **bounds)
    return arrays[pair[0]], arrays[pair[1]]
