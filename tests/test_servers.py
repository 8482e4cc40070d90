from __future__ import annotations

import os
import shutil
import stat
from typing import TYPE_CHECKING

import pytest

from tests.servers import LatencyProxy, XrdServer, free_port, require_xrootd

if TYPE_CHECKING:
    from pathlib import Path

    from distributed import Client

    from tests.conftest import NanoFiles
    from tests.servers import TlsCluster


def read_muon_pt(url: str) -> list[list[float]]:
    """Read with uproot's own handler: fsspec-xrootd keeps handles of servers that are gone."""
    import uproot

    with uproot.open(url, handler=uproot.XRootDSource, timeout=5) as file:
        values: list[list[float]] = file["Events"]["Muon_pt"].array().to_list()
        return values


def test_nano_files_have_the_clusters_that_they_promise(nano_files: NanoFiles) -> None:
    import uproot

    for path, num_entries, offsets in zip(
        nano_files.paths, nano_files.num_entries, nano_files.cluster_offsets, strict=True
    ):
        with uproot.open(path) as file:
            tree = file[nano_files.treename]
            assert tree.num_entries == num_entries
            assert tuple(tree.common_entry_offsets()) == offsets
            assert {"run", "event", "nMuon", "Muon_pt", "Jet_mass", "genWeight"} <= set(tree.keys())
            assert tree["genWeight"].typename == "float"


def test_nano_files_number_their_events_through(nano_files: NanoFiles) -> None:
    import uproot

    events = uproot.concatenate([f"{path}:Events" for path in nano_files.paths], ["event"])
    assert events.event.to_list() == list(range(1, sum(nano_files.num_entries) + 1))


def test_empty_file_has_the_tree_but_no_entry(nano_files: NanoFiles) -> None:
    import uproot

    with uproot.open(nano_files.empty_path) as empty, uproot.open(nano_files.paths[0]) as full:
        assert empty["Events"].num_entries == 0
        assert empty["Events"].typenames() == full["Events"].typenames()


def test_nano_files_fit_coffeas_schema(nano_files: NanoFiles) -> None:
    from coffea.nanoevents import NanoAODSchema, NanoEventsFactory

    events = NanoEventsFactory.from_root(
        {str(nano_files.paths[0]): nano_files.treename}, schemaclass=NanoAODSchema, mode="eager"
    ).events()
    assert len(events.Muon.pt) == 100


def test_cache_is_not_the_users(cache_directory: Path, client: Client) -> None:
    assert os.environ["HEPDASK_CACHE_DIR"] == str(cache_directory)
    on_workers = client.run(os.environ.get, "HEPDASK_CACHE_DIR")
    assert set(on_workers.values()) == {str(cache_directory)}


def test_cluster_has_two_processes_with_one_thread(client: Client) -> None:
    client.wait_for_workers(2, timeout=30)
    assert len(set(client.run(os.getpid).values())) == 2
    assert set(client.nthreads().values()) == {1}


def test_client_is_not_the_default(client: Client) -> None:
    from distributed import default_client

    with pytest.raises(ValueError, match="No clients found"):
        default_client()


@pytest.mark.parametrize("handler", ["FSSpecSource", "XRootDSource"])
def test_uproot_reads_from_the_server(
    xrd_server: XrdServer, nano_files: NanoFiles, handler: str
) -> None:
    import uproot

    with uproot.open(nano_files.paths[1]) as file:
        expected = file["Events"]["Muon_pt"].array().to_list()
    source = getattr(uproot.source.fsspec if handler == "FSSpecSource" else uproot, handler)
    with uproot.open(xrd_server.url("nano_1.root"), handler=source) as file:
        assert file["Events"]["Muon_pt"].array().to_list() == expected


def test_missing_file_is_reported_with_the_servers_code(xrd_server: XrdServer) -> None:
    with pytest.raises(FileNotFoundError, match=r"\[3011\]"):
        read_muon_pt(xrd_server.url("/none.root"))


def test_killed_server_can_be_started_again(xrd_server: XrdServer) -> None:
    url, pid = xrd_server.url("nano_2.root"), xrd_server.pid
    before = read_muon_pt(url)
    xrd_server.kill()
    with pytest.raises(RuntimeError, match="doesn't run"):
        xrd_server.kill()
    with pytest.raises(OSError, match=r"(?i)connection|operation expired|socket"):
        read_muon_pt(url)
    xrd_server.start()
    assert xrd_server.pid != pid
    assert read_muon_pt(url) == before


def test_paused_server_goes_on(xrd_server: XrdServer) -> None:
    xrd_server.pause()
    _, status = os.waitpid(xrd_server.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    xrd_server.resume()
    assert len(read_muon_pt(xrd_server.url("nano_0.root"))) == 100


def test_paused_server_can_be_stopped(xrd_server: XrdServer) -> None:
    pid = xrd_server.pid
    xrd_server.pause()
    xrd_server.stop()
    with pytest.raises(ProcessLookupError, match="No such process"):
        os.kill(pid, 0)


def test_running_server_is_not_started_twice(xrd_server: XrdServer) -> None:
    with pytest.raises(RuntimeError, match=f"already runs, as process {xrd_server.pid}"):
        xrd_server.start()


def test_server_that_ends_shows_its_log(served_path: Path) -> None:
    require_xrootd()
    server = XrdServer(served_path, served_path / "work", extra_config="xrd.port nonsense")
    with pytest.raises(RuntimeError, match=r"(?s)ended with code.*its log ends with.*nonsense"):
        server.start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's server runs as another user")
def test_directory_that_the_server_cannot_enter_is_named(tmp_path: Path) -> None:
    require_xrootd()
    tmp_path.chmod(stat.S_IRWXU)
    with pytest.raises(PermissionError, match=r"can't get into .*use the fixture served_path"):
        XrdServer(tmp_path, tmp_path / "work").start()


def test_proxy_counts_turns(xrd_server: XrdServer, nano_files: NanoFiles) -> None:
    import uproot

    with LatencyProxy(xrd_server.port, round_trip_seconds=0.002) as proxy:
        url = xrd_server.url("nano_1.root", port=proxy.port)
        with uproot.open(url, handler=uproot.XRootDSource) as file:
            tree = file["Events"]
            tree["MET_phi"].array()  # the first read of a file takes one turn more
            before = proxy.num_turns
            tree.arrays(["Muon_pt", "MET_pt"])
            assert 1 <= proxy.num_turns - before <= 2
        assert proxy.num_connections == 1
        assert proxy.num_bytes_down > nano_files.paths[1].stat().st_size / 10


def test_proxy_cuts_a_connection_once(xrd_server: XrdServer) -> None:
    with LatencyProxy(xrd_server.port, drop_after_bytes=2000) as proxy:
        url = xrd_server.url("nano_0.root", port=proxy.port)
        # the client connects again by itself
        assert len(read_muon_pt(url)) == 100
        assert proxy.num_connections == 2
        assert proxy.drop_after_bytes is None


def test_proxy_hangs_up_if_there_is_no_server() -> None:
    import socket

    with (
        LatencyProxy(free_port()) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection,
    ):
        assert connection.recv(1) == b""
        assert proxy.num_connections == 1


@pytest.mark.parametrize("value", ["", "false", "0"])
def test_missing_xrootd_skips(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setenv("CI", value)
    with pytest.raises(pytest.skip.Exception, match="apt-get install xrootd-server"):
        require_xrootd()


@pytest.mark.parametrize("value", ["true", "1", "yes"])
def test_missing_xrootd_fails_in_ci(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setenv("CI", value)
    with pytest.raises(pytest.fail.Exception, match="apt-get install xrootd-server"):
        require_xrootd()


def test_tls_cluster_computes(tls_cluster: TlsCluster) -> None:
    from distributed import Client

    with Client(
        tls_cluster.address, security=tls_cluster.security, set_as_default=False
    ) as tls_client:
        assert tls_client.gather(tls_client.map(abs, [-1, 2, -3])) == [1, 2, 3]
        assert set(tls_client.run(os.getpid).values()) == set(tls_cluster.worker_pids)
        assert all(address.startswith("tls://") for address in tls_client.nthreads())


def test_tls_cluster_refuses_a_client_without_certificate(tls_cluster: TlsCluster) -> None:
    from distributed import Client

    with pytest.raises(TypeError, match="TLS expects a `ssl_context` argument"):
        Client(tls_cluster.address, timeout=5, set_as_default=False)


def test_private_key_is_the_owners_alone(tls_cluster: TlsCluster) -> None:
    mode = (tls_cluster.certificates_directory / "key.pem").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
