from __future__ import annotations

import os
import pickle
import sys
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import uproot

from hepdask.errors import FileReadError, MissingDependencyError, MissingTreeError
from hepdask.fileset import InputFile
from hepdask.opening import (
    ReadOptions,
    as_read_error,
    explain,
    local_path,
    open_file,
    read_errors,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import XrdServer

OPTIONS = ReadOptions(timeout_seconds=5.0)
NOBODY = 65534  # Debian's user without rights


def input_file(*replicas: Path | str, treename: str = "Events") -> InputFile:
    urls = tuple(map(str, replicas))
    return InputFile(dataset="dy", file_path=urls[0], treename=treename, replicas=urls, metadata={})


def write_file(path: Path) -> Path:
    generator = np.random.default_rng(1)
    with uproot.recreate(path) as file:
        file.mktree("Events", {"x": "f8"})
        file["Events"].extend({"x": generator.normal(size=20_000)})
        file["counts"] = np.histogram([1.0, 2.0, 3.0])
        file.mktree("dir/Runs", {"run": "i4"})
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_file(tmp_path / "good.root")


def test_opens_the_tree(good: Path) -> None:
    with open_file(input_file(good), OPTIONS) as opened:
        assert opened.replica == str(good)
        assert opened.num_entries == 20_000
        assert opened.uuid == str(uproot.open(good).file.uuid)
        assert opened.open_seconds > 0
        before = opened.num_requested_bytes
        assert len(opened.tree["x"].array()) == 20_000
        assert opened.num_requested_bytes > before
        assert opened.directory.file.array_cache is None
    assert opened.directory.file.closed
    opened.close()


def test_opens_a_tree_in_a_directory(good: Path) -> None:
    with open_file(input_file(good, treename="dir/Runs"), OPTIONS) as opened:
        assert opened.num_entries == 0


def test_options_of_uproot_win(good: Path) -> None:
    options = ReadOptions(uproot_options={"handler": uproot.MemmapSource, "array_cache": "1 MB"})
    with open_file(input_file(good), options) as opened:
        assert isinstance(opened.directory.file.source, uproot.MemmapSource)
        assert opened.directory.file.array_cache is not None
    assert pickle.loads(pickle.dumps(options)) == options


def write_empty(path: Path, raw: bytes) -> None:
    path.write_bytes(b"")


def write_short(path: Path, raw: bytes) -> None:
    path.write_bytes(raw[:200])


def write_half(path: Path, raw: bytes) -> None:
    path.write_bytes(raw[: len(raw) // 2])


def write_text(path: Path, raw: bytes) -> None:
    path.write_text("this is no histogram\n" * 100)


def write_directory(path: Path, raw: bytes) -> None:
    path.mkdir()


def write_nothing(path: Path, raw: bytes) -> None:
    pass


@pytest.mark.parametrize(
    ("damage", "message", "cause"),
    [
        (write_empty, "it is empty", OSError),
        (write_short, "it is truncated", OSError),
        (write_half, "it is truncated", EOFError),
        (write_text, "it is not a ROOT file", ValueError),
        (write_directory, "it is a directory", IsADirectoryError),
        (write_nothing, "there is no such file", FileNotFoundError),
    ],
)
def test_bad_file_is_explained(
    tmp_path: Path, good: Path, damage: Any, message: str, cause: type[BaseException]
) -> None:
    bad = tmp_path / "bad.root"
    damage(bad, good.read_bytes())
    with pytest.raises(FileReadError, match=message) as caught:
        open_file(input_file(bad), OPTIONS)
    text = str(caught.value)
    assert "dataset 'dy'" in text
    assert str(bad) in text
    assert isinstance(caught.value.__cause__, cause)
    assert type(caught.value.__cause__).__name__ in text
    assert str(pickle.loads(pickle.dumps(caught.value))) == text


@contextmanager
def not_as_root() -> Iterator[None]:
    """Give up root's right to read everything for a while."""
    user = os.geteuid()
    if user != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


def test_denied_file_is_explained(good: Path) -> None:
    open_file(input_file(good), OPTIONS).close()  # what is imported on the way is there by now
    good.chmod(0)
    with not_as_root(), pytest.raises(FileReadError, match="access is denied"):
        open_file(input_file(good), OPTIONS)


def test_next_replica_is_used(tmp_path: Path, good: Path) -> None:
    (tmp_path / "empty.root").touch()
    file = input_file(tmp_path / "missing.root", tmp_path / "empty.root", good)
    with open_file(file, OPTIONS) as opened:
        assert opened.replica == str(good)


def test_all_replicas_are_listed(tmp_path: Path) -> None:
    (tmp_path / "empty.root").touch()
    file = input_file(tmp_path / "missing.root", tmp_path / "empty.root")
    with pytest.raises(FileReadError, match="from any of its 2 replicas") as caught:
        open_file(file, OPTIONS)
    text = str(caught.value)
    assert f"{tmp_path}/missing.root: there is no such file" in text
    assert f"{tmp_path}/empty.root: it is empty" in text


def test_missing_tree_lists_those_that_are_there(good: Path) -> None:
    with pytest.raises(MissingTreeError, match=r"no tree 'Evnts' in it; did you mean 'Events'\?"):
        open_file(input_file(good, treename="Evnts"), OPTIONS)
    with pytest.raises(MissingTreeError, match="there is 'Events', 'dir/Runs'"):
        open_file(input_file(good, treename="CollectionTree"), OPTIONS)


def test_other_object_is_no_tree(good: Path) -> None:
    with pytest.raises(MissingTreeError, match="'counts' is a TH1D, not a TTree or RNTuple"):
        open_file(input_file(good, treename="counts"), OPTIONS)


def test_missing_tree_is_looked_for_in_other_replicas(tmp_path: Path, good: Path) -> None:
    with uproot.recreate(tmp_path / "other.root") as file:
        file["counts"] = np.histogram([1.0])
    with open_file(input_file(tmp_path / "other.root", good), OPTIONS) as opened:
        assert opened.replica == str(good)
    with pytest.raises(MissingTreeError, match="has no trees at all"):
        open_file(input_file(tmp_path / "other.root", tmp_path / "missing.root"), OPTIONS)


def test_missing_client_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # an entry of None makes the import fail as if it was not installed
    monkeypatch.setitem(sys.modules, "XRootD", None)
    options = ReadOptions(uproot_options={"handler": uproot.XRootDSource})
    with pytest.raises(MissingDependencyError, match=r'pip install "hepdask\[xrootd\]"'):
        open_file(input_file("root://localhost//a.root"), options)


@pytest.mark.parametrize(
    ("error", "telling"),
    [
        (OSError("Server responded with an error: [3011] No such file"), FileNotFoundError),
        (FileNotFoundError("[ERROR] Server responded with an error: [3010]"), PermissionError),
        (OSError("Failed to open file: [ERROR] Operation expired"), TimeoutError),
        (OSError("[FATAL] Connection error"), ConnectionError),
        (ValueError("I/O operation on closed file"), ConnectionError),
        (OSError("expected Chunk of length 10, received 0 bytes in /data/401/timeout"), OSError),
        (FileNotFoundError("[ERROR] Server responded with an error: [3005]"), OSError),
    ],
)
def test_explain_gives_a_telling_type(error: Exception, telling: type[Exception]) -> None:
    cause, advice = explain(error)
    assert isinstance(cause, telling)
    assert not isinstance(cause, PermissionError | TimeoutError) or telling is not OSError
    assert advice
    assert cause is error or cause.__cause__ is error


def test_damaged_basket_is_a_read_error(good: Path) -> None:
    raw = bytearray(good.read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 2_000] = bytes(2_000)
    good.write_bytes(raw)
    file = input_file(good, "root://elsewhere//good.root")
    with open_file(file, OPTIONS) as opened, pytest.raises(read_errors()) as caught:
        opened.tree["x"].array()
    error = as_read_error(caught.value, file, "entries 0 to 20000", replica=file.replicas[1])
    text = str(error)
    for part in (
        "'dy'",
        str(good),
        "'Events'",
        "entries 0 to 20000",
        "root://elsewhere",
        "damaged",
    ):
        assert part in text
    assert f"{type(caught.value).__name__}: {caught.value}" in text
    assert error.__cause__ is caught.value
    assert as_read_error(error, file, "again") is error


def test_read_errors_leave_user_errors_alone() -> None:
    assert issubclass(zlib.error, read_errors())
    assert issubclass(uproot.DeserializationError, read_errors())
    assert not issubclass(KeyError, read_errors())
    assert not issubclass(TypeError, read_errors())


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


def test_server_that_came_back_is_read_again(xrd_server: XrdServer) -> None:
    file = input_file(xrd_server.url("nano_0.root"))
    with open_file(file, OPTIONS) as opened:
        assert opened.num_entries == 100
        xrd_server.kill()
        with pytest.raises(read_errors()):
            opened.tree["MET_pt"].array()
    with pytest.raises(FileReadError, match=r"can't be reached|did not answer") as caught:
        open_file(file, OPTIONS)
    assert isinstance(caught.value.__cause__, TimeoutError | ConnectionError)
    xrd_server.start()
    with open_file(file, OPTIONS) as opened:
        assert len(opened.tree["MET_pt"].array()) == 100


def test_missing_file_on_a_server(xrd_server: XrdServer) -> None:
    with pytest.raises(FileReadError, match="there is no such file") as caught:
        open_file(input_file(xrd_server.url("missing.root")), OPTIONS)
    assert isinstance(caught.value.__cause__, FileNotFoundError)
