"""The cases by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks import (
    accumulators,
    adl,
    adl_root,
    many_ranges,
    reading,
    wide,
    xrootd,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

__all__ = ["CASES"]

CASES: Mapping[str, ModuleType] = {
    module.CASE: module
    for module in (wide, many_ranges, adl, adl_root, xrootd, accumulators, reading)
}
"""Modules with ``measure(setting)``, which returns rows, and ``build_local_run(setting)``, for the profiler."""
