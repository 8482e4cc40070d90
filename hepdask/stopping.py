"""When a run is better ended than finished: too much has failed, or everything fails in the same way. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hepdask.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["StopRules", "StopTally"]


@dataclass(frozen=True, slots=True)
class StopRules:
    """What ends a run in which failures are skipped.

    Attributes
    ----------
    max_failed_fraction : float or None
        Failed over requested entries, at most. None: no limit.
    max_same_failures : int
        A mistake in the processor ends the run when so many ranges have failed with the same traceback, and these are more
        than have been processed.

    Raises
    ------
    OptionError
        If a number is out of range.
    """

    max_failed_fraction: float | None = None
    max_same_failures: int = 10

    def __post_init__(self) -> None:
        fraction = self.max_failed_fraction
        if fraction is not None and not 0 <= fraction <= 1:
            raise OptionError(
                f"max_failed_fraction is {fraction!r}: give a fraction between 0 and 1, or None for no limit"
            )
        if self.max_same_failures < 1:
            raise OptionError(f"max_same_failures is {self.max_same_failures!r}: give 1 or more")


class StopTally:
    """Counts what the tasks of a run report.

    Parameters
    ----------
    rules : StopRules
        What ends the run.
    num_entries : int
        Requested.
    num_entries_failed : int
        Of these, failed before the first task.
    """

    def __init__(self, rules: StopRules, num_entries: int, num_entries_failed: int = 0) -> None:
        self._rules = rules
        self._num_entries = num_entries
        self._num_failed = num_entries_failed
        self._num_ranges = 0
        self._same: Counter[str] = Counter()

    def note(self, num_ranges: int, num_entries_failed: int, same: Mapping[str, int]) -> str:
        """Take note of some more ranges.

        Parameters
        ----------
        num_ranges : int
            Processed without a failure.
        num_entries_failed : int
            Entries of those that failed.
        same : mapping of str to int
            How many failed with each traceback of user code.

        Returns
        -------
        str
            Why the run is to end; empty if it goes on.
        """
        self._num_ranges += num_ranges
        self._num_failed += num_entries_failed
        self._same.update(same)
        return self._check_fraction() or self._check_same()

    def _check_fraction(self) -> str:
        limit = self._rules.max_failed_fraction
        if limit is None or self._num_failed <= limit * self._num_entries:
            return ""
        return (
            f"{self._num_failed:,} of {self._num_entries:,} entries have failed, more than "
            f"max_failed_fraction={limit:g} allows"
        )

    def _check_same(self) -> str:
        for where, count in self._same.items():
            if count >= self._rules.max_same_failures and count > self._num_ranges:
                return f"{count} ranges have failed in the same way ({where}), and {self._num_ranges} have not"
        return ""
