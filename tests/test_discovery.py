from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from hepdask.discovery import expand_globs, make_absolute
from hepdask.errors import FileReadError, FilesetError, MissingDependencyError
from hepdask.fileset import load_fileset

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fsspec.implementations.memory import MemoryFileSystem


def write_files(directory: Path, *names: str) -> None:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def expand(*files: str, treename: str | None = "Events") -> list[str]:
    return [file.file_path for file in expand_globs(load_fileset({"dy": [*files]}, treename)).files]


class DoorFileSystem(LocalFileSystem):  # type: ignore[misc]
    """Local files behind a URL with a host: as XRootD's, its own paths have neither scheme nor host."""

    protocol = "door"
    root: ClassVar[str] = ""
    refused: ClassVar[str] = ""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        path = path.removeprefix("door://").partition("/")[2] if "://" in path else path
        return path.rstrip("/")

    def ls(self, path: str, **kwargs: Any) -> list[Any]:
        if self.refused and path.endswith(self.refused):
            raise PermissionError("[3010] permission denied")
        found = super().ls(self.root + path, detail=True)
        return [{**info, "name": info["name"].removeprefix(self.root)} for info in found]


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fsspec.register_implementation("door", DoorFileSystem, clobber=True)
    monkeypatch.setattr(DoorFileSystem, "root", str(tmp_path))
    return tmp_path


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    file_system = fsspec.filesystem("memory")
    yield file_system
    file_system.store.clear()
    file_system.pseudo_dirs[:] = [""]


def test_fileset_without_patterns_is_returned_untouched() -> None:
    fileset = load_fileset({"dy": ["a.root", "https://h/x.root?query"]}, "Events")
    assert expand_globs(fileset) is fileset


def test_matches_stand_in_the_place_of_the_pattern_sorted(tmp_path: Path) -> None:
    write_files(tmp_path, "b2.root", "b1.root", "b3.txt", ".b0.root", "b_dir.root/x")
    got = expand("z.root", f"{tmp_path}/b*.root", "a.root")
    assert got == ["z.root", f"{tmp_path}/b1.root", f"{tmp_path}/b2.root", "a.root"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**/*.root", ["a/b/2.root", "a/1.root", "c/3.root", "top.root"]),
        ("a/**", ["a/1.root", "a/b/2.root"]),
        ("*/?.root", ["a/1.root", "c/3.root"]),
        ("[ab]/[!2].root", ["a/1.root"]),
        ("*/b/2.root", ["a/b/2.root"]),
        ("**/b/*", ["a/b/2.root"]),
        (".h*/*", [".hidden/4.root"]),
    ],
)
def test_wildcards_are_python_s(
    tmp_path: Path, door: Path, pattern: str, expected: list[str]
) -> None:
    write_files(tmp_path, "top.root", "a/1.root", "a/b/2.root", "c/3.root", ".hidden/4.root")
    assert expand(f"{tmp_path}/{pattern}") == sorted(f"{tmp_path}/{name}" for name in expected)
    url = "door://host:1094//"
    assert expand(url + pattern) == sorted(url + name for name in expected)


def test_relative_patterns_keep_their_spelling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    write_files(tmp_path, "d/a.root")
    assert expand("d/*.root") == ["d/a.root"]
    assert expand("./d/*.root") == ["./d/a.root"]
    assert expand("*/a.root") == ["d/a.root"]
    assert expand("~/d/*.root") == [f"{tmp_path}/d/a.root"]
    assert expand(f"file://{tmp_path}/d/*.root") == [f"file://{tmp_path}/d/a.root"]


def test_tree_name_and_metadata_are_kept(tmp_path: Path) -> None:
    write_files(tmp_path, "a.root", "b.root")
    source = {
        "dy": {"files": [f"{tmp_path}/*.root:dir/tree"], "metadata": {"x": 1}, "preload": ["q"]}
    }
    fileset = expand_globs(load_fileset(source))
    assert [(f.treename, f.metadata, f.preload) for f in fileset.files] == 2 * [
        ("dir/tree", {"x": 1}, ("q",))
    ]
    assert all(file.replicas == (file.file_path,) for file in fileset.files)
    assert fileset.datasets[0].metadata is fileset.files[0].metadata


def test_pattern_is_no_shell_text(tmp_path: Path) -> None:
    write_files(tmp_path, "$(touch x);a.root", "`b`.root", "$HOME.root")
    assert len(expand(f"{tmp_path}/*.root")) == 3
    assert expand(f"{tmp_path}/$(touch x);*.root") == [f"{tmp_path}/$(touch x);a.root"]


def test_file_with_brackets_in_its_name_is_no_pattern(tmp_path: Path) -> None:
    write_files(tmp_path, "data[1].root", "data1.root")
    assert expand(f"{tmp_path}/data[1].root") == [f"{tmp_path}/data[1].root"]
    once = expand(f"{tmp_path}/*.root")
    assert expand(*once) == once


def test_url_keeps_scheme_host_and_slashes(door: Path) -> None:
    write_files(door, "store/x.root", "store/y.root")
    assert expand("door://user@host:1094//store/*.root") == [
        "door://user@host:1094//store/x.root",
        "door://user@host:1094//store/y.root",
    ]


def test_memory_file_system(memory: MemoryFileSystem) -> None:
    for name in ("b", "a"):
        memory.pipe(f"/data/run/{name}.root", b"")
    memory.pipe("/data/other/c.root", b"")
    assert expand("memory://data/run/*.root") == [
        "memory://data/run/a.root",
        "memory://data/run/b.root",
    ]
    assert expand("memory:///data/*/c.root") == ["memory:///data/other/c.root"]


def test_new_files_are_seen_by_the_next_expansion(memory: MemoryFileSystem) -> None:
    memory.pipe("/data/a.root", b"")
    assert len(expand("memory://data/*.root")) == 1
    memory.pipe("/data/b.root", b"")
    assert len(expand("memory://data/*.root")) == 2


def test_pattern_without_match_names_the_nearest_directory(tmp_path: Path, door: Path) -> None:
    write_files(tmp_path, "data/a.root")
    with pytest.raises(
        FilesetError, match=r"dataset 'dy', file '.*/none/deep/\*\.root': no file"
    ) as e:
        expand(f"{tmp_path}/data/none/deep/*.root")
    assert f"nearest directory that exists is '{tmp_path}/data/'" in str(e.value)
    with pytest.raises(FilesetError, match=r"its directory '.*/data/' exists"):
        expand(f"{tmp_path}/data/*.parquet")
    with pytest.raises(
        FilesetError, match=r"nearest directory that exists is '/data/', not '/data/x/'"
    ):
        expand("door://host//data/x/*.root")


def test_empty_directory_exists(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FilesetError, match=r"its directory '.*/empty/' exists"):
        expand(f"{tmp_path}/empty/*.root")


def test_file_found_twice_names_both_patterns(tmp_path: Path) -> None:
    write_files(tmp_path, "a1.root", "b.root")
    with pytest.raises(
        FilesetError, match=r"a1\.root': the file is listed twice, by '.*/\*\.root' and"
    ):
        expand(f"{tmp_path}/*.root", f"{tmp_path}/a*.root")
    with pytest.raises(FilesetError, match=r"b\.root': the file is listed twice"):
        expand(f"{tmp_path}/b.root", f"{tmp_path}/*.root")


def test_same_file_in_two_datasets_is_allowed(tmp_path: Path) -> None:
    write_files(tmp_path, "a.root")
    fileset = load_fileset({"x": f"{tmp_path}/*.root", "y": f"{tmp_path}/*.root"}, "Events")
    assert [file.dataset for file in expand_globs(fileset).files] == ["x", "y"]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"num_entries": 3}, "a pattern can't have 'num_entries'"),
        ({"steps": [[0, 1]]}, "a pattern can't have 'steps'"),
        ({"replicas": ["root://b//x.root"]}, "can't be or have a replica"),
    ],
)
def test_facts_about_a_pattern_are_refused(entry: dict[str, Any], problem: str) -> None:
    fileset = load_fileset({"dy": {"files": {"none/*.root": {"object_path": "Events", **entry}}}})
    with pytest.raises(FilesetError, match=problem):
        expand_globs(fileset)


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(FilesetError, match="2 things are wrong"):
        expand(f"{tmp_path}/x*.root", f"{tmp_path}/y*.root")


def test_directory_that_cannot_be_listed_is_an_error(
    door: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(door, "data/good/a.root", "data/secret/b.root")
    monkeypatch.setattr(DoorFileSystem, "refused", "/secret")
    with pytest.raises(
        FileReadError, match=r"dataset 'dy', pattern 'door:.*PermissionError: \[3010\]"
    ):
        expand("door://host//data/*/*.root")
    assert expand("door://host//data/g*/*.root") == ["door://host//data/good/a.root"]


def test_directory_that_xrootd_lists_as_itself_is_an_error(
    door: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def list_as_itself(self: DoorFileSystem, path: str, **kwargs: Any) -> list[Any]:
        return [{"name": path, "type": "directory", "size": 0}]

    monkeypatch.setattr(DoorFileSystem, "ls", list_as_itself)
    with pytest.raises(FilesetError, match="no file matches"):
        expand("door://host//data/*.root")
    monkeypatch.setattr(DoorFileSystem, "protocol", "root")
    fsspec.register_implementation("door", DoorFileSystem, clobber=True)
    with pytest.raises(FileReadError, match=r"PermissionError: .* does not open .* '/data'"):
        expand("door://host//data/*.root")


def test_missing_xrootd_plugin_is_the_command_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec_xrootd", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "root", raising=False)
    with pytest.raises(MissingDependencyError, match=r'pip install "hepdask\[xrootd\]"'):
        expand("root://host:1094//store/*.root")


def test_unknown_scheme_is_named() -> None:
    with pytest.raises(FilesetError, match=r"dataset 'dy'.*nosuch"):
        expand("nosuch://host/store/*.root")


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = ["a.root", "/data/b.root", "root://host//c.root", ["d.root", "root://host//d.root"]]
    loaded = load_fileset({"nano": files}, "Events")
    paths = [file.replicas for file in make_absolute(loaded).files]
    here = str(tmp_path)
    assert paths == [
        (f"{here}/a.root",),
        ("/data/b.root",),
        ("root://host//c.root",),
        (f"{here}/d.root", "root://host//d.root"),
    ]
    assert make_absolute(make_absolute(loaded)) == make_absolute(loaded)
