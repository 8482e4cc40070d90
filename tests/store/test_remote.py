from __future__ import annotations

import datetime as dt
import uuid
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from hepdask.errors import StoreError
from hepdask.store import Store
from hepdask.store.remote import RemotePlace, _describe
from tests.store.storing import CODE, KEY, OTHER_KEY, all_files, make_histograms

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers import XrdServer


def test_the_root_has_a_readme_and_nothing_is_left_over(tmp_path: Path) -> None:
    place = RemotePlace(f"file://{tmp_path}/store")
    place.write(CODE, f"{KEY}.hepdask", [b"a", memoryview(b"b")])
    place.write(CODE, f"{KEY}.hepdask", [b"cd"])
    assert all_files(tmp_path) == {"store/README.txt", f"store/{CODE}/{KEY}.hepdask"}
    assert "pickle" in (tmp_path / "store/README.txt").read_text()
    assert place.read(CODE, f"{KEY}.hepdask") == b"cd"


class OldServer(LocalFileSystem):
    """Doesn't rename over a file, as SFTP."""

    protocol = "oldserver"

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        if self.exists(path2):
            raise FileExistsError(path2)
        super().mv(path1, path2, **options)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("oldserver://")))


def test_a_file_is_replaced_where_renaming_does_not(tmp_path: Path) -> None:
    fsspec.register_implementation("oldserver", OldServer, clobber=True)
    place = RemotePlace(f"oldserver://{tmp_path}/store")
    for data in (b"first", b"second"):
        place.write(CODE, f"{KEY}.hepdask", [data])
        assert place.read(CODE, f"{KEY}.hepdask") == data
    assert all_files(tmp_path) == {"store/README.txt", f"store/{CODE}/{KEY}.hepdask"}


def test_a_failed_write_leaves_nothing_behind(xrd_store_server: XrdServer) -> None:
    section = Store(xrd_store_server.url("store")).section(CODE)
    section.save(KEY, 1, summary={})
    in_the_way = xrd_store_server.data_directory / "store" / CODE / f"{OTHER_KEY}.hepdask"
    in_the_way.mkdir()
    (in_the_way / "notes.txt").touch()
    before = all_files(xrd_store_server.data_directory)
    with pytest.raises(StoreError, match=f"{OTHER_KEY}.hepdask can't be written"):
        section.save(OTHER_KEY, 1, summary={})
    assert all_files(xrd_store_server.data_directory) == before


def test_a_read_only_place_is_explained() -> None:
    section = Store("data://x").section(CODE)
    with pytest.raises(StoreError, match=r"can't be written .*choose another store"):
        section.save(KEY, 1, summary={})


def test_listings_are_never_stale() -> None:
    url = f"memory://{uuid.uuid4().hex}"
    section = Store(url).section(CODE)
    for number in range(3):
        key = f"{number:08x}"
        assert key not in section.keys()  # noqa: SIM118  # a section is no mapping
        section.save(key, number, summary={})
        assert key in section.keys()  # noqa: SIM118


def test_a_server_lists_what_another_client_wrote(xrd_store_server: XrdServer) -> None:
    section = Store(xrd_store_server.url("store")).section(CODE)
    section.save(KEY, 1, summary={})
    assert set(section.keys()) == {KEY}
    directory = xrd_store_server.data_directory / "store" / CODE
    (directory / "0c0c0c0c.hepdask").write_bytes(b"x")
    assert set(section.keys()) == {KEY, "0c0c0c0c"}
    (directory / f"{KEY}.hepdask").unlink()
    assert set(section.keys()) == {"0c0c0c0c"}
    with pytest.raises(StoreError, match="has no"):
        section.load(KEY)


def test_large_values_go_over_xrootd(xrd_store_server: XrdServer) -> None:
    section = Store(xrd_store_server.url("store")).section(CODE)
    value = make_histograms(300_000, random=True)
    num_bytes = section.save(KEY, value, summary={})
    assert num_bytes > 9_000_000
    assert section.load(KEY) == value
    names = all_files(xrd_store_server.data_directory)
    assert names == {"store/README.txt", f"store/{CODE}/{KEY}.hepdask"}


@pytest.mark.parametrize(
    ("entry", "seconds"),
    [
        ({"mtime": 5}, 5.0),
        ({"LastModified": dt.datetime(1970, 1, 2, tzinfo=dt.UTC)}, 86_400.0),
        ({"updated": "1970-01-02T00:00:00Z"}, 86_400.0),
        ({"updated": "yesterday"}, None),
        ({}, None),
    ],
)
def test_times_of_all_file_systems_are_understood(
    entry: dict[str, Any], seconds: float | None
) -> None:
    whole = {"name": "/d/x", "size": 3, "type": "file", **entry}
    marker = {"name": "/d", "size": 0, "type": "directory"}
    (found,) = _describe([marker, whole], "/d", fsspec.filesystem("memory"))
    assert (found.name, found.kind, found.num_bytes) == ("x", "file", 3)
    assert found.used_seconds == seconds
