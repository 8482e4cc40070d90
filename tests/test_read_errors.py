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

from hepdask import endpoints
from hepdask.endpoints import Health
from hepdask.errors import FileReadError, MissingDependencyError
from hepdask.fileset import InputFile
from hepdask.opening import ReadOptions, open_file
from hepdask.read_errors import as_read_error, explain, is_answer, read_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPTIONS = ReadOptions(timeout_seconds=5.0)
NOBODY = 65534  # Debian's user without rights


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test begin with a process that knows nothing of any server."""
    monkeypatch.setattr(endpoints, "_health", Health())


def input_file(*replicas: Path | str) -> InputFile:
    urls = tuple(map(str, replicas))
    return InputFile(dataset="dy", file_path=urls[0], treename="Events", replicas=urls, metadata={})


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.root"
    with uproot.recreate(path) as file:
        file.mktree("Events", {"x": "f8"})
        file["Events"].extend({"x": np.random.default_rng(1).normal(size=20_000)})
    return path


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


def test_all_replicas_are_listed(tmp_path: Path) -> None:
    (tmp_path / "empty.root").touch()
    file = input_file(tmp_path / "missing.root", tmp_path / "empty.root")
    with pytest.raises(FileReadError, match="from any of its 2 replicas") as caught:
        open_file(file, OPTIONS)
    text = str(caught.value)
    assert f"{tmp_path}/missing.root: there is no such file" in text
    assert f"{tmp_path}/empty.root: it is empty" in text


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


def test_what_a_server_answers_is_told_from_a_lost_connection() -> None:
    assert is_answer(OSError("Server responded with an error: [3011] No such file"))
    assert not is_answer(OSError("[FATAL] Connection error"))


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


def test_read_errors_are_what_damaged_bytes_raise() -> None:
    assert issubclass(zlib.error, read_errors())
    assert issubclass(uproot.DeserializationError, read_errors())
    assert issubclass(RecursionError, read_errors())
    assert not issubclass(MemoryError, read_errors())
    assert not issubclass(MissingDependencyError, read_errors())


def test_a_class_that_is_damaged_is_a_read_error(good: Path) -> None:
    # uproot makes an object of an unknown class of each branch, which has no name
    tag = b"\xff\xff\xff\xff"
    raw = good.read_bytes().replace(tag + b"TBranch\0", tag + b"TBr`nch\0")
    good.write_bytes(raw)
    with pytest.raises(FileReadError, match="can't be opened"):
        open_file(input_file(good), OPTIONS)
