"""Which files belong together, their hash, their archive, their limits."""

from __future__ import annotations

import importlib
import io
import zipfile
from pathlib import Path
from typing import Any

import pytest

from hepdask import OptionError, Shipping
from hepdask.fingerprint import find_user_code
from hepdask.shipping.packing import build_file_unit, build_module_units
from tests.shipping.conftest import write


def units(*modules: Any, **options: Any) -> dict[str, Any]:
    origins = find_user_code(list(modules)).origins
    return {one.name: one for one in build_module_units(origins, Shipping(**options))}


def names(unit: Any) -> list[str]:
    return [name for name, _ in unit.files]


def test_a_package_is_taken_with_its_data(workspace: Path) -> None:
    write(
        workspace,
        {
            "package/__init__.py": "",
            "package/cuts.json": "{}",
            "package/unused.py": "",
            "package/.git/config": "",
            "package/__pycache__/x.pyc": "",
        },
    )
    package = importlib.import_module("package")
    assert names(units(package)["package"]) == [
        "package/__init__.py",
        "package/cuts.json",
        "package/unused.py",
    ]


def test_of_a_directory_without_init_only_what_is_used(workspace: Path) -> None:
    files = {"home/cuts.py": "import home.more\n", "home/more.py": "", "home/other.py": ""}
    write(workspace, {**files, "home/holiday.jpg": "x" * 1000, "home/sub/__init__.py": ""})
    assert names(units(importlib.import_module("home.cuts"))["home"]) == [
        "home/cuts.py",
        "home/more.py",
    ]


def test_libraries_are_not_taken(workspace: Path) -> None:
    write(workspace, {"cuts.py": "import numpy, json, hepdask, awkward\n"})
    assert list(units(importlib.import_module("cuts"))) == ["cuts"]


def test_what_counts_is_the_source_not_the_place(workspace: Path, tmp_path: Path) -> None:
    write(workspace, {"cuts.py": "X = 1\n"})
    first = units(importlib.import_module("cuts"))["cuts"]
    (tmp_path / "elsewhere").mkdir()
    moved = Path((workspace / "cuts.py").rename(tmp_path / "elsewhere" / "cuts.py"))
    second = build_file_unit("cuts.py", str(moved), Shipping())
    assert second.digest == first.digest
    assert second.pack() == first.__class__("cuts", first.digest, second.files, 6).pack()


def test_the_archive_is_the_same_each_time(workspace: Path) -> None:
    write(workspace, {"package/__init__.py": "", "package/b.py": "B = 2\n", "package/a.py": ""})
    unit = units(importlib.import_module("package"))["package"]
    assert unit.pack() == unit.pack()
    with zipfile.ZipFile(io.BytesIO(unit.pack())) as archive:
        assert archive.read("package/b.py") == b"B = 2\n"


def test_an_edit_is_another_digest_and_is_never_packed_under_the_old_one(workspace: Path) -> None:
    write(workspace, {"cuts.py": "X = 1\n"})
    cuts = importlib.import_module("cuts")
    before = units(cuts)["cuts"]
    write(workspace, {"cuts.py": "X = 2\n"})
    assert units(cuts)["cuts"].digest != before.digest
    with pytest.raises(OptionError, match="'cuts' was edited meanwhile: run again"):
        before.pack()


def test_a_large_package_is_an_error_with_its_largest_files(workspace: Path) -> None:
    write(workspace, {"package/__init__.py": "", "package/small.txt": "x", "package/cuts.py": ""})
    (workspace / "package" / "nano.root").write_bytes(b"x" * 2_000_000)
    package = importlib.import_module("package")
    text = (
        r"'package' would be sent to all workers with 4 files, 2\.0 MB: more than 5,000 files or 1\.0 MB; the largest: "
        r"package/nano\.root \(2\.0 MB\), package/small\.txt .*Shipping\(exclude="
    )
    with pytest.raises(OptionError, match=text):
        units(package, max_bytes=1_000_000)
    kept = units(package, max_bytes=1_000_000, exclude=("*.root",))
    assert "package/nano.root" not in names(kept["package"])


def test_a_module_that_all_workers_have_can_be_left_out(workspace: Path) -> None:
    write(workspace, {"cuts.py": "import tools\n", "tools.py": ""})
    assert list(units(importlib.import_module("cuts"), exclude=("tools",))) == ["cuts"]


def test_too_many_files_are_an_error(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hepdask.shipping.packing.MAX_FILES", 2)
    write(workspace, {"package/__init__.py": "", "package/a": "", "package/b": ""})
    with pytest.raises(OptionError, match=r"with 3 files, 0\.0 kB: more than 2 files"):
        units(importlib.import_module("package"))


def test_what_can_not_be_read_is_named(workspace: Path) -> None:
    write(workspace, {"package/__init__.py": ""})
    (workspace / "package" / "link").symlink_to("nowhere")
    with pytest.raises(OptionError, match=r"'package' can't be sent .*package/link can't be read"):
        units(importlib.import_module("package"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"modules": "cuts"}, "give a sequence of strings"),
        ({"max_bytes": 0}, "give a number of bytes"),
    ],
)
def test_wrong_options_are_errors(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        Shipping(**options)
