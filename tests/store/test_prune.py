from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hepdask.errors import OptionError
from hepdask.store import Store
from hepdask.store.locations import open_place
from hepdask.store.places import Entry
from hepdask.store.prune import PruneRules, _Found, choose_removals
from tests.store.storing import (
    CODE,
    KEY,
    OTHER_CODE,
    OTHER_KEY,
    all_files,
    object_path,
    set_age,
)

if TYPE_CHECKING:
    from hepdask.store import PruneReport

HOUR = 3_600.0
DAY = 24 * HOUR


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Give a store with two objects in one section, a day and an hour old, and a new one in another."""
    store = Store(tmp_path / "store")
    for code, key, age in ((CODE, KEY, DAY), (CODE, OTHER_KEY, HOUR), (OTHER_CODE, KEY, 0)):
        store.section(code).describe({"processor": "Dimuon"})
        store.section(code).save(key, list(range(100)), summary={})
        set_age(object_path(store.section(code), key), age)
    return store


def removed(report: PruneReport) -> set[tuple[str, str, str]]:
    return {(one.section, one.name.partition(".")[0], one.reason) for one in report.removed}


def test_old_objects_are_removed(store: Store) -> None:
    report = store.prune(older_than_seconds=2 * HOUR)
    assert removed(report) == {(CODE, KEY, "old")}
    assert (report.num_objects, report.num_objects_kept) == (1, 2)
    assert set(store.section(CODE).keys()) == {OTHER_KEY}
    assert store.section(OTHER_CODE).load(KEY) == list(range(100))
    assert store.prune(older_than_seconds=2 * HOUR).removed == ()


def test_loading_keeps_an_object(store: Store) -> None:
    store.section(CODE).load(KEY)
    assert removed(store.prune(HOUR / 2)) == {(CODE, OTHER_KEY, "old")}


def test_the_least_recently_used_are_removed_until_the_rest_fits(store: Store) -> None:
    size = object_path(store.section(CODE)).stat().st_size
    assert store.prune(max_bytes=3 * size).removed == ()
    report = store.prune(max_bytes=3 * size - 1)
    assert removed(report) == {(CODE, KEY, "too much")}
    assert (report.num_bytes, report.num_bytes_kept) == (size, 2 * size)
    assert removed(store.prune(max_bytes=size)) == {(CODE, OTHER_KEY, "too much")}
    assert removed(store.prune(max_bytes=0)) == {(OTHER_CODE, KEY, "too much")}


def test_damaged_objects_are_removed(store: Store) -> None:
    path = object_path(store.section(CODE))
    path.write_bytes(path.read_bytes()[:-1])
    misplaced = object_path(store.section(OTHER_CODE), OTHER_KEY)
    misplaced.write_bytes(object_path(store.section(OTHER_CODE)).read_bytes())
    report = store.prune(damaged=True)
    assert removed(report) == {(CODE, KEY, "damaged"), (OTHER_CODE, OTHER_KEY, "damaged")}
    assert report.count_reasons() == {"damaged": 2}
    assert report.num_objects_kept == 2


def test_a_dry_run_removes_nothing(store: Store) -> None:
    before = all_files(Path(store.url))
    report = store.prune(0, dry_run=True)
    assert report.is_dry_run
    assert (report.num_objects, report.num_objects_kept) == (3, 0)
    assert all_files(Path(store.url)) == before


def test_one_section_is_pruned(store: Store) -> None:
    assert store.prune(0, section=CODE).num_objects == 2
    assert [one.name for one in store.sections()] == [OTHER_CODE]
    assert store.prune(0, section="feedfeed").removed == ()
    with pytest.raises(OptionError, match=r"the section of a store is '\.\.'"):
        store.prune(0, section="..")


def test_empty_sections_go_but_not_those_of_a_run_that_begins(store: Store) -> None:
    store.section("feedfeed").describe({"processor": "new"})
    store.section("deadbeef").describe({"processor": "old"})
    set_age(Path(store.url) / "deadbeef" / "about.json", 2 * DAY)
    store.prune(0)
    assert all_files(Path(store.url)) == {"README.txt", "feedfeed/about.json"}
    assert {path.name for path in Path(store.url).iterdir()} == {"README.txt", "feedfeed"}


def test_only_files_of_the_store_are_removed(store: Store, tmp_path: Path) -> None:
    root = Path(store.url)
    foreign = [
        root / f"{KEY}.hepdask",  # not in a section
        root / ".bashrc",
        root / "notes" / f"{KEY}.hepdask",
        root / CODE / "notes.txt",
        root / CODE / "about.json.bak",
        root / CODE / f"{KEY}.hepdask.bak",
        root / CODE / "deeper" / f"{KEY}.hepdask",
        root / CODE / f".{KEY}.tmp",
        root / "deadbeef" / "mine.root",
        root / "deadbeef" / ".x.0123456789abcdef.hepdask-tmp",
        tmp_path / "linked" / f"{KEY}.hepdask",
    ]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        set_age(path, 400 * DAY)
    (root / "feedfeed").symlink_to(tmp_path / "linked")
    (root / CODE / f"{'0c' * 16}.hepdask").symlink_to(foreign[1])
    (root / "abcdef01").mkdir()
    report = store.prune(0, 0, damaged=True)
    assert report.num_objects == 3
    assert report.problems == ()
    assert [path for path in foreign if not path.exists()] == []
    assert (root / "feedfeed").is_symlink()
    assert (root / CODE / f"{'0c' * 16}.hepdask").is_symlink()
    assert (root / "abcdef01").is_dir()
    assert not (root / OTHER_CODE).exists()


def test_what_cannot_be_removed_is_told(store: Store) -> None:
    report = Store(store.url).prune(damaged=True)
    assert report.problems == ()
    path = object_path(store.section(CODE))
    path.chmod(0o602)
    report = store.prune(damaged=True)
    assert report.removed == ()
    (problem,) = report.problems
    assert "everyone can write to" in problem


def test_pruning_works_in_each_kind_of_place(any_store: Store) -> None:
    section = any_store.section(CODE)
    section.describe({"processor": "Dimuon"})
    section.save(KEY, 1, summary={})
    section.save(OTHER_KEY, list(range(10)), summary={})
    open_place(any_store.url).write(CODE, f"{KEY}.hepdask", [b"damaged"])
    assert any_store.prune(older_than_seconds=DAY).removed == ()
    assert removed(any_store.prune(damaged=True)) == {(CODE, KEY, "damaged")}
    assert set(section.keys()) == {OTHER_KEY}
    assert removed(any_store.prune(max_bytes=0)) == {(CODE, OTHER_KEY, "too much")}
    assert any_store.sections() == []
    assert section.keys() == {}


def test_an_unknown_age_is_no_age_but_goes_first() -> None:
    known = _Found(CODE, Entry(f"{KEY}.hepdask", "file", 10, 50.0))
    unknown = _Found(CODE, Entry(f"{OTHER_KEY}.hepdask", "file", 10, None))
    by_age = PruneRules(40.0, None, damaged=False)
    assert choose_removals([known, unknown], set(), by_age, 100.0) == {known: "old"}
    by_size = PruneRules(None, 10, damaged=False)
    assert choose_removals([known, unknown], set(), by_size, 100.0) == {unknown: "too much"}


@pytest.mark.parametrize("rules", [{"older_than_seconds": -1}, {"max_bytes": -1}])
def test_negative_limits_are_refused(store: Store, rules: dict[str, int]) -> None:
    with pytest.raises(OptionError, match="is -1, but has to be 0 or more"):
        store.prune(**rules)
