"""The merges of one task: in place where it is safe, with their costs in one sum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hepdask.metrics import MetricsSum
from hepdask.partial import PartialResult, merge_results

if TYPE_CHECKING:
    from hepdask.checkpoints import Checkpoints

__all__ = ["Merging"]


class Merging:
    """Merges results inside one task.

    An accumulator that a merge of this object has made is changed in place by the next one: nobody else can hold it, as results
    leave the task only as its last one, and the store writes what it keeps at once. What a processor has returned (it may keep
    it), what comes from another task (dask may hold it, and may run a merge twice) and what is loaded from the store is never changed.

    Parameters
    ----------
    worker : str
        Name of this worker, for failures.
    checkpoints : Checkpoints or None
        The store; None: there is none.

    Attributes
    ----------
    costs : MetricsSum
        Of the merges, and of what else the task puts there.
    """

    def __init__(self, worker: str, checkpoints: Checkpoints | None) -> None:
        self.costs = MetricsSum()
        self._worker = worker
        self._checkpoints = checkpoints
        # held until they are merged, so that no other object can get their identity
        self._own: dict[int, Any] = {}

    def merge(self, left: PartialResult, right: PartialResult, *, key: str = "") -> PartialResult:
        """Merge two neighbours.

        Parameters
        ----------
        left, right : PartialResult
            In dataset order; neither may be used after this.
        key : str
            Name of their parent in the store.
        """
        is_own = self._own.pop(id(left.accumulator), None) is not None
        self._own.pop(id(right.accumulator), None)
        if self._checkpoints is None:
            merged = merge_results(
                left, right, worker=self._worker, costs=self.costs, may_change_left=is_own
            )
        else:
            merged = self._checkpoints.merge(
                left,
                right,
                key=key,
                worker=self._worker,
                costs=self.costs,
                may_change_left=is_own,
            )
        made = merged.accumulator
        # where two don't fit together, one of them stays as it is
        if is_own if made is left.accumulator else made is not right.accumulator:
            self._own[id(made)] = made
        return merged
