"""The policy, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from hepdask import OptionError, RecoveryPolicy
from hepdask.failures import Failure

if TYPE_CHECKING:
    from hepdask.recovery import Step


def failure(
    kind: Any,
    num_entries: int = 100,
    seed: str = "a",
    error: str = "ValueError",
    replica: str = "a",
) -> Failure:
    return Failure("dy", seed, "Events", 0, num_entries, kind, error, "", replica=replica)


def decide(kind: Any, *, num_entries: int = 100, replica: str = "a", **facts: Any) -> Step:
    facts = {"attempt": 1, "num_replicas": 1, **facts}
    return RecoveryPolicy().decide(failure(kind, num_entries, replica=replica), **facts)


@pytest.mark.parametrize(
    ("kind", "facts", "action", "next_replica"),
    [
        ("transient", {}, "retry", False),
        ("transient", {"num_replicas": 2}, "retry", True),
        ("transient", {"attempt": 3}, "retry", False),
        ("transient", {"attempt": 4}, "give up", False),
        ("input", {}, "give up", False),
        ("input", {"num_replicas": 2}, "retry", True),
        ("input", {"num_replicas": 2, "replica": ""}, "give up", False),
        ("input", {"num_replicas": 2, "attempt": 2}, "give up", False),
        ("user", {"num_replicas": 3}, "give up", False),
        ("setup", {}, "give up", False),
        ("resources", {}, "split", False),
        ("resources", {"num_entries": 1}, "give up", False),
        ("resources", {"num_lost_pieces": 32}, "give up", False),
    ],
)
def test_each_class_has_its_answer(
    kind: str, facts: dict[str, Any], action: str, next_replica: bool
) -> None:
    step = decide(kind, **facts)
    assert (step.action, step.next_replica) == (action, next_replica)


def test_waiting_grows_is_bounded_and_differs_between_ranges() -> None:
    policy = RecoveryPolicy(max_attempts=20, max_wait_seconds=30)

    def wait(attempt: int, seed: str = "a") -> float:
        bad = failure("transient", 1, seed)
        return policy.decide(bad, attempt=attempt, num_replicas=1).wait_seconds

    assert 0.5 <= wait(1) <= 1
    assert 2 <= wait(2) <= 4
    assert all(wait(attempt) <= 30 for attempt in range(1, 19))
    assert wait(3) == wait(3)
    assert len({wait(3, str(seed)) for seed in range(10)}) == 10


@pytest.mark.parametrize("options", [{"max_attempts": 0}, {"min_entries": 0}, {"wait_seconds": -1}])
def test_wrong_numbers_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="RecoveryPolicy"):
        RecoveryPolicy(**options)
