from __future__ import annotations

import datetime as dt
from contextlib import suppress
from typing import TYPE_CHECKING

import dask
import pytest

from hepdask import MissingDependencyError, OptionError
from hepdask.clusters import choose_cluster, list_facilities
from hepdask.clusters.presets import user_file

if TYPE_CHECKING:
    from pathlib import Path

    from hepdask.clusters import Facility


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    path = tmp_path / "facilities.yaml"
    path.write_text(
        "mine:\n  system: slurm\n  help: the farm downstairs\n"
        "  options: {queue: long, walltime: '12:00:00', environment: {A: 1}}\n"
        "infn: {system: 'tls://localhost:9999'}\n"
    )
    return path


@pytest.mark.parametrize("facility", list_facilities().values(), ids=lambda one: one.name)
def test_each_preset_is_documented_and_right(facility: Facility) -> None:
    assert facility.help
    assert "https://" in facility.source
    assert dt.date.fromisoformat(facility.date) <= dt.datetime.now(dt.UTC).date()
    choice = choose_cluster(facility.name)  # checks its options
    with suppress(
        MissingDependencyError
    ):  # dask-jobqueue writes job scripts, where it is installed
        assert choice.render()


def test_the_places_of_this_field_are_there() -> None:
    wanted = {"lxplus", "lpc", "coffea-casa", "infn", "swan", "purdue"}
    assert wanted | {"htcondor-site", "slurm-site"} <= set(list_facilities())


def test_users_add_their_own(own_file: Path) -> None:
    with dask.config.set({"hepdask.facilities-file": str(own_file)}):
        choice = choose_cluster("mine", {"queue": "short", "environment": {"B": 2}})
        assert choice.system.name == "slurm"
        assert choice.options["queue"] == "short"
        assert choice.options["walltime"] == 43_200
        assert choice.options["environment"] == {"A": "1", "B": "2"}
        assert choose_cluster("infn").options["address"] == "tls://localhost:9999"


def test_the_file_is_in_the_users_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/somewhere")
    assert str(user_file()) == "/somewhere/hepdask/facilities.yaml"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mine: {", "can't be read"),
        ("- mine", "is no mapping of names"),
        ("mine: {options: {}}", "'mine' needs a system"),
        ("mine: {system: slurm, option: {}}", "'mine' has 'option'; a facility has date, help"),
        ("mine: {system: slurm, options: [1]}", "the options of 'mine' are no mapping"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "facilities.yaml"
    path.write_text(text)
    with (
        dask.config.set({"hepdask.facilities-file": str(path)}),
        pytest.raises(OptionError, match=rf"{path}.*{expected}"),
    ):
        list_facilities()


def test_a_file_that_is_named_and_missing(tmp_path: Path) -> None:
    with (
        dask.config.set({"hepdask.facilities-file": str(tmp_path / "none.yaml")}),
        pytest.raises(OptionError, match=r"there is no file .*none\.yaml, which hepdask"),
    ):
        list_facilities()
