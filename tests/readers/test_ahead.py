"""Bytes that are requested before they are read, from real servers; round trips are counted, not timed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import awkward as ak
import numpy as np
import pytest
import uproot

from hepdask import LocalExecutor, Runner
from hepdask import remote as remote_files
from hepdask.attempt import Work
from hepdask.fileset import InputFile
from hepdask.opening import ReadOptions, forget_connections
from hepdask.processor import ProcessorCopies
from hepdask.ranges import EntryRange
from hepdask.readers import build_reader, handles
from hepdask.readers.ahead import _find_pages, request_branches
from hepdask.readers.handles import (
    KeepOptions,
    close_all,
    configure,
    drop_ahead,
    lease,
    list_kept,
    open_ahead,
)
from hepdask.readers.uses import Seed, Use, Uses
from hepdask.task import NodeTask
from tests.servers import LatencyProxy, XrdServer
from tests.test_task import RecordingMonitor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import NanoFiles

OPTIONS = ReadOptions()
BRANCHES = ("MET_phi", "MET_pt", "Muon_pt", "nMuon")


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    close_all()
    yield
    close_all()


@pytest.fixture
def proxy(xrd_server: XrdServer) -> Iterator[LatencyProxy]:
    with LatencyProxy(xrd_server.port) as running:
        yield running
        forget(running)


def forget(proxy: LatencyProxy) -> None:
    """Close files while their server can still answer."""
    close_all()
    forget_connections(f"root://127.0.0.1:{proxy.port}//")


def remote(proxy: LatencyProxy, name: str = "nano_1.root", num_entries: int = 149) -> InputFile:
    url = f"root://127.0.0.1:{proxy.port}//{name}"
    return InputFile("dy", url, "Events", (url,), {}, num_entries=num_entries)


def read(file: InputFile, start: int, stop: int, uses: Uses, *upcoming: EntryRange) -> Any:
    reader = build_reader(None, OPTIONS)
    with reader.read(EntryRange(file, start, stop), uses, upcoming) as opened:
        arrays = [opened.events[name].to_list() for name in BRANCHES]
        return arrays, opened.tally


@pytest.fixture
def uses(proxy: LatencyProxy) -> Uses:
    """What a trace would have found."""
    with build_reader(None, OPTIONS).read(EntryRange(remote(proxy), 0, 0)) as opened:
        key = opened.layout_key
    return Uses({key: Seed(Use(frozenset(BRANCHES), frozenset(BRANCHES)))})


def test_all_branches_of_a_range_are_one_round_trip(proxy: LatencyProxy, uses: Uses) -> None:
    file = remote(proxy)
    first, _ = read(file, 0, 50, uses)
    before = proxy.num_turns
    arrays, tally = read(file, 50, 100, uses)
    assert proxy.num_turns - before == 1
    assert tally.columns == set(BRANCHES)
    one_by_one = proxy.num_turns
    assert read(file, 50, 100, Uses())[0] == arrays != first
    assert proxy.num_turns - one_by_one == len(BRANCHES)


def test_what_was_requested_is_not_requested_again(proxy: LatencyProxy, uses: Uses) -> None:
    file = remote(proxy)
    expected = [read(file, start, stop, uses) for start, stop in ((0, 50), (50, 100), (100, 149))]
    close_all()
    second, third = EntryRange(file, 50, 100), EntryRange(file, 100, 149)
    tallies = [read(file, 0, 50, uses, second, third)[1]]
    with lease(file, OPTIONS) as handle:
        source = handle.open_file.remote
        assert source is not None
        requested = handle.num_requested_bytes
        tallies += [read_in(handle, 50, 100), read_in(handle, 100, 149)]
        assert handle.num_requested_bytes == requested
    assert [one.num_compressed_bytes for one in tallies] == [
        tally.num_compressed_bytes for _, tally in expected
    ]
    assert source.num_served_bytes == source.num_ahead_bytes


def read_in(handle: Any, start: int, stop: int) -> Any:
    from hepdask.readers.branches import BranchSource, ReadTally

    tally = ReadTally()
    file = InputFile("dy", handle.open_file.replica, "Events", (handle.open_file.replica,), {})
    source = BranchSource(handle, EntryRange(file, start, stop), tally, BRANCHES)
    source.request_expected()
    source.read_expected()
    return tally


def test_a_run_gives_the_same_from_far_away(proxy: LatencyProxy, nano_files: NanoFiles) -> None:
    def process(events: Any) -> Any:
        return [events.Muon.pt.to_list(), events.MET.pt.to_list()]

    runner = Runner(LocalExecutor(), chunksize=40, progress=False, metadata_cache=False)
    names = [path.name for path in nano_files.paths]
    far = runner.run({"dy": [remote(proxy, name).file_path for name in names]}, "Events", process)
    near = runner.run({"dy": [str(path) for path in nano_files.paths]}, "Events", process)
    assert far.output == near.output
    figures = ("num_compressed_bytes", "num_uncompressed_bytes", "num_entries")
    assert [getattr(far.metrics.total, one) for one in figures] == [
        getattr(near.metrics.total, one) for one in figures
    ]
    assert far.metrics.partial.missed == frozenset()


def test_what_the_next_task_needs_comes_while_this_one_ends(
    proxy: LatencyProxy, uses: Uses
) -> None:
    first, second = remote(proxy), remote(proxy, "nano_2.root", 40)
    following = [EntryRange(first, 50, 100), EntryRange(second, 0, 40)]

    def process(ranges: list[EntryRange], following: list[EntryRange]) -> int:
        before = proxy.num_turns
        work = Work(
            ProcessorCopies(lambda events: [events[one].to_list() for one in BRANCHES]),
            build_reader(None, OPTIONS),
            uses=uses,
        )
        result = NodeTask(ranges, work, RecordingMonitor(), find_following=lambda: following).run()
        assert result.processed
        assert not result.failures
        while second.file_path in handles._pool_of_process().opening:
            threading.Event().wait(0.01)
        return proxy.num_turns - before

    process([EntryRange(first, 0, 50)], following)
    wait_until_read(second)
    assert set(list_kept()) == {first.file_path, second.file_path}
    # all of it is here
    assert process(following, []) == 0
    process([EntryRange(first, 0, 50)], following)
    process([EntryRange(first, 100, 149)], [])  # something else came
    assert process([EntryRange(second, 0, 40)], []) == 1


def wait_until_read(file: InputFile) -> None:
    """Wait until what was requested ahead is there: else the next turn counts."""
    with lease(file, OPTIONS) as handle:
        source = handle.open_file.remote
        assert source is not None
        for chunk in source._ahead.values():
            chunk.wait()


def write_ntuple(path: Path, num_clusters: int = 3) -> Path:
    """Write an RNTuple in clusters of 100 entries."""
    numbers = np.arange(100 * num_clusters, dtype=np.float32)
    arrays = ak.Array({"x": numbers, "tracks": ak.unflatten(numbers, 1)})
    with uproot.recreate(path) as file:
        ntuple = file.mkrntuple("Events", arrays[:100])
        for start in range(100, len(arrays), 100):
            ntuple.extend(arrays[start : start + 100])
    return path


def test_clusters_of_an_ntuple_are_read_once(tmp_path: Path) -> None:
    path = write_ntuple(tmp_path / "ntuple.root")
    file = InputFile("dy", str(path), "Events", (str(path),), {})
    read = build_reader(None, OPTIONS).read
    values, num_bytes = [], 0
    for start in (0, 100, 200):
        with read(EntryRange(file, start, start + 100)) as opened:
            values += opened.events.x.to_list()
            assert ak.sum(opened.events.tracks) == sum(range(start, start + 100))
            num_bytes += opened.tally.num_compressed_bytes
    assert values == list(range(300))
    with uproot.open(path) as whole:
        pages = _find_pages(whole["Events"], ["x", "tracks"], 0, 300)
    assert num_bytes == sum(stop - start for start, stop in pages)
    drop_ahead()
    with lease(file, OPTIONS) as handle:
        assert "clusters" not in handle.open_file.notes


def test_pages_of_an_ntuple_are_one_round_trip(xrd_server: XrdServer, served_path: Path) -> None:
    write_ntuple(served_path / "data" / "ntuple.root")
    with LatencyProxy(xrd_server.port) as proxy:
        file = remote(proxy, "ntuple.root", 300)
        reader = build_reader(None, OPTIONS)
        with reader.read(EntryRange(file, 0, 0)) as opened:
            key = opened.layout_key
        names = frozenset({"x", "tracks"})
        known = Uses({key: Seed(Use(names, names))})
        with reader.read(EntryRange(file, 0, 100), known):
            before = proxy.num_turns
        with reader.read(EntryRange(file, 100, 300), known) as opened:
            assert opened.events.x.to_list() == list(range(100, 300))
            assert opened.events.tracks[-1].to_list() == [299]
        assert proxy.num_turns - before == 1
        forget(proxy)


def test_not_more_than_there_is_room_for(
    proxy: LatencyProxy, uses: Uses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_files, "MAX_AHEAD_BYTES", 100)
    file = remote(proxy)
    with lease(file, OPTIONS) as handle:
        before = handle.num_requested_bytes
        assert not request_branches(handle.open_file, BRANCHES, 50, 100)
        assert handle.num_requested_bytes == before
        # what is read next needs its room anyway
        assert request_branches(handle.open_file, BRANCHES, 0, 50, are_needed=True)
        assert handle.num_requested_bytes > before


def test_what_is_not_read_is_dropped(proxy: LatencyProxy) -> None:
    file = remote(proxy)
    with lease(file, OPTIONS) as handle:
        assert request_branches(handle.open_file, BRANCHES, 0, 149)
        source = handle.open_file.remote
    assert source is not None
    drop_ahead()
    with lease(file, OPTIONS) as handle:
        before = handle.num_requested_bytes
        read_in(handle, 0, 149)
        assert handle.num_requested_bytes > before
    assert source.num_served_bytes < source.num_ahead_bytes


def test_local_files_need_none_of_this(nano_files: NanoFiles) -> None:
    path = str(nano_files.paths[1])
    file = InputFile("dy", path, "Events", (path,), {})
    with lease(file, OPTIONS) as handle:
        assert handle.open_file.remote is None
        assert not request_branches(handle.open_file, BRANCHES, 0, 50)
    open_ahead(file, OPTIONS, lambda _: pytest.fail("it is local"))
    assert not handles._pool_of_process().opening


def test_the_next_file_is_opened_meanwhile(proxy: LatencyProxy, uses: Uses) -> None:
    file, following = remote(proxy), remote(proxy, "nano_2.root", 40)
    threads = threading.active_count()
    read(file, 100, 149, uses, EntryRange(following, 0, 40))
    # the lease waits for the thread, and what it has opened
    with lease(following, OPTIONS) as handle:
        source = handle.open_file.remote
        assert not handle.was_kept
        assert handle.open_seconds >= 0
        requested = handle.num_requested_bytes
        read_in(handle, 0, 40)
        assert handle.num_requested_bytes == requested
    assert source is not None
    assert source.num_served_bytes > 0
    with lease(following, OPTIONS) as handle:
        assert handle.was_kept
    assert threading.active_count() <= threads + 1
    # what is open already is asked for its bytes, too
    read(file, 100, 149, uses, EntryRange(following, 0, 40))
    with lease(following, OPTIONS) as handle:
        # they count for who has the file next, as no range has it now
        assert handle.num_requested_bytes > handle.num_requested_before
    wait_until_read(following)
    with lease(following, OPTIONS) as handle:
        requested = handle.num_requested_bytes
        read_in(handle, 0, 40)
        assert handle.was_kept
        assert handle.num_requested_bytes == requested


def test_files_that_will_come_stay_open_and_are_few(
    proxy: LatencyProxy, served_path: Path, small_pool: None
) -> None:
    source = served_path / "data" / "nano_2.root"
    for number in range(8):
        (served_path / "data" / f"{number}.root").write_bytes(source.read_bytes())
    files = [remote(proxy, f"{number}.root", 40) for number in range(8)]
    for file in files[:4]:
        open_ahead(file, OPTIONS, lambda _: None)
    opening = handles._pool_of_process().opening
    while opening:
        threading.Event().wait(0.01)
    # half of the room, and it is not given to files that were used
    ahead = {file.file_path for file in files[:2]}
    assert set(list_kept()) == ahead
    for file in files[4:]:
        with lease(file, OPTIONS):
            pass
    assert ahead < set(list_kept())
    assert len(list_kept()) == 4
    # others come instead
    drop_ahead(lambda: [files[1].file_path])
    open_ahead(files[2], OPTIONS, lambda _: None)
    while opening:
        threading.Event().wait(0.01)
    assert {files[1].file_path, files[2].file_path} <= set(list_kept())
    # all at once are as many as there is room for
    for file in files:
        open_ahead(file, OPTIONS, lambda _: None)
    assert not opening


@pytest.fixture
def small_pool() -> Iterator[None]:
    configure(max_kept=4)
    yield
    configure(max_kept=KeepOptions().max_kept)


def test_a_file_that_can_not_be_opened_ahead_is_an_error_when_it_is_read(
    proxy: LatencyProxy, uses: Uses
) -> None:
    missing = remote(proxy, "missing.root")
    read(remote(proxy), 100, 149, uses, EntryRange(missing, 0, 40))
    with pytest.raises(OSError, match="no such file"):
        read(missing, 0, 40, uses)
