from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from hepdask.fingerprint import files

if TYPE_CHECKING:
    from pathlib import Path


def test_an_edit_within_a_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a"
    digests = set()
    for number in range(5):
        path.write_text(str(number))
        os.utime(path, ns=(10**18, 10**18))
        digests.add(files.digest_file(str(path)))
    assert len(digests) == 5


def test_a_file_that_is_settled_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_text("content")
    monkeypatch.setattr(files, "SETTLED_SECONDS", -1.0)
    digest = files.digest_file(str(path))
    state = files.state_of(str(path), path.stat())
    assert state is not None
    assert files._DIGESTS[state] == digest
    path.write_text("changed")
    assert files.digest_file(str(path)) != digest


def test_a_large_file_counts_by_size_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_READ_BYTES", 10)
    path = tmp_path / "a"
    path.write_text("content that is long")
    os.utime(path, ns=(10**18, 10**18))
    before = files.digest_file(str(path))
    path.write_text("CONTENT THAT IS LONG")
    os.utime(path, ns=(10**18, 10**18))
    assert files.digest_file(str(path)) == before
    os.utime(path, ns=(10**18, 10**18 + 1))
    assert files.digest_file(str(path)) != before


@pytest.mark.parametrize("name", ["", ".", "missing", "a\nb", "a\0b", "root://host//a", "x" * 5000])
def test_most_strings_name_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert files.find_file(name) is None


def test_only_regular_files_are_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a").write_text("a")
    (tmp_path / "link").symlink_to("a")
    assert files.find_file("pipe", str(tmp_path)) is None
    assert files.find_file("/dev/zero") is None
    assert files.find_file("link", str(tmp_path)) == str(tmp_path / "link")
