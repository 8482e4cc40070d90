from __future__ import annotations

import pytest

from hepdask.paths import (
    canonical_path,
    has_glob,
    is_xrootd,
    local_path,
    split_object_path,
    split_query,
)


@pytest.mark.parametrize(
    ("written", "file_path", "treename"),
    [
        ("a.root", "a.root", None),
        ("a.root:Events", "a.root", "Events"),
        ("a.root:/dir//tree/;1", "a.root", "dir/tree/;1"),
        ("a.root:", "a.root", ""),
        ("a.ROOT:T", "a.ROOT", "T"),
        ("root://host:1094//path/x", "root://host:1094//path/x", None),
        ("root://host:1094//path/x.root", "root://host:1094//path/x.root", None),
        ("root://host:1094//x.root:T", "root://host:1094//x.root", "T"),
        ("root://my.root:1094//x/y", "root://my.root:1094//x/y", None),
        ("root://[::1]:1094//x.root:T;2", "root://[::1]:1094//x.root", "T;2"),
        (
            "root://cache:1094//root://o:1094//x.root:T",
            "root://cache:1094//root://o:1094//x.root",
            "T",
        ),
        ("https://h:443/p.root:dir/tree", "https://h:443/p.root", "dir/tree"),
        ("https://h/p.root?token=abc", "https://h/p.root?token=abc", None),
        ("https://h/p.root?token=abc:dir/tree", "https://h/p.root?token=abc", "dir/tree"),
        ("https://h/p.root?u=http://k/z", "https://h/p.root?u=http://k/z", None),
        ("/d/12:00:00/f.root", "/d/12:00:00/f.root", None),
        ("/d/12:00:00/f.root:T", "/d/12:00:00/f.root", "T"),
        ("/d/12:00:00/f", "/d/12:00:00/f", None),
        ("/d/x.root:1/f.root", "/d/x.root:1/f.root", None),
        ("/d/AOD.1:CollectionTree", "/d/AOD.1", "CollectionTree"),
        ("d/x.pool.root.1:CollectionTree", "d/x.pool.root.1", "CollectionTree"),
        ("mc23:AOD.1._01.pool.root.1", "mc23:AOD.1._01.pool.root.1", None),
        ("data/*:Events", "data/*", "Events"),
        ("data/*.root:Events", "data/*.root", "Events"),
        ("C:\\x\\a.root", "C:\\x\\a.root", None),
    ],
)
def test_split_object_path(written: str, file_path: str, treename: str | None) -> None:
    assert split_object_path(written) == (file_path, treename)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.root", False),
        ("a*.root", True),
        ("a?.root", True),
        ("a[12].root", True),
        ("https://h/a.root?x=[1]*", False),
        ("root://h//a.root?authz=1", False),
        ("root://h//a*.root?authz=1", True),
        ("root://[::1]:1094//a.root", False),
        ("s3://bucket/a?.root", True),
        ("memory://d/*.root", True),
    ],
)
def test_has_glob(path: str, expected: bool) -> None:
    assert has_glob(path) is expected


def test_split_query_leaves_local_wildcards_alone() -> None:
    assert split_query("https://h/a?b?c") == ("https://h/a", "?b?c")
    assert split_query("d/a?b") == ("d/a?b", "")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a.root", "./a.root"),
        ("/d/a.root", "file:///d/x/../a.root"),
        ("root://H:1094//a.root", "root://h//a.root"),
        ("root://h//a.root", "xroot://h//a.root?authz=1"),
        ("https://h:443/a", "HTTPS://h/a"),
    ],
)
def test_canonical_path_is_the_same_for_one_file(one: str, other: str) -> None:
    assert canonical_path(one) == canonical_path(other)


def test_canonical_path_keeps_different_files_apart() -> None:
    assert canonical_path("https://h/a?id=1") != canonical_path("https://h/a?id=2")
    assert canonical_path("root://h//a") != canonical_path("root://g//a")


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/data/a b.root", "/data/a b.root"),
        ("file:///data/a%20b.root", "/data/a b.root"),
        ("root://host//a.root", None),
        ("simplecache::root://host//a.root", None),
    ],
)
def test_local_path(url: str, path: str | None) -> None:
    found = local_path(url)
    assert (None if found is None else str(found)) == path


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("root://host//a.root", True),
        ("xroots://host:1094//a.root", True),
        ("simplecache::root://host//a.root", True),
        ("https://host/root://other//a.root", False),
        ("/data/root/a.root", False),
    ],
)
def test_is_xrootd(url: str, expected: bool) -> None:
    assert is_xrootd(url) == expected
