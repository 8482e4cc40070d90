from __future__ import annotations

import copy
import json
import pickle
import random
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import uproot

from hepdask.completeness import Span
from hepdask.errors import ExecutorError, OptionError
from hepdask.executors.local import LocalExecutor
from hepdask.fileset import InputFile
from hepdask.luminosity import (
    DatasetLumi,
    Luminosity,
    LumiPiece,
    LumiSections,
    collect_luminosity,
    files,
    find_lumi_sections,
)
from hepdask.opening import ReadOptions
from hepdask.progress import RecordingProgress, SilentProgress
from hepdask.ranges import EntryRange
from hepdask.recovery import RecoveryPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from distributed import Client

    from hepdask.executors import Executor
    from tests.conftest import NanoFiles

Pair = tuple[int, int]
Bounds = tuple[int, int]

CMS = ("run", "luminosityBlock")
# the runs and sections at the ends of what 32 bits hold, and neighbours across runs
CORNERS = [(0, 0), (0, 1), (0, 2**32 - 2), (1, 0), (2**32 - 1, 0), (2**32 - 1, 2**32 - 2)]
# never waits
QUICK = RecoveryPolicy(wait_seconds=0.0)


# --- the sets


def draw_pairs(seed: int, num_pairs: int) -> list[Pair]:
    generator = random.Random(seed)
    pairs = [(generator.randrange(3), generator.randrange(30)) for _ in range(num_pairs)]
    return pairs + generator.sample(CORNERS, seed % 4)


@pytest.mark.parametrize("num_pairs", [0, 1, 20, 80, 300])
@pytest.mark.parametrize("seed", range(4))
def test_sets_are_as_those_of_python(seed: int, num_pairs: int) -> None:
    a, b = draw_pairs(seed, num_pairs), draw_pairs(seed + 100, 40)
    here, there = LumiSections(a), LumiSections(b)
    assert list(here) == sorted(set(a))
    assert len(here) == len(set(a))
    assert here.runs == tuple(sorted({run for run, _ in a}))
    assert set(here | there) == set(a) | set(b)
    assert set(here & there) == set(a) & set(b)
    assert set(here - there) == set(a) - set(b)
    assert (here <= there) == (set(a) <= set(b))
    assert here <= (here | there)
    assert all((pair in here) == (pair in set(a)) for pair in [*a, *b, *CORNERS])
    assert LumiSections.unite([here, there, here]) == here | there
    assert LumiSections.from_dict(here.to_dict()) == here


def test_equal_sets_are_equal_however_they_were_made() -> None:
    made = LumiSections([(1, 2), (1, 3), (1, 2)])
    arrays = LumiSections.from_arrays(np.array([1, 1], np.int32), np.array([3, 2], np.uint64))
    assert made == arrays == LumiSections([(1, 3)]) | LumiSections([(1, 2)])
    assert hash(made) == hash(arrays)
    assert made != LumiSections([(1, 2)])
    assert made != {(1, 2), (1, 3)}
    assert LumiSections() == LumiSections.unite([]) == made - made
    assert not LumiSections()


@pytest.mark.parametrize(
    "pair", [(1, 4), (2, 2), (-1, 2), (1, -1), (2**32, 2), (1, 2**32), 1, "ab", (1,)]
)
def test_what_is_not_in_it(pair: object) -> None:
    assert pair not in LumiSections([(1, 2), (1, 3), (0, 2**32 - 2)])


def test_numbers_of_numpy_are_found() -> None:
    assert (np.uint32(1), np.int64(3)) in LumiSections([(1, 3)])


def test_sets_do_not_change() -> None:
    made = LumiSections([(1, 2)])
    with pytest.raises(AttributeError, match="can't be changed"):
        made._edges = np.empty(0, np.uint64)
    for one in (made, pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        assert one == made
        with pytest.raises(ValueError, match="read-only"):
            one._edges[0] = 0


def test_a_year_is_small() -> None:
    # 500 runs of 2,000 sections, each with three gaps
    runs, sections = np.divmod(np.arange(1_000_000), 2_000)
    made = LumiSections.from_arrays(runs + 300_000, sections + 1)
    gaps = made - LumiSections((run, gap) for run in made.runs for gap in (7, 70, 700))
    assert (len(made), len(gaps)) == (1_000_000, 998_500)
    assert len(pickle.dumps(gaps)) < 40_000


def test_only_sets_are_combined() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        LumiSections() | {(1, 2)}  # type: ignore[operator]
    with pytest.raises(TypeError, match="not supported between"):
        LumiSections() <= {(1, 2)}  # noqa: B015


def test_the_json_format_of_cms() -> None:
    made = LumiSections([(7, 9), (273158, 3), (273158, 1), (273158, 2), (273158, 5)])
    assert made.to_dict() == {"7": [[9, 9]], "273158": [[1, 3], [5, 5]]}
    assert list(made.to_dict()) == ["7", "273158"]
    assert LumiSections.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert repr(made) == "<LumiSections: 5 in 2 runs>"


def test_intervals_may_overlap_touch_and_repeat() -> None:
    read = LumiSections.from_dict({"5": [[4, 6], [1, 2], [5, 9], [10, 11]], 4: [[3, 3]], "6": []})
    assert read.to_dict() == {"4": [[3, 3]], "5": [[1, 2], [4, 11]]}


def test_all_sections_of_a_run_cost_nothing() -> None:
    everything = LumiSections.from_dict({"1": [[0, 2**32 - 2]]})
    assert len(everything) == 2**32 - 1
    assert len(everything - LumiSections([(1, 10)])) == 2**32 - 2
    assert (1, 12_345) in everything


@pytest.mark.parametrize(
    ("intervals", "match"),
    [
        ([1, 2], "list given: give a mapping"),
        ({"1x": [[1, 2]]}, "'1x' is no run number"),
        ({"1": [1, 2]}, r"run 1 has \[1, 2\]: give a list of \[first, last\]"),
        ({"1": [[1, 2, 3]]}, r"give a list of \[first, last\]"),
        ({"1": [[2, 1]]}, r"give a list of \[first, last\]"),
        ({"1": None}, r"run 1 has None"),
        ({"1": [["a", "b"]]}, "luminosity sections are of type <U1"),
        ({"1": [[1, 2.5]]}, "luminosity sections are of type float64"),
        ({"1": [[-1, 2]]}, "between -1 and -1: they must be between 0 and 4294967294"),
        ({"-1": [[1, 2]]}, "run numbers are between -1 and -1"),
        ({str(2**64): [[1, 2]]}, "run numbers are of type object"),
    ],
)
def test_wrong_json_is_explained(intervals: Any, match: str) -> None:
    with pytest.raises(OptionError, match=match):
        LumiSections.from_dict(intervals)


@pytest.mark.parametrize(
    ("runs", "sections", "match"),
    [
        ([1, 2], [1], "there are 2 run numbers, but 1 luminosity sections"),
        ([1.0], [1], "run numbers are of type float64"),
        ([[1]], [[1]], r"shape \(1, 1\): give one integer for each event"),
        ([2**32], [1], "between 4294967296 and 4294967296: they must be between 0 and 4294967295"),
        ([1], [2**32 - 1], "must be between 0 and 4294967294"),
    ],
)
def test_wrong_arrays_are_explained(runs: Any, sections: Any, match: str) -> None:
    with pytest.raises(OptionError, match=match):
        LumiSections.from_arrays(np.array(runs), np.array(sections))


def test_coffea_masks_the_same_sections(tmp_path: Path) -> None:
    from coffea.lumi_tools import LumiList, LumiMask

    generator = np.random.default_rng(1)
    runs = generator.integers(100, 104, 500).astype(np.uint32)
    sections = generator.integers(1, 200, 500).astype(np.uint32)
    made = LumiSections.from_arrays(runs, sections)
    path = tmp_path / "processed.json"
    path.write_text(json.dumps(made.to_dict()))
    all_runs, all_sections = (
        one.ravel().astype(np.uint32) for one in np.meshgrid(range(99, 106), range(1, 202))
    )
    mask = LumiMask(str(path))(all_runs, all_sections)
    pairs = zip(all_runs.tolist(), all_sections.tolist(), strict=True)
    assert mask.tolist() == [pair in made for pair in pairs]
    assert 0 < mask.sum() == len(made) < 500
    assert list(made) == [tuple(pair) for pair in LumiList(runs, sections).array.tolist()]


# --- the sections of files


def write_file(
    path: Path,
    pairs: Sequence[Pair],
    *,
    names: tuple[str, str] = CMS,
    listed: Sequence[Pair] | None = None,
    ntuple: bool = False,
    treename: str = "Events",
) -> Path:
    """Write a file with one entry for each pair, in clusters of 7, and a tree of the sections that went into it."""
    with uproot.recreate(path) as file:
        make = file.mkrntuple if ntuple else file.mktree
        tree = make(treename, dict.fromkeys((names[0], names[1], "x"), np.dtype("u4")))
        for start in range(0, len(pairs), 7):
            columns = np.array(pairs[start : start + 7], np.uint32).T
            tree.extend({names[0]: columns[0], names[1]: columns[1], "x": columns[0]})
        if listed is not None:
            folder, slash, _ = treename.rpartition("/")
            tree = make(f"{folder}{slash}LuminosityBlocks", dict.fromkeys(CMS, np.dtype("u4")))
            columns = np.array(listed, np.uint32).reshape(-1, 2).T
            tree.extend(dict(zip(CMS, columns, strict=True)))
    return path


def input_file(path: Path, **known: Any) -> InputFile:
    known = {"dataset": "data", "treename": "Events", "replicas": (str(path),), **known}
    return InputFile(file_path=str(path), metadata={}, **known)


def find(
    path: Path | InputFile, processed: Iterable[Bounds] = (), missing: Iterable[Bounds] | None = ()
) -> Any:
    file = path if isinstance(path, InputFile) else input_file(path)
    piece = LumiPiece(file, tuple(processed), None if missing is None else tuple(missing))
    (found,) = find_lumi_sections([piece], options=ReadOptions(), recovery=QUICK)
    return found


def sections(one: LumiSections) -> list[Pair]:
    return list(one)


THREE = [(5, 1)] * 10 + [(5, 2)] * 10 + [(6, 1)] * 10


@pytest.mark.parametrize("ntuple", [False, True], ids=["TTree", "RNTuple"])
@pytest.mark.parametrize(
    "names", [pytest.param(pair, id=pair[0]) for pair in files.BRANCH_PAIRS if "." not in pair[0]]
)
def test_sections_of_a_file(tmp_path: Path, names: tuple[str, str], ntuple: bool) -> None:
    path = write_file(tmp_path / "a.root", THREE, names=names, ntuple=ntuple)
    found = find(path, [(0, 15)], [(15, 20)])
    assert found.has_branches
    assert sections(found.processed) == [(5, 1), (5, 2)]
    assert sections(found.missing) == [(5, 2)]
    assert sections(found.unrequested) == [(6, 1)]


def test_dotted_branches_of_physlite(tmp_path: Path) -> None:
    names = ("EventInfoAuxDyn.runNumber", "EventInfoAuxDyn.lumiBlock")
    path = write_file(tmp_path / "a.root", THREE, names=names, treename="CollectionTree")
    found = find(input_file(path, treename="CollectionTree"), [(0, 30)])
    assert sections(found.processed) == [(5, 1), (5, 2), (6, 1)]


def test_the_first_known_pair_wins(tmp_path: Path) -> None:
    path = tmp_path / "a.root"
    values = {"runNumber": [1], "lumiBlock": [2], "run": [3], "luminosityBlock": [4]}
    with uproot.recreate(path) as file:
        file.mktree("Events", {name: np.array(one) for name, one in values.items()})
    assert sections(find(path, [(0, 1)]).processed) == [(3, 4)]


@pytest.mark.parametrize("size", [1, 3, 8, 29, 30])
def test_large_files_are_read_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    path = write_file(tmp_path / "a.root", THREE)
    whole = find(path, [(0, 9), (14, 21)], [(9, 11), (25, 30)])
    monkeypatch.setattr(files, "MAX_BLOCK_ENTRIES", size)
    assert find(path, [(0, 9), (14, 21)], [(9, 11), (25, 30)]) == whole
    assert sections(whole.processed) == [(5, 1), (5, 2), (6, 1)]
    assert sections(whole.missing) == [(5, 1), (5, 2), (6, 1)]
    assert sections(whole.unrequested) == [(5, 2), (6, 1)]


def test_a_file_that_was_never_inspected_is_missing(tmp_path: Path) -> None:
    found = find(write_file(tmp_path / "a.root", THREE), [], None)
    assert sections(found.missing) == [(5, 1), (5, 2), (6, 1)]
    assert not found.processed


@pytest.mark.parametrize("treename", ["Events", "deep/down/Events"])
@pytest.mark.parametrize("ntuple", [False, True], ids=["TTree", "RNTuple"])
@pytest.mark.parametrize(
    ("processed", "missing", "state"),
    [
        ([(0, 30)], [], "processed"),
        ([(0, 12), (12, 30)], [], "processed"),
        ([(0, 29)], [(29, 30)], "missing"),
        ([], None, "missing"),
        ([(0, 29)], [], "unrequested"),
        ([(0, 20)], [(20, 25)], "missing"),
    ],
)
def test_sections_without_events_share_the_fate_of_the_file(
    tmp_path: Path, processed: Any, missing: Any, state: str, ntuple: bool, treename: str
) -> None:
    if ntuple and "/" in treename:
        treename = "down/Events"
    listed = [(5, 1), (5, 2), (6, 1), (6, 2), (6, 3), (6, 2)]
    path = write_file(tmp_path / "a.root", THREE, listed=listed, ntuple=ntuple, treename=treename)
    found = find(input_file(path, treename=treename), processed, missing)
    empty = {(6, 2), (6, 3)}
    for one in ("processed", "missing", "unrequested"):
        assert set(getattr(found, one)) & empty == (empty if one == state else set())


@pytest.mark.parametrize("ntuple", [False, True], ids=["TTree", "RNTuple"])
def test_a_file_of_which_no_event_passed_the_skim(tmp_path: Path, ntuple: bool) -> None:
    path = write_file(tmp_path / "a.root", [], listed=[(5, 1), (5, 2)], ntuple=ntuple)
    assert sections(find(path, [(0, 0)]).processed) == [(5, 1), (5, 2)]
    assert sections(find(path, [], [(0, 0)]).missing) == [(5, 1), (5, 2)]


def test_a_file_without_entries_needs_no_branches(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.root", [], names=("a", "b"))
    assert find(path, [(0, 0)]).has_branches is None
    listed = write_file(tmp_path / "b.root", [], names=("a", "b"), listed=[(5, 1)])
    found = find(listed, [(0, 0)])
    assert (found.has_branches, sections(found.processed)) == (True, [(5, 1)])


def test_an_object_that_only_has_the_name_of_the_section_tree(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.root", THREE)
    other = write_file(tmp_path / "b.root", THREE)
    with uproot.update(path) as file:
        file["LuminosityBlocks"] = "no tree"
    with uproot.update(other) as file:
        file.mktree("LuminosityBlocks", {"run": np.array([9])})
    for one in (path, other):
        assert sections(find(one, [(0, 30)]).processed) == [(5, 1), (5, 2), (6, 1)]


def test_a_file_that_vanished(tmp_path: Path) -> None:
    found = find(tmp_path / "gone.root", [(0, 30)])
    assert (found.kind, found.entry_start) == ("input", None)
    assert "no such file" in found.message


def test_a_file_that_may_come_back_is_tried_again(tmp_path: Path) -> None:
    piece = LumiPiece(input_file(tmp_path / "gone.root"), ((0, 30),), ())
    patient = RecoveryPolicy(wait_seconds=0, kinds={FileNotFoundError: "transient"}, max_attempts=3)
    (found,) = find_lumi_sections([piece], options=ReadOptions(), recovery=patient)
    assert (found.attempts, found.kind) == (3, "transient")


def test_a_file_that_was_replaced(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.root", THREE)
    with uproot.open(path) as file:
        uuid = str(file.file.uuid)
    assert find(input_file(path, uuid=uuid), [(0, 30)]).has_branches
    write_file(path, THREE)
    assert "was replaced" in find(input_file(path, uuid=uuid), [(0, 30)]).message
    assert "at least 31 were expected" in find(path, [(0, 31)]).message


def damage(path: Path, branch: str) -> Path:
    """Overwrite the baskets of a branch."""
    with uproot.open(path) as file:
        found = file["Events"][branch]
        count = found.num_baskets
        places = [found.member(name)[:count] for name in ("fBasketSeek", "fBasketBytes")]
    content = bytearray(path.read_bytes())
    for start, size in zip(*(place.tolist() for place in places), strict=True):
        content[start : start + size] = b"\xff" * size
    path.write_bytes(content)
    return path


def test_damage_elsewhere_does_not_matter(tmp_path: Path) -> None:
    path = damage(write_file(tmp_path / "a.root", THREE), "x")
    assert sections(find(path, [], [(0, 30)]).missing) == [(5, 1), (5, 2), (6, 1)]


def test_damage_of_the_branch_itself_is_a_failure(tmp_path: Path) -> None:
    found = find(damage(write_file(tmp_path / "a.root", THREE), "luminosityBlock"), [(0, 30)])
    assert found.kind == "input"
    assert "reading the branches of run and luminosity section" in found.message


def test_the_next_replica_is_read_where_the_first_is_damaged(tmp_path: Path) -> None:
    bad = damage(write_file(tmp_path / "bad.root", THREE), "run")
    good = write_file(tmp_path / "good.root", THREE)
    found = find(input_file(bad, replicas=(str(bad), str(good))), [(0, 30)])
    assert sections(found.processed) == [(5, 1), (5, 2), (6, 1)]


def test_each_bad_replica_is_read_once(tmp_path: Path) -> None:
    bad = [damage(write_file(tmp_path / f"{number}.root", THREE), "run") for number in range(3)]
    found = find(input_file(bad[0], replicas=tuple(map(str, bad))), [(0, 30)])
    assert (found.kind, found.attempts) == ("input", 3)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (np.array([-1, 3]), "run numbers are between -1 and 3"),
        (np.array([1.5, 3]), "run numbers are of type float64"),
        (np.array([[1, 2], [3, 4]]), r"shape \(2, 2\)"),
    ],
)
def test_branches_that_hold_something_else(tmp_path: Path, values: Any, match: str) -> None:
    path = tmp_path / "a.root"
    with uproot.recreate(path) as file:
        file.mktree("Events", {"run": values, "luminosityBlock": np.array([1, 2])})
    found = find(path, [(0, 2)])
    assert found.kind == "input"
    assert re.search(match, found.message)


# --- the sections of a run


@dataclass
class Books:
    """What a run leaves behind."""

    files: list[InputFile]
    ranges: list[EntryRange]
    processed: list[Span]

    def ask(self, file: InputFile, *bounds: Bounds, processed: Iterable[Bounds] = ()) -> None:
        self.files.append(file)
        self.ranges += [EntryRange(file, *one) for one in bounds]
        place = (file.dataset, file.file_path, file.treename)
        self.processed += [Span(*place, *one) for one in processed]

    def collect(self, executor: Executor | None = None, progress: Any = None) -> Luminosity:
        return collect_luminosity(
            executor or LocalExecutor(),
            self.files,
            self.ranges,
            self.processed,
            options=ReadOptions(),
            recovery=QUICK,
            progress=progress or SilentProgress(),
        )


@pytest.fixture
def books() -> Books:
    return Books([], [], [])


def test_a_section_is_processed_only_as_a_whole(books: Books, tmp_path: Path) -> None:
    first = write_file(tmp_path / "0.root", THREE)
    second = write_file(tmp_path / "1.root", [(6, 1)] * 5 + [(6, 2)] * 5)
    books.ask(input_file(first), (0, 10), (10, 15), (15, 30), processed=[(0, 10), (15, 30)])
    books.ask(input_file(second), (0, 10), processed=[(0, 10)])
    one = books.collect()["data"]
    # (6, 1) is in both files, and all of it was processed
    assert sections(one.processed) == [(5, 1), (6, 1), (6, 2)]
    assert sections(one.missing) == sections(one.partial) == [(5, 2)]
    assert one.is_exact


def test_a_section_that_another_file_lost_is_missing(books: Books, tmp_path: Path) -> None:
    first = write_file(tmp_path / "0.root", THREE)
    second = write_file(tmp_path / "1.root", [(6, 1)] * 5 + [(6, 2)] * 5)
    books.ask(input_file(first), (0, 30), processed=[(0, 30)])
    books.ask(input_file(second), (0, 10))
    one = books.collect()["data"]
    assert sections(one.processed) == [(5, 1), (5, 2)]
    assert sections(one.missing) == [(6, 1), (6, 2)]
    assert sections(one.partial) == [(6, 1)]


def test_a_section_cut_by_what_was_asked_for_is_partial(books: Books, tmp_path: Path) -> None:
    path = write_file(tmp_path / "0.root", THREE, listed=[(5, 1), (6, 1), (7, 7)])
    books.ask(input_file(path), (0, 15), processed=[(0, 15)])
    one = books.collect()["data"]
    assert sections(one.processed) == [(5, 1)]
    assert sections(one.partial) == [(5, 2)]
    assert not one.missing


def test_the_ranges_say_what_was_asked_and_not_the_steps(books: Books, tmp_path: Path) -> None:
    # a resumed run has what was missing at first as steps
    path = write_file(tmp_path / "0.root", THREE)
    file = input_file(path, num_entries=30, steps=((10, 20),))
    books.ask(file, (0, 10), (10, 20), (20, 30), processed=[(0, 10), (10, 20), (20, 30)])
    assert len(books.collect()["data"].processed) == 3


def test_datasets_are_apart_and_keep_their_order(books: Books, tmp_path: Path) -> None:
    path = write_file(tmp_path / "0.root", THREE)
    books.ask(input_file(path, dataset="z"), (0, 30), processed=[(0, 30)])
    books.ask(input_file(path, dataset="a"), (0, 30), processed=[(10, 30)])
    books.ask(input_file(path, dataset="none", steps=()))
    found = books.collect()
    assert list(found) == ["z", "a", "none"]
    assert len(found) == 3
    assert sections(found["z"].processed) == [(5, 1), (5, 2), (6, 1)]
    assert sections(found["a"].processed) == [(5, 2), (6, 1)]
    assert sections(found["a"].missing) == [(5, 1)]
    assert found["none"] == DatasetLumi(False, LumiSections(), LumiSections(), LumiSections())


def test_files_that_can_not_be_read_are_listed(books: Books, tmp_path: Path) -> None:
    gone = tmp_path / "gone.root"
    never = tmp_path / "never.root"
    books.ask(input_file(gone), (0, 30), processed=[(0, 30)])
    books.ask(input_file(never))
    books.ask(input_file(write_file(tmp_path / "0.root", THREE)), (0, 30), processed=[(0, 30)])
    books.ask(input_file(write_file(tmp_path / "late.root", [(8, 8)])))
    one = books.collect()["data"]
    assert [failure.file_path for failure in one.unknown_files] == [str(gone), str(never)]
    assert one.num_files_unknown == 2
    assert not one.is_exact
    assert sections(one.processed) == [(5, 1), (5, 2), (6, 1)]
    # it can be read by now: all of it is missing
    assert sections(one.missing) == [(8, 8)]


def test_a_dataset_without_the_branches(books: Books, tmp_path: Path) -> None:
    path = write_file(tmp_path / "0.root", THREE, names=("a", "b"))
    books.ask(input_file(path), (0, 30), processed=[(0, 30)])
    one = books.collect()["data"]
    assert not one.has_branches
    assert not one.is_exact
    assert one.unknown_files == ()


def test_a_file_that_lacks_the_branches_of_the_others_is_listed(
    books: Books, tmp_path: Path
) -> None:
    lacking = write_file(tmp_path / "0.root", THREE, names=("a", "b"))
    books.ask(input_file(lacking), (0, 30), processed=[(0, 30)])
    books.ask(input_file(write_file(tmp_path / "1.root", THREE)), (0, 30), processed=[(0, 30)])
    # no entry, so nothing is lacking
    empty = write_file(tmp_path / "2.root", [], names=("a", "b"))
    books.ask(input_file(empty), (0, 0), processed=[(0, 0)])
    one = books.collect()["data"]
    assert one.has_branches
    (failure,) = one.unknown_files
    assert failure.file_path == str(lacking)
    assert "'runNumber' and 'lumiBlock'" in failure.message


class LostExecutor(LocalExecutor):
    """Loses every batch, as a cluster whose workers die."""

    def map(self, _: Any, items: Sequence[Any], **__: Any) -> list[Any]:
        return [ExecutorError("the worker died") for _ in items]


def test_a_batch_that_could_not_be_run_is_listed(books: Books, tmp_path: Path) -> None:
    path = write_file(tmp_path / "0.root", THREE)
    books.ask(input_file(path), (0, 30), processed=[(0, 30)])
    one = books.collect(LostExecutor())["data"]
    assert [failure.message for failure in one.unknown_files] == ["the worker died"]
    assert not one.processed


def test_nothing_is_run_for_nothing(books: Books) -> None:
    assert dict(books.collect(LostExecutor())) == {}


def test_progress_is_in_files(books: Books, tmp_path: Path) -> None:
    for number in range(3):
        path = write_file(tmp_path / f"{number}.root", THREE)
        books.ask(input_file(path), (0, 30), processed=[(0, 30)])
    books.ask(input_file(tmp_path / "gone.root"), (0, 30))
    progress = RecordingProgress()
    books.collect(progress=progress)
    assert progress.calls[0] == ("start", "luminosity", 4, "files")
    assert progress.calls[-1] == ("finish", "luminosity")
    assert progress.sum_advances("luminosity") == (4, 0, 1)


def random_books(directory: Path, seed: int) -> tuple[Books, dict[str, list[set[Pair]]]]:
    """Make a run of random files, ranges and losses, and the sets that must come out, by counting events."""
    generator = random.Random(seed)
    books = Books([], [], [])
    expected: dict[str, list[set[Pair]]] = {}
    for number in range(12):
        dataset = generator.choice(["a", "b"])
        size = generator.randrange(40)
        events = sorted((generator.randrange(3), generator.randrange(40)) for _ in range(size))
        empty = [(generator.randrange(3), generator.randrange(40)) for _ in range(3)]
        is_ntuple = generator.random() < 0.3
        path = write_file(
            directory / f"{number}.root", events, listed=events + empty, ntuple=is_ntuple
        )
        edges = sorted({0, size, *(generator.randrange(size + 1) for _ in range(4))})
        ranges = list(pairwise(edges)) or [(0, 0)]
        ranges = [one for one in ranges if generator.random() < 0.95]
        done = [one for one in ranges if generator.random() < 0.9]
        if not ranges:
            continue
        books.ask(input_file(path, dataset=dataset), *ranges, processed=done)
        fates = ["unrequested"] * size
        for state, some in (("missing", ranges), ("processed", done)):
            for start, stop in some:
                fates[start:stop] = [state] * (stop - start)
        of_file = "processed" if set(fates) <= {"processed"} and done == ranges else "unrequested"
        of_file = "missing" if done != ranges else of_file
        sets = expected.setdefault(dataset, [set(), set(), set()])
        listed = [(one, of_file) for one in empty if one not in events]
        for pair, fate in [*zip(events, fates, strict=True), *listed]:
            sets[["processed", "missing", "unrequested"].index(fate)].add(pair)
    return books, expected


@pytest.mark.parametrize("seed", range(6))
def test_every_section_is_where_its_events_are(tmp_path: Path, seed: int) -> None:
    books, expected = random_books(tmp_path, seed)
    found = books.collect()
    assert set(found) == set(expected)
    for dataset, (done, lost, rest) in expected.items():
        one = found[dataset]
        assert set(one.processed) == done - lost - rest
        assert set(one.missing) == lost
        assert set(one.partial) == done & (lost | rest)


def test_a_cluster_finds_the_same(tmp_path: Path, client: Client) -> None:
    from hepdask.executors.dask import DaskExecutor

    books, _ = random_books(tmp_path, 7)
    books.ask(input_file(tmp_path / "gone.root"), (0, 30))
    here, there = books.collect(), books.collect(DaskExecutor(client))
    assert str(here) == str(there)
    for dataset, one in here.items():
        other = there[dataset]
        assert (one.processed, one.missing, one.partial) == (
            other.processed,
            other.missing,
            other.partial,
        )
        assert [failure.message for failure in one.unknown_files] == [
            failure.message for failure in other.unknown_files
        ]


def test_the_sample_of_the_tests(books: Books, nano_files: NanoFiles) -> None:
    for path, num_entries in zip(nano_files.paths, nano_files.num_entries, strict=True):
        done = [] if num_entries == 40 else [(0, num_entries)]
        books.ask(input_file(path), (0, num_entries), processed=done)
    books.ask(input_file(nano_files.empty_path), (0, 0), processed=[(0, 0)])
    one = books.collect()["data"]
    # 289 events, a new section at every hundredth; the last 40 failed
    assert one.processed.to_dict() == {"1": [[1, 2]]}
    assert one.missing.to_dict() == one.partial.to_dict() == {"1": [[3, 3]]}


def test_the_table_flags_what_is_missing(books: Books, tmp_path: Path) -> None:
    path = write_file(tmp_path / "0.root", THREE)
    other = write_file(tmp_path / "1.root", THREE, names=("a", "b"))
    books.ask(input_file(path, dataset="good"), (0, 30), processed=[(0, 30)])
    books.ask(input_file(path, dataset="lossy"), (0, 30), processed=[(0, 15)])
    books.ask(input_file(other, dataset="mc"), (0, 30), processed=[(0, 30)])
    gone = input_file(tmp_path / "gone.root", dataset="good")
    found = books.collect()
    assert found.to_table().rows == (
        ("good", "2", "3", "0", "0", "0"),
        ("lossy", "1", "1", "2", "1", "0"),
        ("mc", "-", "-", "-", "-", "0"),
    )
    assert found.to_table().flagged == {1}
    assert "sections processed" in repr(found)
    assert found._repr_html_().count("color:") == 1
    books.ask(gone, (0, 30), processed=[(0, 30)])
    table = books.collect().to_table()
    assert table.rows[0] == ("good", "2 + ?", "3 + ?", "0 + ?", "0 + ?", "1")
    assert table.flagged == {0, 1}
