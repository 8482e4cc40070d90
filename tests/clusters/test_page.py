"""What the page of the clusters shows works."""

from __future__ import annotations

import re
import shlex
import tomllib
from typing import Any

import dask
import pytest
import yaml

from hepdask import DaskExecutor
from hepdask.clusters import choose_cluster, configured_word, list_systems
from tests.cli.calling import call
from tests.servers import REPOSITORY

PAGE = (REPOSITORY / "hepdask" / "clusters" / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def test_every_system_is_named_with_how_it_is_tested() -> None:
    table = "\n".join(line for line in PAGE.splitlines() if line.startswith("|"))
    words = {word for word in list_systems() if "://" not in word}
    assert words <= set(re.findall(r"`(\w+)`", table))


def test_python() -> None:
    names: dict[str, Any] = {"DaskExecutor": DaskExecutor}
    for block in blocks("python"):
        # the ones that are only shown, too
        exec(block.replace("# DaskExecutor(", "DaskExecutor("), names)  # noqa: S102
    assert repr(names["executor"]) == "DaskExecutor('local')"


def test_configuration() -> None:
    (block,) = blocks("yaml")
    with dask.config.set(yaml.safe_load(block)):
        assert configured_word() == "slurm"
        assert choose_cluster("slurm").options["maximum"] == 200


@pytest.mark.parametrize("line", [line for block in blocks("sh") for line in block.splitlines()])
def test_commands(line: str) -> None:
    pytest.importorskip("dask_jobqueue", reason="pip install 'hepdask[jobqueue]'")
    assert call(*shlex.split(line)[1:]).exit_code == 0


def test_extras_exist() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    sentence = PAGE[PAGE.index("Each is an extra") :]
    named = set(re.findall(r"hepdask\[(\w+)\]|`(\w+)`", sentence))
    assert {one for pair in named for one in pair if one} <= set(project["optional-dependencies"])


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert (REPOSITORY / "hepdask" / "clusters" / target).exists()
