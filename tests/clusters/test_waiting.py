from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from hepdask.clusters import announced_waiting

if TYPE_CHECKING:
    import pytest


def test_what_is_waited_for_is_said_once_until_it_changes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    num_looks = 0
    is_over = threading.Event()

    def count() -> int:
        nonlocal num_looks
        num_looks += 1
        if num_looks == 5:
            is_over.set()
        return int(num_looks >= 5)

    with announced_waiting(None, count, first_seconds=0.01):
        assert is_over.wait(20)
    texts = [record.getMessage() for record in caplog.records if "hepdask" in record.name]
    assert texts == [
        "no worker yet, after 0 s",
        "the first worker is there, after 0 s",
    ]


def test_nothing_is_said_where_there_are_workers(caplog: pytest.LogCaptureFixture) -> None:
    with announced_waiting(None, lambda: 1, first_seconds=0.0):
        pass
    assert not caplog.records
