"""What the design promises to a user who changes only the import line of a coffea notebook."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import dask
import pytest

from datasets.sample import write_sample
from processors.dimuon import DimuonSpectrum
from tests.servers import XrdServer, require_xrootd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import TlsCluster

NUM_EVENTS = 3_000

# The snippet of the design, with another address and file.
SNIPPET = """
from distributed import Client
from coffea.nanoevents import NanoAODSchema
from hepdask import Runner, DaskExecutor

client = Client("{address}")
fileset = {{"SingleMu": ["{url}"]}}

run = Runner(executor=DaskExecutor(client=client), schema=NanoAODSchema, savemetrics=True)
output, metrics = run(fileset, "Events", processor_instance=Processor())
"""


@pytest.fixture
def muon_url(served_path: Path) -> Iterator[str]:
    """Serve a file of toy collisions by XRootD."""
    require_xrootd()
    data_directory = served_path / "data"
    write_sample(data_directory, num_events=NUM_EVENTS, num_files=1, num_events_per_cluster=1_000)
    data_directory.chmod(0o755)
    shutil.move(data_directory / "SingleMu_0.root", data_directory / "Run2012B_SingleMu.root")
    with XrdServer(data_directory, served_path / "xrootd") as server:
        yield server.url("Run2012B_SingleMu.root")


@pytest.fixture
def user_config(tls_cluster: TlsCluster) -> Iterator[None]:
    """Set dask's configuration as a facility does: the snippet names no certificates."""
    directory = tls_cluster.certificates_directory
    files = {"ca-file": "ca.pem", "client.cert": "cert.pem", "client.key": "key.pem"}
    tls = {f"distributed.comm.tls.{key}": str(directory / name) for key, name in files.items()}
    with dask.config.set(tls):
        yield


@pytest.mark.usefixtures("user_config")
def test_the_snippet_of_the_design_runs(tls_cluster: TlsCluster, muon_url: str) -> None:
    names: dict[str, Any] = {"Processor": DimuonSpectrum}  # the namespace of a notebook
    exec(SNIPPET.format(address=tls_cluster.address, url=muon_url), names)  # noqa: S102  # as a notebook does
    client, output, metrics = (names[name] for name in ("client", "output", "metrics"))
    try:
        assert client.scheduler.address.startswith("tls://")
        check_output(output, metrics)
        check_the_whole_truth(names, muon_url)
    finally:
        client.close()


def check_output(output: Any, metrics: dict[str, Any]) -> None:
    """Check what the call returns, against the number of events that were written."""
    assert output["num_events"] == {"SingleMu": NUM_EVENTS}
    spectrum = output["mass"]
    assert list(spectrum.axes["dataset"]) == ["SingleMu"]
    assert 0 < spectrum.sum(flow=True) == output["num_pairs"]["SingleMu"]
    assert metrics["entries"] == NUM_EVENTS
    assert metrics["bytesread"] > 0
    assert {f"Muon_{name}" for name in ("pt", "eta", "phi", "mass", "charge")} | {"nMuon"} == set(
        metrics["columns"]
    )


def check_the_whole_truth(names: dict[str, Any], url: str) -> None:
    """Check that `Runner.run` says more of the same run, and that every spelling of the call works."""
    run, fileset = names["run"], names["fileset"]
    result = run.run(fileset, "Events", processor_instance=DimuonSpectrum())
    assert result.output == names["output"]
    assert result.is_complete
    assert not result.failures
    assert result.completeness["SingleMu"].num_entries_processed == NUM_EVENTS
    assert result.resume() is result
    assert "complete: 3,000 of 3,000 events processed" in result.report()
    assert "3,000" in result._repr_html_()
    again, _ = run(fileset, DimuonSpectrum(), treename="Events")
    assert again == names["output"]
    in_fileset, _ = run({"SingleMu": {"files": {url: "Events"}}}, DimuonSpectrum())
    assert in_fileset == names["output"]
