"""Ranges that are tried again, or in pieces: pure, with what fails made up, and with real readers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import awkward as ak
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hepdask import FileReadError, LocalExecutor, RecoveryPolicy, RunError, Runner
from hepdask.failures import Failure
from hepdask.fileset import InputFile
from hepdask.partial import PartialResult, span_of
from hepdask.ranges import EntryRange
from hepdask.rescue import Rescue, Sizes

if TYPE_CHECKING:
    from pathlib import Path

    from hepdask.failures import FailureKind
    from tests.conftest import NanoFiles

EAGER = RecoveryPolicy(wait_seconds=0, max_wait_seconds=0)


@dataclass
class Reader:
    """Takes the place of reading and processing: runs out of memory by size, and at some events of each file.

    Attributes
    ----------
    max_entries : dict of str to int
        Of each file; more run out of memory.
    poisons : dict of int to str
        Entries, and how a range fails that holds one.
    """

    max_entries: dict[str, int] = field(default_factory=dict)
    poisons: dict[int, FailureKind] = field(default_factory=dict)
    asked: list[tuple[str, int, int]] = field(default_factory=list)

    def once(self, one: EntryRange) -> PartialResult:
        name, start, stop = one.file.file_path, one.entry_start, one.entry_stop
        self.asked.append((name, start, stop))
        kinds = [kind for entry, kind in sorted(self.poisons.items()) if start <= entry < stop]
        if stop - start > self.max_entries.get(name, stop):
            kinds.insert(0, "resources")
        if kinds:
            return PartialResult(failures=(_failure(one, kinds[0]),))
        return PartialResult([(start, stop)], (span_of(one),))

    def sizes_asked(self) -> list[int]:
        return [stop - start for _, start, stop in self.asked]


class Ledger:
    """A monitor that writes down what it is told."""

    worker = "here"

    def __init__(self) -> None:
        self.num_done = 0
        self.num_failed = 0

    def is_stopped(self) -> bool:
        return False

    def range_done(self, num_entries: int, num_bytes: int, failure: Failure | None) -> None:  # noqa: ARG002
        if failure is None:
            self.num_done += num_entries
        else:
            self.num_failed += num_entries

    def node_loaded(self, num_entries: int) -> None:
        raise NotImplementedError

    def interrupt(self) -> None:
        raise NotImplementedError


def _failure(one: EntryRange, kind: FailureKind) -> Failure:
    bounds = (one.entry_start, one.entry_stop)
    return Failure("dy", one.file.file_path, "Events", *bounds, kind, "Made up", "")


def entry_range(start: int, stop: int, name: str = "a.root") -> EntryRange:
    return EntryRange(InputFile("dy", name, "Events", (name,), {}), start, stop)


def rescue(reader: Reader, policy: RecoveryPolicy = EAGER, sizes: Sizes | None = None) -> Rescue:
    return Rescue(reader.once, policy, Ledger(), sizes or Sizes())


def check_each_entry_once(result: PartialResult, start: int, stop: int) -> None:
    """Check that done and failed pieces cover a range, without gap and without overlap."""
    failed = [(one.entry_start, one.entry_stop) for one in result.failures]
    pieces = sorted([*(result.accumulator or []), *failed])
    assert [piece[0] for piece in pieces] == [start, *(piece[1] for piece in pieces[:-1])]
    assert pieces[-1][1] == stop
    assert result.num_entries == sum(end - begin for begin, end in result.accumulator or [])


poisons = st.dictionaries(
    st.integers(0, 399), st.sampled_from(["resources", "user", "transient", "input"]), max_size=8
)


@settings(deadline=None)
@given(
    stop=st.integers(1, 400),
    poisons=poisons,
    max_entries=st.integers(1, 500),
    min_entries=st.integers(1, 20),
    max_lost_pieces=st.integers(1, 40),
)
def test_every_entry_is_done_or_failed_once(
    stop: int,
    poisons: dict[int, FailureKind],
    max_entries: int,
    min_entries: int,
    max_lost_pieces: int,
) -> None:
    policy = RecoveryPolicy(
        wait_seconds=0, min_entries=min_entries, max_lost_pieces=max_lost_pieces
    )
    reader = Reader({"a.root": max_entries}, poisons)
    ledger = Ledger()
    result = Rescue(reader.once, policy, ledger, Sizes()).process(entry_range(0, stop))
    check_each_entry_once(result, 0, stop)
    assert ledger.num_done == result.num_entries
    assert ledger.num_failed == stop - result.num_entries


@settings(deadline=None)
@given(
    stop=st.integers(1, 2_000),
    bad=st.sets(st.integers(0, 1_999), max_size=10),
    max_entries=st.integers(1, 2_000),
)
def test_poisonous_events_cost_one_entry_each(stop: int, bad: set[int], max_entries: int) -> None:
    reader = Reader({"a.root": max_entries}, dict.fromkeys(bad, "resources"))
    result = rescue(reader).process(entry_range(0, stop))
    lost = [(one.entry_start, one.entry_stop) for one in result.failures]
    assert lost == [(event, event + 1) for event in sorted(bad) if event < stop]
    check_each_entry_once(result, 0, stop)


@settings(deadline=None)
@given(stop=st.integers(1, 5_000), max_lost_pieces=st.integers(1, 40), bad=st.integers(1, 3))
def test_lost_pieces_bound_the_attempts(stop: int, max_lost_pieces: int, bad: int) -> None:
    policy = RecoveryPolicy(wait_seconds=0, max_lost_pieces=max_lost_pieces)
    reader = Reader(poisons=dict.fromkeys(range(0, stop, bad), "resources"))
    result = rescue(reader, policy).process(entry_range(0, stop))
    # each lost piece ends a path from the whole range, with a neighbour at each step
    steps = math.ceil(math.log2(stop)) + 1
    assert len(reader.asked) <= 2 * (max_lost_pieces + 1) * steps
    assert len(result.failures) <= max_lost_pieces + steps
    check_each_entry_once(result, 0, stop)


@settings(deadline=None)
@given(bad=st.sets(st.integers(0, 999), min_size=1, max_size=5), num_ranges=st.integers(2, 10))
def test_poisonous_events_make_no_other_range_smaller(bad: set[int], num_ranges: int) -> None:
    size = 1_000 // num_ranges
    reader = Reader(poisons=dict.fromkeys(bad, "resources"))
    one = rescue(reader)
    for start in range(0, size * num_ranges, size):
        one.process(entry_range(start, start + size))
        # tried as it is, whatever has failed before
        assert ("a.root", start, start + size) in reader.asked


@settings(deadline=None)
@given(max_entries=st.integers(1, 1_000), num_ranges=st.integers(2, 6))
def test_where_ranges_are_too_large_the_next_ones_start_smaller(
    max_entries: int, num_ranges: int
) -> None:
    reader = Reader({"a.root": max_entries})
    one = rescue(reader)
    for number in range(num_ranges):
        result = one.process(entry_range(number * 1_000, number * 1_000 + 1_000))
        assert result.num_entries == 1_000
    # the first range finds the size out; nothing is tried again that was too large once
    too_large = [size for size in reader.sizes_asked() if size > max_entries]
    assert len(too_large) <= math.ceil(math.log2(1_000)) + 2
    assert len(set(too_large)) >= len(too_large) - 2


def test_other_files_keep_their_size() -> None:
    reader = Reader({"a.root": 100})
    one = rescue(reader)
    for name in ("a.root", "b.root", "a.root"):
        one.process(entry_range(0, 400, name))
    asked = {
        name: [piece for piece in reader.asked if piece[0] == name] for name in ("a.root", "b.root")
    }
    assert asked["b.root"] == [("b.root", 0, 400)]
    assert [stop - start for _, start, stop in asked["a.root"]] == [400, 200, *[100] * 8]


def test_a_poisonous_event_does_not_hide_that_ranges_are_too_large() -> None:
    reader = Reader({"a.root": 100}, {0: "resources"})
    one = rescue(reader)
    for start in (0, 800, 1_600):
        one.process(entry_range(start, start + 800))
    assert [size for size in reader.sizes_asked() if size > 100].count(800) <= 2
    assert reader.sizes_asked()[-8:] == [100] * 8


def test_a_size_that_was_done_is_not_too_large_any_more() -> None:
    sizes = Sizes()
    sizes.note_too_large(entry_range(0, 800))
    sizes.note_too_large(entry_range(0, 200))
    assert sizes.is_too_large(entry_range(1_000, 1_200))
    assert not sizes.is_too_large(entry_range(1_000, 1_199))
    assert not sizes.is_too_large(entry_range(1_000, 2_000, "b.root"))
    sizes.note_done(entry_range(2_000, 2_300))
    assert not sizes.is_too_large(entry_range(1_000, 1_200))
    assert sizes.is_too_large(entry_range(1_000, 1_800))


def test_pieces_that_fail_otherwise_tell_of_the_size_all_the_same() -> None:
    reader = Reader({"a.root": 100}, {7: "user"})
    one = rescue(reader)
    for start in (0, 200):
        one.process(entry_range(start, start + 200))
    assert reader.sizes_asked() == [200, 100, 100, 100, 100]


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
