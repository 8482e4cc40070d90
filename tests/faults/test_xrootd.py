"""Servers that die while a run reads from them: real ones, by pid."""

from __future__ import annotations

import shutil
import threading
from typing import TYPE_CHECKING, Any

import pytest

from hepdask import LocalExecutor, RecoveryPolicy, RunError, Runner, endpoints
from hepdask.endpoints import Health
from hepdask.readers.handles import KeepOptions, close_all, configure
from tests.servers import XrdServer, require_xrootd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import NanoFiles

PATIENT = RecoveryPolicy(max_attempts=8, wait_seconds=0.5, max_wait_seconds=2)
HASTY = RecoveryPolicy(max_attempts=2, wait_seconds=0)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test begin in a process that knows nothing of any server."""
    monkeypatch.setattr(endpoints, "_health", Health())


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
    """Does something to a server before a range is read, once.

    From this range on another branch is read: what the ranges before it have used is on its way already, or there.
    """

    def __init__(self, action: Any, start: int = 50) -> None:
        self.action = action
        self.start = start
        self.is_done = False

    def process(self, events: Any) -> dict[str, Any]:
        if events.metadata["entrystart"] == self.start and not self.is_done:
            self.is_done = True
            self.action()
        is_before = events.metadata["entrystart"] < self.start
        values = events.MET.pt if is_before else events.MET.phi
        return {"met": float(values.to_numpy().sum()), "entries": len(events)}


def run(fileset: Any, processor: Any, recovery: RecoveryPolicy, **options: Any) -> Any:
    options = {"chunksize": 50, "progress": False, "metadata_cache": False, **options}
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
    endpoint_1, endpoint_2 = (f"root://127.0.0.1:{server.port}" for server in servers)
    assert result.metrics.endpoints[endpoint_1].num_entries == 50
    assert result.metrics.endpoints[endpoint_2].num_entries == 99
    assert result.metrics.served == {("nano", urls[0]): {urls[1]}}


def test_a_server_that_hangs_is_left(servers: list[XrdServer], nano_files: NanoFiles) -> None:
    """SIGSTOP: it takes connections, and never answers."""
    first, second = servers
    urls = [first.url("nano_1.root"), second.url("nano_1.root")]
    hang = Interrupts(first.pause)
    try:
        result = run({"nano": {"files": [urls]}}, hang, HASTY, xrootdtimeout=3)
    finally:
        first.resume()
    assert result.is_complete
    assert result.output == expected(nano_files)
    assert result.metrics.endpoints[f"root://127.0.0.1:{second.port}"].num_entries == 99


def test_a_server_that_hangs_is_named(servers: list[XrdServer], nano_files: NanoFiles) -> None:
    first = servers[0]
    hang = Interrupts(first.pause)
    try:
        with pytest.raises(RunError, match="did not answer in time") as caught:
            run({"nano": [first.url("nano_1.root")]}, hang, HASTY, xrootdtimeout=2)
    finally:
        first.resume()
    (failure,) = caught.value.partial_result.failures
    assert failure.kind == "transient"
    assert caught.value.partial_result.output["entries"] == 50


def test_only_the_first_file_pays_for_a_dead_server(
    servers: list[XrdServer], nano_files: NanoFiles
) -> None:
    first, second = servers
    names = [path.name for path in nano_files.paths]
    urls = [[first.url(name), second.url(name)] for name in names]
    first.kill()
    result = run({"nano": {"files": urls}}, Interrupts(lambda: None), HASTY)
    assert result.is_complete
    local = run({"nano": [*map(str, nano_files.paths)]}, Interrupts(lambda: None), HASTY)
    assert result.output == local.output
    # the inspection has found out already: no range goes to the dead server
    assert result.metrics.total.num_failed_opens == 0
    assert set(result.metrics.endpoints) == {f"root://127.0.0.1:{second.port}"}
    assert result.metrics.served == {("nano", one): {other} for one, other in urls}
    assert f"from root://127.0.0.1:{second.port}" in str(result.metrics.to_table())


def test_a_server_that_dies_in_the_first_range_is_left_at_once(
    servers: list[XrdServer], nano_files: NanoFiles
) -> None:
    first, second = servers
    urls = [[first.url(name), second.url(name)] for name in ("nano_0.root", "nano_1.root")]
    result = run({"nano": {"files": urls}}, Interrupts(first.kill, start=0), HASTY)
    assert result.is_complete
    endpoint = f"root://127.0.0.1:{second.port}"
    assert result.metrics.endpoints[endpoint].num_entries == 249
    assert result.metrics.total.num_failed_opens == 0
    assert result.metrics.served == {("nano", one): {other} for one, other in urls}


def test_a_damaged_replica_leaves_the_others_of_its_server_alone(
    servers: list[XrdServer], nano_files: NanoFiles
) -> None:
    first, second = servers
    bad = second.data_directory / "bad.root"
    bad.write_bytes(nano_files.paths[0].read_bytes()[:2_000])
    urls = [
        [first.url("bad.root"), second.url("nano_0.root")],
        [first.url("nano_1.root"), second.url("nano_1.root")],
    ]
    result = run({"nano": {"files": urls}}, Interrupts(lambda: None), HASTY)
    assert result.is_complete
    endpoint_1, endpoint_2 = (f"root://127.0.0.1:{server.port}" for server in servers)
    assert result.metrics.endpoints[endpoint_1].num_entries == 149
    assert result.metrics.endpoints[endpoint_2].num_entries == 100
    assert result.metrics.served == {("nano", urls[0][0]): {urls[0][1]}}


def test_an_open_that_failed_is_counted_where_it_failed(
    servers: list[XrdServer], nano_files: NanoFiles
) -> None:
    first, second = servers
    urls = [[first.url(name), second.url(name)] for name in ("nano_0.root", "nano_1.root")]

    class DiesAfterwards(Interrupts):
        def process(self, events: Any) -> dict[str, Any]:
            output = {"met": float(events.MET.pt.to_numpy().sum()), "entries": len(events)}
            if len(events) and not self.is_done:  # with none it is only looked at
                self.is_done = True
                self.action()
            return output

    # the first range is read, and its file closed; the second range finds the server dead
    configure(max_kept=0)
    try:
        result = run({"nano": {"files": urls}}, DiesAfterwards(first.kill, start=0), HASTY)
    finally:
        configure(max_kept=KeepOptions().max_kept)
    assert result.is_complete
    assert result.output["entries"] == 249
    endpoint_1, endpoint_2 = (f"root://127.0.0.1:{server.port}" for server in servers)
    of_first, of_second = (result.metrics.endpoints[one] for one in (endpoint_1, endpoint_2))
    assert (of_first.num_opens, of_first.num_failed_opens, of_first.num_entries) == (1, 1, 50)
    assert (of_second.num_failed_opens, of_second.num_entries) == (0, 199)
    assert result.metrics.total.num_failed_opens == 1
    assert "1 failed" in str(result.metrics.to_table())
