from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING

import pytest

from hepdask.errors import OptionError
from hepdask.store import Store
from tests.store.storing import CODE, KEY, OTHER_CODE, OTHER_KEY, object_path, set_age

if TYPE_CHECKING:
    from pathlib import Path


def test_a_store_is_its_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("store")
    assert store.url == str(tmp_path / "store")
    assert store == Store(tmp_path / "store") == Store(f"file://{tmp_path}/store/")
    assert len({store, Store(str(tmp_path / "store"))}) == 1
    assert pickle.loads(pickle.dumps(store)) == store
    assert os.listdir(tmp_path) == []  # noqa: PTH208
    with pytest.raises(OptionError, match=r"the section of a store is '\.\./x'"):
        store.section("../x")


def test_sections_are_listed(any_store: Store) -> None:
    assert any_store.sections() == []
    sizes = [any_store.section(CODE).save(key, key * 10, summary={}) for key in (KEY, OTHER_KEY)]
    any_store.section(OTHER_CODE).describe({"processor": "Dimuon"})
    first, second = sorted(any_store.sections(), key=lambda one: -one.num_objects)
    assert (first.name, first.num_objects, first.num_bytes) == (CODE, 2, sum(sizes))
    assert first.about == {}
    assert first.first_used_seconds is not None
    assert first.last_used_seconds is not None
    assert first.first_used_seconds <= first.last_used_seconds
    assert (second.name, second.num_objects, second.num_bytes) == (OTHER_CODE, 0, 0)
    assert second.about == {"processor": "Dimuon"}
    assert second.last_used_seconds is None


def test_the_section_used_last_comes_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name, age in ((CODE, 100), (OTHER_CODE, 10)):
        store.section(name).save(KEY, 1, summary={})
        set_age(object_path(store.section(name)), age)
    assert [one.name for one in store.sections()] == [OTHER_CODE, CODE]
    store.section(CODE).load(KEY)
    assert [one.name for one in store.sections()] == [CODE, OTHER_CODE]


def test_other_directories_are_no_sections(tmp_path: Path) -> None:
    for name in ("notes", "deadbeef", "cafe"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").touch()
    (tmp_path / "0123456789").touch()
    assert Store(tmp_path).sections() == []
