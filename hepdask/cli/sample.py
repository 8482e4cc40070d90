"""``hepdask sample``: toy collisions to try things on."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hepdask.cli.processors import import_file
from hepdask.cli.text import count, format_bytes
from hepdask.errors import OptionError, ProcessorError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["command"]

_PACKAGE = Path(__file__).resolve().parent.parent


@click.command("sample")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--events", type=click.IntRange(1), default=200_000, show_default=True, metavar="N")
@click.option("--files", type=click.IntRange(1), default=4, show_default=True, metavar="N")
@click.option("--seed", type=click.IntRange(0), default=2012, show_default=True, metavar="N")
@click.option("--force", is_flag=True, help="Overwrite the files of another sample.")
def command(directory: Path, events: int, files: int, seed: int, force: bool) -> None:
    """Write toy collisions in the layout of CMS Open Data into DIRECTORY, to try things on."""
    there = [*directory.glob("SingleMu_*.root"), *directory.glob("fileset.json")]
    if there and not force:
        raise OptionError(f"'{there[0]}' exists already: choose another directory, or --force")
    _find_sample_writer()(directory, num_events=events, num_files=files, seed=seed)
    made = sorted(directory.glob("SingleMu_*.root"))[:files]
    num_bytes = sum(one.stat().st_size for one in made)
    click.echo(
        f"wrote {events:,} events in {count(files, 'file')}, {format_bytes(num_bytes)}, and {directory / 'fileset.json'}"
    )
    click.echo(f"next: {_suggest_run(directory / 'fileset.json')}")


def _find_sample_writer() -> Callable[..., Any]:
    """Find `write_sample`: inside the package in an installed wheel, beside it in a checkout."""
    path = _PACKAGE / "bundled" / "sample.py"
    if not path.is_file():
        path = _PACKAGE.parent / "datasets" / "sample.py"
    if not path.is_file():
        raise ProcessorError(f"this installation has no '{path}': install hepdask again")
    return import_file(path).write_sample  # type: ignore[no-any-return]


def _suggest_run(fileset: Path) -> str:
    """Return a command that works as printed, in this directory and this shell."""
    processor = _find_example()
    if processor is None:
        return shlex.join([*_name_program(), "inspect", str(fileset)])
    has_plots = importlib.util.find_spec("matplotlib") is not None
    output = ["--plot", "spectrum.png"] if has_plots else ["-o", "spectrum.coffea"]
    name = f"{_shorten(processor)}:DimuonSpectrum"
    return shlex.join([*_name_program(), "run", name, str(fileset), *output])


def _find_example() -> Path | None:
    # the current directory first: that is the checkout, too, where hepdask was installed from it
    for directory in (Path.cwd(), _PACKAGE.parent):
        path = directory / "processors" / "dimuon.py"
        if path.is_file() and "class DimuonSpectrum" in path.read_text(encoding="utf-8"):
            return path
    return None


def _name_program() -> list[str]:
    """Return what starts this program: its name, if the shell finds no other one under it."""
    program = Path(sys.argv[0])
    if program.resolve() == _PACKAGE / "__main__.py":
        return [_shorten(Path(sys.executable)), "-m", "hepdask"]
    found = shutil.which("hepdask")
    is_found = found is not None and program.exists() and program.samefile(found)
    return [_shorten(program)] if program.stem == "hepdask" and not is_found else ["hepdask"]


def _shorten(path: Path) -> str:
    """Write a path from the current directory on, if it is below."""
    # absolute() and not resolve(): the Python of a virtual environment is a link
    directory, path = Path.cwd(), path.absolute()
    return str(path.relative_to(directory) if path.is_relative_to(directory) else path)
