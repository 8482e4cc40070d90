from __future__ import annotations

import logging
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from hepdask.metadata import (
    Branch,
    Branches,
    MetadataCache,
    default_cache_path,
    read_file_metadata,
)
from hepdask.opening import ReadOptions
from tests.metadata.describing import input_file, metadata_of, write_tree

OPTIONS = ReadOptions()
REMOTE = "root://localhost//store/a.root"
PACKAGE_PARENT = str(Path(__file__).parents[2])


@pytest.fixture
def cache(tmp_path: Path) -> MetadataCache:
    return MetadataCache(tmp_path / "cache" / "metadata.sqlite", timeout_seconds=0.05)


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
from tests.metadata.describing import metadata_of
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
