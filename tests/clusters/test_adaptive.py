from __future__ import annotations

from typing import TYPE_CHECKING, Any

import distributed
import pytest

from hepdask.clusters.adaptive import PatientAdaptive
from hepdask.clusters.systems import scale

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def cluster() -> Iterator[distributed.LocalCluster]:
    options = {"processes": False, "threads_per_worker": 1, "dashboard_address": ":0"}
    with distributed.LocalCluster(n_workers=0, **options) as made:
        yield made


def wait_for(name: str) -> None:
    distributed.Event(name).wait(30)


def test_a_worker_that_is_busy_is_left_alone(cluster: distributed.LocalCluster) -> None:
    cluster.scale(2)
    with distributed.Client(cluster) as client:
        client.wait_for_workers(2, timeout=30)
        (busy, idle) = sorted(one["name"] for one in client.scheduler_info()["workers"].values())
        running = client.submit(wait_for, "end", workers=[busy])
        while not any(client.processing().values()):
            pass
        adaptive = PatientAdaptive(cluster, interval=0, minimum=0, maximum=2)
        assert cluster.sync(adaptive.workers_to_close, 0) == [idle]
        # chosen while it was idle, and busy now
        cluster.sync(adaptive.scale_down, [busy])
        assert running.status == "pending"
        assert len(client.scheduler_info()["workers"]) == 2
        distributed.Event("end").set()
        running.result(timeout=30)
        cluster.sync(adaptive.scale_down, [busy, idle])
        assert not cluster.worker_spec


def test_workers_of_a_job_come_and_go_together(cluster: distributed.LocalCluster) -> None:
    adaptive = PatientAdaptive(cluster, interval=0, minimum=0, maximum=2)
    cluster.worker_spec["job"] = {"group": ["-0", "-1"]}
    try:
        assert adaptive._job_of("job-1") == "job"
        assert adaptive._job_of("other") == "other"
    finally:
        del cluster.worker_spec["job"]


@pytest.mark.parametrize(
    ("options", "per_job", "default", "expected"),
    [
        ({"workers": 3}, 1, None, (3, 3, 3)),
        ({"workers": 3}, 2, None, (4, 4, 4)),  # half a job can't be had
        ({"minimum": 1, "maximum": 5}, 2, None, (2, 2, 6)),
        ({"maximum": 5}, 1, 2, (None, 0, 5)),
        ({}, 1, 2, (2, 2, 2)),
        ({}, 1, None, (None, 0, float("inf"))),
        ({"workers": 0}, 1, None, (None, None, None)),
    ],
)
def test_numbers_of_workers(
    options: dict[str, int], per_job: int, default: int | None, expected: tuple[Any, ...]
) -> None:
    class Recorder:
        asked: tuple[Any, ...] = (None, None, None)

        def scale(self, number: int) -> None:
            self.asked = (number, None, None)

        def adapt(self, *, minimum: int, maximum: float, **_: Any) -> None:
            self.asked = (self.asked[0], minimum, maximum)

    recorder = Recorder()
    scale(recorder, options, default=default, per_job=per_job)
    assert recorder.asked == expected
