from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from hepdask.cli import main
from hepdask.cli import store as store_cli
from hepdask.store import Store
from tests.cli.calling import assert_one_line_error, call
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
    from pathlib import Path

DAY = 86_400.0


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(main.commands, "store", store_cli.command)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Give a store with two results of a processor, a day old, and one of another, new."""
    store = Store(tmp_path / "store [mine]")
    for code, key, number, age in (
        (CODE, KEY, 1_000, DAY),
        (CODE, OTHER_KEY, 2_500, DAY),
        (OTHER_CODE, KEY, None, 0),
    ):
        section = store.section(code)
        section.describe({"processor": "Dimuon" if code == CODE else "[red]Trijet"})
        section.save(key, 1, summary={} if number is None else {"num_entries": number})
        set_age(object_path(section, key), age)
    return store


def test_ls_shows_a_row_for_each_section(store: Store) -> None:
    result = call("store", "ls", store.url)
    assert result.exit_code == 0, result.output
    assert store.url in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()[-3:]]
    assert rows[0][:3] == [OTHER_CODE[:12], "[red]Trijet", "1"]  # no events are known
    assert rows[1][:4] == [CODE[:12], "Dimuon", "2,500", "2"]
    assert rows[2][:4] == ["all", "2", "sections", "3"]


def test_ls_as_json_says_it_all(store: Store) -> None:
    listed = json.loads(call("store", "ls", store.url, "--json").stdout)
    assert listed["url"] == store.url
    assert listed["num_objects"] == 3
    assert listed["num_bytes"] == sum(one["num_bytes"] for one in listed["sections"])
    first, second = listed["sections"]
    assert (first["name"], first["num_entries"], first["num_objects"]) == (OTHER_CODE, None, 1)
    assert (second["name"], second["num_entries"], second["num_objects"]) == (CODE, 2_500, 2)
    assert second["about"] == {"processor": "Dimuon"}
    assert second["first_used_seconds"] <= second["last_used_seconds"]
    assert first["last_used_seconds"] > second["last_used_seconds"] + DAY / 2


def test_ls_of_nothing(tmp_path: Path) -> None:
    result = call("store", "ls", tmp_path / "none")
    assert (result.exit_code, result.stdout) == (0, f"nothing is stored in {tmp_path}/none\n")
    assert json.loads(call("store", "ls", tmp_path / "none", "--json").stdout)["sections"] == []
    assert all_files(tmp_path) == set()


def test_prune_removes_and_says_so(store: Store) -> None:
    result = call("store", "prune", store.url, "--older-than", "12h")
    assert result.exit_code == 0, result.output
    (row,) = [line.split() for line in result.stdout.splitlines() if CODE[:12] in line]
    assert row[1:6] == ["not", "used", "for", "so", "long"]
    assert row[6] == "2"
    assert result.stdout.splitlines()[-1].startswith("2 results and 0 half-written files (")
    assert "removed; 1 result (" in result.stdout
    assert [one.name for one in store.sections()] == [OTHER_CODE]
    again = call("store", "prune", store.url, "--older-than", "12h")
    assert again.stdout.startswith("0 results and 0 half-written files (0 B) removed; 1 result")


@pytest.mark.parametrize(
    ("arguments", "num_left"),
    [
        (["--older-than", "2d"], 3),
        (["--older-than", "1.5w", "--max-size", "1MiB"], 3),
        (["--max-size", "0"], 0),
        (["--max-size", "0.4 kB"], 1),
        (["--damaged"], 3),
        (["--older-than", "0s", "--section", CODE], 1),
        (["--older-than", "0s", "--section", OTHER_CODE[:3]], 2),
        (["--older-than", "0s", "--dry-run"], 3),
    ],
)
def test_prune_removes_what_the_options_say(
    store: Store, arguments: list[str], num_left: int
) -> None:
    result = call("store", "prune", store.url, *arguments)
    assert result.exit_code == 0, result.output
    assert sum(one.num_objects for one in store.sections()) == num_left
    if "--dry-run" in arguments:
        assert "3 results" in result.stdout
        assert "would be removed; 0 results (0 B) left" in result.stdout


def test_prune_finds_damage(store: Store) -> None:
    object_path(store.section(CODE)).write_bytes(b"x")
    result = call("store", "prune", store.url, "--damaged")
    assert result.exit_code == 0, result.output
    assert "damaged" in result.stdout
    assert set(store.section(CODE).keys()) == {OTHER_KEY}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "Give --older-than, --max-size or --damaged"),
        (["--section", CODE], "Give --older-than, --max-size or --damaged"),
        (["--older-than", "30"], "'30' is not like 30d; units are s, m, h, d, w"),
        (["--older-than", "-3d"], "'-3d' is not like 30d"),
        (["--max-size", "10 parsecs"], "'10 parsecs' is not like 10GB; units are b, kb, mb"),
        (["--damaged", "--section", CODE + "0"], f"has no section '{CODE}0'; did you mean"),
        (["--damaged", "--section", ".."], "has no section '..'"),
        (["--damaged", "--section", ""], "is the start of 2 names: give more digits"),
    ],
)
def test_prune_explains_what_is_wrong(store: Store, arguments: list[str], text: str) -> None:
    before = all_files(store_path := object_path(store.section(CODE)).parent.parent)
    assert_one_line_error(call("store", "prune", store.url, *arguments), text)
    assert all_files(store_path) == before


@pytest.mark.parametrize("command", [["ls"], ["prune", "--damaged"]])
def test_a_place_that_is_none_is_explained(tmp_path: Path, command: list[str]) -> None:
    assert_one_line_error(call("store", *command, "memry://x"), "did you mean 'memory'?")
    (tmp_path / "file").touch()
    assert_one_line_error(call("store", *command, tmp_path / "file"), "Not a directory", code=1)
    tmp_path.chmod(0o777)
    assert_one_line_error(call("store", *command, tmp_path), "everyone can write to", code=1)


def test_what_cannot_be_removed_is_an_error(store: Store) -> None:
    object_path(store.section(CODE)).chmod(0o602)
    result = call("store", "prune", store.url, "--damaged")
    assert_one_line_error(result, "everyone can write to", code=1)
    assert "0 results" in result.stdout
