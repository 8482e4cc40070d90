"""The merges of one task: in place where it is safe, with their costs in one sum, and with few large results in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hepdask.held import MAX_IN_MEMORY, Held, put_aside
from hepdask.metrics import MetricsSum
from hepdask.partial import merge_results

if TYPE_CHECKING:
    from hepdask.checkpoints import Checkpoints
    from hepdask.partial import PartialResult

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
    directory : str or None
        On this machine, for large results that wait; None: where the system has temporary files.

    Attributes
    ----------
    costs : MetricsSum
        Of the merges, and of what else the task puts there.
    """

    def __init__(
        self, worker: str, checkpoints: Checkpoints | None, directory: str | None = None
    ) -> None:
        self.costs = MetricsSum()
        self._worker = worker
        self._checkpoints = checkpoints
        self._directory = directory
        # in dataset order; what has the most ranges is needed last
        self._waiting: list[Held] = []

    def make_room(self) -> None:
        """Put large results aside that will not be needed soon: before a range is processed."""
        if len(self._waiting) > MAX_IN_MEMORY:
            put_aside(self._waiting, self._directory)

    def hold(self, result: PartialResult, *, is_own: bool = False) -> Held:
        """Hold a result until it is merged; each is merged with the one that was held before it.

        Parameters
        ----------
        result : PartialResult
            Not used by anybody else from now on.
        is_own : bool
            True if its accumulator was made by a merge here.
        """
        held = Held(result, is_own=is_own)
        self._waiting.append(held)
        return held

    def release(self, held: Held) -> PartialResult:
        """Give a result back that was held."""
        self._waiting.remove(held)
        return held.take()

    def merge(
        self, left: PartialResult, right: PartialResult, *, is_own: bool, key: str = ""
    ) -> Held:
        """Merge two neighbours.

        Parameters
        ----------
        left, right : PartialResult
            In dataset order, both released; neither may be used after this.
        is_own : bool
            True if the accumulator of `left` was made by a merge here.
        key : str
            Name of their parent in the store.

        Returns
        -------
        Held
            The result.
        """
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
        is_own = is_own if made is left.accumulator else made is not right.accumulator
        return self.hold(merged, is_own=is_own)
