from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.cli.calling import call, run_locally

if TYPE_CHECKING:
    from pathlib import Path


def test_plan_in_words(processor: Path, fileset: Path) -> None:
    result = call("plan", fileset, f"{processor}:MuonPt", "--progress", "off")
    assert result.exit_code == 0, result.output
    assert "in about 3 tasks on a Dask cluster" in result.stdout
    assert "no earlier run of this processor is known: defaults" in result.stdout
    assert "reads 2 branches (" in result.stdout
    assert "uncompressed): Muon_pt, nMuon" in result.stdout


def test_plan_as_json(fileset: Path) -> None:
    result = call("plan", fileset, "--json", "--chunksize", 50, "--progress", "off")
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    totals = {"num_files": 3, "num_entries": 289, "num_ranges": 6}
    assert made["datasets"] == {"nano": totals}
    assert {name: made[name] for name in totals} == totals
    assert made["num_tasks"] == 3
    assert made["prediction"]["num_runs"] == 0
    assert made["prediction"]["busy_seconds"] > 0
    assert made["failures"] == []


def test_plan_opens_nothing_that_is_known(tmp_path: Path) -> None:
    files = {f"root://nowhere//{i}.root": {"num_entries": 300_000} for i in range(100)}
    path = tmp_path / "fileset.json"
    path.write_text(json.dumps({"mc": {"files": files, "treename": "Events"}}))
    result = call("plan", path, "--json")
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert (made["num_inspected"], made["num_entries"]) == (0, 30_000_000)


def test_plan_lists_bad_files(truncated: Path) -> None:
    options = ("plan", f"{truncated}:Events", "--progress", "off")
    result = call(*options)
    assert result.exit_code == 1
    assert "Failures: 1" in result.stdout
    assert call(*options, "--skipbadfiles").exit_code == 3


def test_plan_knows_what_earlier_runs_took(processor: Path, fileset: Path) -> None:
    ran = run_locally(f"{processor}:MuonPt", fileset)
    assert ran.exit_code == 0, ran.output
    assert "predicted" in ran.stdout
    result = call("plan", fileset, f"{processor}:MuonPt", "--progress", "off")
    assert "measured in 1 earlier run)" in result.stdout
