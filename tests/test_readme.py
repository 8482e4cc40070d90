"""What the README shows works: its Python blocks run, its commands exist."""

from __future__ import annotations

import re
import shlex
import tomllib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from datasets.sample import write_sample

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
NUM_EVENTS = 2_000


def blocks(language: str) -> list[str]:
    """Find the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def commands() -> Iterator[list[str]]:
    """Find the words of each shell command."""
    for block in blocks("sh"):
        for line in block.splitlines():
            for command in line.split("&&"):
                yield shlex.split(command)


def hepdask_commands() -> list[list[str]]:
    return [words[1:] for words in commands() if Path(words[0]).name == "hepdask"]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a directory that looks like a checkout in which the sample has been made."""
    (tmp_path / "processors").symlink_to(REPOSITORY / "processors")
    write_sample(tmp_path / "sample", num_events=NUM_EVENTS, num_files=2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("checkout")
def test_python_blocks_run() -> None:
    import distributed

    # the one replacement: two workers, and no dashboard on a port that somebody may have
    small_client = partial(distributed.Client, n_workers=2, dashboard_address=":0")
    names: dict[str, Any] = {"Client": small_client}
    try:
        for block in blocks("python"):
            code = block.replace("from distributed import Client\n", "")
            exec(code, names)  # noqa: S102  # as a notebook does
    finally:
        if "client" in names:
            names["client"].close()
    assert names["output"]["num_events"] == {"SingleMu": NUM_EVENTS}
    assert names["metrics"]["entries"] == NUM_EVENTS
    assert names["result"].is_complete


def test_there_are_commands_to_check() -> None:
    assert {words[0] for words in hepdask_commands()} == {
        "sample",
        "run",
        "doctor",
        "plan",
        "inspect",
        "store",
    }


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize("words", hepdask_commands(), ids=" ".join)
def test_hepdask_commands_parse(words: list[str]) -> None:
    from hepdask.cli import main

    name, *arguments = words
    assert isinstance(main, click.Group)
    command = main.get_command(click.Context(main), name)
    assert command is not None
    with command.make_context(name, arguments):
        pass


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize("words", hepdask_commands(), ids=" ".join)
def test_processors_of_the_commands_exist(words: list[str]) -> None:
    for path, name in (word.split(":") for word in words if ".py:" in word):
        assert Path(path).is_file()
        assert f"class {name}" in Path(path).read_text(encoding="utf-8")


def test_extras_that_are_installed_exist() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {
        extra for found in re.findall(r"\.\[([\w,]+)\]", README) for extra in found.split(",")
    }
    assert {"plot", "test", "dev"} <= extras
    assert extras <= project["optional-dependencies"].keys()


def test_ci_runs_the_tests_as_the_readme_says() -> None:
    pytest_command = next(words for words in commands() if "pytest" in words)
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    assert f'/{Path(pytest_command[0]).name}" {" ".join(pytest_command[1:])}\n' in script


def test_links_lead_somewhere() -> None:
    targets = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert targets
    assert [target for target in targets if not (REPOSITORY / target).exists()] == []


def test_it_is_short() -> None:
    assert len(README.splitlines()) < 90
