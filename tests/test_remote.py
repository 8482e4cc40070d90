"""Remote files: round trips are counted, not timed; what is read is the same as from a local file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import uproot

from hepdask.errors import FileReadError
from hepdask.fileset import InputFile
from hepdask.opening import ReadOptions, forget_connections, open_file
from hepdask.remote import BEGIN_BYTES, END_BYTES, RemoteSource, _find_end
from tests.servers import LatencyProxy, XrdServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import NanoFiles

OPTIONS = ReadOptions(timeout_seconds=5.0)


def write_file(path: Path, num_clusters: int) -> None:
    """Write a tree that is described behind its first ten clusters, of 80 kB each, as files of the experiments are at their end."""
    random = np.random.default_rng(1)
    with uproot.recreate(path) as file:
        tree = file.mktree("Events", {"x": "f8", "y": "i4"})
        for start in range(0, 10_000 * num_clusters, 10_000):
            numbers = np.arange(start, start + 10_000, dtype=np.int32)
            tree.extend({"x": random.normal(size=10_000), "y": numbers})


@pytest.fixture
def proxy(xrd_server: XrdServer) -> Iterator[LatencyProxy]:
    with LatencyProxy(xrd_server.port) as running:
        yield running
        forget_connections(f"root://127.0.0.1:{running.port}//")


def remote(proxy: LatencyProxy, name: str) -> InputFile:
    url = f"root://127.0.0.1:{proxy.port}//{name}"
    return InputFile("dy", url, "Events", (url,), {})


def test_opening_is_three_round_trips(proxy: LatencyProxy, served_path: Path) -> None:
    for name in ("first.root", "second.root"):
        write_file(served_path / "data" / name, 11)
    with open_file(remote(proxy, "first.root"), OPTIONS):
        before = proxy.num_turns
    with open_file(remote(proxy, "second.root"), OPTIONS) as opened:
        source = opened.remote
        assert source is not None
        # to open, for the beginning, for the end
        assert proxy.num_turns - before == 3
        assert source.num_requests == 2
        assert opened.num_requested_bytes <= BEGIN_BYTES + END_BYTES
        assert opened.tree["y"].array().to_list() == list(range(110_000))
        assert source.num_requests == 3


def test_what_is_not_at_the_end_is_read_as_it_comes(proxy: LatencyProxy, served_path: Path) -> None:
    write_file(served_path / "data" / "middle.root", 19)
    with open_file(remote(proxy, "middle.root"), OPTIONS) as opened:
        assert opened.remote is not None
        assert opened.num_requested_bytes < END_BYTES
        assert opened.tree["y"].array().to_list() == list(range(190_000))


def test_a_file_that_ends_too_early_is_named(proxy: LatencyProxy, served_path: Path) -> None:
    path = served_path / "data" / "cut.root"
    write_file(path, 11)
    whole = path.read_bytes()
    for num_bytes in (len(whole) - 200_000, 100_000, 300, 0):
        path.write_bytes(whole[:num_bytes])
        forget_connections(f"root://127.0.0.1:{proxy.port}//")
        with pytest.raises(FileReadError, match=r"cut\.root"):
            open_file(remote(proxy, "cut.root"), OPTIONS)


def test_where_a_file_ends_is_in_its_header(tmp_path: Path) -> None:
    path = tmp_path / "file.root"
    write_file(path, 1)
    header = path.read_bytes()[:20]
    assert _find_end(header) == path.stat().st_size
    assert _find_end(header[:10]) == 0
    large = b"root" + (1_062_206).to_bytes(4, "big") + header[8:12] + (2**33 + 1).to_bytes(8, "big")
    assert _find_end(large) == 2**33 + 1


def test_an_answer_that_never_came_is_asked_for_again(nano_files: NanoFiles) -> None:
    with uproot.open(nano_files.paths[1]) as file:
        branch = file["Events/MET_pt"]
        places = [place for _, place in branch.entries_to_ranges_or_baskets(0, 149)]
        source = RemoteSource(str(nano_files.paths[1]))
        assert source.request(places)
        lost = uproot.source.futures.TrivialFuture(None)
        lost.result = lambda: (_ for _ in ()).throw(OSError("connection lost"))
        start, stop = places[0]
        source._ahead[start, stop] = uproot.source.chunk.Chunk(source, start, stop, lost)
        file.file._source = source
        assert len(branch.array()) == 149
        assert source.num_served_bytes == source.num_ahead_bytes - (stop - start)
