"""What earlier runs of a user's processors took, kept beside the metadata cache.

It is a hint, for the cut into tasks and for ``hepdask plan``: whatever is wrong with the file, the run goes on without it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hepdask.costs import Rates, average_rates
from hepdask.metrics import Counters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["PastCosts", "name_processor"]

T = TypeVar("T")

#: Part of the name of the table. Raise it whenever the meaning of anything in it changes.
FORMAT_VERSION = 1
#: What earlier runs took counts for so much when the next one is added: an edited processor, or a faster disk, soon shows.
SHARE_OF_PAST = 0.5
#: What was not used for so long is forgotten.
MAX_AGE_SECONDS = 365 * 86_400
#: Another process needs milliseconds.
TIMEOUT_SECONDS = 2.0

_NAMES = tuple(one.name for one in fields(Counters))
_TABLE = f"costs{FORMAT_VERSION}"
_SCHEMA = (
    f"CREATE TABLE IF NOT EXISTS {_TABLE} (processor TEXT, layout TEXT, stored_seconds INTEGER, num_runs INTEGER, "
    f"{', '.join(f'{name} REAL' for name in _NAMES)}, PRIMARY KEY (processor, layout)) WITHOUT ROWID"
)


def name_processor(processor: Any) -> str:
    """Name a processor as its past is looked up: by where its class or function is defined, not by its code.

    Parameters
    ----------
    processor : object
        The user's. After an edit its past still says more than no past.
    """
    function = getattr(processor, "func", processor)  # of a functools.partial
    owner = function if hasattr(function, "__qualname__") else type(function)
    # many scripts are __main__; a notebook has no file
    place = getattr(sys.modules.get(owner.__module__), "__file__", None) or owner.__module__
    return f"{place}:{owner.__qualname__}"


class PastCosts:
    """What layouts of files cost each processor. Several processes may read and write it at once.

    Parameters
    ----------
    path : path-like
        The database file. Its directory is made with mode 0700, the file with 0600.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"PastCosts({str(self.path)!r})"

    def load(self, processor: str) -> dict[str, Rates]:
        """Return the rates of a processor, by digest of the layout.

        Parameters
        ----------
        processor : str
            Its name, of `name_processor`.
        """
        statement = f"SELECT layout, num_runs, {', '.join(_NAMES)} FROM {_TABLE} WHERE processor = ?"  # constants

        def read(connection: sqlite3.Connection) -> list[Any]:
            return connection.execute(statement, (processor,)).fetchall()

        rows: list[Any] = self._connected(read, []) if self.path.exists() else []
        found = {
            layout: average_rates(Counters(*values), num_runs) for layout, num_runs, *values in rows
        }
        return {layout: rates for layout, rates in found.items() if rates is not None}

    def note(self, processor: str, sums: Mapping[str, Counters]) -> None:
        """Take note of a run.

        Parameters
        ----------
        processor : str
            Its name.
        sums : mapping of str to Counters
            What the ranges of each layout took.
        """
        now = int(time.time())
        rows = [
            (processor, layout, now, 1, *(getattr(one, name) for name in _NAMES))
            for layout, one in sums.items()
            if average_rates(one, 1) is not None
        ]
        marks = ", ".join("?" * (4 + len(_NAMES)))
        added = ", ".join(f"{name} = {SHARE_OF_PAST} * {name} + excluded.{name}" for name in _NAMES)
        statement = (
            f"INSERT INTO {_TABLE} VALUES ({marks}) ON CONFLICT DO UPDATE SET "  # constants
            f"num_runs = num_runs + 1, stored_seconds = excluded.stored_seconds, {added}"
        )

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_SCHEMA)
            connection.executemany(statement, rows)
            connection.execute(
                f"DELETE FROM {_TABLE} WHERE stored_seconds < ?",
                (now - MAX_AGE_SECONDS,),
            )
            connection.execute("COMMIT")

        if rows:
            with contextlib.suppress(OSError):
                self._make_private_file()
                self._connected(write, None)

    def _make_private_file(self) -> None:
        if not self.path.exists():
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))

    def _connected(self, work: Callable[[sqlite3.Connection], T], default: T) -> T:
        try:
            connection = sqlite3.connect(self.path, timeout=TIMEOUT_SECONDS, isolation_level=None)
            with contextlib.closing(connection):
                # a crash of the machine may cost what is in here; waiting for the disk would cost each run
                connection.execute("PRAGMA synchronous = OFF")
                return work(connection)
        except sqlite3.OperationalError:  # locked, read-only, no table yet
            return default
        except sqlite3.DatabaseError:  # it is damaged: the next run makes it anew
            with contextlib.suppress(OSError):
                self.path.unlink()
            return default
        except sqlite3.Error:
            return default
