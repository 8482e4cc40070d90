"""``hepdask store``: what is kept from earlier runs, and what of it can go."""

from __future__ import annotations

import datetime as dt
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from hepdask.cli.options import JSON_OPTION
from hepdask.cli.text import EXIT_FAILED, count, echo_json, fail, format_bytes, show
from hepdask.errors import OptionError, suggest
from hepdask.tables import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hepdask.store import PruneReport, SectionInfo, Store

__all__ = ["command"]

#: As many digits of a section's name as a table shows, and as nobody has twice.
NAME_DIGITS = 12

_REASONS = {
    "old": "not used for so long",
    "damaged": "damaged",
    "too much": "over the size",
    "leftover": "half-written",
}


_AGES = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_SIZES = (
    {"": 1, "b": 1}
    | {f"{prefix}b": 1_000**power for power, prefix in enumerate("kmgtp", 1)}
    | {f"{prefix}ib": 1_024**power for power, prefix in enumerate("kmgtp", 1)}
)


def _parse_age(text: str) -> float:
    return _parse_quantity(text, _AGES, "30d")


def _parse_size(text: str) -> int:
    return int(_parse_quantity(text, _SIZES, "10GB"))


def _parse_quantity(text: str, units: Mapping[str, int], example: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", text, re.IGNORECASE | re.ASCII)
    unit = units.get(match[2].lower()) if match else None
    if match is None or unit is None:
        names = ", ".join(one for one in units if one)
        raise click.BadParameter(f"{text!r} is not like {example}; units are {names}")
    return float(match[1]) * unit


@click.group("store")
def command() -> None:
    """Look after a store, where results are kept between runs."""


@command.command("ls")
@click.argument("store")
@JSON_OPTION
def list_command(store: str, as_json: bool) -> int:
    """List what is in STORE (a directory or a URL): one row for each processor and state of its code.

    EVENTS are those of the largest single result.
    """
    opened = _open_store(store)
    sections = opened.sections()
    events = {one.name: _count_events(opened, one.name) for one in sections}
    if as_json:
        echo_json(
            {
                "url": opened.url,
                "sections": [_section_to_dict(one, events[one.name]) for one in sections],
                "num_objects": sum(one.num_objects for one in sections),
                "num_bytes": sum(one.num_bytes for one in sections),
            }
        )
    elif sections:
        show(_build_table(opened.url, sections, events))
    else:
        click.echo(f"nothing is stored in {opened.url}")
    return 0


@command.command("prune")
@click.argument("store")
@click.option(
    "--older-than",
    type=_parse_age,
    metavar="AGE",
    help="Results not used for so long, like 30d or 12h.",
)
@click.option(
    "--max-size",
    type=_parse_size,
    metavar="SIZE",
    help="Those not used for longest, until the rest fits, like 10GB.",
)
@click.option("--damaged", is_flag=True, help="Results that are not what was written; reads all.")
@click.option("--section", metavar="NAME", help="Only in this section; the first digits will do.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
def prune_command(store: str, **options: Any) -> int:
    """Remove results from STORE (a directory or a URL); they are computed again when they are needed.

    What a killed process left half-written a day ago goes, too. Files that aren't the store's are left alone.
    """
    older_than, max_size = options["older_than"], options["max_size"]
    if older_than is None and max_size is None and not options["damaged"]:
        raise OptionError("what is to go? Give --older-than, --max-size or --damaged")
    opened = _open_store(store)
    section = options["section"]
    report = opened.prune(
        older_than,
        max_size,
        damaged=options["damaged"],
        section=None if section is None else _find_section(opened, section),
        dry_run=options["dry_run"],
    )
    _show_report(report)
    for problem in report.problems:
        fail(problem)
    return EXIT_FAILED if report.problems else 0


def _open_store(url: str) -> Store:
    from hepdask.store import Store

    return Store(url)


def _count_events(store: Store, section: str) -> int | None:
    """Return the events of the largest result: the others are parts of it, or of another run."""
    summaries = store.section(section).summaries().values()
    numbers = [one.get("num_entries") for one in summaries]
    return max((one for one in numbers if isinstance(one, int)), default=None)


def _section_to_dict(info: SectionInfo, events: int | None) -> dict[str, Any]:
    return {
        "name": info.name,
        "about": info.about,
        "num_entries": events,
        "num_objects": info.num_objects,
        "num_bytes": info.num_bytes,
        "first_used_seconds": info.first_used_seconds,
        "last_used_seconds": info.last_used_seconds,
    }


def _build_table(
    url: str, sections: Sequence[SectionInfo], events: Mapping[str, int | None]
) -> Table:
    rows = [
        (
            one.name[:NAME_DIGITS],
            str(one.about.get("processor", "")),
            "" if (number := events[one.name]) is None else f"{number:,}",
            f"{one.num_objects:,}",
            format_bytes(one.num_bytes),
            _format_time(one.last_used_seconds),
        )
        for one in sections
    ]
    if len(sections) > 1:
        num_objects = sum(one.num_objects for one in sections)
        num_bytes = format_bytes(sum(one.num_bytes for one in sections))
        total = count(len(sections), "section")
        rows.append(("all", total, "", f"{num_objects:,}", num_bytes, ""))
    headers = ("section", "processor", "events", "objects", "size", "last used")
    return Table(url, headers, tuple(rows))


def _format_time(seconds: float | None) -> str:
    """Write a time as the clock on the wall has it, to the minute."""
    if seconds is None:
        return ""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def _find_section(store: Store, start: str) -> str:
    """Return the one section whose name starts so."""
    names = store.section_names()
    found = [start] if start in names else [one for one in names if one.startswith(start)]
    if len(found) == 1:
        return found[0]
    if found:
        raise OptionError(
            f"--section {start!r} is the start of {len(found)} names: give more digits"
        )
    raise OptionError(f"{store.url} has no section {start!r}{suggest(start, names)}")


def _show_report(report: PruneReport) -> None:
    groups = Counter((one.section, one.reason) for one in report.removed)
    sizes: Counter[tuple[str, str]] = Counter()
    for one in report.removed:
        sizes[one.section, one.reason] += one.num_bytes
    verb = "would be removed" if report.is_dry_run else "removed"
    if groups:
        rows = tuple(
            (
                section[:NAME_DIGITS],
                _REASONS[reason],
                f"{number:,}",
                format_bytes(sizes[section, reason]),
            )
            for (section, reason), number in sorted(groups.items())
        )
        show(Table(verb.capitalize(), ("section", "why", "files", "size"), rows))
    removed = f"{count(report.num_objects, 'result')} and {count(report.num_leftovers, 'half-written file')}"
    kept = f"{count(report.num_objects_kept, 'result')} ({format_bytes(report.num_bytes_kept)})"
    click.echo(f"{removed} ({format_bytes(report.num_bytes)}) {verb}; {kept} left")
