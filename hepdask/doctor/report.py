"""What the doctor says: a table, red where a run will break."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hepdask.tables import Table

if TYPE_CHECKING:
    import rich.table

    from hepdask.doctor.facts import ClusterFacts
    from hepdask.doctor.findings import Finding

__all__ = ["Checkup"]

_CHECKS = (
    "workers",
    "Python",
    "packages",
    "processor",
    "files",
    "credentials",
    "memory",
    "scratch space",
    "threads",
)
_WORDS = {"broken": "BROKEN", "risky": "risky"}


@dataclass(frozen=True, slots=True)
class Checkup:
    """Whether a run will work on a cluster.

    Attributes
    ----------
    findings : tuple of Finding
        What isn't as it should be; what will break comes first.
    facts : ClusterFacts
        What was found out, of each worker.
    shipped : str
        What of the user's is sent to workers, with its size.
    """

    findings: tuple[Finding, ...]
    facts: ClusterFacts
    shipped: str = ""

    @property
    def is_fit(self) -> bool:
        """True if nothing was found that will break a run."""
        return all(one.level != "broken" for one in self.findings)

    def to_table(self) -> Table:
        """Return a row for each finding, and one for each check without any."""
        rows = [
            (_WORDS[one.level], one.check, one.where, one.found, one.advice)
            for one in self.findings
        ]
        flagged = frozenset(
            number for number, one in enumerate(self.findings) if one.level == "broken"
        )
        bad = {one.check for one in self.findings}
        rows += [("ok", check, "", "", "") for check in _CHECKS if check not in bad]
        if self.shipped:
            rows.append(("ok", "shipped", "client", self.shipped, ""))
        number = len(self.facts.workers)
        title = f"Doctor: {number} worker{'' if number == 1 else 's'}"
        return Table(title, ("", "check", "where", "found", "what to do"), tuple(rows), flagged)

    def __rich__(self) -> rich.table.Table:
        return self.to_table().__rich__()

    def __repr__(self) -> str:
        return str(self.to_table())

    def _repr_html_(self) -> str:
        return self.to_table()._repr_html_()
