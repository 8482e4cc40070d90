from __future__ import annotations

import os

import dask
import pytest
from distributed import Client

from hepdask import DaskExecutor
from hepdask.clusters import choose_cluster


def test_one_thread_each_with_their_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "0")
    options = {"workers": 2, "environment": {"MY_VARIABLE": "x"}, "memory": "1 GB"}
    with choose_cluster("local", options).open() as cluster, Client(cluster) as client:
        client.wait_for_workers(2, timeout=60)
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        assert [one["nthreads"] for one in workers] == [1, 1]
        assert {one["memory_limit"] for one in workers} == {1_000_000_000}
        names = ("MY_VARIABLE", "MALLOC_TRIM_THRESHOLD_", "OMP_NUM_THREADS")
        seen = client.run(lambda: [os.environ[name] for name in names])
        assert list(seen.values()) == [["x", "0", "1"]] * 2


def test_certificates_for_this_session_alone() -> None:
    with (
        choose_cluster("local", {"workers": 1, "security": "temporary"}).open() as cluster,
        Client(cluster) as client,
    ):
        assert cluster.scheduler_address.startswith("tls://")
        assert client.submit(sum, [1, 2]).result() == 3


def test_threads_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="workers with 2 threads"):
        choose_cluster("local", {"workers": 0, "threads": 2}).open().close()


def test_what_would_be_started() -> None:
    text = choose_cluster("local", {"workers": 3, "lifetime": "1 h"}).render()
    assert "n_workers=3" in text
    assert "lifetime_restart=true" in text
    assert "n_workers=1" in choose_cluster("local", {"minimum": 1, "maximum": 3}).render()


def test_the_executor_closes_what_it_has_opened() -> None:
    executor = DaskExecutor("local", workers=0)
    assert repr(executor) == "DaskExecutor('local')"
    client = executor._client()
    cluster = client.cluster
    executor.close()
    assert client.status == "closed"
    assert cluster.status.name == "closed"


def test_the_word_of_the_configuration_is_what_no_word_stands_for() -> None:
    configuration = {"hepdask.cluster": "local", "hepdask.clusters": {"local": {"workers": 1}}}
    with dask.config.set(configuration), DaskExecutor() as executor:
        client = executor._client()
        client.wait_for_workers(1, timeout=60)
        assert len(client.scheduler_info(n_workers=-1)["workers"]) == 1
        # its scheduler lives in this process: there is nothing to go back to
        assert not executor.reconnect()
