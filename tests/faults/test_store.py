"""Runs with a store: what is computed a second time, after every kind of end. Counted by what the processors have seen."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hepdask import DaskExecutor, LocalExecutor, RunError, Runner, StoreError
from hepdask.checkpoints import MAX_SHARE
from hepdask.store import Section
from tests import example_processors as examples
from tests.local import local_client
from tests.store.storing import REPOSITORY, not_as_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hepdask.executors import Executor
    from tests.conftest import NanoFiles

EXECUTORS = {
    "local": lambda _: LocalExecutor(),
    "dask": DaskExecutor,
    "one range a task": lambda client: DaskExecutor(client, max_ranges_per_task=1),
    "wide merges": lambda client: DaskExecutor(client, max_ranges_per_task=3, split_every=8),
}
BAD = frozenset({("nano_0.root", 30), ("nano_1.root", 50), ("nano_1.root", 60)})


@pytest.fixture(params=EXECUTORS, ids=lambda name: name.replace(" ", "-"))
def executor(request: pytest.FixtureRequest) -> Executor:
    """Make an executor; those of dask share the session's cluster."""
    needs_client = request.param != "local"
    client = request.getfixturevalue("client") if needs_client else None
    make: Callable[[Any], Executor] = EXECUTORS[request.param]
    return make(client)


@pytest.fixture(params=["local", "one range a task"])
def some_executor(request: pytest.FixtureRequest) -> Executor:
    """Make an executor, where two of them are enough."""
    is_local = request.param == "local"
    client = None if is_local else request.getfixturevalue("client")
    make: Callable[[Any], Executor] = EXECUTORS[request.param]
    return make(client)


@pytest.fixture
def fileset(nano_files: NanoFiles) -> dict[str, Any]:
    """Three datasets: 100 and 149 events, 40, and 100 again; one file is empty."""
    first, second, third = map(str, nano_files.paths)
    return {"a": [first, second], "b": [str(nano_files.empty_path), third], "c": [first]}


class Bench:
    """Runs a processor with a store, and says what it has seen."""

    def __init__(self, directory: Path, executor: Executor) -> None:
        self.executor = executor
        self.store = directory / "store"
        self.log = directory / "log"
        self.log.mkdir()

    def processor(self, **options: Any) -> examples.Noted:
        return examples.Noted(self.log, **options)

    def run(self, fileset: Any, processor: Any = None, **options: Any) -> Any:
        known = {"chunksize": 10, "progress": False, "metadata_cache": False, "store": self.store}
        run = Runner(self.executor, **{**known, **options})
        return run.run(fileset, "Events", processor_instance=processor or self.processor())

    def fault_free(self, fileset: Any, processor: Any = None, **options: Any) -> Any:
        """Run without a store, without faults, here."""
        self.break_ranges(are_broken=False)
        known = {"chunksize": 10, "progress": False, "metadata_cache": False}
        run = Runner(LocalExecutor(), **{**known, **options})
        result = run.run(fileset, "Events", processor_instance=processor or self.processor())
        self.calls()
        return result

    def break_ranges(self, *, are_broken: bool = True) -> None:
        """Let the processor's bad ranges fail, or not any more."""
        switch = self.log / "broken"
        switch.touch()
        if not are_broken:
            switch.unlink()

    def calls(self) -> list[tuple[str, str, int, int]]:
        """Take the calls since this was asked last, sorted."""
        path = self.log / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        split = (line.split() for line in lines)
        return sorted(
            (dataset, name, int(start), int(stop)) for dataset, name, start, stop in split
        )

    def objects(self) -> list[Path]:
        return sorted(self.store.glob("*/*.hepdask"))

    def nodes(self) -> list[Path]:
        """Return the objects that are results: a trace has no ranges."""
        return [one for one in self.objects() if not one.stem.endswith("00000000")]


@pytest.fixture
def bench(tmp_path: Path, executor: Executor) -> Bench:
    return Bench(tmp_path, executor)


@pytest.fixture
def some_bench(tmp_path: Path, some_executor: Executor) -> Bench:
    return Bench(tmp_path, some_executor)


@pytest.fixture
def local_bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, LocalExecutor())


def bits(result: Any) -> tuple[Any, ...]:
    """Take what must be equal to the last bit."""
    output = result.output
    values = output["pt"].view(flow=True)
    return (
        output["entries"],
        list(output["pt"].axes["dataset"]),
        values["value"].tobytes(),
        values["variance"].tobytes(),
        output["ranges"],
        output["sum"].hex(),
    )


def check_complete(bench: Bench, result: Any, fileset: Any, **options: Any) -> None:
    assert result.is_complete
    result.completeness.check()
    assert bits(result) == bits(bench.fault_free(fileset, **options))


def places(calls: list[tuple[str, str, int, int]]) -> set[tuple[str, int]]:
    return {(name, start) for _, name, start, _ in calls}


def num_events(calls: list[tuple[str, str, int, int]]) -> int:
    return sum(stop - start for _, _, start, stop in calls)


def last_task(executor: Executor) -> float:
    """Return when a scheduler was last given a task, hepdask's or not: its log keeps the last ones only."""
    if isinstance(executor, LocalExecutor):
        return 0.0

    def find_last(dask_scheduler: Any) -> float:
        log = dask_scheduler.transition_log
        return max((row[-1] for row in log if row[1:3] == ("released", "waiting")), default=0.0)

    return float(executor._client().run_on_scheduler(find_last))


# Finished runs


@pytest.mark.parametrize("chunksize", [10, None])
def test_a_finished_run_is_not_run_again(
    bench: Bench, fileset: dict[str, Any], chunksize: int | None, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    options = {"chunksize": chunksize, "metadata_cache": cache}
    first = bench.run(fileset, **options)
    assert bench.calls()
    before = last_task(bench.executor)
    second = bench.run(fileset, **options)
    assert bench.calls() == []
    assert last_task(bench.executor) == before
    assert second.metrics.num_tasks == second.metrics.num_merges == 0
    assert second.metrics.total.num_stored_entries == 389
    assert second.metrics.total.num_ranges == second.metrics.total.num_entries == 0
    assert bits(second) == bits(first)
    check_complete(bench, second, fileset, **options)


def test_a_processor_that_touches_nothing_is_not_traced_again(
    some_bench: Bench, fileset: dict[str, Any], tmp_path: Path
) -> None:
    class CountsEvents:
        def __init__(self, directory: Path) -> None:
            self.directory = directory

        def process(self, events: Any) -> dict[str, int]:
            with (self.directory / "calls").open("a") as calls:
                calls.write(f"x x 0 {len(events)}\n")
            return {"entries": len(events)}

    processor = CountsEvents(some_bench.log)
    for _ in range(2):
        options = {"chunksize": None, "metadata_cache": tmp_path / "cache"}
        result = some_bench.run(fileset, processor, **options)
        assert result.output == {"entries": 389}
        num_calls = len(some_bench.calls())
    assert num_calls == 0


# Runs that did not come to their end


def test_failing_ranges_are_all_that_is_computed_again(
    bench: Bench, fileset: dict[str, Any]
) -> None:
    processor = bench.processor(bad=BAD)
    bench.break_ranges()
    failed = bench.run(fileset, processor, skipbadfiles=ZeroDivisionError)
    assert not failed.is_complete
    assert len(failed.failures) == 4  # one of the files is in two datasets
    bench.calls()
    # as long as they fail, they are tried, and nothing else is
    again = bench.run(fileset, processor, skipbadfiles=ZeroDivisionError)
    assert bits(again) == bits(failed)
    missing = bench.calls()
    assert places(missing) == BAD
    assert len(missing) == 4
    bench.break_ranges(are_broken=False)
    result = bench.run(fileset, processor)
    assert bench.calls() == missing
    check_complete(bench, result, fileset)


def test_resume_computes_what_failed(bench: Bench, fileset: dict[str, Any]) -> None:
    processor = bench.processor(bad=BAD)
    bench.break_ranges()
    failed = bench.run(fileset, processor, skipbadfiles=ZeroDivisionError)
    bench.calls()
    bench.break_ranges(are_broken=False)
    result = failed.resume()
    assert len(bench.calls()) == 4
    check_complete(bench, result, fileset)
    assert bits(bench.run(fileset, processor)) == bits(result)
    assert bench.calls() == []


def test_a_run_that_ends_with_its_first_failure_goes_on(
    bench: Bench, fileset: dict[str, Any]
) -> None:
    processor = bench.processor(bad=BAD)
    bench.break_ranges()
    with pytest.raises(RunError, match=r"(?s)is broken.*goes on from .*store") as caught:
        bench.run(fileset, processor)
    partial = caught.value.partial_result
    bench.calls()
    bench.break_ranges(are_broken=False)
    result = partial.resume()
    assert num_events(bench.calls()) == 389 - partial.completeness.total.num_entries_processed
    check_complete(bench, result, fileset)
    assert bits(bench.run(fileset, processor)) == bits(result)
    assert bench.calls() == []


def test_few_large_objects_are_kept_around_a_failure(bench: Bench, fileset: dict[str, Any]) -> None:
    processor = bench.processor(bad=frozenset({("nano_1.root", 70)}))
    bench.break_ranges()
    bench.run(fileset, processor, skipbadfiles=ZeroDivisionError)
    num_ranges = len(bench.calls())
    # the siblings of the path from the failure to the root: a path has as many as it has nodes
    assert num_ranges == 40
    assert 1 <= len(bench.nodes()) <= 2 * num_ranges.bit_length() + 2


def test_a_file_that_could_not_be_inspected_comes_into_its_place(
    bench: Bench, fileset: dict[str, Any], nano_files: NanoFiles, tmp_path: Path
) -> None:
    late = tmp_path / "late.root"
    late.write_bytes(nano_files.paths[1].read_bytes()[:1000])
    fileset = {**fileset, "a": [str(nano_files.paths[0]), str(late), str(nano_files.paths[2])]}
    processor = bench.processor(bad=frozenset({("nano_2.root", 20)}))
    bench.break_ranges()
    skipped = (OSError, ZeroDivisionError)
    failed = bench.run(fileset, processor, skipbadfiles=skipped)
    assert failed.completeness.total.num_files_unknown == 1
    bench.calls()
    shutil.copy(nano_files.paths[1], late)
    bench.break_ranges(are_broken=False)
    result = failed.resume()
    assert places(bench.calls()) == {
        ("nano_2.root", 20),
        *(("late.root", start) for start in (*range(0, 101, 10), 109, 119, 129, 139)),
    }
    check_complete(bench, result, fileset)
    assert bits(bench.run(fileset, processor)) == bits(result)
    assert bench.calls() == []


def test_what_can_not_be_added_is_kept_nevertheless(bench: Bench, nano_files: NanoFiles) -> None:
    first, second, third = map(str, nano_files.paths)
    fileset = {"a": [first], "other": [second], "c": [third]}
    with pytest.raises(RunError, match="axes") as caught:
        bench.run(fileset, examples.OtherAxes())
    partial = caught.value.partial_result
    with pytest.raises(RunError, match="axes") as caught:
        partial.resume()
    again = caught.value.partial_result
    # all of both came from the store
    assert again.metrics.total.num_ranges == 0
    assert again.metrics.total.num_stored_entries == 289
    assert again.output["sum"].hex() == partial.output["sum"].hex()
    assert again.output["entries"] == partial.output["entries"]
    assert len(again.failures) == len(partial.failures) > 0


# Runs that are killed

CHILD = """
import json, sys
from pathlib import Path
from hepdask import DaskExecutor, LocalExecutor, RunError, Runner
from tests import example_processors as examples

def main():
    directory, fileset, address, seconds = sys.argv[1:]
    if address == "local":
        # as if the ranges took minutes
        from hepdask import task
        task.CHECKPOINT_SECONDS = 0.0
        executor = LocalExecutor()
    else:
        executor = DaskExecutor(address, max_ranges_per_task=1)
    processor = examples.Noted(Path(directory, "log"), seconds=float(seconds))
    run = Runner(
        executor, chunksize=10, progress=False, metadata_cache=False, store=Path(directory, "store")
    )
    try:
        result = run.run(json.loads(fileset), "Events", processor_instance=processor)
    except RunError as error:
        print(error.partial_result.completeness.total.num_entries_processed)

main()
"""


@contextmanager
def child_run(bench: Bench, fileset: Any, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Run in a process of its own, and give it when some ranges have begun."""
    is_local = isinstance(bench.executor, LocalExecutor)
    address = "local" if is_local else bench.executor._client().scheduler.address
    arguments = [bench.log.parent, json.dumps(fileset), address, seconds]
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        pause = threading.Event()
        calls = bench.log / "calls"
        while process.poll() is None:
            if calls.exists() and calls.read_text().count("\n") >= 12:
                break
            pause.wait(0.02)
        if process.poll() is not None:
            pytest.fail(f"ended too early: {process.communicate()}")
        yield process


def test_ctrl_c_loses_nothing_that_was_done(some_bench: Bench, nano_files: NanoFiles) -> None:
    fileset = {"a": list(map(str, nano_files.paths))}
    with child_run(some_bench, fileset, 0.1) as process:
        process.send_signal(signal.SIGINT)
        written, errors = process.communicate(timeout=60)
    num_processed = int(written) if written.strip() else pytest.fail(errors)
    assert 0 < num_processed < 289
    some_bench.calls()
    result = some_bench.run(fileset, some_bench.processor(seconds=0.1))
    assert num_events(some_bench.calls()) == 289 - num_processed
    check_complete(some_bench, result, fileset)


def test_a_killed_client_loses_little(some_bench: Bench, nano_files: NanoFiles) -> None:
    fileset = {"a": list(map(str, nano_files.paths))}
    with child_run(some_bench, fileset, 0.1) as process:
        process.kill()
    threading.Event().wait(0.5)  # what workers have begun they finish
    first = some_bench.calls()
    result = some_bench.run(fileset, some_bench.processor(seconds=0.1))
    second = some_bench.calls()
    assert set(first) | set(second) == set(all_calls(fileset))
    assert len(first) >= 12
    # at least some of what was done is not done again, and nothing twice in a run
    assert len(second) < 29
    assert max(Counter(second).values()) == 1
    check_complete(some_bench, result, fileset)


def all_calls(fileset: Any, chunksize: int = 10) -> list[tuple[str, str, int, int]]:
    """Say which calls a run without a store makes."""
    runner = Runner(LocalExecutor(), chunksize=chunksize, progress=False, metadata_cache=False)
    return sorted(
        (one.file.dataset, Path(one.file.file_path).name, one.entry_start, one.entry_stop)
        for one in runner.plan(fileset, treename="Events").ranges
    )


# Filesets that change


def test_a_file_that_is_appended(bench: Bench, nano_files: NanoFiles) -> None:
    first, second, third = map(str, nano_files.paths)
    processor = bench.processor()
    bench.run({"a": [first, second]}, processor)
    bench.calls()
    result = bench.run({"a": [first, second, third]}, processor)
    assert bench.calls() == all_calls({"a": [third]})
    check_complete(bench, result, {"a": [first, second, third]})


def test_the_right_edge_is_all_else_that_an_appended_file_costs(
    some_bench: Bench, nano_files: NanoFiles, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{number}.root" for number in range(15)]
    for path in paths:
        shutil.copy(nano_files.paths[2], path)
    before, after = ({"a": list(map(str, paths[:stop]))} for stop in (14, 15))
    # 14 files pair as ((8), ((4), 2)), 15 as ((8), ((4), (2, 1)))
    processor = some_bench.processor(seconds=0.11)
    with free_writing(some_bench):
        some_bench.run(before, processor, chunksize=None, align_clusters=True)
        assert len(some_bench.calls()) >= 14
        result = some_bench.run(after, processor, chunksize=None, align_clusters=True)
    names = {name for _, name, _, _ in some_bench.calls()}
    assert "14.root" in names
    # in a task, what has no neighbour to the right is kept with what lies to its left only
    assert names <= {"13.root", "14.root"}
    check_complete(some_bench, result, after, chunksize=None, align_clusters=True)


def set_share(share: float) -> None:
    """Set, in this process, how much of the time writing may take."""
    from hepdask import checkpoints

    checkpoints.MAX_SHARE = share


@contextmanager
def free_writing(bench: Bench) -> Iterator[None]:
    """Let writing cost nothing, as far as the decision goes: it is slow at times on a busy machine."""
    is_local = isinstance(bench.executor, LocalExecutor)
    client = None if is_local else bench.executor._client()
    share = MAX_SHARE
    call = (lambda *args: args[0](*args[1:])) if client is None else client.run
    call(set_share, 1e9)
    try:
        yield
    finally:
        call(set_share, share)


def test_a_file_that_is_removed_and_a_dataset_that_is_added(
    bench: Bench, nano_files: NanoFiles
) -> None:
    first, second, third = map(str, nano_files.paths)
    processor = bench.processor()
    whole = {"a": [first, second, third]}
    bench.run(whole, processor)
    bench.calls()
    # all that lies behind it has other neighbours now
    result = bench.run({"a": [first, third]}, processor)
    assert set(bench.calls()) <= set(all_calls({"a": [first, third]}))
    check_complete(bench, result, {"a": [first, third]})
    added = {"b": [second], **whole}
    result = bench.run(added, processor)
    assert bench.calls() == all_calls({"b": [second]})
    check_complete(bench, result, added)


def test_other_ranges_are_computed(some_bench: Bench, fileset: dict[str, Any]) -> None:
    some_bench.run(fileset)
    some_bench.calls()
    result = some_bench.run(fileset, chunksize=25)
    assert some_bench.calls() == all_calls(fileset, 25)
    check_complete(some_bench, result, fileset, chunksize=25)


def test_metadata_count_for_their_dataset(some_bench: Bench, nano_files: NanoFiles) -> None:
    first, second, _ = map(str, nano_files.paths)

    def fileset(cross_section: float) -> dict[str, Any]:
        return {
            "a": {"files": {first: "Events"}, "metadata": {"xs": 1.0}},
            "b": {"files": {second: "Events"}, "metadata": {"xs": cross_section}},
        }

    processor = some_bench.processor(seconds=0.05)
    with free_writing(some_bench):
        some_bench.run(fileset(1.0), processor)
        some_bench.calls()
        result = some_bench.run(fileset(2.0), processor)
    calls = Counter(dataset for dataset, _, _, _ in some_bench.calls())
    assert calls["b"] == 15
    assert calls["a"] <= 2  # 0.1 s
    check_complete(some_bench, result, fileset(2.0))


def test_the_same_files_in_other_words(
    local_bench: Bench, nano_files: NanoFiles, tmp_path: Path
) -> None:
    paths = list(map(str, nano_files.paths))
    copy = tmp_path / "copy.root"
    shutil.copy(paths[1], copy)
    other = tmp_path / "other.root"
    shutil.copy(paths[1], other)
    local_bench.run({"a": [paths[0], [paths[1], str(copy), str(other)]]})
    local_bench.calls()
    written = tmp_path / "fileset.json"
    written.write_text(
        json.dumps({"a": {"files": [f"{paths[0]}:Events", [paths[1], str(other), str(copy)]]}})
    )
    result = local_bench.run(str(written))
    assert local_bench.calls() == []
    plan = Runner(LocalExecutor(), chunksize=10, progress=False, metadata_cache=False).plan(
        {"a": paths[:2]}, treename="Events"
    )
    steps = {
        path: {
            "object_path": "Events",
            "steps": [
                [one.entry_start, one.entry_stop]
                for one in plan.ranges
                if one.file.file_path == path
            ],
            "num_entries": file.num_entries,
            "uuid": file.uuid,
        }
        for path, file in zip(paths[:2], plan.files, strict=True)
    }
    assert bits(local_bench.run({"a": {"files": steps}}, chunksize=None)) == bits(result)
    assert local_bench.calls() == []
    # processors see the name of the first replica, so that counts
    local_bench.run({"a": [paths[0], [str(copy), paths[1]]]})
    assert {name for _, name, _, _ in local_bench.calls()} >= {"copy.root"}


def test_the_automatic_size_stays_when_another_file_is_the_first(
    local_bench: Bench, tmp_path: Path
) -> None:
    import numpy as np
    import uproot

    paths = [tmp_path / "thin.root", tmp_path / "fat.root"]
    for path, mean_number in zip(paths, (1, 40), strict=True):
        with uproot.recreate(path) as file:
            import awkward as ak

            numbers = np.full(6_000, mean_number)
            values = ak.unflatten(np.arange(numbers.sum(), dtype=np.float64), numbers)
            file["Events"] = {"x": values}

    class Sums:
        def process(self, events: Any) -> Any:
            return {"sum": float(ak.sum(events["x"])), "calls": 1}

    options = {"chunksize": None, "schema": None, "align_clusters": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hepdask.ranges.TARGET_RANGE_BYTES", 40_000)
        first = local_bench.run({"a": [str(paths[0])]}, Sums(), **options)
        result = local_bench.run({"b": [str(paths[1])], "a": [str(paths[0])]}, Sums(), **options)
    assert first.output["calls"] > 1
    # thin.root as before, though a plan of its own would have split it as fat.root is
    assert result.metrics.total.num_stored_entries == 6_000
    assert result.metrics.total.num_entries == 6_000


# Code that changes

ANALYSIS = """
import awkward as ak
import cuts

class Processor:
    def __init__(self, scale):
        self.scale = scale

    def process(self, events):
        with open("seen.log", "a") as seen:
            seen.write("x")
        return {"sum": self.scale * float(ak.sum(cuts.select(events.MET.pt)))}
"""
CUTS = """
def select(pt):
    return pt[pt > 20]
"""
SCRIPT = """
import json, sys
import unrelated
from analysis import Processor
from hepdask import LocalExecutor, Runner

scale, fileset = float(sys.argv[1]), json.loads(sys.argv[2])
run = Runner(LocalExecutor(), chunksize=50, progress=False, metadata_cache=False, store="store")
print(run.run(fileset, "Events", processor_instance=Processor(scale)).output["sum"])
"""


def run_script(directory: Path, fileset: Any, scale: float = 1.0, **sources: str) -> int:
    """Run a script after changing some of its modules; return how often the processor was called."""
    modules = {"analysis": ANALYSIS, "cuts": CUTS, "unrelated": "x = 1", "script": SCRIPT}
    for name, source in {**modules, **sources}.items():
        (directory / f"{name}.py").write_text(source)
    seen = directory / "seen.log"
    seen.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-B", "script.py", str(scale), json.dumps(fileset)],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return len(seen.read_text()) if seen.exists() else 0


def test_code_that_changes_is_run_and_other_code_is_not(
    nano_files: NanoFiles, tmp_path: Path
) -> None:
    fileset = {"a": list(map(str, nano_files.paths))}
    assert run_script(tmp_path, fileset) == 6
    commented = f"# a comment\n{CUTS}"
    assert run_script(tmp_path, fileset, unrelated="x = 2", cuts=commented) == 0
    assert run_script(tmp_path, fileset, scale=2.0) == 6
    assert run_script(tmp_path, fileset, cuts=CUTS.replace("20", "25")) == 6
    changed = ANALYSIS.replace('{"sum": ', '{"n": len(events), "sum": ')
    assert changed != ANALYSIS
    assert run_script(tmp_path, fileset, analysis=changed) == 6
    # and back: all of it is still there
    assert run_script(tmp_path, fileset) == 0


# Damage


def damage(path: Path, how: str, other: Path) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    changed = {
        "truncated": content[:middle],
        "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "another object": other.read_bytes(),
        "empty": b"",
    }
    path.write_bytes(changed[how])


@pytest.mark.parametrize("how", ["truncated", "flipped", "another object", "empty"])
def test_damaged_objects_are_computed_again(
    some_bench: Bench, fileset: dict[str, Any], how: str
) -> None:
    processor = some_bench.processor(bad=BAD)
    some_bench.break_ranges()
    some_bench.run(fileset, processor, skipbadfiles=ZeroDivisionError)
    num_calls = len(some_bench.calls())
    nodes = some_bench.nodes()
    other = some_bench.store / "other"
    some_bench.break_ranges(are_broken=False)
    elsewhere = some_bench.run(fileset, some_bench.processor(scale=3.0))
    assert not elsewhere.failures
    some_bench.calls()
    shutil.copy(next(one for one in some_bench.nodes() if one not in nodes), other)
    for path in nodes:
        damage(path, how, other)
    result = some_bench.run(fileset, processor)
    assert len(some_bench.calls()) == num_calls
    check_complete(some_bench, result, fileset)
    # what was damaged is there again
    assert bits(some_bench.run(fileset, processor)) == bits(result)
    assert some_bench.calls() == []


def test_below_a_damaged_root_the_rest_is_used(some_bench: Bench, fileset: dict[str, Any]) -> None:
    processor = some_bench.processor(bad=frozenset({("nano_1.root", 50)}))
    some_bench.break_ranges()
    some_bench.run(fileset, processor, skipbadfiles=ZeroDivisionError)
    some_bench.break_ranges(are_broken=False)
    some_bench.run(fileset, processor)
    some_bench.calls()
    root = max(some_bench.nodes(), key=lambda path: int(path.stem[-8:], 16))
    assert int(root.stem[-8:], 16) == 40
    root.write_bytes(b"nonsense")
    result = some_bench.run(fileset, processor)
    assert places(some_bench.calls()) <= {("nano_1.root", 50)}
    check_complete(some_bench, result, fileset)


def test_objects_that_go_between_lookup_and_load(
    some_bench: Bench, fileset: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = some_bench.processor(bad=BAD)
    some_bench.break_ranges()
    some_bench.run(fileset, processor, skipbadfiles=ZeroDivisionError)
    some_bench.break_ranges(are_broken=False)
    num_calls = len(some_bench.calls())
    look_up = Section.keys

    def look_up_and_lose(section: Section) -> dict[str, int]:
        found = look_up(section)
        shutil.rmtree(some_bench.store)
        return found

    monkeypatch.setattr(Section, "keys", look_up_and_lose)
    result = some_bench.run(fileset, processor)
    monkeypatch.undo()
    assert len(some_bench.calls()) == num_calls
    check_complete(some_bench, result, fileset)
    # the next run makes the store anew
    some_bench.run(fileset, processor)
    assert len(some_bench.calls()) == num_calls
    some_bench.run(fileset, processor)
    assert some_bench.calls() == []


# Stores that can't be written


def complaints(result: Any) -> list[str]:
    return [one.text for one in result.messages if one.category == "hepdask.StoreError"]


def fill(file: Any) -> None:
    """Write until nothing more can be written."""
    while True:
        file.write(bytes(4096))


@contextmanager
def small_disk(directory: Path, num_bytes: int) -> Iterator[None]:
    """Mount a file system in memory."""
    directory.mkdir()
    options = f"size={num_bytes},mode=0700"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "hepdask-test", str(directory)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk, and not in every container")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def test_a_full_disk_costs_no_result(some_bench: Bench, fileset: dict[str, Any]) -> None:
    with small_disk(some_bench.store, 1 << 18):
        some_bench.run({"c": fileset["c"]})
        some_bench.calls()
        filling = some_bench.store / "filling"
        with filling.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            fill(file)
        for _ in range(2):  # each run says it, once
            result = some_bench.run(fileset)
            (text,) = complaints(result)
            assert "results are not kept" in text
            assert "no space left" in text
            assert len(some_bench.calls()) == 30
            check_complete(some_bench, result, fileset)
        filling.unlink()
        result = some_bench.run(fileset)
        assert complaints(result) == []
        some_bench.calls()
        again = some_bench.run(fileset)
        assert some_bench.calls() == []
        assert bits(again) == bits(result)
        assert complaints(again) == []


LIMITED = """
import json, resource, signal, sys
from pathlib import Path
from hepdask import LocalExecutor, Runner
from tests import example_processors as examples

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
directory, fileset = sys.argv[1:]
run = Runner(LocalExecutor(), chunksize=50, progress=False, metadata_cache=False, store=Path(directory, "store"))
processor = examples.Weighted()
run.plan(json.loads(fileset), processor, treename="Events")  # makes the store
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
result = run.run(json.loads(fileset), "Events", processor_instance=processor)
assert result.is_complete
print(result.output["entries"], [one.text for one in result.messages])
"""


def test_a_limit_on_the_size_of_files_costs_no_result(
    nano_files: NanoFiles, tmp_path: Path
) -> None:
    fileset = json.dumps({"a": [str(nano_files.paths[0])]})
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), fileset],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "{'a': 100}" in done.stdout
    assert "results are not kept" in done.stdout
    assert "ulimit -f" in done.stdout


def test_a_store_that_becomes_read_only(nano_files: NanoFiles) -> None:
    fileset = {"a": [str(nano_files.paths[0])]}
    with tempfile.TemporaryDirectory(prefix="hepdask-read-only-") as name:
        bench = Bench(Path(name), LocalExecutor())
        processor = bench.processor(bad=frozenset({("nano_0.root", 50)}))
        bench.break_ranges()
        bench.run(fileset, processor, skipbadfiles=ZeroDivisionError)
        num_objects = len(bench.nodes())
        assert len(bench.calls()) == 10
        bench.break_ranges(are_broken=False)
        with read_only(bench.store):
            result = bench.run(fileset, processor)
        assert bench.calls() == [("a", "nano_0.root", 50, 60)]
        assert "results are not kept" in "".join(complaints(result))
        assert len(bench.nodes()) == num_objects
        check_complete(bench, result, fileset)


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Mount a directory read-only over itself: that binds root, too."""
    for command in (["--bind", str(directory)], ["-o", "remount,ro,bind"]):
        mounted = subprocess.run(
            ["mount", *command, str(directory)], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip("only root can mount, and not in every container")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


class RemovesStore(examples.Noted):
    """Takes the store away in the middle of a run: a file is then in its place."""

    def __init__(self, directory: Path, store: Path, with_what: str) -> None:
        super().__init__(directory)
        self.parts = (str(store.parent), store.name)
        self.with_what = with_what

    def process(self, events: Any) -> dict[str, Any]:
        store = Path(*self.parts)
        if events.metadata["entrystart"] == 50 and store.is_dir():
            shutil.rmtree(store)
            if self.with_what == "a file":
                store.write_text("in the way")
        return super().process(events)


@pytest.mark.parametrize("with_what", ["nothing", "a file"])
def test_a_store_that_goes_in_the_middle(
    local_bench: Bench, fileset: dict[str, Any], with_what: str
) -> None:
    processor = RemovesStore(local_bench.log, local_bench.store, with_what)
    result = local_bench.run(fileset, processor)
    local_bench.calls()
    assert len(complaints(result)) == 1
    check_complete(local_bench, result, fileset)


def test_a_store_that_can_not_be_used_is_an_error_before_any_task(
    bench: Bench, fileset: dict[str, Any]
) -> None:
    bench.store.write_text("in the way")
    before = last_task(bench.executor)
    with pytest.raises(StoreError, match="there is a file where a directory should be"):
        bench.run(fileset)
    assert last_task(bench.executor) == before
    assert bench.calls() == []


def test_a_read_only_store_is_an_error_before_any_task(
    local_bench: Bench, fileset: dict[str, Any]
) -> None:
    local_bench.log.parent.chmod(0o755)
    local_bench.store.mkdir(mode=0o500)
    with not_as_root(), pytest.raises(StoreError, match=r"can't be (written|read|listed)"):
        local_bench.run(fileset)
    assert local_bench.calls() == []


# Several at a time


def test_two_runs_at_a_time(client: Any, fileset: dict[str, Any], tmp_path: Path) -> None:
    bench = Bench(tmp_path, DaskExecutor(client, max_ranges_per_task=3))
    processors = [bench.processor(seconds=0.01), bench.processor(seconds=0.01), bench.processor()]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda one: bench.run(fileset, one), processors))
    assert len(bench.calls()) >= 80
    for result in results:
        check_complete(bench, result, fileset)
    for processor in processors:
        bench.run(fileset, processor)
    assert bench.calls() == []


def test_two_processors_in_one_store(some_bench: Bench, fileset: dict[str, Any]) -> None:
    once, thrice = some_bench.processor(), some_bench.processor(scale=3.0)
    results = [some_bench.run(fileset, one) for one in (once, thrice)]
    assert len(some_bench.calls()) == 80
    assert len([one for one in some_bench.store.iterdir() if one.is_dir()]) == 2
    assert results[0].output["sum"] != results[1].output["sum"]
    again = [some_bench.run(fileset, one) for one in (once, thrice)]
    assert some_bench.calls() == []
    assert list(map(bits, again)) == list(map(bits, results))


def test_a_task_that_dask_runs_twice(fileset: dict[str, Any], tmp_path: Path) -> None:
    with local_client() as client:
        bench = Bench(tmp_path, DaskExecutor(client, max_ranges_per_task=4))
        with ThreadPoolExecutor(1) as pool:
            pid = next(iter(client.run(os.getpid).values()))
            running = pool.submit(bench.run, fileset, bench.processor(seconds=0.1))
            pause = threading.Event()
            calls = bench.log / "calls"
            while not calls.exists() or calls.read_text().count("\n") < 12:
                pause.wait(0.02)
            os.kill(pid, signal.SIGKILL)  # what it has done is lost, too
            result = running.result(timeout=120)
        assert max(Counter(bench.calls()).values()) >= 2
        check_complete(bench, result, fileset)
        bench.run(fileset, bench.processor(seconds=0.1))
        assert bench.calls() == []
