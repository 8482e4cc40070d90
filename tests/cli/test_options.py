from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

from tests.cli.calling import assert_one_line_error, call, run_locally, run_process

if TYPE_CHECKING:
    from pathlib import Path


def test_limits_are_passed_on(processor: Path, fileset: Path, tmp_path: Path) -> None:
    call_ = ("cli_test_processor:count", fileset, "-o", "out.json", "--quiet")
    expected = {
        ("--limit-files", 2): 249,
        ("--limit-chunks", 1, "--chunksize", 30): 25,
        ("--limit-chunks", 1, "--chunksize", 60): 50,
        ("--limit-chunks", 1, "--chunksize", 60, "--no-align-clusters"): 50,
        ("--limit-files", 1, "--schema", "none"): 100,
    }
    for options, num_events in expected.items():
        result = run_locally(*call_, *options)
        assert (result.exit_code, result.stdout) == (0, ""), result.output
        written = json.loads((tmp_path / "out.json").read_text())
        assert written == {"num_events": num_events}, options


def test_unknown_executors_are_refused(processor: Path, fileset: Path) -> None:
    options = ("run", f"{processor}:count", fileset, "--executor")
    assert_one_line_error(
        call(*options, "locl"), "there is no cluster 'locl'; did you mean 'local'?"
    )
    in_process = (*options, "iterative")
    assert_one_line_error(call(*in_process, "--workers", 2), "--workers is for a cluster")
    assert_one_line_error(call(*in_process, "-c", "queue=x"), "--cluster-option is for a cluster")
    assert_one_line_error(
        call(*options, "tcp://127.0.0.1:9", "--workers", 2),
        "tcp://127.0.0.1:9 has no option 'workers'",
    )


def test_scheduler_address(processor: Path, fileset: Path, tmp_path: Path, cluster: Any) -> None:
    address = cluster.scheduler_address
    options = ("-e", address, "--progress", "off", "-q", "-o", "out.json")
    result = call("run", "cli_test_processor:MuonPt", fileset, *options)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out.json").read_text())["num_events"] == 289


def test_local_cluster_in_a_process_of_its_own(
    processor: Path, fileset: Path, tmp_path: Path
) -> None:
    done = run_process(
        *("run", f"{processor}:MuonPt", fileset, "--workers", 2, "--chunksize", 50),
        *("-o", "out.pkl", "--plot", "plot.pdf", "--progress", "plain"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "complete: 289 of 289 events processed" in done.stdout
    assert "processing: 100%, 289/289 events" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    output = pickle.loads((tmp_path / "out.pkl").read_bytes())
    assert output["num_events"] == 289
    assert (tmp_path / "plot.pdf").exists()
