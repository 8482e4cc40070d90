from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from hepdask.errors import OptionError
from hepdask.outputs import OUTPUT_SUFFIXES, check_output_path, write_output
from tests.outputs.examples import make_count

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
def test_suffix_is_found_in_any_case(tmp_path: Path, suffix: str) -> None:
    assert check_output_path(tmp_path / f"a.b{suffix.upper()}") == suffix


def test_wrong_paths_are_found_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"'.*out\.txt' has no suffix .* use one of \.coffea, "):
        check_output_path(tmp_path / "out.txt")
    with pytest.raises(OptionError, match=r"make its directory, '.*nowhere', first"):
        check_output_path(tmp_path / "nowhere" / "out.json")
    (tmp_path / "dir.json").mkdir()
    with pytest.raises(OptionError, match=r"dir\.json' is a directory"):
        check_output_path(tmp_path / "dir.json")


def test_file_has_usual_permissions_and_nothing_is_beside_it(
    tmp_path: Path, output: dict[str, Any]
) -> None:
    before = os.umask(0o027)
    try:
        for suffix in OUTPUT_SUFFIXES:
            write_output(make_count(), tmp_path / f"out{suffix}")
    finally:
        os.umask(before)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(
        f"out{suffix}" for suffix in OUTPUT_SUFFIXES
    )
    assert {one.stat().st_mode & 0o777 for one in tmp_path.iterdir()} == {0o640}


def test_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("before")
    with pytest.raises(OptionError, match="can't be written as JSON"):
        write_output({"a": object()}, path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    link = tmp_path / "out.json"
    link.symlink_to(tmp_path / "data" / "real.json")
    write_output([1], link)
    assert link.is_symlink()
    assert (tmp_path / "data" / "real.json").read_text() == "[1]\n"
