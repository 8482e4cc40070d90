from __future__ import annotations

import threading
import time

import pytest

from hepdask import watch
from hepdask.watch import TimeLimitReached, time_limit


def spin(seconds: float = 60) -> None:
    """Do something in Python for a while; an exception can reach it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_an_endless_loop_is_ended() -> None:
    with pytest.raises(TimeLimitReached), time_limit(0.05):  # noqa: PT012
        try:
            spin()
        except Exception:  # noqa: BLE001  # what user code often does
            pytest.fail("it must not be caught by chance")


def test_what_is_quick_enough_is_left_alone() -> None:
    hung = threading.Event()
    for _ in range(200):
        with time_limit(30, hung.set):
            pass
    assert not hung.is_set()


def test_no_limit() -> None:
    with time_limit(None):
        spin(0.01)


def test_nothing_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exception of a block that ends in the same moment must not reach what follows, nor stop the watchdog."""
    monkeypatch.setattr(watch, "GRACE_SECONDS", 0.2)
    hung = threading.Event()
    num_late = 0
    for _ in range(1_000):
        try:
            with time_limit(0.0005, hung.set):
                spin(0.0005)
        except TimeLimitReached:
            num_late += 1
        for _ in range(1_000):
            pass  # here it would come
    assert num_late <= 1_000
    with pytest.raises(TimeLimitReached), time_limit(0.05):
        spin()
    assert not hung.wait(0.5)


def test_what_hangs_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "GRACE_SECONDS", 0.05)
    hung = threading.Event()
    # a lock is waited for in C: no exception comes through
    with pytest.raises(TimeLimitReached), time_limit(0.05, hung.set):
        assert hung.wait(timeout=30)


def test_threads_have_limits_of_their_own() -> None:
    results: dict[int, str] = {}
    barrier = threading.Barrier(4)

    def work(number: int, seconds: float) -> None:
        barrier.wait()
        try:
            with time_limit(seconds):
                spin(0.3)
            results[number] = "done"
        except TimeLimitReached:
            results[number] = "late"

    threads = [
        threading.Thread(target=work, args=(n, 0.05 if n % 2 else 60), daemon=True)
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert results == {0: "done", 1: "late", 2: "done", 3: "late"}


def test_an_early_deadline_is_kept_while_a_late_one_is_waited_for() -> None:
    with time_limit(60), pytest.raises(TimeLimitReached), time_limit(0.05):
        spin()
