from __future__ import annotations

import pytest
from distributed import Client

from hepdask import OptionError
from hepdask.clusters import choose_cluster


def test_the_class_gets_the_words_and_its_own_settings() -> None:
    options = {"cores": 4, "settings": {"lcg": False}, "maximum": 10}
    text = choose_cluster("lxplus", options).render()
    assert "from dask_lxplus import CernCluster\n\ncluster = CernCluster(\n" in text
    assert text.endswith("\ncluster.adapt(minimum=0, maximum=12)")  # whole jobs
    for part in ("cores=4", "processes=4", "lcg=False", "scheduler_options={'port': 8786}"):
        assert f"    {part},\n" in text


def test_a_class_that_is_told_nothing() -> None:
    text = choose_cluster("swan", {"workers": 3}).render()
    assert text.endswith("\ncluster = SwanHTCondorCluster()\ncluster.scale(3)")


def test_a_class_is_needed() -> None:
    with pytest.raises(OptionError, match="class needs cluster_class='MODULE:CLASS'"):
        choose_cluster("class").render()


def test_a_real_class_is_opened_and_scaled() -> None:
    settings = {"threads_per_worker": 1, "n_workers": 0, "dashboard_address": ":0"}
    options = {"cluster_class": "distributed:LocalCluster", "workers": 1, "settings": settings}
    with choose_cluster("class", options).open() as cluster, Client(cluster) as client:
        client.wait_for_workers(1, timeout=60)
        assert client.submit(sum, [1, 2]).result() == 3
