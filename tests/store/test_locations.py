from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from hepdask.errors import OptionError
from hepdask.store.locations import make_absolute

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("url", "absolute"),
    [
        ("/data/store/", "/data/store"),
        ("/data/a::b", "/data/a::b"),
        ("/data/x://y", "/data/x:/y"),
        ("/data/../store", "/store"),
        ("file:///data/100%25", "/data/100%25"),
        ("file://localhost/data", "/data"),
        ("memory://", "memory://"),
        ("memory://a/b/", "memory://a/b"),
        ("root://host:1094//store/x/", "root://host:1094//store/x"),
        ("simplecache::memory://a", "simplecache::memory://a"),
    ],
)
def test_urls_are_made_absolute(url: str, absolute: str) -> None:
    assert make_absolute(url) == absolute
    assert make_absolute(absolute) == absolute


def test_relative_paths_start_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert make_absolute("store") == os.path.join(os.getcwd(), "store")  # noqa: PTH109, PTH118
    assert make_absolute("file://store") == str(tmp_path / "store")
    assert make_absolute("~/store") == "/home/someone/store"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("", "give a directory or a URL"),
        ("a\0b", "give a directory or a URL"),
        ("memry://x", "no protocol 'memry'; did you mean 'memory'"),
        ("simplecache::sss://x", "no protocol 'sss'"),
        ("dropbox://x", "for dropbox:// URLs: .*dropbox"),
        ("root://host//x?authz=1", "can't have a query"),
    ],
)
def test_what_is_no_place_is_explained(url: str, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        make_absolute(url)
