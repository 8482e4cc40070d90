"""Servers that die while a run reads from them: real ones, by pid."""

from __future__ import annotations

import shutil
import threading
from typing import TYPE_CHECKING, Any

import pytest

from hepdask import LocalExecutor, RecoveryPolicy, RunError, Runner
from hepdask.readers.handles import close_all
from tests.servers import XrdServer, require_xrootd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import NanoFiles

PATIENT = RecoveryPolicy(max_attempts=8, wait_seconds=0.5, max_wait_seconds=2)
HASTY = RecoveryPolicy(max_attempts=2, wait_seconds=0)


@pytest.fixture
def servers(served_path: Path, nano_files: NanoFiles) -> Iterator[list[XrdServer]]:
    """Two servers with the same files."""
    require_xrootd()
    data = served_path / "data"
    data.mkdir()
    for path in nano_files.paths:
        shutil.copy(path, data)
    close_all()
    with (
        XrdServer(data, served_path / "one") as first,
        XrdServer(data, served_path / "two") as second,
    ):
        yield [first, second]
    close_all()


class Interrupts:
    """Does something to a server before a range is read, once."""

    def __init__(self, action: Any, start: int = 50) -> None:
        self.action = action
        self.start = start
        self.is_done = False

    def process(self, events: Any) -> dict[str, Any]:
        if events.metadata["entrystart"] == self.start and not self.is_done:
            self.is_done = True
            self.action()
        return {"met": float(events.MET.pt.to_numpy().sum()), "entries": len(events)}


def run(fileset: Any, processor: Any, recovery: RecoveryPolicy) -> Any:
    options: dict[str, Any] = {"chunksize": 50, "progress": False, "metadata_cache": False}
    return Runner(LocalExecutor(), recovery=recovery, **options).run(fileset, "Events", processor)


def expected(nano_files: NanoFiles) -> Any:
    return run({"nano": [str(nano_files.paths[1])]}, Interrupts(lambda: None), HASTY).output


def test_a_server_that_comes_back(servers: list[XrdServer], nano_files: NanoFiles) -> None:
    first = servers[0]

    def restart() -> None:
        first.kill()
        threading.Timer(1.5, first.start).start()

    result = run({"nano": [first.url("nano_1.root")]}, Interrupts(restart), PATIENT)
    assert result.is_complete
    assert result.output == expected(nano_files)


def test_a_server_that_stays_away(servers: list[XrdServer]) -> None:
    first = servers[0]
    with pytest.raises(RunError, match=r"entries 50 to 100") as caught:
        run({"nano": [first.url("nano_1.root")]}, Interrupts(first.kill), HASTY)
    result = caught.value.partial_result
    (failure,) = result.failures
    assert (failure.kind, failure.attempts) == ("transient", 2)
    assert result.output["entries"] == 50


def test_another_replica_takes_over(servers: list[XrdServer], nano_files: NanoFiles) -> None:
    first, second = servers
    urls = [first.url("nano_1.root"), second.url("nano_1.root")]
    result = run({"nano": {"files": [urls]}}, Interrupts(first.kill), HASTY)
    assert result.is_complete
    assert result.output == expected(nano_files)
