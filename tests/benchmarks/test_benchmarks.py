"""The benchmarks at a small size: that they run, and that the systems agree. Their timings decide nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.benchmarks import (
    first_range,
    many_ranges,
    plan_scale,
    poison,
    random_kills,
    resume,
    store_cost,
)
from tests.clusters.batch_servers import SlurmServer, require_slurm

if TYPE_CHECKING:
    from pathlib import Path

    from distributed import Client


def test_many_ranges(client: Client) -> None:
    comparison = many_ranges.compare(client, 6, num_runs=1)
    assert "ratio" in str(comparison)


@pytest.mark.parametrize("mode", poison.MODES)
def test_poison(mode: str) -> None:
    size = {"num_events": 800, "num_entries_per_range": 100}
    with (
        poison.sample(*size.values()) as fileset,
        poison.mortal_client(600_000_000) as client,
    ):
        outcome = poison.measure(client, fileset, num_poisons=1, mode=mode, **size)
    assert outcome.num_processed == 799
    assert outcome.lost_entries == outcome.bad_entries == [(500, 501)]
    assert outcome.num_deaths == 1
    assert "exactly these" in str(outcome)


def test_random_kills() -> None:
    from distributed import Client

    with Client(
        n_workers=2,
        threads_per_worker=1,
        dashboard_address=":0",
        silence_logs=50,
        set_as_default=False,
    ) as client:
        outcome = random_kills.measure(
            client, num_ranges=40, seconds_per_range=0.2, kill_seconds=2.5
        )
    assert outcome.num_kills >= 1
    assert outcome.is_complete
    assert outcome.has_same_bits


def test_plan_scale() -> None:
    assert plan_scale.measure(num_files=30, num_ranges_per_file=17).num_ranges == 510


def test_store_cost(client: Client) -> None:
    processor = store_cost.Spectrum(1, 50, is_random=True)
    cost = store_cost.measure(client, processor, 4, num_runs=1, what="small")
    assert cost.num_objects >= 1
    assert "ratio" in str(cost)


def test_resume(client: Client) -> None:
    resumed = resume.measure_resume(client, 20, 1, num_runs=1)
    assert resumed.num_tasks == 0
    assert resumed.processed[0] < 1
    assert "full run's processing time" in str(resumed)


def test_append(client: Client) -> None:
    appended = resume.measure_append(client, 12, 1, num_runs=1)
    assert 1 <= appended.num_ranges[0] < 13
    assert "appended to 12" in str(appended)


def test_first_range(tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue", reason="pip install 'hepdask[jobqueue]'")
    require_slurm()
    (tmp_path / "slurm").mkdir()
    with SlurmServer(tmp_path / "slurm"):
        assert "dask-jobqueue by hand" in str(first_range.compare(tmp_path, num_runs=1))
