from __future__ import annotations

import pickle
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import awkward as ak
import numpy as np
import pytest
import uproot

from hepdask import endpoints
from hepdask.endpoints import Health, ProcessSlots, process_health, slots_from
from hepdask.errors import FileReadError, MissingTreeError, OptionError
from hepdask.fileset import InputFile
from hepdask.opening import ReadOptions, note_failure, open_file
from hepdask.read_errors import read_errors
from tests.servers import LatencyProxy, XrdServer, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hepdask.opening import OpenFile

OPTIONS = ReadOptions(timeout_seconds=5.0)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test begin with a process that knows nothing of any server."""
    monkeypatch.setattr(endpoints, "_health", Health())


def input_file(*replicas: Path | str, treename: str = "Events") -> InputFile:
    urls = tuple(map(str, replicas))
    return InputFile(dataset="dy", file_path=urls[0], treename=treename, replicas=urls, metadata={})


def write_file(path: Path) -> Path:
    generator = np.random.default_rng(1)
    with uproot.recreate(path) as file:
        file.mktree("Events", {"x": "f8"})
        file["Events"].extend({"x": generator.normal(size=20_000)})
        file["counts"] = np.histogram([1.0, 2.0, 3.0])
        file.mktree("dir/Runs", {"run": "i4"})
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_file(tmp_path / "good.root")


def test_the_members_of_the_fields_of_an_ntuple_are_those_of_uproot(tmp_path: Path) -> None:
    path = tmp_path / "ntuple.root"
    hits = [[{"x": 1.0, "in": {"a": 1, "b": [2.5]}}], []]
    events = ak.Array(
        {"met": [1.0, 2.0], "hits": hits, "lists": [[[1], []], []], "text": ["a", "b"]}
    )
    with uproot.recreate(path) as file:
        file.mkrntuple("Events", events)
    with open_file(input_file(path), OPTIONS) as opened:
        assert all(field._fields is not None for field in opened.tree.ntuple.all_fields)
        found = [[one.path for one in field.fields] for field in opened.tree.ntuple.all_fields]
        assert opened.tree.keys() == uproot.open(path)["Events"].keys()
        assert opened.tree.arrays().to_list() == events.to_list()
    ntuple = uproot.open(path)["Events"]
    assert found == [[one.path for one in field.fields] for field in ntuple.all_fields]
    assert sum(map(len, found)) > 4


def test_opens_the_tree(good: Path) -> None:
    with open_file(input_file(good), OPTIONS) as opened:
        assert opened.replica == str(good)
        assert opened.num_entries == 20_000
        assert opened.uuid == str(uproot.open(good).file.uuid)
        assert opened.open_seconds > 0
        before = opened.num_requested_bytes
        assert len(opened.tree["x"].array()) == 20_000
        assert opened.num_requested_bytes > before
        assert opened.directory.file.array_cache is None
    assert opened.directory.file.closed
    opened.close()


def test_opens_a_tree_in_a_directory(good: Path) -> None:
    with open_file(input_file(good, treename="dir/Runs"), OPTIONS) as opened:
        assert opened.num_entries == 0


def test_options_of_uproot_win(good: Path) -> None:
    options = ReadOptions(uproot_options={"handler": uproot.MemmapSource, "array_cache": "1 MB"})
    with open_file(input_file(good), options) as opened:
        assert isinstance(opened.directory.file.source, uproot.MemmapSource)
        assert opened.directory.file.array_cache is not None
    assert pickle.loads(pickle.dumps(options)) == options


def test_next_replica_is_used(tmp_path: Path, good: Path) -> None:
    (tmp_path / "empty.root").touch()
    file = input_file(tmp_path / "missing.root", tmp_path / "empty.root", good)
    with open_file(file, OPTIONS) as opened:
        assert opened.replica == str(good)


def test_missing_tree_lists_those_that_are_there(good: Path) -> None:
    with pytest.raises(MissingTreeError, match=r"no tree 'Evnts' in it; did you mean 'Events'\?"):
        open_file(input_file(good, treename="Evnts"), OPTIONS)
    with pytest.raises(MissingTreeError, match="there is 'Events', 'dir/Runs'"):
        open_file(input_file(good, treename="CollectionTree"), OPTIONS)


def test_other_object_is_no_tree(good: Path) -> None:
    with pytest.raises(MissingTreeError, match="'counts' is a TH1D, not a TTree or RNTuple"):
        open_file(input_file(good, treename="counts"), OPTIONS)


def test_missing_tree_is_looked_for_in_other_replicas(tmp_path: Path, good: Path) -> None:
    with uproot.recreate(tmp_path / "other.root") as file:
        file["counts"] = np.histogram([1.0])
    with open_file(input_file(tmp_path / "other.root", good), OPTIONS) as opened:
        assert opened.replica == str(good)
    with pytest.raises(MissingTreeError, match="has no trees at all"):
        open_file(input_file(tmp_path / "other.root", tmp_path / "missing.root"), OPTIONS)


def test_server_that_came_back_is_read_again(xrd_server: XrdServer) -> None:
    file = input_file(xrd_server.url("nano_0.root"))
    with open_file(file, OPTIONS) as opened:
        assert opened.num_entries == 100
        xrd_server.kill()
        with pytest.raises(read_errors()):
            opened.tree["MET_pt"].array()
    with pytest.raises(FileReadError, match=r"can't be reached|did not answer") as caught:
        open_file(file, OPTIONS)
    assert isinstance(caught.value.__cause__, TimeoutError | ConnectionError)
    xrd_server.start()
    with open_file(file, OPTIONS) as opened:
        assert len(opened.tree["MET_pt"].array()) == 100


def test_missing_file_on_a_server(xrd_server: XrdServer) -> None:
    with pytest.raises(FileReadError, match="there is no such file") as caught:
        open_file(input_file(xrd_server.url("missing.root")), OPTIONS)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_bad_replica_is_tried_last_from_then_on(tmp_path: Path, good: Path) -> None:
    missing = tmp_path / "missing.root"
    with open_file(input_file(missing, good), OPTIONS) as opened:
        assert opened.failed_replicas == (str(missing),)
    with open_file(input_file(missing, good), OPTIONS) as opened:
        assert opened.replica == str(good)
        assert opened.failed_replicas == ()
    # other files there have nothing to do with it
    other = write_file(tmp_path / "other.root")
    with open_file(input_file(other, good), OPTIONS) as opened:
        assert opened.replica == str(other)


def test_replica_without_the_tree_is_bad_itself(tmp_path: Path, good: Path) -> None:
    with uproot.recreate(tmp_path / "timed out.root") as file:
        file["counts"] = np.histogram([1.0])
    files = input_file(tmp_path / "timed out.root", good)
    for num_failed in (1, 0):
        with open_file(files, OPTIONS) as opened:
            assert len(opened.failed_replicas) == num_failed


@pytest.mark.parametrize(
    ("error", "cause", "is_of_server"),
    [
        (OSError("Failed to open file: [ERROR] Operation expired"), None, True),
        (OSError("[FATAL] Connection error"), None, True),
        (OSError("Server responded with an error: [3011] No such file"), None, False),
        (OSError("Server responded with an error: [3010] Permission denied"), None, False),
        (FileReadError("reading failed"), TimeoutError("expired"), True),
        (FileReadError("reading failed"), ConnectionResetError("reset"), True),
        # what the text says counts for nothing where hepdask has found out the cause
        (FileReadError("timed out"), None, False),
        (MissingTreeError("there is no tree 'timed out' in it"), None, False),
    ],
)
def test_blame_is_put_on_the_server_or_on_the_replica(
    error: Exception, cause: Exception | None, is_of_server: bool
) -> None:
    error.__cause__ = cause
    note_failure("root://a//f.root", error)
    assert process_health().is_suspect("root://a") == is_of_server
    assert process_health().order(("root://a//f.root", "b.root"))[0] == "b.root"


def test_limit_of_opens_is_checked() -> None:
    with pytest.raises(OptionError, match="max_opens_per_endpoint is 0: give 1 or more"):
        ReadOptions(max_opens_per_endpoint=0)


class WatchedSlots:
    """Slots of a process, with a count of those in use and a call when one was taken."""

    def __init__(self, on_taken: Any = lambda: None) -> None:
        self.slots = ProcessSlots()
        self.on_taken = on_taken
        self.lock = threading.Lock()
        self.in_use = 0
        self.most = 0
        self.taken: list[str] = []

    @contextmanager
    def slot(self, endpoint: str, limit: int) -> Iterator[None]:
        with self.slots.slot(endpoint, limit):
            self.count(1)
            self.taken.append(endpoint)
            try:
                self.on_taken()
                yield
            finally:
                self.count(-1)

    def count(self, change: int) -> None:
        with self.lock:
            self.in_use += change
            self.most = max(self.most, self.in_use)


LIMITED = ReadOptions(timeout_seconds=5.0, max_opens_per_endpoint=2)


def test_slot_is_held_while_opening_only(xrd_server: XrdServer, good: Path) -> None:
    watched = WatchedSlots()
    endpoint = f"root://127.0.0.1:{xrd_server.port}"
    with slots_from(watched):
        with open_file(input_file(xrd_server.url("nano_0.root")), LIMITED) as opened:
            assert watched.taken == [endpoint]
            assert watched.in_use == 0
            assert len(opened.tree["MET_pt"].array()) == 100
        with pytest.raises(FileReadError, match="there is no such file"):
            open_file(input_file(xrd_server.url("missing.root")), LIMITED)
        open_file(input_file(good), LIMITED).close()
        open_file(input_file(xrd_server.url("nano_0.root")), OPTIONS).close()
    assert watched.taken == [endpoint] * 2
    assert watched.in_use == 0


def test_slot_is_given_back_when_opening_is_interrupted(xrd_server: XrdServer) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt("stop")

    watched = WatchedSlots(interrupt)
    file = input_file(xrd_server.url("nano_0.root"))
    with slots_from(watched), pytest.raises(KeyboardInterrupt, match="stop"):
        open_file(file, LIMITED)
    assert watched.taken
    assert watched.in_use == 0


def test_no_more_opens_at_once_than_allowed(xrd_server: XrdServer) -> None:
    watched = WatchedSlots()
    opened: list[OpenFile] = []
    # the delay makes openings last long enough to overlap if nothing kept them apart
    with LatencyProxy(xrd_server.port, round_trip_seconds=0.02) as proxy:
        file = input_file(xrd_server.url("nano_0.root", port=proxy.port))

        def use() -> None:
            with slots_from(watched):
                opened.append(open_file(file, LIMITED))

        threads = [threading.Thread(target=use) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        # all of them are open now: only opening is limited
        assert [one.num_entries for one in opened] == [100] * 6
        for one in opened:
            one.close()
    assert len(watched.taken) == 6
    assert watched.most == 2


def test_server_found_dead_while_waiting_for_a_slot_is_passed_over(
    xrd_server: XrdServer,
) -> None:
    dead = f"root://127.0.0.1:{free_port()}"
    watched = WatchedSlots(lambda: process_health().note_failure(dead))
    file = input_file(f"{dead}//nano_0.root", xrd_server.url("nano_0.root"))
    with slots_from(watched), open_file(file, LIMITED) as opened:
        assert opened.replica == file.replicas[1]
        assert opened.failed_replicas == ()
    assert watched.taken == [dead, f"root://127.0.0.1:{xrd_server.port}"]
    assert watched.in_use == 0


def test_dead_server_costs_its_time_once(
    xrd_server: XrdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    monkeypatch.setattr(endpoints, "_health", Health(lambda: now))
    second = xrd_server
    first = XrdServer(second.data_directory, second.work_directory.parent / "first")
    names = ("nano_0.root", "nano_1.root", "nano_2.root")
    with first, LatencyProxy(first.port) as proxy:
        files = [input_file(first.url(name, port=proxy.port), second.url(name)) for name in names]
        first.kill()
        with open_file(files[0], OPTIONS) as opened:
            assert opened.failed_replicas == (files[0].replicas[0],)
            assert opened.replica == files[0].replicas[1]
        num_connections = proxy.num_connections
        assert num_connections > 0
        for file in files:
            with open_file(file, OPTIONS) as opened:
                assert opened.failed_replicas == ()
                assert opened.replica == file.replicas[1]
        assert proxy.num_connections == num_connections
        first.start()
        now += endpoints.HALF_LIFE_SECONDS + 1
        with open_file(files[1], OPTIONS) as opened:
            assert opened.replica == files[1].replicas[0]
        assert proxy.num_connections > num_connections


def test_suspects_are_tried_if_nothing_else_works(xrd_server: XrdServer, tmp_path: Path) -> None:
    process_health().note_failure(f"root://127.0.0.1:{xrd_server.port}")
    file = input_file(xrd_server.url("nano_0.root"), tmp_path / "missing.root")
    with open_file(file, OPTIONS) as opened:
        assert opened.replica == file.replicas[0]
        assert opened.failed_replicas == (file.replicas[1],)
    assert not process_health().is_suspect(f"root://127.0.0.1:{xrd_server.port}")
