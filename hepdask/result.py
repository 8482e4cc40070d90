"""What a run gives back: the whole truth."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from hepdask.errors import RunError
from hepdask.messages import Messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from hepdask.completeness import Completeness
    from hepdask.failures import Failures
    from hepdask.fileset import Fileset
    from hepdask.run_metrics import RunMetrics
    from hepdask.tables import Table

__all__ = ["RunResult"]


@dataclass(frozen=True)
class RunResult:
    """Output, metrics, failures and completeness of a run.

    Attributes
    ----------
    output : object
        What the processor returned, added up in dataset order, through its `postprocess`. None if nothing was processed.
    metrics : RunMetrics
        What it cost.
    failures : Failures
        What could not be processed, and why.
    completeness : Completeness
        Files and entries requested, processed, failed and not reached, for each dataset.
    stopped_by : str
        Why the run ended before everything was tried; empty if it did not.
    messages : Messages
        Warnings and log records of the processor on the workers, equal ones counted together.
    """

    output: Any
    metrics: RunMetrics
    failures: Failures
    completeness: Completeness
    stopped_by: str = ""
    messages: Messages = field(default_factory=Messages)
    _resume: Callable[[], Any] | None = field(default=None, repr=False, compare=False)
    _missing: Callable[[], Fileset] | None = field(default=None, repr=False, compare=False)

    @property
    def is_complete(self) -> bool:
        """True if every requested entry was processed."""
        return self.completeness.is_complete

    def resume(self) -> Any:
        """Process what is missing, and nothing else, and add it to what is there.

        Returns
        -------
        RunResult
            A new one (an awaitable of it with an asynchronous client); this one if nothing is missing. With a store it is
            the same, to the last bit, as that of a run without failures. Without one, what was missing is added
            last: lists and growing axes have it at their end, and sums of floats may round in another way.

        Raises
        ------
        RunError
            If the run fails again; its `partial_result` has what is done by then.
        """
        if self.is_complete:
            return self
        if self._resume is None:
            raise RunError(
                "this result was not made by a Runner in this process: run the fileset again"
            )
        return self._resume()

    def missing_fileset(self) -> dict[str, Any]:
        """Return what failed or was not reached as a fileset, that any tool can run.

        Returns
        -------
        dict
            In coffea's preprocessed dialect, the ranges as ``steps``, with tree names, replicas and metadata; empty if nothing
            is missing.

        Raises
        ------
        RunError
            If this result was not made by a `Runner` in this process.
        """
        if self.is_complete:
            return {}
        if self._missing is None:
            raise RunError(
                "this result was not made by a Runner in this process: see its failures.to_fileset()"
            )
        return self._missing().to_dict()

    def report(self) -> str:
        """Return the run in words and tables: completeness, failures, metrics."""
        return "\n\n".join([self._headline(), *map(str, self._tables())])

    def _headline(self) -> str:
        total = self.completeness.total
        what = (
            f"{total.num_entries_processed:,} of {total.num_entries_requested:,} events processed"
        )
        if self.is_complete:
            return f"complete: {what}"
        reason = f"; stopped by {self.stopped_by}" if self.stopped_by else ""
        return f"INCOMPLETE: {what}, {len(self.failures)} failures{reason}"

    def _tables(self) -> list[Table]:
        failures = [self.failures.to_table()] if self.failures else []
        messages = [self.messages.to_table()] if self.messages else []
        return [self.completeness.to_table(), *failures, *messages, self.metrics.to_table()]

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        return Group(Text(self._headline(), style="bold"), *self._tables())

    def __repr__(self) -> str:
        return f"<RunResult {self._headline()}>"

    def _repr_html_(self) -> str:
        tables = "".join(table._repr_html_() for table in self._tables())
        return f"<div><p><b>{escape(self._headline())}</b></p>{tables}</div>"
