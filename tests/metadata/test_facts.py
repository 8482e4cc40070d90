from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import uproot

from hepdask.errors import FileChangedError, FileReadError, MissingTreeError
from hepdask.metadata import check_unchanged, read_file_metadata
from hepdask.opening import ReadOptions, open_file
from tests.metadata.describing import input_file, write_tree

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import NanoFiles

OPTIONS = ReadOptions()


def test_reads_a_ttree(tmp_path: Path) -> None:
    path = write_tree(tmp_path / "a.root", 30, 20)
    metadata = read_file_metadata(input_file(path), OPTIONS)
    assert (metadata.file_path, metadata.treename) == (str(path), "Events")
    assert metadata.num_entries == 50
    assert metadata.uuid == str(uproot.open(path).file.uuid)
    assert metadata.cluster_offsets == (0, 30, 50)
    assert metadata.kind == "TTree"
    assert metadata.num_file_bytes == path.stat().st_size
    assert metadata.mtime_ns == path.stat().st_mtime_ns
    x, run = metadata.branches
    assert (x.name, x.typename) == ("x", "double")
    assert (run.name, run.typename) == ("run", "int32_t")
    # the entries and, for each of two baskets, some bytes of header
    assert 50 * 8 <= x.num_uncompressed_bytes < 50 * 8 + 200
    assert 0 < x.num_compressed_bytes < metadata.num_file_bytes


def test_branches_are_named_as_they_are_read(nano_files: NanoFiles) -> None:
    metadata = read_file_metadata(input_file(nano_files.paths[1]), OPTIONS)
    assert metadata.cluster_offsets == nano_files.cluster_offsets[1]
    with uproot.open(nano_files.paths[1]) as file:
        assert [branch.name for branch in metadata.branches] == file["Events"].keys()


def test_tree_without_entries(nano_files: NanoFiles) -> None:
    metadata = read_file_metadata(input_file(nano_files.empty_path), OPTIONS)
    assert (metadata.num_entries, metadata.cluster_offsets) == (0, (0,))


def test_reads_an_rntuple(tmp_path: Path) -> None:
    path = tmp_path / "a.root"
    with uproot.recreate(path) as file:
        data = {"x": np.arange(30.0), "flag": np.ones(30, bool)}
        ntuple = file.mkrntuple("Events", data)
        ntuple.extend({name: values[:20] for name, values in data.items()})
    metadata = read_file_metadata(input_file(path), OPTIONS)
    assert metadata.kind == "RNTuple"
    assert metadata.num_entries == 50
    assert metadata.cluster_offsets == (0, 30, 50)
    fields = {one.name: one for one in metadata.branches}
    assert {name: one.typename for name, one in fields.items()} == {"x": "double", "flag": "bool"}
    # 8 bytes an entry; and a bit an entry, in pages of 30 and 20: 4 and 3 bytes
    assert fields["x"].num_uncompressed_bytes == 400
    assert fields["flag"].num_uncompressed_bytes == 7
    assert all(0 < one.num_compressed_bytes <= 400 for one in metadata.branches)


@pytest.mark.parametrize("number", [2**60, 51, 49, 0])
def test_damaged_number_of_entries(tmp_path: Path, number: int) -> None:
    path = write_tree(tmp_path / "a.root", 30, 20)
    raw = bytearray(path.read_bytes())
    # the tree's own comes before those of its branches
    start = raw.index(struct.pack(">q", 50))
    raw[start : start + 8] = struct.pack(">q", number)
    path.write_bytes(raw)
    with uproot.open(path) as file:
        assert file["Events"].num_entries == number
    with pytest.raises(FileReadError, match=f"the tree has {number} entries, its branches have 50"):
        read_file_metadata(input_file(path), OPTIONS)


@pytest.mark.parametrize("compression", [None, uproot.ZLIB(1)])
def test_damaged_list_of_pages(tmp_path: Path, compression: Any) -> None:
    path = tmp_path / "a.root"
    with uproot.recreate(path, compression=compression) as file:
        file.mkrntuple("Events", {"x": np.arange(30.0)})
    raw = bytearray(path.read_bytes())
    with uproot.open(path) as file:
        (record,) = file["Events"].footer.cluster_group_records
    start = record.page_list_link.locator.offset
    # the entries of its only cluster
    where = raw.index(struct.pack("<qq", 0, 30), start)
    raw[where + 8] = 31
    path.write_bytes(raw)
    with uproot.open(path) as file:
        assert file["Events"].num_entries == 31
    with pytest.raises(FileReadError, match="the checksum of a page list is wrong"):
        read_file_metadata(input_file(path), OPTIONS)


def test_missing_tree(tmp_path: Path) -> None:
    file = replace(input_file(write_tree(tmp_path / "a.root", 1)), treename="Runs")
    with pytest.raises(MissingTreeError, match="there is 'Events'"):
        read_file_metadata(file, OPTIONS)


def test_other_replica_has_no_local_state(tmp_path: Path) -> None:
    path = write_tree(tmp_path / "a.root", 10)
    metadata = read_file_metadata(input_file(tmp_path / "missing.root", path), OPTIONS)
    assert metadata.file_path == str(tmp_path / "missing.root")
    assert metadata.mtime_ns is None
    assert metadata.num_file_bytes == path.stat().st_size


@pytest.mark.parametrize(
    ("promised", "message"),
    [
        ({"uuid": "01234567-89ab-cdef-0123-456789abcdef"}, "its UUID is .* but 01234567"),
        ({"num_entries": 11}, "has 10 entries, but at least 11"),
        ({"steps": ((0, 5), (5, 12))}, "has 10 entries, but at least 12"),
    ],
)
def test_changed_file_is_refused(tmp_path: Path, promised: Any, message: str) -> None:
    file = input_file(write_tree(tmp_path / "a.root", 10), **promised)
    with pytest.raises(FileChangedError, match=message):
        read_file_metadata(file, OPTIONS)


def test_unchanged_file_is_accepted(tmp_path: Path) -> None:
    path = write_tree(tmp_path / "a.root", 10)
    uuid = str(uproot.open(path).file.uuid)
    file = input_file(path, uuid=uuid, num_entries=10, steps=((0, 10),))
    with open_file(file, OPTIONS) as opened:
        check_unchanged(file, opened, entry_stop=10)
        with pytest.raises(FileChangedError, match="at least 13"):
            check_unchanged(file, opened, entry_stop=13)
