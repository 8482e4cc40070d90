"""What to do with a range that failed: try again, from another replica, in halves, or give up. Pure.

Each class of failure has its own answer:

========= =====================================================================================================
transient a time limit, a lost connection: wait, and try again, from the next replica if there is one, and in the
          end on another worker
input     the file is bad: final for this replica, the next one is tried at once
user      the processor raised: it would again
resources memory: the range is halved, down to `RecoveryPolicy.min_entries`
setup     the worker lacks something, or hepdask itself erred: no other range would do better
========= =====================================================================================================
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from hepdask.errors import OptionError, suggest
from hepdask.failures import FailureKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hepdask.failures import Failure

__all__ = ["RecoveryPolicy", "Step"]

#: How often a range is tried that exceeds its time: another worker or replica may be faster, an endless loop is not.
MAX_LATE_ATTEMPTS = 2


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
    max_range_seconds : float or None
        Time limit for a range, from opening its file to the end of `process`; a request to a server has its own,
        `xrootdtimeout`. None: no limit.
    max_silent_seconds : float or None
        A worker of which the scheduler has heard nothing for so long is taken for dead (stopped, or its network is lost) and
        replaced. Code that holds Python's global lock makes a worker silent, too. None: dask's own limit, five minutes.
    kinds : mapping of exception type to str
        Classes of failures for exceptions of your own: ``{MyServerBusy: "transient"}``. It wins over hepdask's.

    Raises
    ------
    OptionError
        If a value is out of range.
    """

    max_attempts: int = 4
    wait_seconds: float = 1.0
    max_wait_seconds: float = 30.0
    min_entries: int = 1
    max_lost_pieces: int = 32
    max_range_seconds: float | None = 1800.0
    max_silent_seconds: float | None = 60.0
    kinds: Mapping[type[BaseException], FailureKind] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if min(self.max_attempts, self.min_entries, self.max_lost_pieces) < 1:
            raise OptionError("the counts of a RecoveryPolicy are at least 1")
        if self.wait_seconds < 0 or self.max_wait_seconds < 0:
            raise OptionError("times of a RecoveryPolicy are not negative")
        for name in ("max_range_seconds", "max_silent_seconds"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise OptionError(f"{name} is {value!r}: give a positive number, or None")
        kinds: Mapping[Any, Any] = self.kinds  # the user's
        for one, kind in kinds.items():
            if not (isinstance(one, type) and issubclass(one, BaseException)):
                raise OptionError(f"kinds has {one!r}: its keys are types of exceptions")
            if kind not in get_args(FailureKind):
                raise OptionError(f"kinds has {kind!r}{suggest(kind, get_args(FailureKind))}")

    def decide(
        self,
        failure: Failure,
        *,
        attempt: int,
        num_replicas: int,
        num_lost_pieces: int = 0,
    ) -> Step:
        """Decide after a failure.

        Parameters
        ----------
        failure : Failure
            Of a range, or of a file that could not be inspected. Its place seeds the jitter, so that a thousand workers do
            not come back in the same moment; it is the same for the same place.
        attempt : int
            How often it was tried, 1 after the first time.
        num_replicas : int
            Of its file.
        num_lost_pieces : int
            Pieces of the range that have failed for good.
        """
        kind = failure.kind
        max_attempts = self.max_attempts
        if failure.is_late:
            max_attempts = min(max_attempts, MAX_LATE_ATTEMPTS)
        if kind == "transient" and attempt < max_attempts:
            seed = f"{failure.file_path}/{failure.entry_start}"
            return Step("retry", self._wait(attempt, seed), next_replica=num_replicas > 1)
        # a file that could not even be opened has been tried from all of them
        was_opened = failure.replica or failure.exception_type.endswith("FileChangedError")
        if kind == "input" and attempt < num_replicas and was_opened:
            return Step("retry", next_replica=True)
        may_split = num_lost_pieces < self.max_lost_pieces
        if kind == "resources" and failure.num_entries > self.min_entries and may_split:
            return Step("split")
        return Step("give up")

    def _wait(self, attempt: int, seed: str) -> float:
        longest = min(self.max_wait_seconds, self.wait_seconds * 4.0 ** (attempt - 1))
        jitter = random.Random(f"{seed}/{attempt}").uniform(0.5, 1.0)
        return longest * jitter
