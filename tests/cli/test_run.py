from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import uproot

from hepdask import load_fileset
from tests.cli.calling import PROCESSOR, assert_one_line_error, call, run_locally

if TYPE_CHECKING:
    from tests.conftest import NanoFiles


def test_everything_is_written(processor: Path, fileset: Path, tmp_path: Path) -> None:
    result = run_locally(
        f"{processor.name}:MuonPt",
        fileset,
        *("-o", "out.pkl", "-o", "out.root", "--plot", "plot.png", "--arg", "scale=0.5"),
        *("--metrics", "metrics.json", "--failures", "failures.json"),
    )
    assert result.exit_code == 0, result.output
    output = pickle.loads((tmp_path / "out.pkl").read_bytes())
    assert output["num_events"] == 289
    with uproot.open(tmp_path / "out.root") as file:
        values = file["pt"].values(flow=True)
    np.testing.assert_array_equal(values, output["pt"].values(flow=True))
    assert json.loads((tmp_path / "metrics.json").read_text())["entries"] == 289
    assert json.loads((tmp_path / "failures.json").read_text()) == {}
    assert "complete: 289 of 289 events processed" in result.stdout
    for name in ("out.pkl", "out.root", "plot.png", "metrics.json", "failures.json"):
        assert f"wrote {name} (" in result.stdout
    warning = "hepdask: warning: not in the ROOT file, which holds histograms of up to three axes"
    assert result.stderr == f"{warning} alone: num_events\n"


def test_test_takes_one_range_of_one_file_here(processor: Path, fileset: Path) -> None:
    result = call("run", f"{processor}:count", fileset, "--test", "--chunksize", 50)
    assert result.exit_code == 0, result.output
    assert "complete: 50 of 50 events processed" in result.stdout
    assert "the output is not kept: write it with -o" in result.stdout


def test_a_failure_keeps_what_is_done(processor: Path, fileset: Path, tmp_path: Path) -> None:
    result = run_locally(
        f"{processor}:MuonPt",
        fileset,
        *("--arg", "bad_file=nano_1", "-o", "out.pkl", "--failures", "failures.json"),
        "--traceback",
    )
    assert result.exit_code == 1
    assert pickle.loads((tmp_path / "out.pkl").read_bytes())["num_events"] == 100
    assert "INCOMPLETE: 100 of 289 events processed" in result.stdout
    assert 'raise ValueError("no good [muons]")' in result.stderr
    *_, last = result.stderr.splitlines()
    assert last.startswith("hepdask: error: entries 0 to 149 of 'Events' in ")
    assert last.endswith("; 100 of 289 events were processed, and are in out.pkl")
    missing = load_fileset(tmp_path / "failures.json").datasets[0]
    assert missing.metadata == {"year": 2018}
    # the one that failed, and the one that was not reached
    assert [(Path(one.file_path).name, one.steps) for one in missing.files] == [
        ("nano_1.root", ((0, 149),)),
        ("nano_2.root", ((0, 40),)),
    ]


def test_what_is_missing_completes_the_run(processor: Path, fileset: Path, tmp_path: Path) -> None:
    options = ("-q", "-o", "out.json", "--failures", "missing.json")
    bad = ("--arg", "bad_file=nano_1")
    assert run_locally(f"{processor}:MuonPt", fileset, *options, *bad).exit_code == 1
    first = json.loads((tmp_path / "out.json").read_text())["num_events"]
    result = run_locally(f"{processor}:MuonPt", "missing.json", *options)
    assert result.exit_code == 0, result.output
    assert first + json.loads((tmp_path / "out.json").read_text())["num_events"] == 289
    assert json.loads((tmp_path / "missing.json").read_text()) == {}


def test_what_cannot_be_written_is_not_said_to_be(
    processor: Path, fileset: Path, tmp_path: Path
) -> None:
    """A file of an earlier run is still there."""
    (tmp_path / "out.json").write_text("before")
    processor.write_text(PROCESSOR + "\n\ndef keep(events):\n    return {events.run[0]: {b'x'}}\n")
    result = run_locally(f"{processor}:keep", fileset, "-o", "out.json", "-o", "out.pkl")
    assert result.exit_code == 1
    assert "wrote out.pkl (" in result.stdout
    assert "wrote out.json" not in result.stdout
    assert "hepdask: error: out.json: output" in result.stderr


def test_what_is_skipped_shows_in_the_exit_code(
    processor: Path, nano_files: NanoFiles, truncated: Path, tmp_path: Path
) -> None:
    path = tmp_path / "some.json"
    replicas = [[str(truncated), str(tmp_path / "none.root")]]
    path.write_text(json.dumps({"bad": replicas, **nano_files.fileset}))
    options = (f"{processor}:count", path, "-t", "Events", "-q", "-o", "out.json")
    result = run_locally(*options, "--skipbadfiles", "--failures", "failures.json")
    assert (result.exit_code, result.output) == (3, "")
    assert json.loads((tmp_path / "out.json").read_text()) == {"num_events": 289}
    (failed,) = load_fileset(tmp_path / "failures.json").files
    assert failed.replicas == tuple(replicas[0])
    assert failed.steps is None
    (tmp_path / "out.json").unlink()
    result = run_locally(*options)
    text = "; 0 of 289 events were processed; --skipbadfiles leaves out, and lists, files that"
    assert_one_line_error(result, text, code=1)
    assert not (tmp_path / "out.json").exists()


def test_an_event_that_needs_too_much_memory_may_be_left_out(
    processor: Path, fileset: Path, tmp_path: Path
) -> None:
    hungry = """
def hungry(events):
    if 7 in events.event:
        raise MemoryError("too many jets")
    return {"num_events": len(events)}
"""
    processor.write_text(PROCESSOR + hungry)
    options = (f"{processor}:hungry", fileset, "-q", "-o", "out.json")
    result = run_locally(*options)
    assert result.exit_code == 1
    assert "; --skipbadevents leaves out, and lists, events that" in result.stderr
    result = run_locally(*options, "--skipbadevents", "--failures", "failures.json")
    assert (result.exit_code, result.output) == (3, "")
    (failed,) = load_fileset(tmp_path / "failures.json").files
    assert failed.steps == ((6, 7),)
    assert json.loads((tmp_path / "out.json").read_text()) == {"num_events": 288}


def test_the_plot_of_the_module_is_used(processor: Path, fileset: Path, tmp_path: Path) -> None:
    plot = "\ndef plot(output):\n    raise ValueError('out of ink')\n"
    processor.write_text(PROCESSOR + plot)
    options = (f"{processor}:count", fileset, "-q", "--plot", "p.png", "-o", "out.json")
    assert_one_line_error(
        run_locally(*options), "p.png: plot() raised ValueError: out of ink", code=1
    )
    assert (tmp_path / "out.json").exists()
