"""The same suite over every executor: same bits, same books, same failures."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from hepdask import DaskExecutor, LocalExecutor, RunError, Runner
from hepdask.progress import RecordingProgress
from tests import example_processors as examples

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hepdask.executors import Executor
    from tests.conftest import NanoFiles

EXECUTORS = {
    "local": lambda _: LocalExecutor(),
    "dask": DaskExecutor,
    "one range a task": lambda client: DaskExecutor(client, max_ranges_per_task=1),
    "three ranges a task": lambda client: DaskExecutor(client, max_ranges_per_task=3),
    "wide merges": lambda client: DaskExecutor(client, max_ranges_per_task=1, split_every=8),
    "one task": lambda client: DaskExecutor(client, max_ranges_per_task=1_000),
}


@pytest.fixture(params=EXECUTORS, ids=lambda name: name.replace(" ", "-"))
def executor(request: pytest.FixtureRequest) -> Executor:
    """Make an executor; those of dask share the session's cluster."""
    needs_client = request.param != "local"
    client = request.getfixturevalue("client") if needs_client else None
    make: Callable[[Any], Executor] = EXECUTORS[request.param]
    return make(client)


@pytest.fixture
def fileset(nano_files: NanoFiles) -> dict[str, Any]:
    """Two datasets, one of them with an empty file."""
    first, second, third = map(str, nano_files.paths)
    return {"a": [first, second], "b": {"files": [str(nano_files.empty_path), third]}}


def run(executor: Executor, fileset: dict[str, Any], processor: Any, **options: Any) -> Any:
    options = {"chunksize": 10, "progress": False, "metadata_cache": False, **options}
    return Runner(executor, **options).run(fileset, "Events", processor_instance=processor)


def bits(output: dict[str, Any]) -> tuple[Any, ...]:
    """Take what must be equal to the last bit."""
    values = output["pt"].view(flow=True)
    return (
        output["entries"],
        list(output["pt"].axes["dataset"]),
        values["value"].tobytes(),
        values["variance"].tobytes(),
        output["ranges"],
        np.float64(output["sum"]).tobytes(),
    )


def test_the_bits_do_not_depend_on_the_executor_or_the_cut(
    executor: Executor, fileset: dict[str, Any]
) -> None:
    reference = run(LocalExecutor(), fileset, examples.Weighted())
    result = run(executor, fileset, examples.Weighted())
    assert bits(result.output) == bits(reference.output)
    assert result.is_complete
    assert result.completeness == reference.completeness
    assert result.completeness["a"].num_entries_processed == 249
    assert result.completeness["b"].num_files_processed == 2
    assert result.metrics.total.num_entries == 289


def test_the_order_is_that_of_the_datasets(executor: Executor, fileset: dict[str, Any]) -> None:
    output = run(executor, fileset, examples.Weighted()).output
    files = [name for name, _ in output["ranges"]]
    assert files == sorted(
        files, key=["nano_0.root", "nano_1.root", "empty.root", "nano_2.root"].index
    )
    starts = [start for name, start in output["ranges"] if name == "nano_1.root"]
    assert starts == sorted(starts)
    assert list(output["pt"].axes["dataset"]) == ["a", "b"]


def test_a_failure_ends_the_run_and_carries_what_was_done(
    executor: Executor, fileset: dict[str, Any]
) -> None:
    with pytest.raises(
        RunError,
        match=r"entries 139 to 149 of 'Events' in .*nano_1.root .*ZeroDivisionError: event 249",
    ) as caught:
        run(executor, fileset, examples.RaisesAt(249))
    result = caught.value.partial_result
    completeness = result.completeness
    completeness.check()
    assert not result.is_complete
    assert completeness["a"].num_entries_failed == 10
    assert completeness["a"].num_files_failed == 1
    total = completeness.total
    assert total.num_entries_requested == 289
    assert (
        sum((result.output or {"entries": {}})["entries"].values()) == total.num_entries_processed
    )
    (failure,) = result.failures
    assert (failure.kind, failure.exception_type) == ("user", "ZeroDivisionError")
    assert failure.worker
    assert "example_processors.py" in failure.traceback


def test_a_failed_run_can_be_resumed(
    executor: Executor, fileset: dict[str, Any], tmp_path: Any
) -> None:
    processor = examples.WaitsForFile(tmp_path)
    (tmp_path / "go").touch()
    reference = run(executor, fileset, processor)
    with pytest.raises(RunError, match="ZeroDivisionError") as caught:
        run(executor, fileset, examples.RaisesAt(249))
    resumed_error = caught.value.partial_result
    with pytest.raises(RunError, match="ZeroDivisionError") as again:
        resumed_error.resume()
    result = again.value.partial_result
    assert result.completeness["a"].num_entries_failed == 10
    assert result.completeness.total.num_entries_requested == 289
    assert reference.resume() is reference


def test_exceptions_that_are_skipped_are_listed(
    executor: Executor, fileset: dict[str, Any]
) -> None:
    result = run(executor, fileset, examples.RaisesAt(249), skipbadfiles=ZeroDivisionError)
    (failure,) = result.failures
    assert (failure.entry_start, failure.entry_stop, failure.is_skipped) == (139, 149, True)
    assert result.completeness.total.num_entries_processed == 279
    assert result.completeness.total.num_entries_not_reached == 0
    assert result.output["entries"] == {"a": 239, "b": 40}


def test_what_was_skipped_can_be_run_from_its_fileset(
    executor: Executor, fileset: dict[str, Any]
) -> None:
    result = run(executor, fileset, examples.RaisesAt(249), skipbadfiles=ZeroDivisionError)
    rest = run(executor, result.failures.to_fileset(), examples.Weighted())
    assert rest.output["entries"] == {"a": 10}


def test_none_is_an_error_that_names_the_range(executor: Executor, nano_files: NanoFiles) -> None:
    fileset = {"some": [str(nano_files.paths[0])], "none": [str(nano_files.paths[1])]}
    with pytest.raises(
        RunError, match=r"entries \d+ to .*nano_1.root .*process\(\) returned None"
    ) as caught:
        run(executor, fileset, examples.ReturnsNone())
    assert caught.value.partial_result.completeness["some"].num_entries_failed == 0


def test_outputs_that_do_not_add_name_the_path(executor: Executor, nano_files: NanoFiles) -> None:
    fileset = {"one": [str(nano_files.paths[1])], "other": [str(nano_files.paths[2])]}
    with pytest.raises(RunError, match=r'output\["pt"\]: ') as caught:
        run(executor, fileset, examples.OtherAxes())
    result = caught.value.partial_result
    assert result.output["entries"] == {"one": 149}
    assert result.completeness["other"].num_entries_failed == 40
    assert result.completeness["one"].is_complete


def test_a_processor_that_keeps_its_histograms_counts_once(
    executor: Executor, fileset: dict[str, Any]
) -> None:
    result = run(executor, fileset, examples.Keeps())
    reference = run(LocalExecutor(), fileset, examples.Weighted(), chunksize=1_000)
    assert result.output["pt"].sum(flow=True) == reference.output["pt"].sum(
        flow=True
    ).value * 0 + _num_muons(fileset)


def _num_muons(fileset: dict[str, Any]) -> int:
    import uproot

    files = [*fileset["a"], *fileset["b"]["files"]]
    return sum(int(uproot.open(path)["Events/nMuon"].array(library="np").sum()) for path in files)


def test_bad_files_are_found_before_any_work(
    executor: Executor, fileset: dict[str, Any], tmp_path: Any
) -> None:
    fileset["b"]["files"].append(str(tmp_path / "missing.root"))
    with pytest.raises(RunError, match=r"missing\.root") as caught:
        run(executor, fileset, examples.Weighted())
    result = caught.value.partial_result
    assert result.output is None
    assert result.completeness["b"].num_files_unknown == 1


def test_bad_files_are_skipped_and_listed(
    executor: Executor, fileset: dict[str, Any], tmp_path: Any
) -> None:
    fileset["b"]["files"].append(str(tmp_path / "missing.root"))
    result = run(executor, fileset, examples.Weighted(), skipbadfiles=True)
    (failure,) = result.failures
    assert (failure.kind, failure.entry_start) == ("input", None)
    assert result.completeness["b"].num_files_failed == 1
    assert not result.is_complete
    assert result.output["entries"] == {"a": 249, "b": 40}


def test_progress_is_in_events(executor: Executor, fileset: dict[str, Any]) -> None:
    progress = RecordingProgress()
    run(executor, fileset, examples.Weighted(), progress=progress)
    files, _, _ = progress.sum_advances("inspecting")
    events, num_bytes, failures = progress.sum_advances("processing")
    assert (files, events, failures) == (4, 289, 0)
    assert num_bytes > 0


def test_a_plain_function_and_plain_arrays(executor: Executor, fileset: dict[str, Any]) -> None:
    result = run(
        executor,
        fileset,
        lambda events: {events.metadata["dataset"]: len(events.MET_pt)},
        schema=None,
    )
    assert result.output == {"a": 249, "b": 40}


def test_results_can_be_pickled(executor: Executor, fileset: dict[str, Any]) -> None:
    result = run(executor, fileset, examples.RaisesAt(249), skipbadfiles=ZeroDivisionError)
    failures = pickle.loads(pickle.dumps(tuple(result.failures)))
    assert failures == tuple(result.failures)
    assert failures[0].exception is None


def test_too_many_failures_end_a_run(executor: Executor, fileset: dict[str, Any]) -> None:
    options = {"skipbadfiles": ZeroDivisionError, "max_failed_fraction": 0.1}
    with pytest.raises(RunError, match=r"max_failed_fraction=0\.1 allows") as caught:
        run(executor, fileset, examples.RaisesFrom(50), **options)
    result = caught.value.partial_result
    total = result.completeness.total
    assert total.num_entries_failed > 28
    assert "max_failed_fraction" in result.stopped_by
    result.completeness.check()


def test_few_failures_are_skipped(executor: Executor, fileset: dict[str, Any]) -> None:
    options = {"skipbadfiles": ZeroDivisionError, "max_failed_fraction": 0.1}
    result = run(executor, fileset, examples.RaisesAt(60), **options)
    assert result.completeness.total.num_entries_failed == 10


def test_the_same_mistake_everywhere_ends_a_run(
    executor: Executor, fileset: dict[str, Any]
) -> None:
    with pytest.raises(RunError, match=r"\d+ ranges have failed in the same way \(ZeroDivision"):
        run(executor, fileset, examples.RaisesFrom(0), skipbadfiles=ZeroDivisionError)


def test_how_often_the_same_mistake_is_borne_can_be_set(fileset: dict[str, Any]) -> None:
    options = {"skipbadfiles": ZeroDivisionError, "max_same_failures": 3}
    with pytest.raises(RunError, match=r"3 ranges have failed in the same way"):
        run(LocalExecutor(), fileset, examples.RaisesFrom(0), **options)
    options["max_same_failures"] = 1_000
    assert len(run(LocalExecutor(), fileset, examples.RaisesFrom(0), **options).failures) == 29


def test_a_store_gives_the_same_bits_and_no_work(
    executor: Executor, fileset: dict[str, Any], tmp_path: Path
) -> None:
    reference = run(LocalExecutor(), fileset, examples.Weighted())
    first = run(executor, fileset, examples.Weighted(), store=tmp_path / "store")
    second = run(executor, fileset, examples.Weighted(), store=tmp_path / "store")
    assert bits(first.output) == bits(second.output) == bits(reference.output)
    assert second.metrics.num_tasks == 0
    assert second.metrics.total.num_ranges == 0
    assert second.metrics.total.num_stored_entries == 289
    assert second.completeness == first.completeness


def test_messages_come_with_the_result(executor: Executor, fileset: dict[str, Any]) -> None:
    result = run(executor, fileset, examples.Warns())
    (message,) = [one for one in result.messages if "muons" in one.text]
    assert message.level == "warning"
    assert message.count == result.metrics.total.num_ranges
    assert "muons" in result.report()
