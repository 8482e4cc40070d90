from __future__ import annotations

import os
import shutil
import uuid
from typing import TYPE_CHECKING

import pytest

from hepdask.store import Store
from tests.servers import XrdServer, require_xrootd
from tests.store.storing import CODE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hepdask.store import Section


@pytest.fixture
def section(tmp_path: Path) -> Section:
    """Give a section of a local store that isn't there yet."""
    return Store(tmp_path / "store").section(CODE)


@pytest.fixture
def xrd_store_server(served_path: Path) -> Iterator[XrdServer]:
    """Serve an empty directory by XRootD, for reading and writing."""
    require_xrootd()
    data_directory = served_path / "data"
    data_directory.mkdir()
    if os.geteuid() == 0:
        shutil.chown(data_directory, "xrootd", "xrootd")
    writable = "all.export / r/w"
    with XrdServer(data_directory, served_path / "xrootd", extra_config=writable) as server:
        yield server


@pytest.fixture(params=["directory", "memory", "fsspec", "xrootd"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Give an empty store in each kind of place."""
    if request.param == "memory":
        return Store(f"memory://{uuid.uuid4().hex}/a b%20c")
    if request.param == "xrootd":
        return Store(request.getfixturevalue("xrd_store_server").url("store/of/mine"))
    store = Store(tmp_path / "a b%20c[*]#1")
    if request.param == "fsspec":
        # a store takes no file:// URL to fsspec, but this is the one file system with renaming that is always there
        object.__setattr__(store, "url", f"file://{store.url}")
    return store
