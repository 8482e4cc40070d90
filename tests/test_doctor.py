"""Broken set-ups, real ones, each found by the doctor: on the worker that has it, and with what to do."""

from __future__ import annotations

import importlib
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hepdask import DaskExecutor, ExecutorError, LocalExecutor, Runner
from hepdask.doctor import ClusterFacts, Expectations, Facts, judge
from hepdask.shipping.credentials import Lifetime
from tests.proxies import make_proxy, make_token
from tests.shipping.conftest import workspace as workspace_of_shipping
from tests.shipping.conftest import write
from tests.sites import run_site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hepdask import Checkup
    from hepdask.doctor import Finding
    from tests.conftest import NanoFiles
    from tests.sites import Site

workspace = workspace_of_shipping
HOUR = 3600.0
NO_HEPDASK = 'raise ModuleNotFoundError("No module named \'hepdask\'", name="hepdask")\n'


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Run workers, each of which has its own fault."""
    directory = tmp_path_factory.mktemp("site")
    fake, bare = directory / "fake", directory / "bare-libraries"
    metadata = "Metadata-Version: 2.1\nName: vector\nVersion: 0.0.1\n"
    write(fake, {"vector-0.0.1.dist-info/METADATA": metadata})
    write(bare, {"hepdask.py": NO_HEPDASK})
    with run_site(directory) as running:
        running.start_worker("sound")
        running.start_worker("old", "--resources", "OLD=1", path=(fake,))
        running.start_worker("small", "--memory-limit", "200MB", "--nthreads", "2")
        running.start_worker("bare", path=(bare,))
        running.start_worker("full")
        running.wait()
        yield running


@pytest.fixture(autouse=True)
def first_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget that the cluster has been looked at."""
    monkeypatch.setattr("hepdask.executors.dask_examine._checked", set())
    monkeypatch.setenv("X509_USER_PROXY", "/nowhere")
    monkeypatch.setenv("BEARER_TOKEN_FILE", "/nowhere")
    monkeypatch.delenv("BEARER_TOKEN", raising=False)


def process(events: Any) -> Any:
    return {len(events)}


def check(client: Any, fileset: Any, processor: Any = process, **options: Any) -> Checkup:
    runner = Runner(DaskExecutor(client), schema=None, metadata_cache=False, progress=False)
    result: Checkup = runner.check(fileset, processor, treename="Events", **options)
    return result


def find(checkup: Checkup, kind: str) -> Finding:
    found = [one for one in checkup.findings if one.check == kind]
    assert len(found) == 1, checkup
    return found[0]


@pytest.fixture(scope="module")
def checkup(site: Site, nano_files: NanoFiles) -> Checkup:
    """Look at the faults of the workers once."""
    return check(site.client, nano_files.fileset)


@pytest.mark.parametrize(
    ("kind", "level", "where", "found", "advice"),
    [
        ("packages", "broken", "worker old", "vector 0.0.1 there, ", "pip install vector=="),
        (
            "workers",
            "broken",
            "bare",
            "hepdask, or this version of it, is not installed",
            "install",
        ),
        ("memory", "broken", "worker small", "200.0 MB of memory, threads: 2", "--memory-limit"),
        ("threads", "risky", "worker small", "2 threads in a worker", "--nthreads 1"),
    ],
)
def test_faults_of_workers(
    site: Site, checkup: Checkup, kind: str, level: str, where: str, found: str, advice: str
) -> None:
    if where == "bare":  # it could not say its name
        where = next(
            address
            for address, one in site.client.scheduler_info(n_workers=-1)["workers"].items()
            if one["id"] == "bare" or one["name"] == "bare"
        )
        where = f"worker {where}"
    one = find(checkup, kind)
    assert (one.level, one.where) == (level, where)
    assert found in one.found
    assert advice in one.advice
    assert not checkup.is_fit


def test_what_is_broken_is_red_and_comes_first(checkup: Checkup) -> None:
    table = checkup.to_table()
    broken = [number for number, row in enumerate(table.rows) if row[0] == "BROKEN"]
    assert broken == sorted(table.flagged) == list(range(len(broken)))
    oks = {row[1] for row in table.rows if row[0] == "ok"}
    assert {"Python", "processor", "files", "credentials"} <= oks
    assert "Doctor: 5 workers" in str(checkup)
    assert "b00020" in checkup._repr_html_()


@contextmanager
def unwritable(site: Site) -> Iterator[None]:
    """Put a file in the place of a worker's scratch directory: root may write to any directory."""
    place = next((site.directory / "full").rglob("worker-*/"))
    kept = place.rename(place.with_name("kept"))
    place.touch()
    yield
    place.unlink()
    kept.rename(place)


def test_scratch_space_that_can_not_be_written_to(site: Site, nano_files: NanoFiles) -> None:
    def small(events: Any) -> Any:
        return {1}

    runner = Runner(DaskExecutor(site.client), schema=None, metadata_cache=False, shipping=False)
    with unwritable(site):
        one = find(runner.check(nano_files.fileset, small), "scratch space")
    assert (one.level, one.where) == ("broken", "worker full")
    assert one.found.endswith("can't be written to: Not a directory")
    assert "--local-directory" in one.advice


def test_worker_that_can_not_take_what_is_shipped(
    site: Site, nano_files: NanoFiles, workspace: Path
) -> None:
    write(workspace, {"fresh.py": "X = 1\n"})
    fresh = importlib.import_module("fresh")

    def uses(events: Any) -> Any:
        return {fresh.X}

    runner = Runner(DaskExecutor(site.client), schema=None, metadata_cache=False, progress=False)
    text = (
        r"the worker tcp://\S+ can't take module fresh: \w+Error: .*; is its scratch directory full"
    )
    with unwritable(site), pytest.raises(ExecutorError, match=text):
        runner.plan(nano_files.fileset, uses)


def test_file_that_is_only_here(
    site: Site, nano_files: NanoFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(nano_files.paths[0], tmp_path / "here.root")
    monkeypatch.chdir(tmp_path)
    # what a process sees under this path is its own
    path = "/proc/self/cwd/here.root"
    assert Path(path).exists()
    fileset = {"good": nano_files.fileset["nano"], "bad": [path]}
    one = find(check(site.client, fileset), "files")
    assert one.level == "broken"
    assert f"{path} can't be opened there: FileReadError: " in one.found


def test_processor_that_can_not_be_unpickled_there(
    site: Site, nano_files: NanoFiles, workspace: Path
) -> None:
    code = """
import os

def rebuild(pid):
    if os.getpid() != pid:
        raise RuntimeError("no licence on this machine")
    return Licensed()

class Licensed:
    def __reduce__(self):
        return rebuild, (os.getpid(),)

    def process(self, events):
        return {1}
"""
    write(workspace, {"licensed.py": code})
    processor = importlib.import_module("licensed").Licensed()
    one = find(check(site.client, nano_files.fileset, processor), "processor")
    assert one.level == "broken"
    assert "it can't be unpickled there: RuntimeError: no licence on this machine" in one.found
    # and by itself, before the first run
    executor = DaskExecutor(site.client)
    runner = Runner(executor, schema=None, metadata_cache=False, progress=False)
    with pytest.raises(ExecutorError, match="no licence on this machine; install what it needs"):
        runner.run(nano_files.fileset, processor)


def test_library_that_is_only_here(
    site: Site,
    nano_files: NanoFiles,
    workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    libraries = tmp_path / "site-packages"
    metadata = "Metadata-Version: 2.1\nName: onlyhere\nVersion: 1.0\n"
    write(
        libraries, {"onlyhere/__init__.py": "X = 1\n", "onlyhere-1.0.dist-info/METADATA": metadata}
    )
    monkeypatch.syspath_prepend(str(libraries))
    write(workspace, {"imports.py": "import onlyhere\ndef process(events):\n    return {1}\n"})
    checkup = check(site.client, nano_files.fileset, importlib.import_module("imports").process)
    found = [one for one in checkup.findings if "onlyhere" in one.found]
    assert [one.check for one in found] == ["packages", "processor"]
    assert found[0].found == "onlyhere is missing there"
    assert found[0].advice == "install it there: pip install onlyhere==1.0"
    assert "ModuleNotFoundError: No module named 'onlyhere'" in found[1].found


@pytest.mark.parametrize(
    ("variable", "make", "seconds", "run_seconds", "text"),
    [
        ("X509_USER_PROXY", make_proxy, -HOUR, None, "X509_USER_PROXY has expired"),
        ("BEARER_TOKEN_FILE", make_token, -HOUR, None, "BEARER_TOKEN_FILE has expired"),
        ("X509_USER_PROXY", make_proxy, HOUR, 3 * HOUR, "before a run of about 180 min"),
        ("BEARER_TOKEN_FILE", make_token, HOUR, 3 * HOUR, "before a run of about 180 min"),
    ],
)
def test_credentials_that_end(
    site: Site,
    nano_files: NanoFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    make: Any,
    seconds: float,
    run_seconds: float | None,
    text: str,
) -> None:
    (tmp_path / "secret").write_bytes(make(seconds))
    monkeypatch.setenv(variable, str(tmp_path / "secret"))
    checkup = check(site.client, nano_files.fileset, run_seconds=run_seconds)
    found = [one for one in checkup.findings if text in one.found and variable in one.found]
    assert [one.level for one in found] == ["broken"]
    assert found[0].where == "workers old, full, small and 1 more"
    content = make(seconds)[:30].decode()
    assert content not in str(checkup) or content.startswith("-----BEGIN")


def test_no_workers(tmp_path: Path, nano_files: NanoFiles) -> None:
    with run_site(tmp_path) as empty:
        checkup = check(empty.client, nano_files.fileset)
    one = find(checkup, "workers")
    assert (one.level, one.found) == ("broken", "there is none")
    assert "Doctor: 0 workers" in str(checkup)


def test_a_sound_process(nano_files: NanoFiles) -> None:
    checkup = Runner(LocalExecutor(), schema=None).check(nano_files.fileset, process)
    assert [one for one in checkup.findings if one.level == "broken"] == []
    assert checkup.is_fit


def test_the_first_run_looks_by_itself_once(site: Site, nano_files: NanoFiles) -> None:
    executor = DaskExecutor(site.client, resources={"OLD": 1})
    runner = Runner(executor, schema=None, metadata_cache=False, progress=False, chunksize=100)
    files = {str(nano_files.paths[0]): {"object_path": "Events", "num_entries": 100}}
    fileset = {"nano": {"files": files}}
    with pytest.warns(UserWarning, match="hepdask doctor|2 threads") as caught:
        assert runner(fileset, processor_instance=process) == {100}
    texts = [str(one.message) for one in caught]
    assert len(texts) == 3
    assert any(one.startswith("workers with 2 threads: ") for one in texts)
    assert any("packages, worker old: vector 0.0.1 there" in one for one in texts)
    assert any("hepdask, or this version of it, is not installed" in one for one in texts)
    # warnings are errors here: there is none any more
    assert runner(fileset, processor_instance=process) == {100}


def worker(**facts: Any) -> Facts:
    return Facts("w", **{"python": "3.11.1", "versions": {"numpy": "2.0"}, **facts})


@pytest.mark.parametrize(
    ("facts", "level", "text"),
    [
        ({"python": "3.13.0"}, "broken", "Python 3.13.0 there, 3.11.7 here"),
        ({"versions": {}}, "broken", "numpy is missing there"),
        ({"scratch": "/s", "scratch_bytes": 1_000_000}, "broken", "0 MB are free in /s"),
        ({"scratch": "/s", "scratch_bytes": 1_000_000_000}, "risky", "1000 MB are free in /s"),
        ({"memory_bytes": 1_000_000_000}, "risky", "1000.0 MB of memory, threads: 1"),
        ({"lifetimes": ()}, "broken", "X509_USER_PROXY is not there: tcp://far:1 is not encrypted"),
        (
            {"lifetimes": (Lifetime("X509_USER_PROXY", "", problem="it is nonsense"),)},
            "broken",
            "X509_USER_PROXY: it is nonsense",
        ),
    ],
)
def test_facts_are_judged(facts: dict[str, Any], level: str, text: str) -> None:
    proxy = Lifetime("X509_USER_PROXY", "")
    client = Facts("client", python="3.11.7", versions={"numpy": "2.0"}, lifetimes=(proxy,))
    given = worker(**{"lifetimes": (proxy,), **facts})
    expected = Expectations(frozenset({"numpy"}), num_remote=1)
    findings = judge(ClusterFacts(client, None, (given,), "tcp://far:1"), expected)
    assert [(one.level, one.found) for one in findings] == [(level, text)]
    assert judge(ClusterFacts(client, None, (worker(lifetimes=(proxy,)),)), expected) == []


def test_many_workers_with_one_fault_are_one_finding() -> None:
    client = Facts("client", python="3.11.7")
    workers = tuple(Facts(f"w{n}", python="3.12.0") for n in range(100))
    findings = judge(ClusterFacts(client, None, workers), Expectations())
    assert [one.where for one in findings] == ["workers w0, w1, w2 and 97 more"]
    assert os.linesep not in str(findings[0])
