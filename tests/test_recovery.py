"""The policy, as a table, and what it does to ranges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import awkward as ak
import pytest

from hepdask import FileReadError, LocalExecutor, OptionError, RecoveryPolicy, RunError, Runner
from hepdask.failures import Failure

if TYPE_CHECKING:
    from pathlib import Path

    from hepdask.recovery import Step
    from tests.conftest import NanoFiles

EAGER = RecoveryPolicy(wait_seconds=0)


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


def run(fileset: Any, processor: Any, **options: Any) -> Any:
    options = {
        "chunksize": 50,
        "progress": False,
        "metadata_cache": False,
        "recovery": EAGER,
        **options,
    }
    return Runner(LocalExecutor(), **options).run(fileset, "Events", processor)


def count(events: Any) -> dict[str, Any]:
    return {"entries": len(events), "starts": [events.metadata["entrystart"]]}


class TimesOut:
    """Reads from a server that answers at the n-th attempt."""

    def __init__(self, path: Path, num_failures: int) -> None:
        self.path = path
        self.num_failures = num_failures

    def process(self, events: Any) -> dict[str, Any]:
        output = count(events)
        if output["starts"] == [50]:
            with self.path.open("a") as log:
                log.write("x")
            if len(self.path.read_text()) <= self.num_failures:
                raise FileReadError("operation expired") from TimeoutError()
        return output


def test_transient_failures_are_tried_again(nano_files: NanoFiles, tmp_path: Path) -> None:
    fileset = {"nano": [str(nano_files.paths[0])]}
    result = run(fileset, TimesOut(tmp_path / "a", 3))
    assert result.output == {"entries": 100, "starts": [0, 50]}
    assert result.is_complete
    assert not result.failures
    with pytest.raises(RunError, match="operation expired") as caught:
        run(fileset, TimesOut(tmp_path / "b", 4))
    (failure,) = caught.value.partial_result.failures
    assert (failure.kind, failure.attempts) == ("transient", 4)
    assert caught.value.partial_result.output["entries"] == 50


class NeedsMemory:
    """Runs out of memory with more than some entries, and with one event always."""

    def __init__(self, max_entries: int, bad_event: int = 0) -> None:
        self.max_entries = max_entries
        self.bad_event = bad_event

    def process(self, events: Any) -> dict[str, Any]:
        if len(events) > self.max_entries or ak.any(events.event == self.bad_event):
            raise MemoryError
        return count(events)


def test_ranges_that_need_too_much_memory_are_halved(nano_files: NanoFiles) -> None:
    result = run(nano_files.fileset, NeedsMemory(10))
    assert result.is_complete
    assert result.output["entries"] == 289
    starts = result.output["starts"]
    assert starts[:5] == [0, 6, 12, 18, 25]
    assert result.metrics.total.num_entries == 289


def test_one_bad_event_costs_that_event(nano_files: NanoFiles) -> None:
    result = run(nano_files.fileset, NeedsMemory(1_000, 133), skipbadfiles=MemoryError)
    (failure,) = result.failures
    assert (failure.kind, failure.entry_start, failure.entry_stop) == ("resources", 32, 33)
    assert failure.file_path == str(nano_files.paths[1])
    assert result.output["entries"] == 288
    assert result.completeness["nano"].num_entries_processed == 288


def test_the_floor_of_halving_can_be_set(nano_files: NanoFiles) -> None:
    policy = RecoveryPolicy(min_entries=10)
    result = run(
        nano_files.fileset, NeedsMemory(1_000, 133), skipbadfiles=MemoryError, recovery=policy
    )
    (failure,) = result.failures
    assert failure.num_entries <= 10
    assert failure.entry_start <= 32 < failure.entry_stop


def test_where_all_events_are_bad_the_search_ends(nano_files: NanoFiles, tmp_path: Path) -> None:
    calls = tmp_path / "calls"

    def process(events: Any) -> Any:
        with calls.open("a") as log:
            log.write("x")
        raise MemoryError

    policy = RecoveryPolicy(max_lost_pieces=4)
    options: dict[str, Any] = {"recovery": policy, "skipbadfiles": MemoryError, "chunksize": 1_000}
    result = run({"nano": [str(nano_files.paths[1])]}, process, **options)
    assert result.completeness["nano"].num_entries_failed == 149
    assert len(calls.read_text()) < 30
    assert max(failure.num_entries for failure in result.failures) > 50


def test_a_damaged_replica_is_left_for_the_next(nano_files: NanoFiles, tmp_path: Path) -> None:
    good = nano_files.paths[0]
    damaged = tmp_path / "damaged.root"
    damaged.write_bytes(_damage_baskets(good))
    fileset = {"nano": {"files": [[str(damaged), str(good)]]}}

    def total(events: Any) -> dict[str, Any]:
        return {"sum": float(ak.sum(events.event)), "entries": len(events)}

    with pytest.raises(RunError, match=r"branch 'event'"):
        run({"nano": [str(damaged)]}, total)
    result = run(fileset, total)
    assert result.output == run({"nano": [str(good)]}, total).output
    assert result.is_complete


def _damage_baskets(path: Path) -> bytes:
    """Garble the compressed data of all baskets of a branch that compresses well."""
    import uproot

    data = bytearray(path.read_bytes())
    with uproot.open(path) as file:
        branch = file["Events/event"]
        for number, seek in enumerate(branch.member("fBasketSeek")[: branch.num_baskets]):
            key_length = branch.basket_key(number).fKeylen
            start = int(seek) + int(key_length)
            data[start : start + 20] = bytes(20)
    return bytes(data)
