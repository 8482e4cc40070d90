"""What a section does in each kind of place."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING

import pytest

from hepdask.errors import DamagedObjectError, OptionError, StoreError
from hepdask.store import Section, Store
from hepdask.store.locations import open_place
from tests.store.storing import CODE, KEY, OTHER_CODE, OTHER_KEY, make_histograms, object_path

if TYPE_CHECKING:
    from tests.servers import XrdServer


def test_what_is_saved_is_loaded(any_store: Store) -> None:
    section, value = any_store.section(CODE), make_histograms()
    assert section.keys() == {}
    num_bytes = section.save(KEY, value, summary={"num_entries": 3})
    assert section.keys() == {KEY: num_bytes}
    assert section.load(KEY) == value
    section.save(OTHER_KEY, 2, summary={"num_entries": 5})
    assert set(section.keys()) == {KEY, OTHER_KEY}
    assert section.summaries() == {KEY: {"num_entries": 3}, OTHER_KEY: {"num_entries": 5}}
    assert any_store.section(OTHER_CODE).keys() == {}


def test_the_last_one_wins(any_store: Store) -> None:
    section = any_store.section(CODE)
    for value in (list(range(1_000)), "short", list(range(5_000))):
        num_bytes = section.save(KEY, value, summary={})
        assert section.keys() == {KEY: num_bytes}
        assert section.load(KEY) == value


def test_what_is_not_there_is_named(any_store: Store) -> None:
    section = any_store.section(CODE)
    for _ in range(2):
        with pytest.raises(StoreError, match=f"has no {CODE}/{KEY}.*compute it again") as caught:
            section.load(KEY)
        assert not isinstance(caught.value, DamagedObjectError)
        section.save(OTHER_KEY, 1, summary={})


def test_damage_is_found_everywhere(any_store: Store) -> None:
    section = any_store.section(CODE)
    section.save(KEY, make_histograms(), summary={})
    place, name = open_place(any_store.url), f"{KEY}.hepdask"
    data = bytes(place.read(CODE, name) or b"")
    assert place.read_start(CODE, name, 50) == data[:50]
    for damaged in (b"", data[:-1], data[:1_000]):
        place.write(CODE, name, [damaged])
        with pytest.raises(DamagedObjectError, match=f"{KEY}.hepdask is damaged"):
            section.load(KEY)
    section.save(KEY, 1, summary={})
    assert section.load(KEY) == 1


def test_a_section_is_described_once(any_store: Store) -> None:
    section = any_store.section(CODE)
    assert section.read_about() == {}
    section.describe({"processor": "Dimuon", "path": os})
    section.describe({"processor": "another"})
    assert section.read_about()["processor"] == "Dimuon"
    assert section.read_about()["path"].startswith("<module 'os'")
    assert section.keys() == {}


@pytest.mark.parametrize("text", [b"", b"[]", b'{"about": 1}', b"\xff", b"[" * 100_000])
def test_a_description_that_cannot_be_read_is_written_anew(section: Section, text: bytes) -> None:
    open_place(section.url).write(CODE, "about.json", [text])
    assert section.read_about() == {}
    section.describe({"processor": "Dimuon"})
    assert section.read_about() == {"processor": "Dimuon"}


def test_sections_travel_and_compare(any_store: Store) -> None:
    section = any_store.section(CODE)
    copy = pickle.loads(pickle.dumps(section))
    assert copy == section
    assert hash(copy) == hash(section)
    assert len(pickle.dumps(section)) < 400
    copy.save(KEY, 1, summary={})
    assert section.load(KEY) == 1


@pytest.mark.parametrize("key", ["../" + KEY, "a/" + KEY, "", ".", KEY + "/x", "/etc/passwd"])
def test_paths_are_no_keys(section: Section, key: str) -> None:
    with pytest.raises(OptionError, match="the key of a store is"):
        section.save(key, 1, summary={})
    with pytest.raises(OptionError, match="the key of a store is"):
        section.load(key)
    with pytest.raises(OptionError, match="the section of a store is"):
        Section(section.url, key)
    assert not object_path(section).parent.parent.exists()


def test_other_files_are_no_objects(section: Section) -> None:
    section.save(KEY, 1, summary={})
    directory = object_path(section).parent
    for name in ("notes.txt", "x.hepdask", f".{KEY}.0123456789abcdef.hepdask-tmp"):
        (directory / name).write_text("x")
    (directory / f"{OTHER_KEY}.hepdask").mkdir()
    assert set(section.keys()) == {KEY}
    (directory / f"{'0c' * 16}.hepdask").write_bytes(b"")
    assert set(section.keys()) == {KEY, "0c" * 16}
    assert set(section.summaries()) == {KEY}


def test_a_server_that_comes_back_is_used_again(xrd_store_server: XrdServer) -> None:
    section = Store(xrd_store_server.url("store")).section(CODE)
    section.save(KEY, [1], summary={})
    xrd_store_server.kill()
    with pytest.raises(StoreError, match=r"can't be read \(OSError: .*or choose another store"):
        section.load(KEY)
    xrd_store_server.start()
    assert section.load(KEY) == [1]
    section.save(KEY, [2], summary={})
    assert section.load(KEY) == [2]
