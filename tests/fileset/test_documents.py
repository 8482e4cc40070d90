from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import pytest
import yaml

from hepdask.errors import FilesetError
from hepdask.fileset import load_fileset

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("suffix", [".json", ".json.gz", ".yaml", ".yml", ".yaml.gz"])
def test_files(tmp_path: Path, suffix: str) -> None:
    source = {"dy": {"files": {"a.root": "Events"}, "metadata": {"year": 2018}}}
    text = (json.dumps if "json" in suffix else yaml.safe_dump)(source).encode()
    path = tmp_path / f"fileset{suffix}"
    path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    assert load_fileset(path) == load_fileset(str(path)) == load_fileset(source)


def test_missing_fileset_suggests_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "fileset.json").write_text("{}")
    with pytest.raises(FilesetError, match=r"no such fileset file.*did you mean 'fileset\.json'\?"):
        load_fileset(tmp_path / "filset.json")
    with pytest.raises(FilesetError, match="there is no directory"):
        load_fileset(tmp_path / "no" / "fileset.json")
    with pytest.raises(FilesetError, match="download it first"):
        load_fileset("https://host/fileset.json")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("f.json", b'{"a":\n  ["x" "y"]}', r"line 2, column 8: no valid JSON"),
        ("f.json", b'{"a": ["x"], "a": ["y"]}', r"the key 'a' is written twice"),
        ("f.json", b"\xff\xfe\x00", r"can't be read"),
        ("f.json.gz", b"no gzip", r"can't be read"),
        ("f.yaml", b"a: [x\nb: y", r"line 2, column 2: no valid YAML"),
        ("f.yaml", b"a: [x]\na: [y]", r"line 2, column 1: .*the key 'a' is written twice"),
        ("f.yaml", b"", r"None \(NoneType\) is no mapping"),
        ("f.yaml", b"2018: [a.root]", r"2018 \(int\) is no name of a dataset"),
    ],
)
def test_damaged_fileset_files(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FilesetError, match=problem) as caught:
        load_fileset(path, "Events")
    assert name in str(caught.value)


def test_yaml_merge_keys_may_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("a: &a {files: [x.root], treename: T}\nb: {<<: *a, treename: U}\n")
    assert [file.treename for file in load_fileset(path).files] == ["T", "U"]
