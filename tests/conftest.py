"""Fixtures that many tests share: a cluster, a client, a small NanoAOD-like sample, servers."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.servers import FAST_XROOTD, XrdServer, require_xrootd, run_tls_cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Client, LocalCluster

    from tests.servers import TlsCluster

CLUSTER_SIZE = 50
NUM_ENTRIES = (100, 149, 40)


def pytest_configure() -> None:
    """Set the XRootD client's time limits before anything can load its library."""
    for name, value in FAST_XROOTD.items():
        os.environ.setdefault(name, value)


def pytest_sessionfinish() -> None:
    """Let what is left complain now: who formats a traceback while hypothesis parses for its summary breaks both.

    (Python up to 3.11.7: "AST constructor recursion depth mismatch", https://github.com/python/cpython/issues/106905)
    """
    gc.collect()


@pytest.fixture(scope="session", autouse=True)
def cache_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep every test, and every process that a test starts, away from the user's own cache."""
    directory = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_CACHE_HOME", str(directory))
        environment.setenv("HEPDASK_CACHE_DIR", str(directory / "hepdask"))
        yield directory / "hepdask"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Run a local cluster of two processes with one thread each; tests must not kill its workers."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address=":0",
        local_directory=str(tmp_path_factory.mktemp("dask")),
    ) as local_cluster:
        yield local_cluster


@pytest.fixture(scope="session")
def client(cluster: LocalCluster) -> Iterator[Client]:
    """Connect to `cluster`; not dask's default client, so that tests without this fixture see none."""
    from distributed import Client

    with Client(cluster, set_as_default=False) as session_client:
        yield session_client


@pytest.fixture(scope="module")
def tls_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsCluster]:
    """Run a scheduler and two workers that speak TLS only, as processes of their own."""
    with run_tls_cluster(tmp_path_factory.mktemp("tls")) as running:
        yield running


@pytest.fixture
def served_path() -> Iterator[Path]:
    """Make a directory that a server's user can read, unlike ``tmp_path`` with its mode 700."""
    with tempfile.TemporaryDirectory(prefix="hepdask-served-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


@pytest.fixture
def xrd_server(served_path: Path, nano_files: NanoFiles) -> Iterator[XrdServer]:
    """Serve copies of `nano_files` by XRootD; ``xrd_server.url("nano_0.root")`` is the first."""
    require_xrootd()
    data_directory = served_path / "data"
    data_directory.mkdir()
    for path in (*nano_files.paths, nano_files.empty_path):
        shutil.copy(path, data_directory)
    with XrdServer(data_directory, served_path / "xrootd") as server:
        yield server


@dataclass(frozen=True, slots=True)
class NanoFiles:
    """What `nano_files` wrote; read only, as all tests share it."""

    treename: str
    paths: tuple[Path, ...]  # nano_0.root, nano_1.root, nano_2.root
    num_entries: tuple[int, ...]  # of each file: 100, 149, 40
    cluster_offsets: tuple[tuple[int, ...], ...]  # of each file: 0 first, num_entries last
    empty_path: Path  # the same tree with no entry

    @property
    def fileset(self) -> dict[str, Any]:
        """The three files as one dataset, ``{"nano": {"files": {path: treename}}}``."""
        return {"nano": {"files": {str(path): self.treename for path in self.paths}}}


@pytest.fixture(scope="session")
def nano_files(tmp_path_factory: pytest.TempPathFactory) -> NanoFiles:
    """Write a NanoAOD-like sample of 289 events in three files, with clusters of 50 entries."""
    directory = tmp_path_factory.mktemp("nano")
    paths = tuple(directory / f"nano_{number}.root" for number in range(len(NUM_ENTRIES)))
    first_event = 1
    for seed, (path, num_entries) in enumerate(zip(paths, NUM_ENTRIES, strict=True)):
        _write_nano_file(path, num_entries, first_event=first_event, seed=seed)
        first_event += num_entries
    empty_path = directory / "empty.root"
    _write_nano_file(empty_path, 0, first_event=first_event, seed=0)
    offsets = tuple((*range(0, number, CLUSTER_SIZE), number) for number in NUM_ENTRIES)
    return NanoFiles("Events", paths, NUM_ENTRIES, offsets, empty_path)


def _write_nano_file(path: Path, num_entries: int, *, first_event: int, seed: int) -> None:
    import uproot

    random = np.random.default_rng(seed)
    types = {name: array.type.content for name, array in _nano_events(random, 1, 1).items()}
    with uproot.recreate(path) as file:
        tree = file.mktree("Events", types, counter_name=lambda counted: f"n{counted}")
        # uproot writes one basket of each branch, and so one cluster, per call of extend
        for start in range(0, num_entries, CLUSTER_SIZE):
            size = min(CLUSTER_SIZE, num_entries - start)
            tree.extend(_nano_events(random, size, first_event + start))


def _nano_events(random: np.random.Generator, num_entries: int, first_event: int) -> dict[str, Any]:
    import awkward as ak

    event = np.arange(first_event, first_event + num_entries, dtype=np.uint64)
    flat = {
        "run": np.ones(num_entries, np.uint32),
        "luminosityBlock": (event // 100 + 1).astype(np.uint32),
        "event": event,
        "genWeight": random.normal(1, 0.5, num_entries).astype(np.float32),
        "MET_pt": random.exponential(30, num_entries).astype(np.float32),
        "MET_phi": random.uniform(-np.pi, np.pi, num_entries).astype(np.float32),
    }
    events = {name: ak.Array(values) for name, values in flat.items()}
    events["Muon"] = _particles(random, num_entries, mean_number=1.5, charged=True)
    events["Jet"] = _particles(random, num_entries, mean_number=3.0, charged=False)
    return events


def _particles(
    random: np.random.Generator, num_entries: int, *, mean_number: float, charged: bool
) -> Any:
    """Draw particles with pT and mass in GeV; as an array of records, uproot names it Muon_pt etc."""
    import awkward as ak

    counts = random.poisson(mean_number, num_entries)
    total = int(counts.sum())
    fields = {
        "pt": random.exponential(30, total).astype(np.float32),
        "eta": random.uniform(-2.5, 2.5, total).astype(np.float32),
        "phi": random.uniform(-np.pi, np.pi, total).astype(np.float32),
        "mass": random.exponential(0.1, total).astype(np.float32),
    }
    if charged:
        fields["charge"] = random.choice(np.array([-1, 1], np.int32), total)
    return ak.zip({name: ak.unflatten(values, counts) for name, values in fields.items()})
