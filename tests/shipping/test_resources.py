"""Data files by name: here the file itself, on workers the copy that was shipped."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import hepdask
from hepdask import DaskExecutor, FileReadError, LocalExecutor, OptionError, Runner
from hepdask.fingerprint import fingerprint
from tests.shipping.conftest import write

if TYPE_CHECKING:
    from tests.conftest import NanoFiles
    from tests.sites import Site


class Opens:
    """Opens what it was made with."""

    def __init__(self, path: Any) -> None:
        self.path = path

    def process(self, _events: Any) -> Any:
        return {"text": {Path(self.path).read_text()}, "paths": {str(self.path)}}


def opens_by_name(events: Any) -> Any:
    path = hepdask.resource("corrections.json")
    return {"text": {Path(path).read_text()}, "paths": {str(path)}}


def run(executor: Any, nano_files: NanoFiles, processor: Any, **options: Any) -> Any:
    options = {"schema": None, "metadata_cache": False, "progress": False, **options}
    return Runner(executor, chunksize=50, **options).run(nano_files.fileset, processor).output


@pytest.mark.parametrize("is_declared", [True, False])
def test_a_file_is_there_and_is_renewed(
    site: Site, workspace: Path, nano_files: NanoFiles, is_declared: bool
) -> None:
    path = workspace / "data" / "corrections.json"
    executor = DaskExecutor(site.client, max_ranges_per_task=1)
    for text in ("one", "another", "one"):
        write(workspace, {"data/corrections.json": text})
        processor = opens_by_name if is_declared else Opens(hepdask.resource(path))
        options = {"resources": ["data/corrections.json"]} if is_declared else {}
        here = run(LocalExecutor(), nano_files, processor, **options)
        there = run(executor, nano_files, processor, **options)
        assert here == {"text": {text}, "paths": {str(path)}}
        assert there["text"] == {text}
        assert all(one.startswith(str(site.directory)) for one in there["paths"])


def test_a_directory_may_be_one(site: Site, workspace: Path, nano_files: NanoFiles) -> None:
    write(workspace, {"pog/a.json": "1", "pog/2018/b.json": "2"})
    directory = hepdask.resource("pog")

    def process(events: Any) -> Any:
        return {Path(directory, "2018", "b.json").read_text()}

    assert run(DaskExecutor(site.client), nano_files, process) == {"2"}


def test_what_counts_is_the_content(workspace: Path) -> None:
    write(workspace, {"x/a.json": "1", "y/a.json": "1", "z/a.json": "2"})
    x, y, z = (fingerprint(hepdask.resource(f"{one}/a.json")) for one in "xyz")
    assert x == y != z


def test_the_store_sees_what_was_declared(workspace: Path, nano_files: NanoFiles) -> None:
    texts = []
    for text in ("one", "one", "two"):
        write(workspace, {"data/corrections.json": text})
        options = {"resources": ["data/corrections.json"], "store": workspace / "store"}
        texts.append(run(LocalExecutor(), nano_files, opens_by_name, **options)["text"])
    assert texts == [{"one"}, {"one"}, {"two"}]
    assert len(list((workspace / "store").rglob("*.json"))) >= 2


def test_a_copy_by_pickle_is_the_same_path(workspace: Path) -> None:
    write(workspace, {"a.json": "1"})
    one = hepdask.resource("a.json")
    copy = pickle.loads(pickle.dumps(one))
    assert (str(copy), repr(copy)) == (str(workspace / "a.json"), "resource('a.json')")
    (workspace / "a.json").unlink()
    with pytest.raises(
        FileReadError, match=r"'a\.json' is neither shipped to this process nor at /"
    ):
        str(copy)


def test_what_was_not_declared_is_an_error(workspace: Path) -> None:
    with pytest.raises(
        FileReadError, match=r"there is no resource 'x\.json' here.*Runner\(resources"
    ):
        hepdask.resource("x.json")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("a.json", r"resources is 'a\.json': give a list of paths"),
        (["absent.json"], r"has 'absent\.json', and there is no such file"),
        (["a.json", "b/a.json"], r"has 'a\.json' twice"),
        ({"x/y": "a.json"}, "with a '/' in its name"),
    ],
)
def test_wrong_resources_are_errors(workspace: Path, given: Any, text: str) -> None:
    write(workspace, {"a.json": "1", "b/a.json": "2"})
    with pytest.raises(OptionError, match=text):
        Runner(LocalExecutor(), resources=given)
