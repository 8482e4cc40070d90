"""``hepdask cluster``: what clusters there are, and what would be submitted to one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from hepdask.cli.options import CLUSTER_OPTION, JSON_OPTION
from hepdask.cli.text import echo_json, note, show
from hepdask.tables import Table

if TYPE_CHECKING:
    from hepdask.clusters import Choice

__all__ = ["command"]


@click.group("cluster")
def command() -> None:
    """Look at clusters: systems, facilities, and what is submitted to them."""


@command.command("ls")
@JSON_OPTION
def list_clusters(as_json: bool) -> int:
    """List the words for a cluster: systems and facilities."""
    from hepdask.clusters import list_facilities, list_systems

    systems, facilities = list_systems(), list_facilities()
    if as_json:
        echo_json(
            {
                "systems": {
                    name: {"help": one.help, "options": sorted(one.words)}
                    for name, one in systems.items()
                },
                "facilities": {
                    name: {
                        "help": one.help,
                        "system": one.system,
                        "source": one.source,
                        "date": one.date,
                        "path": str(one.path),
                    }
                    for name, one in facilities.items()
                },
            }
        )
        return 0
    rows = tuple((name, one.help) for name, one in systems.items())
    show(Table("Systems", ("word", "what"), rows))
    show(
        Table(
            "Facilities",
            ("word", "system", "what", "documented at", "read on"),
            tuple(
                (one.name, one.system, one.help, one.source, one.date)
                for one in facilities.values()
            ),
        )
    )
    return 0


@command.command("show")
@click.argument("word", metavar="WORD")
@CLUSTER_OPTION
def show_cluster(word: str, cluster_options: dict[str, Any]) -> int:
    """Print what would be submitted to the cluster WORD; nothing is."""
    from hepdask.clusters import choose_cluster

    choice = choose_cluster(word, cluster_options)
    click.echo(choice.render())
    _say_notes(choice)
    return 0


@command.command("options")
@click.argument("word", metavar="WORD")
def show_options(word: str) -> int:
    """List the options of the cluster WORD, and what is set."""
    from hepdask.clusters import WORDS, choose_cluster

    choice = choose_cluster(word)
    rows = tuple(
        (name, "" if name not in choice.options else str(choice.options[name]), WORDS[name].help)
        for name in sorted(choice.system.words)
    )
    show(Table(f"Options of {word}", ("option", "set to", "what"), rows))
    _say_notes(choice)
    return 0


def _say_notes(choice: Choice) -> None:
    facility = choice.facility
    if facility is None:
        return
    if facility.notes:
        note(f"{choice.word}: {' '.join(facility.notes.split())}")
    if facility.source:
        note(f"{choice.word}: documented at {facility.source}, read on {facility.date}")
