from __future__ import annotations

from typing import TYPE_CHECKING, Any

import awkward as ak
import pytest

from hepdask.attempt import Work
from hepdask.checkpoints import find_stored
from hepdask.columns import (
    NUM_TRACED_ENTRIES,
    KeptTraces,
    Trace,
    count_bytes_per_entry,
    trace_columns,
)
from hepdask.fileset import InputFile
from hepdask.metadata import Branch, FileMetadata
from hepdask.opening import ReadOptions
from hepdask.processor import ProcessorCopies
from hepdask.ranges import EntryRange
from hepdask.readers import build_reader
from hepdask.store import Store
from hepdask.tree import ReductionTree
from tests.store.storing import CODE, OTHER_CODE, object_path

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import NanoFiles


def work(processor: Any, schema: str | None = "NanoAODSchema") -> Work:
    return Work(ProcessorCopies(processor), build_reader(schema, ReadOptions()))


def whole(path: Path, num_entries: int = 149) -> EntryRange:
    file = InputFile("dy", str(path), "Events", (str(path),), {}, num_entries=num_entries)
    return EntryRange(file, 0, num_entries)


def columns_of(ranges: list[EntryRange], job: Work) -> list[frozenset[str]]:
    return [one.columns for one in trace_columns(ranges, job)]


def note(path: Path, events: Any) -> None:
    """Note the number of entries in a file: the trace has a copy of the processor."""
    with path.open("a") as log:
        log.write(f"{len(events)}\n")


def test_what_a_processor_touches(nano_files: NanoFiles, tmp_path: Path) -> None:
    sizes = tmp_path / "sizes"

    def process(events: Any) -> dict[str, Any]:
        note(sizes, events)
        muons = events.Muon[events.Muon.pt > 20]
        return {"pt": ak.sum(muons.pt), "met": ak.sum(events.MET.pt)}

    (trace,) = trace_columns([whole(nano_files.paths[1])], work(process))
    assert trace.seed is not None
    assert trace.seed.use.fields == {"Muon", "MET"}
    assert trace.columns == {"nMuon", "Muon_pt", "MET_pt"}
    assert sizes.read_text() == "0\n"


def test_a_processor_that_needs_entries_gets_a_few(nano_files: NanoFiles, tmp_path: Path) -> None:
    sizes = tmp_path / "sizes"

    def process(events: Any) -> float:
        note(sizes, events)
        return float(events["MET_pt"][0])

    ranges = [whole(nano_files.paths[1]), whole(nano_files.paths[2], 40)]
    assert columns_of(ranges, work(process, None)) == [{"MET_pt"}] * 2
    assert sizes.read_text().split() == ["0", str(NUM_TRACED_ENTRIES), "0", "40"]


def test_what_fails_gives_nothing_and_raises_nothing(nano_files: NanoFiles, tmp_path: Path) -> None:
    def process(events: Any) -> None:
        raise ValueError("no")

    assert columns_of([whole(nano_files.paths[0], 100)], work(process)) == [set()]
    missing = whole(tmp_path / "missing.root")
    assert columns_of([missing], work(len)) == [set()]


def test_a_trace_does_not_show_in_the_processor(nano_files: NanoFiles) -> None:
    class Counts:
        def __init__(self) -> None:
            self.counts = {"calls": 0}

        def process(self, events: Any) -> dict[str, int]:
            self.counts["calls"] += 1
            events["MET_pt"].to_list()
            return self.counts

    counts = Counts()
    job = work(counts, None)
    assert columns_of([whole(nano_files.paths[1])], job) == [{"MET_pt"}]
    with job.reader.read(whole(nano_files.paths[1])) as opened:
        assert job.process(opened.events) == {"calls": 1}


@pytest.mark.parametrize(
    ("num_entries", "columns", "expected"),
    [
        (10, {"x"}, 4.0),
        (10, {"x", "y"}, 12.0),
        (10, {"x", "not there"}, 4.0),
        (10, {"not there"}, None),
        (10, set(), None),
        (0, {"x"}, None),
    ],
)
def test_bytes_per_entry(num_entries: int, columns: set[str], expected: float | None) -> None:
    branches = (Branch("x", "int32_t", 10, 40), Branch("y", "double", 20, 80))
    metadata = FileMetadata("a", "Events", num_entries, "0", (0, num_entries), branches, "TTree")
    assert count_bytes_per_entry(metadata, frozenset(columns)) == expected


class OneName:
    """Names all nodes alike."""

    def __init__(self, name: str) -> None:
        self.name = name

    def key(self, node: Any) -> str:  # noqa: ARG002
        return self.name


def test_traces_are_kept(tmp_path: Path) -> None:
    section = Store(tmp_path / "store").section(CODE)
    traces = KeptTraces(section)
    seen = {
        ("Muon_pt", "MET_pt"): Trace(frozenset({"MET_pt"}), 4.0),
        "digest": Trace(frozenset(), None),
    }
    for layout, trace in seen.items():
        assert traces.load(layout) is None
        traces.save(layout, trace)
    assert {layout: traces.load(layout) for layout in seen} == seen
    assert KeptTraces(Store(tmp_path / "store").section(OTHER_CODE)).load("digest") is None
    # never taken for a result
    tree = ReductionTree([[2]])
    present = section.keys()
    assert len(present) == 2
    for name in present:
        assert find_stored(tree, OneName(name), present) == []  # type: ignore[arg-type]


def test_a_damaged_trace_is_found_anew(tmp_path: Path) -> None:
    section = Store(tmp_path / "store").section(CODE)
    KeptTraces(section).save("digest", Trace(frozenset({"MET_pt"}), 4.0))
    (name,) = section.keys()
    object_path(section, name).write_bytes(b"nonsense")
    assert KeptTraces(section).load("digest") is None


def test_a_trace_that_can_not_be_kept_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("in the way")
    traces = KeptTraces(Store(tmp_path / "store").section(CODE))
    traces.save("digest", Trace(frozenset({"MET_pt"}), 4.0))
    assert traces.load("digest") is None
