from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import awkward as ak
import numpy as np
import pytest
import uproot

from hepdask.errors import FileChangedError, FileReadError, OptionError
from hepdask.fileset import InputFile
from hepdask.opening import ReadOptions
from hepdask.ranges import EntryRange
from hepdask.readers import branches, build_reader
from hepdask.readers.handles import close_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import NanoFiles

OPTIONS = ReadOptions()
SCHEMAS = [None, "BaseSchema", "NanoAODSchema"]
# within a cluster, over one edge, over two, from edge to edge, all, none, none at the end
BOUNDS = [(10, 20), (40, 60), (49, 101), (50, 100), (0, 149), (30, 30), (149, 149)]


@dataclass(frozen=True)
class Sample:
    path: Path
    arrays: Any  # every entry, as uproot reads it


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    close_all()
    yield
    close_all()


@pytest.fixture(scope="module", params=["TTree", "RNTuple"])
def sample(
    request: pytest.FixtureRequest,
    nano_files: NanoFiles,
    tmp_path_factory: pytest.TempPathFactory,
) -> Sample:
    """149 entries in clusters of 50, once as a TTree, once as an RNTuple."""
    with uproot.open({nano_files.paths[1]: "Events"}) as tree:
        arrays = tree.arrays()
    if request.param == "TTree":
        return Sample(nano_files.paths[1], arrays)
    path = tmp_path_factory.mktemp("rntuple") / "events.root"
    with uproot.recreate(path) as file:
        ntuple = file.mkrntuple("Events", arrays[:50])
        ntuple.extend(arrays[50:100])
        ntuple.extend(arrays[100:])
    return Sample(path, arrays)


def input_file(path: Path, **more: Any) -> InputFile:
    return InputFile("dy", str(path), "Events", (str(path),), {"xsec": 1.5}, **more)


def entry_range(path: Path, start: int, stop: int, **more: Any) -> EntryRange:
    return EntryRange(input_file(path, **more), start, stop)


def muon_pt(events: Any) -> Any:
    return events.Muon.pt if "Muon" in events.fields else events["Muon_pt"]


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize(("start", "stop"), BOUNDS)
def test_the_right_entries_wherever_the_clusters_are(
    sample: Sample, schema: str | None, start: int, stop: int
) -> None:
    reader = build_reader(schema, OPTIONS)
    with reader.read(entry_range(sample.path, start, stop)) as opened:
        assert len(opened.events) == stop - start
        expected = sample.arrays[start:stop]
        assert muon_pt(opened.events).to_list() == expected["Muon_pt"].to_list()
        assert opened.events["event"].to_list() == expected["event"].to_list()


def test_neighbouring_ranges_give_each_entry_once(sample: Sample) -> None:
    reader = build_reader("NanoAODSchema", OPTIONS)
    found: list[int] = []
    for start, stop in [(0, 37), (37, 74), (74, 149)]:
        with reader.read(entry_range(sample.path, start, stop)) as opened:
            found += opened.events.event.to_list()
    assert found == sample.arrays["event"].to_list()


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_branch_is_what_uproot_reads(sample: Sample, schema: str | None) -> None:
    with build_reader(schema, OPTIONS).read(entry_range(sample.path, 40, 110)) as opened:
        for name in sample.arrays.fields:
            collection, _, field = name.partition("_")
            if name in opened.events.fields:
                found = opened.events[name]
            elif not field:
                continue  # nMuon: NanoAODSchema makes the collection's offsets of it
            else:
                found = opened.events[collection][field]
            assert found.to_list() == sample.arrays[name][40:110].to_list()


@pytest.mark.parametrize("schema", SCHEMAS)
def test_metadata_has_coffeas_keys_and_the_users(sample: Sample, schema: str | None) -> None:
    with build_reader(schema, OPTIONS).read(entry_range(sample.path, 10, 20)) as opened:
        metadata = dict(opened.events.metadata)
        uuid = opened.handle.open_file.uuid
    assert {
        "dataset": "dy",
        "filename": str(sample.path),
        "treename": "Events",
        "entrystart": 10,
        "entrystop": 20,
        "fileuuid": uuid,
        "xsec": 1.5,
    }.items() <= metadata.items()


def test_metadata_survives_slicing(sample: Sample) -> None:
    for schema in SCHEMAS:
        with build_reader(schema, OPTIONS).read(entry_range(sample.path, 10, 20)) as opened:
            assert opened.events[:3].metadata["entrystart"] == 10


def test_metadata_belongs_to_the_range_and_not_to_the_layout(sample: Sample) -> None:
    reader = build_reader("NanoAODSchema", OPTIONS)
    for start in (0, 10):
        with reader.read(entry_range(sample.path, start, 20)) as opened:
            assert opened.events.metadata["entrystart"] == start


@pytest.mark.parametrize("schema", SCHEMAS)
def test_only_what_is_touched_is_read(sample: Sample, schema: str | None) -> None:
    with build_reader(schema, OPTIONS).read(entry_range(sample.path, 10, 60)) as opened:
        tally = opened.tally
        assert tally.columns == set()
        assert tally.num_compressed_bytes == 0
        ak.materialize(
            opened.events["MET_pt"] if schema != "NanoAODSchema" else opened.events.MET.pt
        )
        assert tally.columns == {"MET_pt"}
        ak.materialize(muon_pt(opened.events))
        assert tally.columns - {"nMuon"} == {"MET_pt", "Muon_pt"}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_what_is_read_is_counted(sample: Sample, schema: str | None) -> None:
    with build_reader(schema, OPTIONS).read(entry_range(sample.path, 0, 149)) as opened:
        ak.materialize(muon_pt(opened.events))
        tally = opened.tally
        size = sample.path.stat().st_size
        assert 0 < tally.num_compressed_bytes <= opened.num_requested_bytes
        assert opened.num_requested_bytes < 2 * size
        assert tally.num_compressed_bytes < size
        # floats and offsets
        floats = 4 * int(ak.sum(ak.num(sample.arrays["Muon_pt"])))
        assert floats < tally.num_uncompressed_bytes < floats + 3 * 8 * 150
        assert tally.read_seconds > 0
        assert opened.form_seconds > 0


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_jagged_branch_is_read_once(
    sample: Sample, schema: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    measure = branches.BranchSource._measure

    def counting(self: Any, names: tuple[str, ...], read: Any) -> Any:
        reads.extend(names)
        return measure(self, names, read)

    monkeypatch.setattr(branches.BranchSource, "_measure", counting)
    with build_reader(schema, OPTIONS).read(entry_range(sample.path, 10, 60)) as opened:
        ak.materialize(muon_pt(opened.events))
        ak.materialize(muon_pt(opened.events) * 2)
    assert reads.count("Muon_pt") == 1
    assert len(reads) == len(set(reads))


@pytest.mark.parametrize("schema", SCHEMAS)
def test_preloaded_branches_are_read_at_once_and_are_the_same(
    sample: Sample, schema: str | None
) -> None:
    preload = ("Muon_pt", "MET_pt", "not_in_this_file")
    with build_reader(schema, OPTIONS).read(
        entry_range(sample.path, 10, 60, preload=preload)
    ) as opened:
        tally = opened.tally
        assert tally.columns == {"Muon_pt", "MET_pt"}
        before = tally.num_compressed_bytes
        assert before > 0
        found = muon_pt(opened.events).to_list()
        assert found == sample.arrays["Muon_pt"][10:60].to_list()
        assert tally.columns - {"nMuon"} == {"Muon_pt", "MET_pt"}
        # what the trace or the user missed is still read
        assert opened.events["event"].to_list() == sample.arrays["event"][10:60].to_list()
        assert tally.num_compressed_bytes > before


def test_preloading_nothing_that_is_there_reads_nothing(sample: Sample) -> None:
    with build_reader(None, OPTIONS).read(entry_range(sample.path, 0, 9, preload=("x",))) as opened:
        assert opened.tally.columns == set()


def test_the_next_range_finds_the_file_open(sample: Sample) -> None:
    reader = build_reader(None, OPTIONS)
    with reader.read(entry_range(sample.path, 0, 50)) as first:
        ak.materialize(first.events["MET_pt"])
        requested_first = first.num_requested_bytes
    with reader.read(entry_range(sample.path, 50, 100)) as second:
        assert second.handle.was_kept
        assert second.handle.open_seconds == 0
        assert second.num_requested_bytes == 0
        ak.materialize(second.events["MET_pt"])
        # the header and the tree were requested by the first
        assert 0 < second.num_requested_bytes < requested_first


def test_an_empty_file_has_no_events(nano_files: NanoFiles) -> None:
    for schema in SCHEMAS:
        reader = build_reader(schema, OPTIONS)
        with reader.read(entry_range(nano_files.empty_path, 0, 0)) as opened:
            assert len(opened.events) == 0
            assert muon_pt(opened.events).to_list() == []


@pytest.mark.parametrize("schema", SCHEMAS)
def test_readers_are_pickled(sample: Sample, schema: str | None) -> None:
    reader = pickle.loads(pickle.dumps(build_reader(schema, ReadOptions(5.0))))
    assert reader.options == ReadOptions(5.0)
    with reader.read(entry_range(sample.path, 0, 3)) as opened:
        assert len(muon_pt(opened.events)) == 3


def test_another_file_under_the_same_name_is_noticed(sample: Sample) -> None:
    reader = build_reader(None, OPTIONS)
    other = "00000000-0000-0000-0000-000000000000"
    with (
        pytest.raises(FileChangedError, match=f"but {other} was expected"),
        reader.read(entry_range(sample.path, 0, 3, uuid=other)),
    ):
        pass
    with (
        pytest.raises(FileChangedError, match="it has 149 entries, but at least 150"),
        reader.read(entry_range(sample.path, 0, 3, num_entries=150)),
    ):
        pass


def test_layouts_are_shared_between_files_of_one_layout(
    nano_files: NanoFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(branches, "_layouts", type(branches._layouts)())
    for schema in SCHEMAS:
        reader = build_reader(schema, OPTIONS)
        for path in (*nano_files.paths, nano_files.empty_path):
            with reader.read(entry_range(path, 0, 0)):
                pass
    assert len(branches._layouts) == len(SCHEMAS)


def test_different_layouts_are_not_mixed_up(tmp_path: Path) -> None:
    types: list[dict[str, Any]] = [
        {"x": "i4", "y": "f4"},
        {"x": "f8", "y": "f4"},
        {"x": "i4"},
        {"y": "f4", "x": "i4"},
        {"x": "var * int32"},
        {"x": np.dtype(("i4", (3,)))},
    ]
    for number, columns in enumerate(types):
        path = tmp_path / f"{number}.root"
        values = {
            name: (
                ak.Array([[1], [2, 3]])
                if kind == "var * int32"
                else np.array([[1, 2, 3], [4, 5, 6]])
                if isinstance(kind, np.dtype)
                else np.array([1, 2])
            )
            for name, kind in columns.items()
        }
        with uproot.recreate(path) as file:
            file.mktree("Events", columns)
            file["Events"].extend(values)
        with uproot.open({path: "Events"}) as tree:
            expected = tree["x"].array()
        with build_reader(None, OPTIONS).read(entry_range(path, 0, 2)) as opened:
            assert opened.events["x"].to_list() == expected.to_list()
            assert set(columns) <= set(opened.events.fields)
            assert ("y" in opened.events.fields) == ("y" in columns)


def test_few_layouts_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "_layouts", type(branches._layouts)())
    built = []

    def build(number: int) -> int:
        built.append(number)
        return number

    for number in range(branches.MAX_LAYOUTS + 1):
        assert branches.kept_layout(number, lambda number=number: build(number)) == number
        # the one in use stays
        assert branches.kept_layout(0, lambda: build(0)) == 0
    assert len(branches._layouts) == branches.MAX_LAYOUTS
    assert built == [*range(branches.MAX_LAYOUTS + 1)]
    branches.kept_layout(1, lambda: build(1))
    assert built[-1] == 1


@pytest.fixture
def garbled(tmp_path: Path, nano_files: NanoFiles) -> Path:
    """A copy in which the compressed bytes of the second basket of Muon_pt are flipped."""
    path = tmp_path / "garbled.root"
    content = bytearray(nano_files.paths[1].read_bytes())
    with uproot.open({nano_files.paths[1]: "Events"}) as tree:
        branch = tree["Muon_pt"]
        start, key = branch.member("fBasketSeek")[1], branch.basket_key(1)
    # past the key, and past the nine bytes that say how it is compressed
    body = slice(int(start) + key.fKeylen + 9, int(start) + key.fNbytes)
    content[body] = bytes(byte ^ 0xFF for byte in content[body])
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("schema", SCHEMAS)
def test_damaged_bytes_name_branch_range_and_file(garbled: Path, schema: str | None) -> None:
    reader = build_reader(schema, OPTIONS)
    with (
        pytest.raises(FileReadError, match=r"branch 'Muon_pt' of entries 40 to 60") as caught,
        reader.read(entry_range(garbled, 40, 60)) as opened,
    ):
        ak.materialize(muon_pt(opened.events))
    assert str(garbled) in str(caught.value)
    assert caught.value.__cause__ is not None


def test_damaged_bytes_are_found_in_bulk_reads_too(garbled: Path) -> None:
    reader = build_reader(None, OPTIONS)
    preload = ("MET_pt", "Muon_pt")
    with (
        pytest.raises(FileReadError, match="branch 'MET_pt', 'Muon_pt' of entries 0 to 149"),
        reader.read(entry_range(garbled, 0, 149, preload=preload)),
    ):
        pass


def test_what_is_not_damaged_can_be_read(garbled: Path, nano_files: NanoFiles) -> None:
    reader = build_reader("NanoAODSchema", OPTIONS)
    with uproot.open({nano_files.paths[1]: "Events"}) as tree:
        expected = tree["Muon_pt"].array(entry_stop=50)
    with reader.read(entry_range(garbled, 0, 50)) as opened:
        assert opened.events.Muon.pt.to_list() == expected.to_list()
    with reader.read(entry_range(garbled, 40, 60)) as opened:
        assert len(ak.materialize(opened.events.MET.pt)) == 20


@pytest.mark.parametrize(
    ("schema", "match"),
    [
        ("NanoAODSchem", "no schema 'NanoAODSchem'; did you mean 'NanoAODSchema'"),
        (int, r"schema is <class 'int'>: give a class of coffea\.nanoevents"),
        (3, "schema is 3: give a class"),
    ],
)
def test_a_wrong_schema_is_refused(schema: Any, match: str) -> None:
    with pytest.raises(OptionError, match=match):
        build_reader(schema, OPTIONS)


def test_schemas_may_be_classes_and_the_users_own(sample: Sample) -> None:
    from coffea.nanoevents import NanoAODSchema

    class MySchema(NanoAODSchema):  # type: ignore[misc]  # coffea has no types
        mixins: ClassVar[dict[str, str]] = {**NanoAODSchema.mixins, "Muon": "PtEtaPhiMCandidate"}

    with build_reader(MySchema, OPTIONS).read(entry_range(sample.path, 0, 60)) as opened:
        assert type(opened.events.Muon).__name__ == "PtEtaPhiMCandidateArray"
    with build_reader(NanoAODSchema, OPTIONS).read(entry_range(sample.path, 0, 60)) as opened:
        # the user's own schema is another layout
        assert type(opened.events.Muon).__name__ == "MuonArray"
        assert "charge" in opened.events.Muon.fields
