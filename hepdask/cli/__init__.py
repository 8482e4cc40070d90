"""The command ``hepdask``: run a processor, see whether a cluster fits, replay a failure, plan a run, look into files, stores and clusters, make a sample.

Exit codes: 0 all is done; 1 something failed (what was done is written all the same); 2 a mistake in the command, the
fileset or an option; 3 done, but something was skipped; 130 interrupted. Tables go to the standard output, progress, notes and
errors to the standard error.
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import click

from hepdask import __version__
from hepdask.cli import cluster, doctor, inspect, plan, replay, run, sample, store
from hepdask.cli.text import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, fail, one_line_notes
from hepdask.errors import FilesetError, HepdaskError, MissingDependencyError, OptionError

__all__ = ["main"]

_USER_ERRORS = (FilesetError, OptionError, MissingDependencyError)


class _Commands(click.Group):
    """Ends with one line and an exit code for everything that a user can get wrong."""

    def main(self, *arguments: Any, **options: Any) -> NoReturn:
        options["standalone_mode"] = False
        options["prog_name"] = "hepdask"
        try:
            with one_line_notes():
                code = super().main(*arguments, **options)
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            help_hint = f" (see {context.command_path} --help)" if context is not None else ""
            fail(error.format_message() + help_hint)
            sys.exit(EXIT_USAGE)
        except click.Abort:
            fail("interrupted")
            sys.exit(EXIT_INTERRUPTED)
        except HepdaskError as error:
            fail(str(error))
            sys.exit(EXIT_USAGE if isinstance(error, _USER_ERRORS) else EXIT_FAILED)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="hepdask %(version)s")
def main() -> None:
    """Run columnar analyses over ROOT files, on this machine or on a Dask cluster."""


for _room in (run, doctor, replay, plan, inspect, cluster, store, sample):
    main.add_command(_room.command)
