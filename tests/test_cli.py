from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import uproot
from click.testing import CliRunner

from hepdask import FileMetadata, load_fileset
from hepdask.cli import load_processor, main
from hepdask.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click.testing import Result

    from tests.conftest import NanoFiles

REPOSITORY = Path(__file__).resolve().parent.parent

PROCESSOR = '''
from __future__ import annotations

import awkward as ak
from hist import Hist
from cli_test_helper import DOUBLE

unit = "GeV"


class MuonPt:
    """Fails at a file on demand."""

    def __init__(self, scale: float = 1.0, bad_file: str = "none") -> None:
        self.scale = scale
        self.bad_file = bad_file

    def process(self, events):
        if self.bad_file in events.metadata["filename"]:
            raise ValueError("no good [muons]")
        histogram = Hist.new.Reg(10, 0, 200, name="pt").Double()
        histogram.fill(ak.flatten(events.Muon.pt) * self.scale * DOUBLE)
        return {"pt": histogram, "num_events": len(events)}


def count(events):
    return {"num_events": len(events)}


ready = MuonPt(scale=3.0)
'''


@pytest.fixture(autouse=True)
def clean_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the modules and directories that a test imports from."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("cli_test", "hist_py")):
            del sys.modules[name]


@pytest.fixture
def processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a processor that imports from a module beside it, in the current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cli_test_helper.py").write_text("DOUBLE = 2\n")
    path = tmp_path / "cli_test_processor.py"
    path.write_text(PROCESSOR)
    return path


@pytest.fixture
def fileset(tmp_path: Path, nano_files: NanoFiles) -> Path:
    path = tmp_path / "fileset.json"
    content = {"nano": {**nano_files.fileset["nano"], "metadata": {"year": 2018}}}
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def truncated(tmp_path: Path, nano_files: NanoFiles) -> Path:
    path = tmp_path / "truncated.root"
    path.write_bytes(nano_files.paths[0].read_bytes()[:2_000])
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def run_locally(*arguments: object) -> Result:
    return call("run", *arguments, "--executor", "local", "--progress", "off")


def run_process(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hepdask", *(str(one) for one in arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=cwd,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def assert_one_line_error(result: Result, text: str, code: int = 2) -> None:
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("hepdask: error: ")
    assert text in result.stderr
    assert result.stderr.count("\n") == 1


# --- the command itself ---


def test_help_is_light() -> None:
    code = (
        "import sys; from hepdask.cli import main\n"
        "try: main(['run', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'coffea', 'uproot', 'awkward', 'dask', 'distributed', 'rich', 'hist', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, timeout=60)


def test_version() -> None:
    import hepdask

    result = call("--version")
    assert (result.exit_code, result.output) == (0, f"hepdask {hepdask.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["rn"], "No such command 'rn'"),
        (["run"], "Missing argument 'PROCESSOR'. (see hepdask run --help)"),
        (["run", "a:b", "c", "--chunksize", "0"], "'--chunksize': 0 is not in the range"),
        (["run", "a:b", "c", "--arg", "x"], "'x' is not name=value"),
        (["run", "a:b", "c", "--arg", "x=[1"], "is no YAML"),
        (["run", "a:b", "c", "--test", "-e", "dask"], "--test runs in this process"),
        (["run", "a:b", "c", "-o", "out.txt"], "'out.txt' has no suffix"),
        (["run", "a:b", "c", "--metrics", "m.pkl"], "use one of .json, .json.gz"),
        (["run", "a:b", "c", "--plot", "nowhere/p.png"], "make its directory"),
        (["run", "cli_test_nothing:b", "c"], "there is no module 'cli_test_nothing'"),
        (["inspect"], "no file: write hepdask inspect FILE"),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], text: str) -> None:
    assert_one_line_error(call(*arguments), text)


# --- processors ---


@pytest.mark.parametrize("source", ["cli_test_processor.py", "./cli_test_processor.py", None])
def test_processor_is_found_by_file_and_by_module(processor: Path, source: str | None) -> None:
    loaded = load_processor(f"{source or 'cli_test_processor'}:MuonPt", {"scale": 2})
    assert loaded.instance.scale == 2
    assert loaded.plot is None


def test_instances_and_functions_are_used_as_they_are(processor: Path) -> None:
    assert load_processor(f"{processor}:ready").instance.scale == 3.0
    assert load_processor(f"{processor}:count").instance([1, 2]) == {"num_events": 2}


def test_modules_of_the_user_are_pickled_by_value(processor: Path, tmp_path: Path) -> None:
    import cloudpickle

    instance = load_processor(f"{processor}:MuonPt").instance
    (tmp_path / "pickled").write_bytes(cloudpickle.dumps(instance))
    code = (
        "import pickle, pathlib; print(pickle.loads(pathlib.Path('../pickled').read_bytes()).scale)"
    )
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "elsewhere",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "1.0\n"


def test_a_file_named_like_a_library_does_not_hide_it(processor: Path, tmp_path: Path) -> None:
    import hist

    path = tmp_path / "hist.py"
    processor.rename(path)
    assert type(load_processor(f"{path}:MuonPt").instance).__module__ == "hist_py"
    assert sys.modules["hist"] is hist


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cli_test_processor.py:MuonPT", {}, "has no 'MuonPT'; did you mean 'MuonPt'"),
        ("cli_test_processor.py:zzz", {}, "there is 'MuonPt', 'count', 'ready'"),
        ("cli_test_processor.py", {}, "write cli_test_processor.py:MuonPt"),
        ("cli_test_procesor.py:MuonPt", {}, "no file 'cli_test_procesor.py'; did you mean"),
        ("cli_test_procesor:MuonPt", {}, "did you mean 'cli_test_processor'"),
        ("cli_test_processor:MuonPt", {"scal": 1}, "no argument 'scal'; did you mean 'scale'"),
        ("cli_test_processor:count", {"scale": 1}, "--arg is for classes"),
        ("cli_test_broken:x", {}, "can't be imported: NameError: name 'foo' .*py, line 2"),
        ("cli_test_broken.py:x", {}, "can't be imported: NameError: name 'foo' .*py, line 2"),
        ("cli_test_syntax.py:x", {}, "can't be imported: SyntaxError: .*py, line 1"),
        ("cli_test_lacks:x", {}, "can't be imported: ModuleNotFoundError: .*'nowhere_to_be'"),
        ("cli_test_raises:A", {"b": 1}, r"A\(\.\.\.\) raised RuntimeError: 1 is odd"),
        ("cli_test_raises:A", {}, "A: missing a required argument: 'b': give it as --arg"),
    ],
)
def test_wrong_processors_are_explained(
    processor: Path, tmp_path: Path, name: str, arguments: dict[str, Any], message: str
) -> None:
    (tmp_path / "cli_test_broken.py").write_text("a = 1\nfoo\n")
    (tmp_path / "cli_test_syntax.py").write_text("a = = 1\n")
    (tmp_path / "cli_test_lacks.py").write_text("import nowhere_to_be\n")
    raising = "class A:\n    def __init__(self, b): raise RuntimeError(f'{b} is odd')\n"
    (tmp_path / "cli_test_raises.py").write_text(raising)
    with pytest.raises(OptionError, match=message):
        load_processor(name, arguments)


# --- run ---


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


def test_test_takes_one_range_of_one_file_here(processor: Path, fileset: Path) -> None:
    result = call("run", f"{processor}:count", fileset, "--test", "--chunksize", 50)
    assert result.exit_code == 0, result.output
    assert "complete: 50 of 50 events processed" in result.stdout
    assert "the output is not kept: write it with -o" in result.stdout


def test_root_files_and_patterns(processor: Path, nano_files: NanoFiles, tmp_path: Path) -> None:
    directory = nano_files.paths[0].parent
    for sources, dataset in [
        ([f"{directory}/nano_*.root"], "nano"),
        (nano_files.paths, "nano"),
        ([nano_files.paths[0], nano_files.empty_path], directory.name),
    ]:
        result = run_locally(f"{processor}:count", *sources, "-t", "Events", "--metrics", "m.json")
        assert result.exit_code == 0, result.output
        assert list(json.loads((tmp_path / "m.json").read_text())["datasets"]) == [dataset]


def test_mixed_sources_are_refused(processor: Path, fileset: Path, nano_files: NanoFiles) -> None:
    result = run_locally(f"{processor}:count", fileset, nano_files.paths[0])
    assert_one_line_error(result, "give one fileset, or ROOT files")


def test_missing_treename_names_the_option(processor: Path, nano_files: NanoFiles) -> None:
    result = run_locally(f"{processor}:count", nano_files.paths[0])
    assert_one_line_error(result, "or give --treename")


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
    failed = load_fileset(tmp_path / "failures.json").datasets[0]
    assert failed.metadata == {"year": 2018}
    assert [(Path(one.file_path).name, one.steps) for one in failed.files] == [
        ("nano_1.root", ((0, 149),))
    ]


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
    assert_one_line_error(result, "0 of 289 events were processed\n", code=1)
    assert not (tmp_path / "out.json").exists()


def test_the_plot_of_the_module_is_used(processor: Path, fileset: Path, tmp_path: Path) -> None:
    plot = "\ndef plot(output):\n    raise ValueError('out of ink')\n"
    processor.write_text(PROCESSOR + plot)
    options = (f"{processor}:count", fileset, "-q", "--plot", "p.png", "-o", "out.json")
    assert_one_line_error(
        run_locally(*options), "p.png: plot() raised ValueError: out of ink", code=1
    )
    assert (tmp_path / "out.json").exists()


def test_unknown_executors_are_refused(processor: Path, fileset: Path) -> None:
    options = ("run", f"{processor}:count", fileset, "--executor")
    assert_one_line_error(call(*options, "locl"), "--executor is 'locl'; did you mean 'local'?")
    assert_one_line_error(call(*options, "local", "--workers", 2), "--workers starts a cluster")


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


def test_exit_codes_of_the_process(processor: Path, fileset: Path, tmp_path: Path) -> None:
    options = ("-e", "local", "--progress", "off", "-q")
    done = run_process("run", f"{processor}:Muon", fileset, *options, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    bad = ("--arg", "bad_file=nano_0")
    done = run_process("run", f"{processor}:MuonPt", fileset, *options, *bad, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


# --- plan ---


def test_plan_in_words(processor: Path, fileset: Path) -> None:
    result = call("plan", fileset, f"{processor}:MuonPt", "--progress", "off")
    assert result.exit_code == 0, result.output
    assert "in 1 task on a Dask cluster" in result.stdout
    assert "reads 2 branches (" in result.stdout
    assert "uncompressed): Muon_pt, nMuon" in result.stdout


def test_plan_as_json(fileset: Path) -> None:
    result = call("plan", fileset, "--json", "--chunksize", 50, "--progress", "off")
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    totals = {"num_files": 3, "num_entries": 289, "num_ranges": 6}
    assert made["datasets"] == {"nano": totals}
    assert {name: made[name] for name in totals} == totals
    assert made["num_tasks"] == 1
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


# --- inspect ---


def inspect(*arguments: object) -> Result:
    return call("inspect", *arguments, "--progress", "off")


def test_inspect_lists_files(fileset: Path) -> None:
    result = inspect(fileset)
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines() if "Events" in line]
    # dataset, file, tree, kind, entries, clusters, branches, size and unit, uuid
    assert [row[2:7] for row in rows] == [
        ["Events", "TTree", entries, clusters, "17"]
        for entries, clusters in (("100", "2"), ("149", "3"), ("40", "1"))
    ]
    assert "3 files" in result.stdout


def test_inspect_as_json_finds_the_only_tree(nano_files: NanoFiles) -> None:
    result = inspect(nano_files.paths[1], "--json")
    (facts,) = json.loads(result.stdout)["files"]
    assert facts["treename"] == "Events"
    assert facts["cluster_offsets"] == [0, 50, 100, 149]
    assert set(facts) - {"dataset", "num_branches"} <= set(FileMetadata.__slots__)


def test_inspect_lists_branches_largest_first(nano_files: NanoFiles) -> None:
    for arguments in (["--branches", nano_files.paths[1]], [nano_files.paths[1], "--branches"]):
        result = inspect(*arguments)
        assert result.exit_code == 0, result.output
        assert "17 of 17 branches\n" in result.stdout
    result = inspect(nano_files.paths[1], "--branches", "Muon_*", "--json")
    branches = json.loads(result.stdout)["branches"]
    assert {one["name"] for one in branches} == {
        f"Muon_{name}" for name in ("pt", "eta", "phi", "mass", "charge")
    }
    sizes = [one["num_compressed_bytes"] for one in branches]
    assert sizes == sorted(sizes, reverse=True)


def test_inspect_lists_trees_to_choose_from(tmp_path: Path) -> None:
    path = tmp_path / "two.root"
    with uproot.recreate(path) as file:
        file.mktree("a/Events", {"x": "f8"}).extend({"x": np.arange(3.0)})
        file.mkrntuple("Runs", {"y": np.arange(5.0)})
    result = inspect(path)
    assert result.exit_code == 0, result.output
    assert "choose one with --treename" in result.stdout
    trees = json.loads(inspect(path, "--json").stdout)["trees"]
    assert trees == {"a/Events": "TTree", "Runs": "RNTuple"}
    (facts,) = json.loads(inspect(path, "--json", "-t", "Runs").stdout)["files"]
    assert (facts["kind"], facts["num_entries"]) == ("RNTuple", 5)


def test_inspect_explains_what_is_wrong(
    nano_files: NanoFiles, fileset: Path, truncated: Path, tmp_path: Path
) -> None:
    result = inspect(nano_files.paths[0], "-t", "Evens")
    assert result.exit_code == 1
    assert "did you mean 'Events'?" in result.stdout
    assert_one_line_error(inspect(tmp_path / "none.root"), "there is no such file", code=1)
    assert "'?'" not in inspect(tmp_path / "none.root").output
    assert_one_line_error(inspect(fileset, "--branches"), "about one file, and there are 3")
    wrong = inspect(nano_files.paths[0], "--branches", "Muon_ptt")
    assert_one_line_error(wrong, "no branch matches 'Muon_ptt'; did you mean 'Muon_pt'?")
    result = inspect(f"{truncated}:Events", "--json")
    assert result.exit_code == 1
    assert len(json.loads(result.stdout)["failures"]) == 1


# --- sample ---


def test_sample_is_written_once(tmp_path: Path) -> None:
    directory = tmp_path / "sample"
    options = ("sample", directory, "--events", 100, "--files", 2)
    result = call(*options)
    assert result.exit_code == 0, result.output
    assert "wrote 100 events in 2 files" in result.stdout
    assert f"{directory / 'fileset.json'} --plot spectrum.png" in result.stdout
    assert len(load_fileset(directory / "fileset.json").files) == 2
    assert_one_line_error(call(*options), "exists already: choose another directory, or --force")
    assert call(*options, "--force").exit_code == 0


def test_sample_explains_wrong_numbers(tmp_path: Path) -> None:
    result = call("sample", tmp_path, "--events", 1, "--files", 2)
    assert_one_line_error(result, "num_files=2 must be between 1 and num_events=1")
