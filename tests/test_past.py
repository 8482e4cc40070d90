from __future__ import annotations

import functools
import os
import sqlite3
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import pytest

from hepdask.metrics import Counters
from hepdask.past import PastCosts, name_processor

if TYPE_CHECKING:
    from pathlib import Path

#: ten ranges of a second, of which opening 1 s, reading and processing 6 s
RUN = Counters(
    num_ranges=10,
    num_entries=1_000,
    num_opens=2,
    open_seconds=1.0,
    read_seconds=2.0,
    process_seconds=4.0,
    wall_seconds=10.0,
    num_requested_bytes=5_000,
)


@pytest.fixture
def past(tmp_path: Path) -> PastCosts:
    return PastCosts(tmp_path / "cache" / "costs.sqlite")


class Processor:
    def process(self, events: Any) -> int:
        return len(events)


def note_many(path: str) -> None:
    for _ in range(5):
        PastCosts(path).note("p", {"layout": RUN})


def test_rates_of_a_run(past: PastCosts) -> None:
    assert past.load("p") == {}
    past.note("p", {"layout": RUN, "failed": Counters(num_ranges=1)})
    rates = past.load("p")
    assert list(rates) == ["layout"]
    one = rates["layout"]
    assert (one.seconds_per_open, one.seconds_per_range) == (0.5, 0.3)
    assert (one.seconds_per_entry, one.requested_bytes_per_entry) == (0.006, 5)
    assert one.num_runs == 1
    assert past.load("another") == {}


def test_the_last_run_counts_most(past: PastCosts) -> None:
    slow = Counters(num_ranges=10, num_entries=1_000, process_seconds=28.0, wall_seconds=28.0)
    past.note("p", {"layout": slow})
    past.note("p", {"layout": RUN})
    one = past.load("p")["layout"]
    # (28 / 2 + 6) s for (1,000 / 2 + 1,000) entries
    assert one.seconds_per_entry == pytest.approx(20 / 1_500)
    assert one.num_runs == 2


def test_nobody_else_may_read_it(past: PastCosts) -> None:
    past.note("p", {"layout": RUN})
    assert past.path.stat().st_mode & 0o777 == 0o600
    assert past.path.parent.stat().st_mode & 0o777 == 0o700


def test_a_damaged_file_is_made_anew(past: PastCosts) -> None:
    past.path.parent.mkdir()
    past.path.write_bytes(b"this is no database" * 100)
    assert past.load("p") == {}
    past.note("p", {"layout": RUN})
    assert past.load("p")["layout"].num_runs == 1


def test_what_can_not_be_written_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    past = PastCosts(tmp_path / "file" / "costs.sqlite")
    past.note("p", {"layout": RUN})
    assert past.load("p") == {}


def test_a_lock_that_nobody_gives_back(past: PastCosts, monkeypatch: pytest.MonkeyPatch) -> None:
    past.note("p", {"layout": RUN})
    monkeypatch.setattr("hepdask.past.TIMEOUT_SECONDS", 0.01)
    connection = sqlite3.connect(past.path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    past.note("p", {"layout": RUN})
    assert past.load("p") == {}
    connection.close()
    assert past.load("p")["layout"].num_runs == 1


def test_several_processes_write_at_once(past: PastCosts) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        list(pool.map(note_many, [os.fspath(past.path)] * 3))
    assert past.load("p")["layout"].num_runs == 15


def test_names_say_where_a_processor_is_defined() -> None:
    assert name_processor(Processor()) == f"{__file__}:Processor"
    assert name_processor(note_many) == f"{__file__}:note_many"
    assert name_processor(functools.partial(note_many, "x")) == f"{__file__}:note_many"
    assert name_processor(Processor().process) == f"{__file__}:Processor.process"
    assert name_processor(len) == "builtins:len"
