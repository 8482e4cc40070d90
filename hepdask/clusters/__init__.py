"""A word or a configuration entry -> a Dask cluster.

Every cluster is made by the library that is in charge of it (distributed, dask-jobqueue, dask-gateway, dask-kubernetes,
dask-cloudprovider, dask-yarn): here the same words are translated for each.
"""

from __future__ import annotations

from hepdask.clusters.choice import Choice, choose_cluster, configured_word, list_systems
from hepdask.clusters.environment import warn_of_threads
from hepdask.clusters.leaving import HandOver, WaitForHandOver
from hepdask.clusters.local import open_local_cluster
from hepdask.clusters.presets import Facility, list_facilities
from hepdask.clusters.security import describe_plain_text
from hepdask.clusters.systems import Endpoint
from hepdask.clusters.vocabulary import WORDS
from hepdask.clusters.waiting import announced_waiting

__all__ = [
    "WORDS",
    "Choice",
    "Endpoint",
    "Facility",
    "HandOver",
    "WaitForHandOver",
    "announced_waiting",
    "choose_cluster",
    "configured_word",
    "describe_plain_text",
    "list_facilities",
    "list_systems",
    "open_local_cluster",
    "warn_of_threads",
]
