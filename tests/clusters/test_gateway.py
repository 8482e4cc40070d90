from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from hepdask import OptionError
from hepdask.clusters import choose_cluster
from tests.clusters.gateway_server import run_gateway

if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_asked_for() -> None:
    options = {"workers": 3, "memory": "2 GiB", "address": "http://x", "settings": {"a": 1}}
    sent = json.loads(choose_cluster("gateway", options).render())
    assert sent == {
        "gateway": {"address": "http://x"},
        "cluster_options": {"worker_memory": 2.0, "a": 1},
        "scale": {"workers": 3},
    }


def test_an_option_that_the_service_does_not_allow_names_those_that_it_does(
    tmp_path: Path,
) -> None:
    with run_gateway(tmp_path) as found:
        choice = choose_cluster("gateway", {**found, "image": "mine"})
        with pytest.raises(
            OptionError, match="no option 'image'; its options are: environment, worker_memory"
        ):
            choice.open()
