"""Damage that uproot reads without a word, and that would be an error in the processor, or a wrong result."""

from __future__ import annotations

import struct
from contextlib import closing
from typing import TYPE_CHECKING, Any

import awkward as ak
import numpy as np
import pytest
import uproot

from hepdask.attempt import Work
from hepdask.fileset import InputFile
from hepdask.isolation import ChildRunner
from hepdask.opening import ReadOptions
from hepdask.processor import ProcessorCopies
from hepdask.ranges import EntryRange
from hepdask.readers import build_reader
from hepdask.readers.handles import close_all
from hepdask.task import attempt_range

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hepdask.failures import Failure

NUM_ENTRIES = 149


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    close_all()
    yield
    close_all()


def events(**more: Any) -> dict[str, Any]:
    numbers = np.arange(NUM_ENTRIES, dtype=np.uint32)
    ids = {name: ak.Array(numbers) for name in ("run", "luminosityBlock", "event")}
    return {**ids, **more}


def tracks() -> Any:
    counts = np.arange(NUM_ENTRIES) % 4
    return ak.unflatten(np.arange(counts.sum(), dtype=np.float32), counts)


@pytest.fixture
def tree_path(tmp_path: Path) -> Path:
    """A TTree whose bytes are as they are in memory, with ``nTrack`` and ``Track_pt``."""
    path = tmp_path / "tree.root"
    arrays = events(Track=ak.zip({"pt": tracks()}))
    types = {name: array.type.content for name, array in arrays.items()}
    with uproot.recreate(path, compression=None) as file:
        tree = file.mktree("Events", types, counter_name=lambda counted: f"n{counted}")
        tree.extend(arrays)
    return path


def overwrite(path: Path, position: int, damaged: bytes) -> None:
    raw = bytearray(path.read_bytes())
    raw[position : position + len(damaged)] = damaged
    path.write_bytes(raw)


def write_ntuple(path: Path, num_tracks: Any) -> Path:
    with uproot.recreate(path) as file:
        file.mkrntuple("Events", ak.Array(events(nTrack=num_tracks, Track_pt=tracks())))
    return path


def attempt(path: Path, process: Any, schema: str | None, **more: Any) -> Any:
    file = InputFile("dy", str(path), "Events", (str(path),), {}, **more)
    work = Work(ProcessorCopies(process), build_reader(schema, ReadOptions()))
    return attempt_range(EntryRange(file, 0, NUM_ENTRIES), work, "here")


def failure_of(path: Path, process: Any, schema: str | None, **more: Any) -> Failure:
    (failure,) = attempt(path, process, schema, **more).failures
    return failure  # type: ignore[no-any-return]  # `attempt` gives anything


def track_pt_of_nano(nano: Any) -> dict[str, float]:
    return {"sum": float(ak.sum(nano.Track.pt))}


def counts_first(arrays: Any) -> dict[str, float]:
    return {"sum": float(ak.sum(arrays["nTrack"])), "pt": float(ak.sum(arrays["Track_pt"]))}


def counts_last(arrays: Any) -> dict[str, float]:
    return {"pt": float(ak.sum(arrays["Track_pt"])), "sum": float(ak.sum(arrays["nTrack"]))}


READ_BOTH = [
    (track_pt_of_nano, "NanoAODSchema"),
    (counts_first, None),
    (counts_last, None),
]


@pytest.mark.parametrize(("process", "schema"), READ_BOTH)
def test_lists_that_are_as_long_as_the_counts(tree_path: Path, process: Any, schema: Any) -> None:
    result = attempt(tree_path, process, schema)
    assert result.failures == ()
    assert result.num_entries == NUM_ENTRIES


@pytest.mark.parametrize(("process", "schema"), READ_BOTH)
@pytest.mark.parametrize("preload", [(), ("nTrack", "Track_pt"), ("Track_pt",)])
@pytest.mark.parametrize("count", [3, 2**30])
def test_lists_that_are_not_as_long_as_the_counts(
    tree_path: Path, process: Any, schema: Any, preload: tuple[str, ...], count: int
) -> None:
    with uproot.open(tree_path) as file:
        branch = file["Events"]["nTrack"]
        start = branch.member("fBasketSeek")[0] + branch.basket_key(0).fKeylen
    # the first event has no track: now all tracks seem to belong to other events
    overwrite(tree_path, start, struct.pack(">i", count))
    failure = failure_of(tree_path, process, schema, preload=preload)
    assert failure.kind == "input"
    assert "the lists are not as long as 'nTrack' says" in failure.message
    assert "its bytes are damaged" in failure.message


def test_branch_that_gives_fewer_entries(tree_path: Path) -> None:
    raw = tree_path.read_bytes()
    with uproot.open(tree_path) as file:
        assert file["Events"].branches[0].name == "run"
    # TBranch: fWriteBasket (4 bytes), fEntryNumber (8), and 31 bytes after these begins fEntries (8)
    write_basket = raw.index(struct.pack(">iq", 1, NUM_ENTRIES))
    overwrite(tree_path, write_basket, struct.pack(">i", 0))
    overwrite(tree_path, write_basket + 35, struct.pack(">q", 0))
    with uproot.open(tree_path) as file:
        assert len(file["Events"]["run"].array(entry_stop=NUM_ENTRIES)) == 0
    failure = failure_of(tree_path, lambda arrays: ak.sum(arrays["run"]), None)
    assert failure.kind == "input"
    assert f"0 entries instead of {NUM_ENTRIES}" in failure.message


def test_a_size_that_no_memory_can_hold(tmp_path: Path) -> None:
    path = tmp_path / "tree.root"
    with uproot.recreate(path, compression=uproot.ZLIB(1)) as file:
        file.mktree("Events", {"x": "f8"})
        file["Events"].extend({"x": np.ones(NUM_ENTRIES)})
    assert attempt_in_child(path) == "done"
    with uproot.open(path) as file:
        start = file["Events"]["x"].member("fBasketSeek")[0]
    # TKey: fNbytes (4 bytes), fVersion (2), fObjlen (4): the bytes of the basket in memory
    overwrite(path, start + 6, struct.pack(">i", 2**31 - 1))
    assert attempt_in_child(path) == "input"


def attempt_in_child(path: Path) -> str:
    with closing(ChildRunner()) as runner:
        kind: str = runner.call(attempt_sum, path, memory_bytes=2**29, timeout_seconds=60)
        return kind


def attempt_sum(path: Path) -> str:
    failures = attempt(path, lambda arrays: float(ak.sum(arrays["x"])), None).failures
    return failures[0].kind if failures else "done"


def test_a_cross_reference_to_nothing_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "ntuple.root"
    ids = {name: np.arange(3) for name in ("run", "luminosityBlock", "event")}
    photons = {"nPhoton": np.array([1, 1, 2], np.int32), "nJet": np.array([2, 0, 1], np.int32)}
    indices = {
        "Photon_jetIdx": ak.Array([[-1], [-1], [0, -1]]),
        "Jet_rawFactor": ak.Array([[5.0, 6.0], [], [7.0]]),
    }
    with uproot.recreate(path) as file:
        file.mkrntuple("Events", ak.Array({**ids, **photons, **indices}))
    reader = build_reader("NanoAODSchema", ReadOptions())
    entry_range = EntryRange(InputFile("dy", str(path), "Events", (str(path),), {}), 0, 3)
    with reader.read(entry_range) as opened:
        assert opened.events["Photon", "jetIdxG"].to_list() == [[-1], [-1], [2, -1]]


def test_counts_of_an_ntuple_that_are_negative(tmp_path: Path) -> None:
    counts = np.where(np.arange(NUM_ENTRIES) == 1, -7, np.arange(NUM_ENTRIES) % 4)
    path = write_ntuple(tmp_path / "ntuple.root", counts.astype(np.int32))
    failure = failure_of(path, track_pt_of_nano, "NanoAODSchema")
    assert failure.kind == "input"
    assert "there are negative counts" in failure.message


def test_counts_of_an_ntuple_that_are_too_large(tmp_path: Path) -> None:
    counts = (np.arange(NUM_ENTRIES) % 4 + 1).astype(np.int32)
    path = write_ntuple(tmp_path / "ntuple.root", counts)
    failure = failure_of(path, track_pt_of_nano, "NanoAODSchema")
    # awkward finds it while the processor touches the branch
    assert failure.kind == "input"
    assert "size of array" in failure.message
    kept = failure_of(path, lambda nano: {"lazy": nano.Track.pt}, "NanoAODSchema")
    assert kept.kind == "input"


def test_the_processors_own_mistake_with_good_data(tree_path: Path) -> None:
    def process(arrays: Any) -> Any:
        return ak.from_buffers(
            {"class": "NumpyArray", "primitive": "int64", "form_key": "x"},
            9,
            {"x-data": np.asarray(arrays["run"])[:1]},
        )

    failure = failure_of(tree_path, process, None)
    assert failure.kind == "user"


def test_branches_that_make_no_events_of_a_schema(tmp_path: Path) -> None:
    path = tmp_path / "few.root"
    with uproot.recreate(path) as file:
        file.mktree("Events", {"x": "f8"})
        file["Events"].extend({"x": np.ones(NUM_ENTRIES)})
    assert attempt(path, len, None).accumulator == NUM_ENTRIES
    failure = failure_of(path, len, "NanoAODSchema")
    assert failure.kind == "input"
    assert "its branches as NanoAODSchema" in failure.message
    assert "luminosityBlock" in failure.message
