from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepdask.endpoints import (
    HALF_LIFE_SECONDS,
    LOCAL,
    MAX_DAMAGED,
    EndpointRecord,
    Health,
    ProcessSlots,
    endpoint_of,
    open_slot,
    process_health,
    slots_from,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

A, B, C = "root://a//f.root", "root://b//f.root", "root://c//f.root"
ON_A, ON_B = "root://a", "root://b"
HALF = HALF_LIFE_SECONDS


@dataclass(slots=True)
class Clock:
    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(clock)


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("/data/a.root", LOCAL),
        ("a.root", LOCAL),
        ("file:///data/a.root", LOCAL),
        ("root://Host//a.root", "root://host"),
        ("root://host:1094//a.root", "root://host"),
        ("xroot://host:1095//a.root", "root://host:1095"),
        ("https://host:443/a.root?authz=x", "https://host"),
        ("https://me:secret@host/a.root", "https://host"),
        ("simplecache::root://host:1094//a.root", "root://host"),
        ("zip://a.root::https://host/a.zip", "https://host"),
        ("root://cache:1094//root://origin:1095//a.root", "root://cache"),
        ("root://[::1]:1094//a.root", "root://[::1]"),
        ("s3://bucket/a.root", "s3://bucket"),
    ],
)
def test_endpoint_of(url: str, endpoint: str) -> None:
    assert endpoint_of(url) == endpoint


def test_equal_health_keeps_the_order(health: Health) -> None:
    assert health.order((C, A, B)) == (C, A, B)
    health.note_success(ON_B, 0.1)
    assert health.order((C, A, B)) == (C, A, B)


def test_what_failed_goes_last_until_it_has_decayed(health: Health, clock: Clock) -> None:
    health.note_failure(ON_A)
    assert health.is_suspect(ON_A)
    assert health.order((A, B, C)) == (B, C, A)
    clock.now += HALF - 1
    assert health.order((A, B, C)) == (B, C, A)
    clock.now += 2
    assert not health.is_suspect(ON_A)
    assert health.order((A, B, C)) == (A, B, C)


@pytest.mark.parametrize(("num_failures", "half_lives"), [(1, 1), (2, 2), (8, 4), (16, 5), (99, 5)])
def test_more_failures_count_longer(
    health: Health, clock: Clock, num_failures: int, half_lives: float
) -> None:
    for _ in range(num_failures):
        health.note_failure(ON_A)
    clock.now += half_lives * HALF - 1
    assert health.is_suspect(ON_A)
    clock.now += 2
    assert not health.is_suspect(ON_A)


def test_a_failure_of_long_ago_counts_little(health: Health, clock: Clock) -> None:
    health.note_failure(ON_A)
    clock.now += 20 * HALF
    health.note_failure(ON_A)
    clock.now += HALF + 1
    assert not health.is_suspect(ON_A)


def test_the_one_trusted_first_comes_first_among_suspects(health: Health, clock: Clock) -> None:
    health.note_failure(ON_A)
    clock.now += 10
    health.note_failure(ON_B)
    assert health.order((B, A)) == (A, B)
    assert health.order((B, A, C)) == (C, A, B)
    health.note_failure(ON_A)
    assert health.order((A, B)) == (B, A)


def test_success_ends_a_suspicion(health: Health) -> None:
    for _ in range(5):
        health.note_failure(ON_A)
    health.note_success(ON_A, 0.5)
    assert health.order((A, B)) == (A, B)
    health.note_failure(ON_A)
    assert health.order((A, B)) == (B, A)


def test_damage_is_of_one_replica_only(health: Health, clock: Clock) -> None:
    health.note_damage(A)
    assert health.order((A, B)) == (B, A)
    other = "root://a//other.root"
    assert health.order((other, B)) == (other, B)
    # a server that may be back is better than a file that is bad
    health.note_failure(ON_B)
    assert health.order((A, B)) == (B, A)
    assert health.is_as_good(B, (A, B))
    assert not health.is_as_good(A, (A, B))
    clock.now += HALF + 1
    assert health.order((A, B)) == (A, B)


def test_few_bad_replicas_are_remembered(health: Health) -> None:
    for number in range(MAX_DAMAGED + 1):
        health.note_damage(f"{number}.root")
    assert health.order(("0.root", "new.root")) == ("0.root", "new.root")
    assert health.order(("1.root", "new.root")) == ("new.root", "1.root")


def test_one_is_as_good_as_another(health: Health) -> None:
    assert health.is_as_good(B, (A, B))
    health.note_failure(ON_B)
    assert not health.is_as_good(B, (A, B))
    assert health.is_as_good(B, (B,))


def test_others_learn_of_a_failure_and_of_its_end(clock: Clock) -> None:
    here, there = Health(clock), Health(clock)
    here.note_failure(ON_A)
    assert there.merge(here.export())
    assert there.order((A, B)) == (B, A)
    clock.now += 1
    here.note_success(ON_A, 0.2)
    assert there.merge(here.export())
    assert there.order((A, B)) == (A, B)
    assert there.export()[ON_A]["open_seconds"] == 0.2


def test_what_was_seen_here_counts_more_than_what_others_say(clock: Clock) -> None:
    here, there = Health(clock), Health(clock)
    here.note_failure(ON_A)
    clock.now += 1
    there.note_success(ON_A, 0.2)
    here.merge(there.export())
    assert here.is_suspect(ON_A)
    # a third one, which has seen nothing itself, believes the success
    third = Health(clock)
    third.merge(here.export())
    assert not third.is_suspect(ON_A)


def test_a_clock_that_is_ahead_does_not_keep_a_server_out(clock: Clock) -> None:
    here, ahead = Health(clock), Health(lambda: clock.now + 60)
    ahead.note_failure(ON_A)
    here.merge(ahead.export())
    here.note_success(ON_A, 0.1)
    assert not here.is_suspect(ON_A)
    ahead.merge(here.export())
    here.note_failure(ON_A)
    assert here.is_suspect(ON_A)


def test_patience_lets_one_process_try_first(clock: Clock) -> None:
    first, patient = Health(clock), Health(clock, patience=1.5)
    first.note_failure(ON_A)
    patient.merge(first.export())
    clock.now += HALF + 1
    assert not first.is_suspect(ON_A)
    assert patient.is_suspect(ON_A)
    clock.now += HALF / 2
    assert not patient.is_suspect(ON_A)


def test_version_says_when_there_is_something_to_tell(health: Health, clock: Clock) -> None:
    def is_news(note: Callable[[], object]) -> bool:
        before = health.version
        note()
        return health.version > before

    assert not is_news(lambda: health.note_success(ON_A, 0.1))
    assert is_news(lambda: health.note_failure(ON_A))
    assert is_news(lambda: health.note_failure(ON_A))
    assert is_news(lambda: health.note_success(ON_A, 0.1))
    assert not is_news(lambda: health.note_success(ON_A, 0.1))
    assert not is_news(lambda: health.note_damage(A))
    other = Health(clock)
    other.note_failure(ON_B)
    assert not is_news(lambda: health.merge(other.export()))


def test_export_is_plain(health: Health, clock: Clock) -> None:
    health.note_failure(ON_A)
    health.note_success(ON_B, 0.25)
    exported = health.export()
    assert exported[ON_B] == {
        "failed_at": 0.0,
        "suspect_until": 0.0,
        "opened_at": clock.now,
        "open_seconds": 0.25,
    }
    assert json.loads(json.dumps(exported)) == exported
    assert msgpack.unpackb(msgpack.packb(exported)) == exported
    assert len(msgpack.packb(exported)) < 200


seconds = st.integers(0, 50).map(float)
records = st.builds(EndpointRecord, seconds, seconds, seconds, seconds)
tables = st.dictionaries(st.sampled_from([ON_A, ON_B]), records)


def exported_by(*tables: dict[str, EndpointRecord]) -> dict[str, dict[str, float]]:
    health = Health(Clock())
    for table in tables:
        single = Health(Clock())
        single._all.update(table)
        health.merge(single.export())
    return health.export()


@given(tables, tables, tables)
def test_merging_needs_no_order_and_bears_repetition(
    a: dict[str, EndpointRecord], b: dict[str, EndpointRecord], c: dict[str, EndpointRecord]
) -> None:
    merged = exported_by(a, b, c)
    assert merged == exported_by(c, a, b) == exported_by(b, c, a, b, a)
    health = Health(Clock())
    assert health.merge(merged) == bool(merged)
    assert not health.merge(merged)
    assert health.export() == merged


@dataclass(slots=True)
class CountingSlots:
    """Slots of a process that remember how they were used."""

    slots: ProcessSlots = field(default_factory=ProcessSlots)
    now: int = 0
    most: int = 0
    asked: list[tuple[str, int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def slot(self, endpoint: str, limit: int) -> Iterator[None]:
        with self.slots.slot(endpoint, limit):
            with self.lock:
                self.asked.append((endpoint, limit))
                self.now += 1
                self.most = max(self.most, self.now)
            try:
                yield
            finally:
                with self.lock:
                    self.now -= 1


def test_no_more_threads_than_slots() -> None:
    counting = CountingSlots()
    both_inside = threading.Barrier(2, timeout=30)

    def use() -> None:
        with slots_from(counting), open_slot(ON_A, 2):
            both_inside.wait()  # two must be able to be here, a third would be counted

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert counting.most == 2
    assert counting.asked == [(ON_A, 2)] * 8


def test_endpoints_do_not_wait_for_each_other() -> None:
    slots = ProcessSlots()
    with slots.slot(ON_A, 1), slots.slot(ON_B, 1), slots.slot(ON_A, 2):
        pass


def test_a_slot_is_given_back_after_an_error() -> None:
    slots = ProcessSlots()
    for error in (OSError("lost"), KeyboardInterrupt("stop")):
        with pytest.raises(type(error), match=r"lost|stop"), slots.slot(ON_A, 1):
            raise error
    with slots.slot(ON_A, 1):
        pass


def test_a_thread_that_waits_can_be_interrupted() -> None:
    slots = ProcessSlots()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt("stop")

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with slots.slot(ON_A, 1):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(KeyboardInterrupt, match="stop"), slots.slot(ON_A, 1):
                pytest.fail("there was a second slot")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    # the one that was waited for in vain was neither taken nor given back
    with slots.slot(ON_A, 2), slots.slot(ON_A, 2):
        assert slots._num_taken == {ON_A: 2}
    assert slots._num_taken[ON_A] == 0


def test_no_slot_without_a_limit_or_a_server() -> None:
    counting = CountingSlots()
    with slots_from(counting), open_slot(LOCAL, 1), open_slot(LOCAL, 1), open_slot(ON_A, None):
        pass
    assert counting.asked == []


def test_slots_come_from_the_process_again_after_the_block() -> None:
    counting = CountingSlots()
    with slots_from(counting), open_slot(ON_A, 1):
        pass
    with open_slot(ON_A, 1):
        pass
    assert counting.asked == [(ON_A, 1)]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # threads of other tests
def test_a_fork_has_its_parents_knowledge_but_not_its_slots() -> None:
    endpoint = "root://fork-of-a-test"
    process_health().note_failure(endpoint)
    read_end, write_end = os.pipe()
    with open_slot(endpoint, 1):
        child = os.fork()
        if child == 0:
            # straight out, past pytest's own clean-up
            try:
                signal.alarm(20)
                with open_slot(endpoint, 1):
                    suspect = process_health().is_suspect(endpoint)
                os.write(write_end, b"suspect" if suspect else b"unknown")
            finally:
                os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as answer:
        assert answer.read() == b"suspect"
    os.waitpid(child, 0)
