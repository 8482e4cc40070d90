"""The Runner: its calls, options, failures, and how it goes on after them."""

from __future__ import annotations

import shutil
import traceback
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from hepdask import FileReadError, FilesetError, LocalExecutor, OptionError, RunError, Runner
from hepdask.progress import RecordingProgress
from hepdask.readers.handles import close_all, configure
from tests import example_processors as examples

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import NanoFiles
    from tests.servers import XrdServer


def make(**options: Any) -> Runner:
    return Runner(LocalExecutor(), **{"progress": False, "metadata_cache": False, **options})


def count(events: Any) -> dict[str, int]:
    return {events.metadata["dataset"]: len(events)}


def test_all_spellings_of_the_call(nano_files: NanoFiles) -> None:
    run = make()
    plain = {"nano": [str(path) for path in nano_files.paths]}
    expected = {"nano": 289}
    assert run(plain, "Events", processor_instance=count) == expected
    assert run(plain, "Events", count) == expected
    assert run(plain, count, treename="Events") == expected
    assert run(plain, count, "Events") == expected
    assert run(plain, processor_instance=count, treename="Events") == expected
    assert run(nano_files.fileset, count) == expected
    assert run(nano_files.fileset, None, count) == expected


def test_metrics_come_with_the_output(nano_files: NanoFiles, tmp_path: Path) -> None:
    run = make(savemetrics=True, chunksize=50, metadata_cache=tmp_path / "cache.sqlite")
    run(nano_files.fileset, examples.Weighted())  # files are inspected, and stay open
    close_all()
    output, metrics = run(nano_files.fileset, examples.Weighted())
    assert output["entries"] == {"nano": 289}
    assert metrics["entries"] == 289
    assert metrics["chunks"] == 6
    assert {"Muon_pt", "nMuon", "genWeight"} <= set(metrics["columns"])
    assert metrics["bytesread"] > 0
    assert set(metrics["files"]["nano"]) == {str(path) for path in nano_files.paths}
    assert metrics["num_opens"] == 3


def test_what_a_run_took_predicts_the_next_one(nano_files: NanoFiles, tmp_path: Path) -> None:
    run = make(chunksize=50, metadata_cache=tmp_path / "cache.sqlite")
    processor = examples.Weighted()
    assert run.plan(nano_files.fileset, processor).predict().num_runs == 0
    first = run.run(nano_files.fileset, processor).metrics
    predicted = run.plan(nano_files.fileset, processor).predict()
    assert predicted.num_runs == 1
    assert predicted.measured_fraction == 1
    # all of it is from one run: it predicts itself, but for rounding
    assert predicted.busy_seconds == pytest.approx(first.total.wall_seconds, rel=1e-6)
    assert predicted.num_bytes == pytest.approx(first.total.num_requested_bytes, abs=1)
    second = run.run(nano_files.fileset, processor).metrics
    assert second.predicted_busy_seconds == pytest.approx(predicted.busy_seconds)
    assert second.to_dict()["predicted_num_bytes"] == predicted.num_bytes
    assert "predicted" in str(second.to_table())


def test_metadata_is_that_of_coffea_and_of_the_user(nano_files: NanoFiles) -> None:
    fileset = {"nano": {**nano_files.fileset["nano"], "metadata": {"xsec": 1.5}}}
    seen = make(chunksize=60, maxfiles=1)(fileset, lambda events: [dict(events.metadata)])
    keys = {"dataset", "filename", "treename", "entrystart", "entrystop", "fileuuid", "xsec"}
    assert keys <= set(seen[0])
    assert [(one["entrystart"], one["entrystop"]) for one in seen] == [(0, 50), (50, 100)]
    assert seen[0]["xsec"] == 1.5
    assert str(uuid.UUID(seen[0]["fileuuid"])) == seen[0]["fileuuid"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"chunksise": 10}, r"did you mean 'chunksize'"),
        ({"chunksize": 0}, r"chunksize is 0"),
        ({"maxchunks": -1}, r"maxchunks is -1"),
        ({"maxfiles": "two"}, r"maxfiles is 'two'"),
        ({"format": "parquet"}, r"format is 'parquet'"),
        ({"skipbadfiles": (OSError, "ValueError")}, r"skipbadfiles has 'ValueError'"),
        ({"progress": "loud"}, r"loud"),
        ({"checkpointer": object()}, r"store="),
        ({"schema": "NanoAOD"}, r"did you mean 'NanoAODSchema'"),
        ({"schema": 7}, r"schema is 7"),
    ],
)
def test_wrong_options_are_explained(
    options: dict[str, Any], text: str, nano_files: NanoFiles
) -> None:
    with pytest.raises(OptionError, match=text):
        make(**options)(nano_files.fileset, count)


def test_what_is_no_executor_is_refused() -> None:
    with pytest.raises(OptionError, match=r"executor is str: give DaskExecutor"):
        Runner("dask")


def test_what_is_no_processor_is_refused(nano_files: NanoFiles) -> None:
    with pytest.raises(OptionError, match=r"no processor"):
        make()(nano_files.fileset, "Events")
    with pytest.raises(OptionError, match=r"give an instance, Weighted"):
        make()(nano_files.fileset, examples.Weighted)
    with pytest.raises(OptionError, match=r"unexpected argument"):
        make()(nano_files.fileset, count, "Events", count)


def test_a_wrong_fileset_is_an_error_before_any_work(nano_files: NanoFiles) -> None:
    def never(events: Any) -> Any:
        raise AssertionError

    with pytest.raises(FilesetError, match=r"(?s)treename.*did you mean|no tree name"):
        make()({"nano": [str(nano_files.paths[0])]}, never)


def test_a_debugger_stands_in_the_users_frame(nano_files: NanoFiles) -> None:
    with pytest.raises(RunError) as caught:
        make(chunksize=50)(nano_files.fileset, examples.RaisesAt(120))
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert frames[-1].name == "process"
    assert frames[-1].filename.endswith("example_processors.py")


def test_postprocess_may_take_the_completeness(nano_files: NanoFiles) -> None:
    class Scales(examples.RaisesAt):
        def postprocess(self, accumulator: Any, completeness: Any) -> Any:
            one = completeness["nano"]
            scale = one.num_entries_requested / one.num_entries_processed
            return accumulator["entries"]["nano"] * scale

    result = make(chunksize=50, skipbadfiles=ZeroDivisionError).run(nano_files.fileset, Scales(120))
    assert result.completeness["nano"].num_entries_processed == 239
    assert result.output == pytest.approx(289)


def test_postprocess_that_raises_says_so(nano_files: NanoFiles) -> None:
    class Breaks(examples.Weighted):
        def postprocess(self, accumulator: Any) -> Any:
            return accumulator["missing"]

    with pytest.raises(RunError, match=r"postprocess\(\) raised KeyError: 'missing'") as caught:
        make()(nano_files.fileset, Breaks())
    assert caught.value.partial_result.output["entries"] == {"nano": 289}
    assert caught.value.partial_result.is_complete


def test_resume_computes_what_is_missing_only(nano_files: NanoFiles, tmp_path: Path) -> None:
    mended = tmp_path / "mended"

    def process(events: Any) -> Any:
        start = events.metadata["entrystart"]
        if (
            events.metadata["filename"].endswith("nano_1.root")
            and start == 50
            and not mended.exists()
        ):
            raise ZeroDivisionError
        return {"entries": len(events), "starts": [start]}

    with pytest.raises(RunError, match="ZeroDivisionError") as caught:
        make(chunksize=50)(nano_files.fileset, process)
    before = caught.value.partial_result
    assert before.output["starts"] == [0, 50, 0]
    assert before.completeness["nano"].num_entries_not_reached == 89
    mended.touch()
    result = before.resume()
    assert result.is_complete
    assert result.output == {"entries": 289, "starts": [0, 50, 0, 50, 100, 0]}
    assert result.metrics.total.num_ranges == 3 + 1 + 3
    assert not result.failures
    assert before.output["starts"] == [0, 50, 0]


def test_resume_inspects_a_file_that_is_there_now(nano_files: NanoFiles, tmp_path: Path) -> None:
    late = tmp_path / "late.root"
    fileset = {"nano": [str(nano_files.paths[0]), str(late)]}
    result = make(skipbadfiles=True).run(fileset, "Events", count)
    assert (result.output, result.is_complete) == ({"nano": 100}, False)
    shutil.copy(nano_files.paths[2], late)
    resumed = result.resume()
    assert resumed.output == {"nano": 140}
    assert resumed.completeness["nano"].num_files_processed == 2
    assert resumed.is_complete


def test_what_is_missing_is_a_fileset(nano_files: NanoFiles, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.root")
    files = [[str(path), f"/replica/{path.name}"] for path in nano_files.paths]
    fileset = {"nano": {"files": [*files, gone], "metadata": {"xsec": 2.0}}}
    run = make(chunksize=50, skipbadfiles=(FileReadError, ZeroDivisionError))
    missing = run.run(fileset, "Events", examples.RaisesAt(120)).missing_fileset()
    path = str(nano_files.paths[1])
    assert missing["nano"]["metadata"] == {"xsec": 2.0}
    assert set(missing["nano"]["files"]) == {path, gone}
    assert missing["nano"]["files"][path]["steps"] == [[0, 50]]
    assert missing["nano"]["files"][path]["replicas"] == [path, "/replica/nano_1.root"]
    assert run.run(missing, count).output == {"nano": 50}
    assert make().run(nano_files.fileset, count).missing_fileset() == {}


def test_limits(nano_files: NanoFiles) -> None:
    fileset = {"a": nano_files.fileset["nano"], "b": nano_files.fileset["nano"]}
    result = make(chunksize=50, maxchunks=3).run(fileset, count)
    assert result.output == {"a": 150, "b": 150}
    assert result.completeness["a"].num_files_requested == 2
    assert result.is_complete
    assert make(maxfiles=1)(fileset, count) == {"a": 100, "b": 100}


def test_a_replaced_local_file_is_inspected_again(nano_files: NanoFiles, tmp_path: Path) -> None:
    path = tmp_path / "data.root"
    shutil.copy(nano_files.paths[0], path)
    run = make(metadata_cache=tmp_path / "cache.sqlite")
    assert run({"nano": [str(path)]}, "Events", count) == {"nano": 100}
    shutil.copy(nano_files.paths[1], path)
    assert run({"nano": [str(path)]}, "Events", count) == {"nano": 149}


def test_a_file_that_is_not_the_one_of_the_fileset_is_an_error(nano_files: NanoFiles) -> None:
    entry = {"object_path": "Events", "num_entries": 100, "uuid": str(uuid.uuid4())}
    fileset = {"nano": {"files": {str(nano_files.paths[0]): entry}}}
    with pytest.raises(RunError, match=r"was expected: the file was replaced") as caught:
        make()(fileset, count)
    assert caught.value.partial_result.failures[0].kind == "input"
    entry["uuid"] = None
    entry["num_entries"] = 101
    with pytest.raises(RunError, match=r"100 entries, but at least 101 were expected"):
        make()(fileset, count)


def test_a_replaced_remote_file_is_an_error_then_inspected_again(
    xrd_server: XrdServer, nano_files: NanoFiles, served_path: Path, tmp_path: Path
) -> None:
    url = xrd_server.url("nano_0.root")
    run = make(metadata_cache=tmp_path / "cache.sqlite")
    assert run({"nano": [url]}, "Events", count) == {"nano": 100}
    before = configure()
    configure(max_remote_age_seconds=0)  # as if the session went on for longer than files are kept
    replaced = served_path / "data" / "nano_0.root"
    replaced.unlink()
    shutil.copy(nano_files.paths[1], replaced)
    with pytest.raises(RunError, match=r"was expected: the file was replaced"):
        run({"nano": [url]}, "Events", count)
    assert run({"nano": [url]}, "Events", count) == {"nano": 149}
    configure(max_remote_age_seconds=before.max_remote_age_seconds)


def test_the_second_replica_is_read_when_the_first_is_gone(
    nano_files: NanoFiles, tmp_path: Path
) -> None:
    fileset = {"nano": {"files": [[str(tmp_path / "gone.root"), str(nano_files.paths[0])]]}}
    assert make()(fileset, "Events", count) == {"nano": 100}


def test_a_remote_fileset(xrd_server: XrdServer, nano_files: NanoFiles) -> None:
    fileset = {"nano": [xrd_server.url("nano_*.root")]}
    result = make().run(fileset, "Events", examples.Weighted())
    local = make().run(nano_files.fileset, examples.Weighted())
    assert result.output == local.output
    assert result.metrics.total.num_requested_bytes > 0


def test_the_result_shows_itself(nano_files: NanoFiles, tmp_path: Path) -> None:
    fileset = {"<nano>": [str(nano_files.paths[0]), str(tmp_path / "missing.root")]}
    result = make(skipbadfiles=True).run(fileset, "Events", count)
    html = result._repr_html_()
    assert "INCOMPLETE" in html
    assert "&lt;nano&gt;" in html
    assert "<nano>" not in html
    report = result.report()
    assert "missing.root" in report
    assert "100 of 100 events processed, 1 failures" in report
    assert "event rate" in report


def test_progress_does_not_count_what_failed(nano_files: NanoFiles) -> None:
    progress = RecordingProgress()
    options: dict[str, Any] = {"skipbadfiles": ZeroDivisionError, "progress": progress}
    make(chunksize=50, **options).run(nano_files.fileset, examples.RaisesAt(120))
    events, _, failures = progress.sum_advances("processing")
    assert (events, failures) == (239, 1)
