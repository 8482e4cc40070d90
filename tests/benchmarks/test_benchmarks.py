"""The benchmarks at a small size: that they run, and that the systems agree. Their timings decide nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hist
import numpy as np
import pytest
import uproot

from tests.benchmarks import (
    __main__,
    allocator,
    first_range,
    plain_queries,
    plan_scale,
    poison,
    processors,
    profile,
    random_kills,
    resume,
    shipping,
    store_cost,
)
from tests.benchmarks.cases import CASES
from tests.benchmarks.delay import delayed_port
from tests.benchmarks.measurement import (
    OutputsDifferError,
    Row,
    Setting,
    Target,
    check_equal,
    geometric_mean,
    take_turns,
)
from tests.benchmarks.report import format_row, write_report
from tests.benchmarks.samples import Samples
from tests.benchmarks.systems import HepdaskRun, forget_everything, two_workers
from tests.clusters.batch_servers import SlurmServer, require_slurm
from tests.servers import require_xrootd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Client

    from tests.conftest import NanoFiles
    from tests.servers import XrdServer

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Samples]:
    """Keep the samples of all cases in one place that an XRootD server can read."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="hepdask-samples-") as name:
        Path(name).chmod(0o755)
        yield Samples(name)


@pytest.fixture(scope="module")
def setting(samples: Samples) -> Iterator[Setting]:
    """Start workers that the cases may start anew."""
    with two_workers() as own_client:
        yield Setting(own_client, samples, is_full=False, num_repeats=1)


def test_workers_start_anew_and_the_cache_is_empty(setting: Setting) -> None:
    cache = Path(os.environ["HEPDASK_CACHE_DIR"])
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "left").touch()
    before = setting.client.run(os.getpid)
    forget_everything(setting.client)
    after = setting.client.run(os.getpid)
    assert len(after) == 2
    assert not set(before.values()) & set(after.values())
    assert not cache.exists()
    assert setting.client.run(os.getenv, "HEPDASK_CACHE_DIR") == dict.fromkeys(after, str(cache))


# the one with ROOT has a process to itself, below
@pytest.mark.parametrize("name", sorted(CASES.keys() - {"adl_root"}))
def test_case(setting: Setting, name: str) -> None:
    if name == "xrootd":
        require_xrootd()
    rows = CASES[name].measure(setting)
    for row in rows:
        assert row.case == name
        assert all(len(seconds) == 1 for seconds in row.seconds.values())
        assert f"{name}: {row.what}: " in format_row(row)
    assert any("hepdask" in row.seconds for row in rows)
    assert any(row.targets for row in rows)


def test_root_agrees_bin_by_bin(samples: Samples, tmp_path: Path) -> None:
    """Run the command, too: ROOT changes the process that imports it."""
    if importlib.util.find_spec("ROOT") is None:
        pytest.skip("there is no ROOT; install it with: pip install 'hepdask[benchmark]'")
    command = [sys.executable, "-m", "tests.benchmarks", "--only", "adl_root", "--repeat", "1"]
    paths = ["--samples", str(samples.directory), "--output", str(tmp_path)]
    done = subprocess.run(
        [*command, *paths], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["what"] for row in rows] == ["Q4", "Q7", "all"]


def test_missing_root_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from hepdask import MissingDependencyError
    from tests.benchmarks.root_queries import import_root

    monkeypatch.setitem(sys.modules, "ROOT", None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        import_root()


def test_plain_queries_agree_with_the_processors(samples: Samples) -> None:
    from coffea.nanoevents import NanoAODSchema

    from hepdask import LocalExecutor
    from processors import adl

    files = {"adl": samples.adl(2_000, 2, 500)}
    for name, plain in plain_queries.QUERIES.items():
        outputs = {
            what: HepdaskRun(LocalExecutor(), files, processor, schema=NanoAODSchema)()
            for what, processor in (("plain", plain), ("own", adl.QUERIES[name]()))
        }
        assert next(iter(outputs["plain"].values())).sum(flow=True) > 0
        check_equal(outputs)


def test_equal_outputs_pass() -> None:
    check_equal({"a": {"x": _filled([1.0, 5.0])}, "b": {"x": np.array([0.0, 1.0, 1.0, 0.0])}})


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"x": [2.0, 5.0, 6.0]}, "integrals 2 and 3"),
        (
            {"x": [1.0, 2.0]},
            r"integrals 2 and 2, 1 entries in other bins, first at \[\[1\], \[2\]\]",
        ),
        ({"x": [1.0, 11.0]}, "1 entries in other bins"),
        ({"y": [1.0, 5.0]}, "output.y"),
    ],
)
def test_outputs_that_differ_are_an_error(other: dict[str, list[float]], text: str) -> None:
    outputs = {
        "a": {"x": _filled([1.0, 5.0])},
        "b": {name: _filled(values) for name, values in other.items()},
    }
    with pytest.raises(OutputsDifferError, match=text):
        check_equal(outputs)


def test_a_share_of_the_entries_may_move() -> None:
    values = np.linspace(0.0, 10.0, 200, endpoint=False)
    moved = np.where(values == values[0], 9.0, values)
    outputs = {"a": _filled(values), "b": _filled(moved)}
    check_equal(outputs, max_moved=0.01)
    with pytest.raises(OutputsDifferError, match="1 entries in other bins"):
        check_equal(outputs, max_moved=0.004)


def _filled(values: Any) -> Any:
    return hist.Hist.new.Reg(2, 0.0, 10.0).Double().fill(values)


def test_systems_take_turns() -> None:
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    # None is no output
    runs = {name: (lambda run=run: (run(), 1)[1]) for name, run in runs.items()}
    turns = take_turns(runs, 2, prepare=lambda name: calls.append(f"prepare {name}"))
    assert calls == ["prepare a", "a", "prepare b", "b"] * 3
    assert {name: len(times) for name, times in turns.seconds.items()} == {"a": 2, "b": 2}
    assert {name: len(times) for name, times in turns.cpu_seconds.items()} == {"a": 2, "b": 2}
    row = turns.row("case", "what")
    assert row.median("a") / row.median("b") == turns.ratio("a", "b")


def test_geometric_mean() -> None:
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


def test_report_says_what_was_missed(tmp_path: Path) -> None:
    rows = [
        Row(
            "one",
            "first",
            {"coffea": [2.0, 4.0, 3.0], "hepdask": [1.0]},
            (Target("ratio", 3.0, 2.0),),
        ),
        Row("one", "sum", targets=(Target("ms", 3.0, 2.0, is_upper=True),), facts={"ranges": 7}),
    ]
    write_report(tmp_path / "new", rows, is_full=False, num_repeats=3)
    table = (tmp_path / "new" / "table.md").read_text()
    assert "| first | 3 s (2 to 4) | 1 s | ratio = 3 (at least 2: met) |" in table
    assert "| sum |  |  | ms = 3 (at most 2: MISSED) |" in table
    assert "ranges 7" in table
    document = json.loads((tmp_path / "new" / "results.json").read_text())
    assert document["rows"][0]["seconds"]["coffea"] == [2.0, 4.0, 3.0]
    assert document["machine"]["versions"]["uproot"] == uproot.__version__
    assert (tmp_path / "new" / "plots.png").read_bytes().startswith(b"\x89PNG")


def test_a_case_that_fails_fails_the_command(
    samples: Samples,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def measure(setting: Setting) -> list[Row]:
        check_equal({"a": 1.0, "b": 2.0})
        return []

    monkeypatch.setattr(CASES["reading"], "measure", measure)
    arguments = ["--only", "reading", "--samples", str(samples.directory)]
    assert __main__.main([*arguments, "--output", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "failed: reading" in printed.out
    assert "integrals 1 and 2" in printed.err


@pytest.mark.parametrize("tool", ["cprofile", "pyinstrument"])
def test_profile_shows_functions(
    samples: Samples, tool: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if tool == "pyinstrument" and importlib.util.find_spec(tool) is None:
        pytest.skip("install it with: pip install 'hepdask[benchmark]'")
    profile.main(
        ["adl", "--query", "Q1", "--cpu", "--tool", tool, "--samples", str(samples.directory)]
    )
    printed = capsys.readouterr().out
    assert "q1" in printed
    assert "Metrics" in printed


def test_wide_sample_has_the_layout_of_nanoaod(samples: Samples) -> None:
    size = (1, 1, 100, 550)
    (path,) = samples.wide(*size)
    with uproot.open(path) as file:
        tree = file["Events"]
        assert len(tree.keys()) == size[3]
        assert tree["Muon_pt"].typename == "float[]"
        assert tree["Muon_pt"].num_baskets == 1
        assert isinstance(file.file.compression, uproot.ZLIB)
        assert tree["event"].array().to_list() == list(range(1, 101))
    # found again, not written again
    written = Path(path).stat().st_mtime_ns
    assert samples.wide(*size) == [path]
    assert Path(path).stat().st_mtime_ns == written


def test_real_wide_sample_is_used_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nano_wide.root").write_bytes(b"real")
    monkeypatch.setenv("HEPDASK_DATA", str(tmp_path))
    paths = Samples(tmp_path / "samples").wide(10, 2, 10_000)
    assert [Path(path).read_bytes() for path in paths] == [b"real", b"real"]


def test_samples_are_the_same_each_time(samples: Samples, tmp_path: Path) -> None:
    for one, other in zip(samples.narrow(120, 2), Samples(tmp_path).narrow(120, 2), strict=True):
        with uproot.open(one) as left, uproot.open(other) as right:
            assert (
                left["Events"]["MET_pt"].array().to_list()
                == right["Events"]["MET_pt"].array().to_list()
            )


def test_proxy_in_a_process_counts(xrd_server: XrdServer, nano_files: NanoFiles) -> None:
    from hepdask.opening import forget_connections

    with delayed_port(xrd_server.port, 2.0) as delay:
        url = xrd_server.url(nano_files.paths[0].name, port=delay.port)
        with uproot.open(url) as file:
            assert file["Events"].num_entries == nano_files.num_entries[0]
        assert delay.counts == {}
        forget_connections(url)
    assert delay.counts["connections"] == 1
    assert delay.counts["turns"] >= 3
    assert delay.counts["bytes_down"] > 0


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


def test_shipping(nano_files: NanoFiles) -> None:
    figures = shipping.measure(5, 300_000, nano_files.fileset)
    # one upload, and not one for each worker; nothing when it is there
    assert 300_000 < figures.num_sent_bytes < 600_000
    assert figures.num_sent_again_bytes < 10_000
    assert "the client sends 0." in str(figures)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_allocator(nano_files: NanoFiles) -> None:
    figures = allocator.measure(str(nano_files.paths[0]), num_runs=1)
    assert [one.what for one in figures] == [
        *(f"arrays of {number:,}" for number in allocator.NUMS_AT_A_TIME),
        "open nano_0.root",
    ]
    assert "ratio" in str(figures[0])


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


def test_processors() -> None:
    comparisons = list(processors.compare(2_000, num_runs=1))
    assert [one.name for one in comparisons] == list(processors.PROCESSORS)
    assert "ratio" in str(comparisons[0])


def test_starts_of_processors() -> None:
    cold, later = processors.measure_starts("Q7")
    assert all(one.num_compiled + one.num_found >= 1 for one in cold)
    assert any(one.num_compiled for one in cold)
    assert (later.num_compiled, later.num_found) == (0, 1)
    assert "0 compiled, 1 found" in str(later)


def test_first_range(tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue", reason="pip install 'hepdask[jobqueue]'")
    require_slurm()
    (tmp_path / "slurm").mkdir()
    with SlurmServer(tmp_path / "slurm"):
        assert "dask-jobqueue by hand" in str(first_range.compare(tmp_path, num_runs=1))
