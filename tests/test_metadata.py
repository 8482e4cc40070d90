from __future__ import annotations

import logging
import os
import pickle
import signal
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import uproot

from hepdask.errors import FileChangedError, MissingTreeError
from hepdask.fileset import InputFile
from hepdask.metadata import (
    Branch,
    Branches,
    FileMetadata,
    MetadataCache,
    check_unchanged,
    default_cache_path,
    read_file_metadata,
)
from hepdask.opening import ReadOptions, open_file

if TYPE_CHECKING:
    from tests.conftest import NanoFiles

OPTIONS = ReadOptions()
REMOTE = "root://localhost//store/a.root"
PACKAGE_PARENT = str(Path(__file__).parents[1])


def input_file(*replicas: Path | str, **promised: Any) -> InputFile:
    urls = tuple(map(str, replicas))
    return InputFile("dy", urls[0], "Events", urls, {}, **promised)


def write_tree(path: Path, *sizes: int) -> Path:
    with uproot.recreate(path) as file:
        file.mktree("Events", {"x": "f8", "run": "i4"})
        for size in sizes:
            file["Events"].extend({"x": np.arange(size) * 1.0, "run": np.ones(size, "i4")})
    return path


def metadata_of(file_path: str, num_entries: int = 10) -> FileMetadata:
    return FileMetadata(
        file_path=file_path,
        treename="Events",
        num_entries=num_entries,
        uuid="01234567-89ab-cdef-0123-456789abcdef",
        cluster_offsets=(0, 5, 10),
        branches=Branches([Branch("x", "double", 70, 80), Branch("run", "int32_t", 10, 40)]),
        kind="TTree",
        num_file_bytes=1_000,
    )


@pytest.fixture
def cache(tmp_path: Path) -> MetadataCache:
    return MetadataCache(tmp_path / "cache" / "metadata.sqlite", timeout_seconds=0.05)


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


def test_branches_are_a_tuple_to_the_eye() -> None:
    plain = (Branch("x", "double", 70, 80), Branch("run", "int32_t", 10, 40))
    packed = Branches(plain)
    assert packed == plain
    assert hash(packed) == hash(plain)
    assert (len(packed), packed[1], packed[:1]) == (2, plain[1], plain[:1])
    assert packed.names == ("x", "run")
    assert packed != Branches(plain[:1])
    assert packed != 1


def test_branches_share_their_layout_after_pickling() -> None:
    one, other = metadata_of("a.root"), metadata_of("b.root")
    copies = pickle.loads(pickle.dumps([one, other]))
    assert copies == [one, other]
    assert copies[0].branches.names is copies[1].branches.names


def test_default_path_is_in_the_cache_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HEPDASK_CACHE_DIR", str(tmp_path))
    assert default_cache_path() == tmp_path / "metadata.sqlite"
    monkeypatch.delenv("HEPDASK_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_path().name == "metadata.sqlite"
    assert default_cache_path().parent.name == "hepdask"


def test_stored_is_found(cache: MetadataCache) -> None:
    known = metadata_of(REMOTE)
    assert cache.lookup([input_file(REMOTE)]) == {}
    assert not cache.path.exists()
    cache.store([known])
    assert cache.lookup([input_file(REMOTE)]) == {(REMOTE, "Events"): known}
    assert cache.lookup([replace(input_file(REMOTE), treename="Runs")]) == {}
    assert MetadataCache(cache.path).count() == 1
    cache.store([replace(known, num_entries=11)])
    assert cache.lookup([input_file(REMOTE)])[REMOTE, "Events"].num_entries == 11
    assert cache.count() == 1


def test_plain_branches_are_stored_too(cache: MetadataCache) -> None:
    known = replace(metadata_of(REMOTE), branches=(Branch("x", "double", 1, 2),))
    cache.store([known])
    assert cache.lookup([input_file(REMOTE)])[REMOTE, "Events"].branches == known.branches


def test_local_file_that_changed_is_not_found(tmp_path: Path, cache: MetadataCache) -> None:
    path = write_tree(tmp_path / "a.root", 10)
    file = input_file(path)
    cache.store([read_file_metadata(file, OPTIONS)])
    assert len(cache.lookup([file])) == 1
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert cache.lookup([file]) == {}


def test_local_file_that_cannot_be_seen_is_found(tmp_path: Path, cache: MetadataCache) -> None:
    path = write_tree(tmp_path / "a.root", 10)
    file = input_file(path)
    cache.store([read_file_metadata(file, OPTIONS)])
    path.unlink()
    assert len(cache.lookup([file])) == 1


def test_relative_path_means_the_file(
    tmp_path: Path, cache: MetadataCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tree(tmp_path / "a.root", 10)
    monkeypatch.chdir(tmp_path)
    cache.store([read_file_metadata(input_file("a.root"), OPTIONS)])
    assert ("a.root", "Events") in cache.lookup([input_file("a.root")])
    assert len(cache.lookup([input_file(tmp_path / "a.root")])) == 1
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert cache.lookup([input_file("a.root")]) == {}


def test_forget_prune_clear(cache: MetadataCache) -> None:
    cache.forget(REMOTE, "Events")
    assert cache.clear() == 0
    cache.store([metadata_of(f"root://localhost//{number}.root") for number in range(3)])
    cache.forget("root://localhost//0.root", "Events")
    assert cache.count() == 2
    assert cache.prune(max_age_days=1) == 0
    assert cache.prune(max_age_days=0) == 2
    cache.store([metadata_of(REMOTE)])
    assert cache.clear() == 1
    assert cache.count() == 0


def test_many_files(cache: MetadataCache) -> None:
    paths = [f"root://localhost//{number}.root" for number in range(1_201)]
    cache.store(map(metadata_of, paths))
    found = cache.lookup(map(input_file, paths))
    assert len(found) == 1_201
    names = {id(one.branches.names) for one in found.values() if isinstance(one.branches, Branches)}
    assert len(names) == 1


def test_files_are_private(cache: MetadataCache) -> None:
    cache.store([metadata_of(REMOTE)])
    assert stat.S_IMODE(cache.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(cache.path.parent.stat().st_mode) == 0o700


def test_other_version_is_ignored_and_rewritten(cache: MetadataCache) -> None:
    cache.store([metadata_of(REMOTE)])
    connection = sqlite3.connect(cache.path)
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    assert cache.lookup([input_file(REMOTE)]) == {}
    cache.store([metadata_of("root://localhost//b.root")])
    assert cache.count() == 1


def test_damaged_database_is_made_anew(
    cache: MetadataCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.path.parent.mkdir()
    cache.path.write_bytes(b"this is no database, but it is long enough to look like one" * 20)
    assert cache.lookup([input_file(REMOTE)]) == {}
    assert "is damaged" in caplog.text
    assert cache.path.with_name("metadata.sqlite.damaged").exists()
    cache.store([metadata_of(REMOTE)])
    assert len(cache.lookup([input_file(REMOTE)])) == 1


def test_damaged_row_is_not_found(cache: MetadataCache) -> None:
    cache.store([metadata_of(REMOTE)])
    connection = sqlite3.connect(cache.path)
    with connection:
        connection.execute("UPDATE files SET facts = x'00'")
    connection.close()
    assert cache.lookup([input_file(REMOTE)]) == {}


def test_locked_database_is_given_up_after_one_warning(
    cache: MetadataCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.store([metadata_of(REMOTE)])
    other = sqlite3.connect(cache.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert cache.lookup([input_file(REMOTE)]) == {}
    other.close()
    (record,) = caplog.records
    assert "can't be read (OperationalError: database is locked)" in record.getMessage()
    assert "HEPDASK_CACHE_DIR" in record.getMessage()


def test_place_that_cannot_be_written_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    cache = MetadataCache(tmp_path / "file" / "metadata.sqlite")
    cache.store([metadata_of(REMOTE)])
    cache.store([metadata_of(REMOTE)])
    assert cache.lookup([input_file(REMOTE)]) == {}
    assert caplog.text.count("can't be written") == 1


def test_several_writers(cache: MetadataCache) -> None:
    def store(number: int) -> None:
        MetadataCache(cache.path).store([metadata_of(f"root://localhost//{number}.root")])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(store, range(40)))
    assert cache.count() == 40


WRITER = """
import sqlite3, sys
from tests.test_metadata import metadata_of
from hepdask.metadata import MetadataCache

cache = MetadataCache(sys.argv[1])
inserting = cache._write

def never_ending(work, default):
    def insert_and_wait(connection):
        # so small a page cache that the database file itself is written before the commit
        connection.execute("PRAGMA cache_size = 1")
        work(connection)
        print("inserted", flush=True)
        sys.stdin.read()
    return inserting(insert_and_wait, default)

cache._write = never_ending
cache.store([metadata_of(f"root://localhost//new/{number}.root") for number in range(2_000)])
"""


def test_killed_writer_leaves_what_was_there(cache: MetadataCache) -> None:
    cache.store([metadata_of(REMOTE)])
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(cache.path)],
        cwd=PACKAGE_PARENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"inserted\n"
        assert cache.path.with_name("metadata.sqlite-journal").exists()
        writer.send_signal(signal.SIGKILL)
    assert cache.lookup([input_file(REMOTE)]) == {(REMOTE, "Events"): metadata_of(REMOTE)}
    assert cache.count() == 1
    cache.store([metadata_of("root://localhost//b.root")])
    assert cache.count() == 2
