"""The benchmarks at a small size: that they run, and that the systems agree. Their timings decide nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks import many_ranges, plan_scale

if TYPE_CHECKING:
    from distributed import Client


def test_many_ranges(client: Client) -> None:
    comparison = many_ranges.compare(client, 6, num_runs=1)
    assert "ratio" in str(comparison)


def test_plan_scale() -> None:
    assert plan_scale.measure(num_files=30, num_ranges_per_file=17).num_ranges == 510
