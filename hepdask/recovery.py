"""What to do with a range that failed: try again, from another replica, in halves, or give up. Pure.

Each class of failure has its own answer:

========= =====================================================================================================
transient a time limit, a lost connection: wait, and try again, from the next replica if there is one
input     the file is bad: final for this replica, the next one is tried at once
user      the processor raised: it would again
resources memory: the range is halved, down to `RecoveryPolicy.min_entries`
setup     the worker lacks something, or hepdask itself erred: no other range would do better
========= =====================================================================================================
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hepdask.errors import OptionError

if TYPE_CHECKING:
    from hepdask.failures import FailureKind

__all__ = ["RecoveryPolicy", "Step"]


@dataclass(frozen=True, slots=True)
class Step:
    """What is done next.

    Attributes
    ----------
    action : str
        "retry", "split" or "give up".
    wait_seconds : float
        How long to wait before.
    next_replica : bool
        True: the replica that was read goes to the end of the list.
    """

    action: Literal["retry", "split", "give up"]
    wait_seconds: float = 0.0
    next_replica: bool = False


@dataclass(frozen=True, slots=True)
class RecoveryPolicy:
    """How hard hepdask tries.

    Attributes
    ----------
    max_attempts : int
        How often a range with transient failures is tried, over all replicas.
    wait_seconds : float
        Before the second attempt; four times as long before each further one, up to `max_wait_seconds`. XRootD servers that
        are restarted, or a redirector that has lost a data server, are back within half a minute.
    max_wait_seconds : float
        Longest time between two attempts.
    min_entries : int
        Ranges of so few entries are not halved further.
    max_lost_pieces : int
        Pieces of one range that may fail before what is left of it is not halved any more: where nearly every event kills, the
        search for the few that don't would take hours.

    Raises
    ------
    OptionError
        If a number is out of range.
    """

    max_attempts: int = 4
    wait_seconds: float = 1.0
    max_wait_seconds: float = 30.0
    min_entries: int = 1
    max_lost_pieces: int = 32

    def __post_init__(self) -> None:
        if min(self.max_attempts, self.min_entries, self.max_lost_pieces) < 1:
            raise OptionError("the counts of a RecoveryPolicy are at least 1")
        if self.wait_seconds < 0 or self.max_wait_seconds < 0:
            raise OptionError("times of a RecoveryPolicy are not negative")

    def decide(
        self,
        kind: FailureKind,
        *,
        attempt: int,
        num_replicas: int,
        num_entries: int,
        seed: str,
        num_lost_pieces: int = 0,
    ) -> Step:
        """Decide after a failure.

        Parameters
        ----------
        kind : str
            Class of the failure.
        attempt : int
            How often the range was tried, 1 after the first time.
        num_replicas : int
            Of its file.
        num_entries : int
            Of the range.
        seed : str
            Makes the jitter, so that a thousand workers do not come back in the same moment; the same for the same range.
        num_lost_pieces : int
            Pieces of the range that have failed for good.
        """
        if kind == "transient" and attempt < self.max_attempts:
            return Step("retry", self._wait(attempt, seed), next_replica=num_replicas > 1)
        if kind == "input" and attempt < num_replicas:
            return Step("retry", next_replica=True)
        may_split = num_lost_pieces < self.max_lost_pieces
        if kind == "resources" and num_entries > self.min_entries and may_split:
            return Step("split")
        return Step("give up")

    def _wait(self, attempt: int, seed: str) -> float:
        longest = min(self.max_wait_seconds, self.wait_seconds * 4.0 ** (attempt - 1))
        jitter = random.Random(f"{seed}/{attempt}").uniform(0.5, 1.0)
        return longest * jitter
