from __future__ import annotations

import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import uproot

from hepdask import endpoints
from hepdask.endpoints import Health, process_health
from hepdask.errors import FileReadError, OptionError
from hepdask.fileset import InputFile
from hepdask.opening import ReadOptions
from hepdask.read_errors import as_read_error, read_errors
from hepdask.readers import handles
from hepdask.readers.handles import (
    KeepOptions,
    close_all,
    configure,
    lease,
    lend_to_forks,
    list_kept,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.servers import XrdServer

OPTIONS = ReadOptions()


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let each test begin in a process that keeps no file and knows nothing of any server."""
    monkeypatch.setattr(endpoints, "_health", Health())
    close_all()
    yield
    defaults = KeepOptions()
    configure(
        max_kept=defaults.max_kept,
        max_idle_seconds=defaults.max_idle_seconds,
        max_remote_age_seconds=defaults.max_remote_age_seconds,
    )
    close_all()


def input_file(*urls: Path | str) -> InputFile:
    replicas = tuple(map(str, urls))
    return InputFile("dy", replicas[0], "Events", replicas, {})


def write_file(path: Path, num_entries: int = 10) -> InputFile:
    with uproot.recreate(path) as file:
        file.mktree("Events", {"x": "i4"})
        file["Events"].extend({"x": list(range(num_entries))})
    return input_file(path)


def test_second_lease_gets_the_same_file(tmp_path: Path) -> None:
    file = write_file(tmp_path / "a.root")
    with lease(file, OPTIONS) as first:
        assert not first.was_kept
        assert first.open_seconds > 0
        before = first.num_requested_bytes
        assert first.open_file.tree["x"].array().tolist() == list(range(10))
        assert first.num_requested_bytes > before
    assert len(list_kept()) == 1
    with lease(file, OPTIONS) as second:
        assert second.was_kept
        assert second.open_seconds == 0
        assert second.open_file is first.open_file
        assert len(list_kept()) == 0


def test_two_threads_never_share_a_file(tmp_path: Path) -> None:
    file = write_file(tmp_path / "a.root")
    both_inside = threading.Barrier(2, timeout=30)
    opened = []

    def use() -> None:
        with lease(file, OPTIONS) as handle:
            opened.append(handle.open_file)
            both_inside.wait()

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened[0] is not opened[1]
    assert len(list_kept()) == 2


def test_other_options_get_another_file(tmp_path: Path) -> None:
    file = write_file(tmp_path / "a.root")
    with lease(file, OPTIONS):
        pass
    with lease(file, ReadOptions(uproot_options={"handler": uproot.MemmapSource})) as handle:
        assert not handle.was_kept


@pytest.mark.parametrize("num_entries", [10, 11])
def test_file_that_was_replaced_is_opened_anew(tmp_path: Path, num_entries: int) -> None:
    file = write_file(tmp_path / "a.root")
    status = (tmp_path / "a.root").stat()
    with lease(file, OPTIONS) as handle:
        old = handle.open_file
    write_file(tmp_path / "b.root", num_entries)
    os.utime(tmp_path / "b.root", ns=(status.st_atime_ns, status.st_mtime_ns))
    (tmp_path / "b.root").replace(tmp_path / "a.root")
    with lease(file, OPTIONS) as handle:
        assert not handle.was_kept
        assert handle.open_file.uuid != old.uuid
        assert handle.open_file.num_entries == num_entries
    assert old.directory.file.closed


def test_file_that_is_gone_is_not_served(tmp_path: Path) -> None:
    file = write_file(tmp_path / "a.root")
    with lease(file, OPTIONS):
        pass
    (tmp_path / "a.root").unlink()
    with pytest.raises(FileReadError, match="there is no such file"), lease(file, OPTIONS):
        pass


def test_file_is_not_kept_after_an_error(tmp_path: Path) -> None:
    file = write_file(tmp_path / "a.root")
    with pytest.raises(FileReadError, match="lost"), lease(file, OPTIONS) as handle:
        raise FileReadError("lost")
    assert len(list_kept()) == 0
    assert handle.open_file.directory.file.closed


def test_number_is_bounded(tmp_path: Path) -> None:
    files = [write_file(tmp_path / f"{number}.root") for number in range(4)]
    configure(max_kept=2)
    opened = []
    for file in files:
        with lease(file, OPTIONS) as handle:
            opened.append(handle.open_file)
    assert len(list_kept()) == 2
    assert [one.directory.file.closed for one in opened] == [True, True, False, False]
    configure(max_kept=0)
    assert len(list_kept()) == 0


def test_idle_file_is_closed_at_the_next_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    file, other = write_file(tmp_path / "a.root"), write_file(tmp_path / "b.root")
    with lease(file, OPTIONS) as handle:
        pass
    now += 299
    with lease(other, OPTIONS):
        assert not handle.open_file.directory.file.closed
    now += 2
    with lease(other, OPTIONS) as kept:
        assert kept.was_kept
        assert handle.open_file.directory.file.closed


def test_wrong_option_is_refused() -> None:
    with pytest.raises(OptionError, match="max_kept is -1: give 0 or more"):
        configure(max_kept=-1)


def in_fork(say: Callable[[], str]) -> str:
    """Return what a function says in a forked process."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        # straight out, past pytest's own clean-up
        try:
            os.write(write_end, say().encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said


def lease_once(file: InputFile) -> str:
    with lease(file, OPTIONS) as handle:
        return "kept" if handle.was_kept else "opened"


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # threads of other tests
def test_fork_does_not_use_its_parents_files(tmp_path: Path) -> None:
    file = write_file(tmp_path / "a.root")
    lease_once(file)
    assert in_fork(lambda: lease_once(file)) == "opened"
    with lease(file, OPTIONS) as handle:
        assert handle.was_kept
        assert len(handle.open_file.tree["x"].array()) == 10


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # threads of other tests
def test_files_that_are_lent_are_there_in_forks_until_they_are_used_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, elsewhere = (write_file(tmp_path / name) for name in ("a.root", "b.root"))
    status = handles.local_status
    monkeypatch.setattr(
        handles, "local_status", lambda url: None if "b.root" in url else status(url)
    )
    lease_once(file)
    lease_once(elsewhere)
    lend_to_forks()
    assert [in_fork(lambda: lease_once(file)) for _ in range(2)] == ["kept"] * 2
    # what may be a connection is nobody else's
    assert in_fork(lambda: " ".join(list_kept())) == file.file_path
    with lease(file, OPTIONS) as handle:
        assert len(handle.open_file.tree["x"].array()) == 10
    assert in_fork(lambda: lease_once(file)) == "opened"


def test_remote_file_is_kept_up_to_its_age(xrd_server: XrdServer) -> None:
    file = input_file(xrd_server.url("nano_0.root"))
    with lease(file, OPTIONS):
        pass
    with lease(file, OPTIONS) as handle:
        assert handle.was_kept
    configure(max_remote_age_seconds=0)
    with lease(file, OPTIONS) as handle:
        assert not handle.was_kept


def test_remote_file_that_was_replaced_is_read_anew(
    xrd_server: XrdServer, served_path: Path
) -> None:
    file = input_file(xrd_server.url("nano_0.root"))
    with lease(file, OPTIONS) as handle:
        old = handle.open_file
    data = served_path / "data"
    (data / "nano_1.root").replace(data / "nano_0.root")
    configure(max_remote_age_seconds=0)
    with lease(file, OPTIONS) as handle:
        assert handle.open_file.uuid != old.uuid
        assert handle.open_file.num_entries == 149


@pytest.fixture
def two(tmp_path: Path) -> InputFile:
    """Write a file twice."""
    for name in ("a.root", "b.root"):
        write_file(tmp_path / name)
    return input_file(tmp_path / "a.root", tmp_path / "b.root")


def with_next_replica(file: InputFile) -> InputFile:
    """Ask for another replica, as recovery does."""
    return replace(file, replicas=(*file.replicas[1:], file.replicas[0]))


def test_kept_file_is_used_whatever_the_order_of_its_replicas(two: InputFile) -> None:
    with lease(with_next_replica(two), OPTIONS) as first:
        assert first.open_file.replica == two.replicas[1]
    with lease(two, OPTIONS) as second:
        assert second.was_kept
        assert second.open_file is first.open_file
    with lease(input_file(two.replicas[1]), OPTIONS) as alone:
        assert alone.was_kept
    with lease(input_file(two.replicas[0]), OPTIONS) as other:
        assert not other.was_kept


def test_another_replica_that_is_asked_for_is_opened(two: InputFile) -> None:
    with lease(two, OPTIONS) as handle:
        assert handle.open_file.replica == two.replicas[0]
    with lease(with_next_replica(two), OPTIONS) as handle:
        assert not handle.was_kept
        assert handle.open_file.replica == two.replicas[1]
    assert len(list_kept()) == 2


def test_replica_that_failed_is_not_taken_again(two: InputFile) -> None:
    first, second = two.replicas
    # a second handle of the replica that will fail is kept
    with lease(two, OPTIONS), lease(two, OPTIONS):
        pass
    assert len(list_kept()) == 2
    with pytest.raises(FileReadError, match="damaged"), lease(two, OPTIONS):
        raise FileReadError("damaged")
    for file in (two, with_next_replica(two)):
        with lease(file, OPTIONS) as handle:
            assert handle.open_file.replica == second
            assert handle.failed_replicas == ()
    # where nothing else is left, it is still worth a try
    with lease(input_file(first), OPTIONS) as handle:
        assert handle.open_file.replica == first


def test_failed_opens_are_those_of_this_lease(tmp_path: Path) -> None:
    write_file(tmp_path / "a.root")
    file = input_file(tmp_path / "missing.root", tmp_path / "a.root")
    with lease(file, OPTIONS) as handle:
        assert handle.failed_replicas == (file.replicas[0],)
    with lease(file, OPTIONS) as handle:
        assert handle.was_kept
        assert handle.failed_replicas == ()


@pytest.mark.parametrize(
    "error", [ValueError("of the processor"), ConnectionError("of the processor")]
)
def test_errors_of_others_say_nothing_of_the_replica(two: InputFile, error: Exception) -> None:
    with pytest.raises(type(error), match="of the processor"), lease(two, OPTIONS):
        raise error
    with lease(two, OPTIONS) as handle:
        assert handle.open_file.replica == two.replicas[0]


def test_kept_file_of_a_suspect_server_is_not_preferred(
    xrd_server: XrdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    monkeypatch.setattr(endpoints, "_health", Health(lambda: now))
    write_file(tmp_path / "a.root")
    file = input_file(xrd_server.url("nano_0.root"), tmp_path / "a.root")
    with lease(file, OPTIONS) as remote:
        assert remote.open_file.replica == file.replicas[0]
    # another process has told that the server is dead
    process_health().note_failure(f"root://127.0.0.1:{xrd_server.port}")
    with lease(file, OPTIONS) as local:
        assert not local.was_kept
        assert local.open_file.replica == file.replicas[1]
    now += endpoints.HALF_LIFE_SECONDS + 1
    with lease(file, OPTIONS) as again:
        assert again.was_kept
        assert again.open_file in (remote.open_file, local.open_file)


def test_connection_that_is_lost_while_reading_is_held_against_the_server(
    xrd_server: XrdServer,
) -> None:
    file = input_file(xrd_server.url("nano_0.root"))
    endpoint = f"root://127.0.0.1:{xrd_server.port}"
    with pytest.raises(FileReadError, match="server"), lease(file, OPTIONS) as handle:  # noqa: PT012  # as a reader does
        xrd_server.kill()
        try:
            handle.open_file.tree["MET_pt"].array()
        except read_errors() as error:
            read_error = as_read_error(error, file, "entries 0 to 100")
            raise read_error from read_error.__cause__
    assert process_health().is_suspect(endpoint)
