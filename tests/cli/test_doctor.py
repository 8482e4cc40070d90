from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.cli.calling import call

if TYPE_CHECKING:
    from pathlib import Path


def test_doctor_in_words(processor: Path, fileset: Path) -> None:
    result = call("doctor", f"{processor}:MuonPt", fileset, "--executor", "iterative")
    assert result.exit_code == 0, result.output
    assert "Doctor: 1 worker" in result.stdout
    assert "cli_test_processor" in result.stdout  # what would be shipped, with its size


def test_doctor_as_json_on_a_cluster(
    processor: Path, fileset: Path, truncated: Path, tmp_path: Path
) -> None:
    content = json.loads(fileset.read_text())
    fileset.write_text(json.dumps({**content, "bad": {str(truncated): "Events"}}))
    result = call("doctor", f"{processor}:MuonPt", fileset, "--workers", 1, "--json")
    assert result.exit_code == 1, result.output
    said = json.loads(result.stdout)
    assert (said["is_fit"], said["num_workers"]) == (False, 1)
    broken = [one for one in said["findings"] if one["level"] == "broken"]
    assert [one["check"] for one in broken] == ["files"]
    assert str(truncated) in broken[0]["found"]
