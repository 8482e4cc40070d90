"""What all commands print, and how: tables, JSON, errors of one line; and the codes to end with."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from hepdask.cli.sources import NO_TREE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hepdask.failures import Failure

__all__ = [
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_SKIPPED",
    "EXIT_USAGE",
    "count",
    "echo_json",
    "fail",
    "failure_to_dict",
    "format_bytes",
    "note",
    "one_line_notes",
    "show",
    "show_failures",
]

EXIT_FAILED, EXIT_USAGE, EXIT_SKIPPED, EXIT_INTERRUPTED = 1, 2, 3, 130
"""What `hepdask.cli` says of them."""

#: Errors speak of Python: what to type here instead.
_WORDS = {
    "give treename=": "give --treename",
    f", tree {NO_TREE!r}": "",
    "skipbadfiles=True": "--skipbadfiles",
    "skipbadfiles=(ProcessDiedError, MemoryError)": "--skipbadevents",
    "LocalExecutor() runs it in this process": "--executor iterative runs it in this process",
}


def fail(text: str) -> None:
    """Print an error to the standard error, in the words of the command line."""
    for python, typed in _WORDS.items():
        text = text.replace(python, typed)
    click.echo(f"hepdask: error: {text}", err=True)


def note(text: str) -> None:
    """Print a line to the standard error."""
    click.echo(text, err=True)


@contextmanager
def one_line_notes() -> Iterator[None]:
    """Show warnings and log messages of hepdask as one line each, without the place in the code."""

    def show(message: Warning | str, category: type[Warning], *_: Any) -> None:
        label = "" if issubclass(category, UserWarning) else f"{category.__name__}: "
        note(f"hepdask: warning: {label}{message}")

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("hepdask: warning: %(message)s"))
    logger = logging.getLogger("hepdask")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show  # type: ignore[assignment]  # as the documentation of warnings has it
            # coffea's, for each index column that a file lacks; what is missing shows when it is used
            warnings.filterwarnings("ignore", "Missing cross-reference index", RuntimeWarning)
            yield
    finally:
        logger.removeHandler(handler)


def show(what: Any) -> None:
    """Print a table: in full width where nobody looks, so that nothing is cut in a log."""
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        console.print(what)
    else:
        click.echo(str(what))


def show_failures(failures: Sequence[Failure]) -> None:
    """Print a table of failures, if there are any."""
    if failures:
        from hepdask.failures import Failures

        show(Failures(failures).to_table())


def echo_json(value: Any) -> None:
    """Print a value as JSON, for people and programs."""
    import json

    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def failure_to_dict(failure: Failure) -> dict[str, str]:
    """Return what JSON says of a failure."""
    names = ("dataset", "file_path", "treename", "kind", "exception_type", "message")
    return {name: getattr(failure, name) for name in names}


def format_bytes(number: int | None) -> str:
    """Write a number of bytes with three digits, ``1.23 MB``; nothing if it is not known."""
    if number is None:
        return ""
    size, units = float(number), ["B", "kB", "MB", "GB", "TB", "PB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.3g} {units[0]}"


def count(number: int, noun: str, plural: str = "") -> str:
    """Write a number and what it counts, ``1 file`` or ``1,200 files``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
