from __future__ import annotations

import os
import pickle
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import awkward as ak
import cloudpickle
import hist
import numpy as np
import pytest

from hepdask.attempt import Work, materialize
from hepdask.completeness import Span
from hepdask.errors import AccumulatorError, FileReadError, ProcessDiedError
from hepdask.failures import Failure
from hepdask.fileset import InputFile
from hepdask.isolation import child_runner
from hepdask.metadata import FileMetadata
from hepdask.metrics import Counters, PartialMetrics, host_name
from hepdask.opening import ReadOptions
from hepdask.partial import PartialResult, merge_results
from hepdask.processor import ProcessorCopies
from hepdask.ranges import EntryRange
from hepdask.readers import build_reader
from hepdask.task import NodeTask, attempt_packed, inspect_files, open_packed

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import NanoFiles

BOUNDS = [(0, 50), (50, 100)]


@dataclass
class RecordingMonitor:
    """Notes what it is told; stops the run after some ranges."""

    worker: str = "worker 1"
    stop_after: int | None = None
    done: list[tuple[int, int, Failure | None]] = field(default_factory=list)
    loaded: list[int] = field(default_factory=list)
    is_interrupted: bool = False

    def is_stopped(self) -> bool:
        return self.is_interrupted or len(self.done) == self.stop_after

    def range_done(self, num_entries: int, num_bytes: int, failure: Failure | None) -> None:
        self.done.append((num_entries, num_bytes, failure))

    def node_loaded(self, num_entries: int) -> None:
        self.loaded.append(num_entries)

    def interrupt(self) -> None:
        self.is_interrupted = True


def process_node(ranges: Any, work: Work, monitor: Any, **more: Any) -> PartialResult:
    return NodeTask(ranges, work, monitor, **more).run()


def input_file(path: Path, dataset: str = "dy") -> InputFile:
    return InputFile(dataset, str(path), "Events", (str(path),), {})


def build_ranges(nano_files: NanoFiles) -> list[EntryRange]:
    """Five ranges: 0 to 50 and 50 to 100 of nano_0; 0 to 74, 74 to 149 of nano_1; all of nano_2."""
    first, second, third = map(input_file, nano_files.paths)
    bounds = [(first, 0, 50), (first, 50, 100), (second, 0, 74), (second, 74, 149), (third, 0, 40)]
    return [EntryRange(*one) for one in bounds]


def work(processor: Any, schema: str | None = None, **more: Any) -> Work:
    return Work(ProcessorCopies(processor), build_reader(schema, ReadOptions()), **more)


def events_of(events: Any) -> dict[str, Any]:
    return {"events": events["event"].to_list(), "n": len(events)}


def fails_at(*starts: tuple[int, int], error: Exception | None = None) -> Any:
    """Make a processor that raises for the ranges that start at (file number, entry)."""

    def process(events: Any) -> dict[str, Any]:
        metadata = events.metadata
        if (int(metadata["filename"][-6]), metadata["entrystart"]) in starts:
            raise error or ValueError("no muons here")
        return events_of(events)

    return process


def test_all_ranges_in_order(nano_files: NanoFiles) -> None:
    monitor = RecordingMonitor()
    result = process_node(build_ranges(nano_files), work(events_of), monitor)
    assert result.accumulator == {"events": [*range(1, 290)], "n": 289}
    assert result.num_entries == 289
    assert result.failures == ()
    # neighbours are joined, files are not
    assert [one[1:] for one in result.processed] == [
        (str(path), "Events", 0, number)
        for path, number in zip(nano_files.paths, nano_files.num_entries, strict=True)
    ]
    assert [number for number, _, _ in monitor.done] == [50, 50, 74, 75, 40]
    assert all(num_bytes > 0 and failure is None for _, num_bytes, failure in monitor.done)


def test_it_costs_what_it_costs(nano_files: NanoFiles) -> None:
    metrics = process_node(build_ranges(nano_files), work(events_of), RecordingMonitor()).metrics
    assert set(metrics.files) == {("dy", str(path)) for path in nano_files.paths}
    assert list(metrics.hosts) == [host_name()]
    total = metrics.hosts[host_name()]
    assert total.num_ranges == 5
    assert total.num_entries == 289
    assert total.num_opens <= 3
    assert metrics.columns == {"event"}
    assert total.merge_seconds > 0
    parts = total.open_seconds + total.form_seconds + total.read_seconds + total.process_seconds
    assert 0 < parts <= total.wall_seconds
    assert total.num_uncompressed_bytes == 8 * 289
    assert 0 < total.num_compressed_bytes <= total.num_requested_bytes
    assert metrics.peak_memory_bytes[host_name()] > 0
    assert metrics.first_start is not None


@pytest.mark.skipif(
    sys.platform != "linux", reason="where threads are not known, nothing is prepared"
)
@pytest.mark.parametrize("schema", [None, "BaseSchema"])
def test_no_death_costs_the_file_again(nano_files: NanoFiles, schema: str | None) -> None:
    def process(events: Any) -> dict[str, Any]:
        if events.metadata["entrystart"] == 50:
            os._exit(7)
        return {"events": ak.to_list(events["event"])}

    first, second, *_ = build_ranges(nano_files)
    packed = cloudpickle.dumps(work(process, schema))

    def attempt(entry_range: EntryRange) -> PartialResult:
        result: PartialResult = child_runner().call(
            attempt_packed, packed, entry_range, "w", {}, first=(open_packed, packed, first.file)
        )
        return result

    opens = []
    for _ in range(3):
        result = attempt(first)
        assert result.accumulator is not None
        assert len(result.accumulator["events"]) == 50
        opens.append(result.metrics.hosts[host_name()].num_opens)
        with pytest.raises(ProcessDiedError, match="exit code 7"):
            attempt(second)
    assert opens == [1, 0, 0]


def test_an_exception_becomes_a_failure_and_keeps_its_place(nano_files: NanoFiles) -> None:
    monitor = RecordingMonitor()
    processor = fails_at((0, 50), (2, 0))
    result = process_node(build_ranges(nano_files), work(processor), monitor)
    assert result.accumulator["events"] == [*range(1, 51), *range(101, 250)]
    first, second = result.failures
    assert (first.entry_start, first.entry_stop) == (50, 100)
    assert first.file_path == str(nano_files.paths[0])
    assert first.replica == first.file_path
    assert first.kind == "user"
    assert first.exception_type == "ValueError"
    assert "no muons here" in first.message
    assert "raise error or ValueError" in first.traceback
    assert first.worker == "worker 1"
    assert not first.is_skipped
    assert second.file_path == str(nano_files.paths[2])
    assert [failure for _, _, failure in monitor.done if failure] == [first, second]
    assert result.metrics.hosts[host_name()].num_ranges == 5
    assert result.metrics.hosts[host_name()].num_entries == 199
    assert result.num_entries == 199


@pytest.mark.parametrize(
    ("error", "kind"),
    [(KeyError("x"), "user"), (MemoryError("x"), "resources"), (TimeoutError("x"), "user")],
)
def test_failures_are_classed(nano_files: NanoFiles, error: Exception, kind: str) -> None:
    ranges = build_ranges(nano_files)[:1]
    (failure,) = process_node(
        ranges, work(fails_at((0, 0), error=error)), RecordingMonitor()
    ).failures
    assert failure.kind == kind
    assert failure.exception_type == type(error).__name__


def test_what_is_skipped_is_marked(nano_files: NanoFiles) -> None:
    job = work(fails_at((0, 0)), skipped=(ValueError,))
    (failure,) = process_node(build_ranges(nano_files)[:2], job, RecordingMonitor()).failures
    assert failure.is_skipped


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    ranges = [EntryRange(input_file(tmp_path / "missing.root"), 0, 10)]
    monitor = RecordingMonitor()
    result = process_node(ranges, work(events_of, skipped=(FileReadError,)), monitor)
    (failure,) = result.failures
    assert failure.kind == "input"
    assert failure.replica == ""
    assert failure.is_skipped
    assert "there is no such file" in failure.message
    assert result.accumulator is None
    assert monitor.done == [(10, 0, failure)]


def test_a_branch_that_is_not_there_is_a_mistake_of_the_user(nano_files: NanoFiles) -> None:
    ranges = build_ranges(nano_files)[:1]
    result = process_node(ranges, work(lambda events: events["Muon_ptt"]), RecordingMonitor())
    assert result.failures[0].kind == "user"


def test_returning_nothing_is_a_failure(nano_files: NanoFiles) -> None:
    ranges = build_ranges(nano_files)[:1]
    (failure,) = process_node(ranges, work(lambda _: None), RecordingMonitor()).failures
    assert failure.kind == "user"
    assert failure.message.startswith("process() returned None")
    assert (failure.entry_start, failure.entry_stop) == (0, 50)


def test_after_a_stop_the_rest_is_not_reached(nano_files: NanoFiles) -> None:
    monitor = RecordingMonitor(stop_after=2)
    result = process_node(build_ranges(nano_files), work(events_of), monitor)
    assert result.accumulator["events"] == [*range(1, 101)]
    assert result.failures == ()
    assert len(monitor.done) == 2
    assert result.metrics.hosts[host_name()].num_ranges == 2


def test_an_interrupt_keeps_what_is_done(nano_files: NanoFiles) -> None:
    def process(events: Any) -> dict[str, Any]:
        if events.metadata["entrystart"] == 74:
            raise KeyboardInterrupt
        return events_of(events)

    monitor = RecordingMonitor()
    result = process_node(build_ranges(nano_files), work(process), monitor)
    assert monitor.is_interrupted
    assert result.accumulator["n"] == 174
    assert result.failures == ()


def test_no_ranges_of_an_empty_file(nano_files: NanoFiles) -> None:
    ranges = [EntryRange(input_file(nano_files.empty_path), 0, 0)]
    result = process_node(ranges, work(events_of), RecordingMonitor())
    assert result.accumulator == {"events": [], "n": 0}
    assert result.processed[0].entry_stop == 0


def filling(events: Any) -> dict[str, Any]:
    histogram = hist.Hist.new.Reg(20, 0, 200).Weight()
    histogram.fill(ak.flatten(events.Muon.pt), weight=0.1)
    return {"pt": histogram, "sum": float(ak.sum(events.MET.pt * 0.1))}


def test_any_cut_gives_the_same_bits(nano_files: NanoFiles) -> None:
    ranges = build_ranges(nano_files)
    whole = process_node(ranges, work(filling, "NanoAODSchema"), RecordingMonitor())
    from hepdask.tree import arrange, merge_in_order

    tree = arrange(ranges)
    for max_weight in (1, 2, 3):
        cut = tree.cut([1.0] * len(ranges), max_weight)
        job = pickle.loads(pickle.dumps(work(filling, "NanoAODSchema")))
        results = {
            node: pickle.loads(
                pickle.dumps(process_node(ranges[node.start : node.stop], job, RecordingMonitor()))
            )
            for node in cut
        }
        for merge in tree.merges(cut):
            inputs = [results[one] for one in merge.inputs]
            results[merge.node] = merge_in_order(merge.order, inputs, merge_results)
        root = results[tree.root]
        assert root.accumulator["sum"] == whole.accumulator["sum"]
        assert (root.accumulator["pt"].view() == whole.accumulator["pt"].view()).all()
        assert root.processed == whole.processed


def partial(accumulator: Any, start: int, stop: int, path: str = "a.root") -> PartialResult:
    metrics = PartialMetrics(hosts={"h": Counters(num_entries=stop - start)})
    return PartialResult(accumulator, (Span("dy", path, "Events", start, stop),), (), metrics)


def test_a_merge_changes_neither() -> None:
    left = partial({"x": [1], "a": np.array([1.0]), "s": {1}}, 0, 10)
    right = partial({"x": [2], "a": np.array([2.0]), "s": {2}, "y": [3]}, 10, 30)
    before = pickle.dumps((left, right))
    first, second = merge_results(left, right), merge_results(left, right)
    assert pickle.dumps((left, right)) == before
    assert first.accumulator["x"] == second.accumulator["x"] == [1, 2]
    first.accumulator["y"].append(4)
    assert right.accumulator["y"] == [3]


def test_a_merge_with_nothing() -> None:
    one = partial({"n": 1}, 0, 10)
    for merged in (merge_results(one, PartialResult()), merge_results(PartialResult(), one)):
        assert merged.accumulator == {"n": 1}
        assert merged.processed == one.processed
    assert merge_results(PartialResult(), PartialResult()).accumulator is None


@pytest.mark.parametrize(
    ("left", "right", "spans"),
    [
        (("a.root", 0, 10), ("a.root", 10, 20), [("a.root", 0, 20)]),
        (("a.root", 0, 10), ("a.root", 11, 20), [("a.root", 0, 10), ("a.root", 11, 20)]),
        (("a.root", 0, 10), ("b.root", 10, 20), [("a.root", 0, 10), ("b.root", 10, 20)]),
        (("a.root", 0, 0), ("a.root", 0, 5), [("a.root", 0, 5)]),
    ],
)
def test_spans_of_neighbours_are_joined(left: Any, right: Any, spans: list[Any]) -> None:
    merged = merge_results(partial(1, *left[1:], left[0]), partial(1, *right[1:], right[0]))
    assert [(one.file_path, one.entry_start, one.entry_stop) for one in merged.processed] == spans
    assert merged.num_entries == sum(stop - start for _, start, stop in spans)


@pytest.mark.parametrize(
    ("left_stop", "right_stop", "stays"),
    [(10, 30, "right"), (20, 30, "left"), (10, 20, "left")],
)
def test_of_outputs_that_do_not_add_the_larger_stays(
    left_stop: int, right_stop: int, stays: str
) -> None:
    left, right = partial({"x": "left"}, 0, left_stop), partial({"x": 3}, left_stop, right_stop)
    merged = merge_results(left, right, worker="w")
    kept, lost = (left, right) if stays == "left" else (right, left)
    assert merged.accumulator == kept.accumulator
    assert merged.processed == kept.processed
    (failure,) = merged.failures
    (span,) = lost.processed
    assert (failure.entry_start, failure.entry_stop) == (span.entry_start, span.entry_stop)
    assert failure.kind == "user"
    assert failure.worker == "w"
    assert 'output["x"]' in failure.message
    assert isinstance(failure.exception, AccumulatorError)


def test_an_addition_of_the_users_own_may_raise_anything() -> None:
    class Odd:
        def __add__(self, other: object) -> Any:
            raise ZeroDivisionError("odd")

    merged = merge_results(partial(Odd(), 0, 20), partial(Odd(), 20, 30))
    assert merged.num_entries == 20
    assert "odd" in merged.failures[0].message


def test_results_lose_the_live_exceptions_alone(nano_files: NanoFiles) -> None:
    result = process_node(build_ranges(nano_files)[:2], work(fails_at((0, 0))), RecordingMonitor())
    assert result.failures[0].exception is not None
    copy = pickle.loads(pickle.dumps(result))
    assert copy == result
    assert copy.failures[0].exception is None
    assert replace(result.failures[0], exception=None) == copy.failures[0]


@pytest.mark.parametrize("schema", [None, "BaseSchema", "NanoAODSchema"])
def test_lazy_outputs_are_read_while_their_file_is_open(
    nano_files: NanoFiles, schema: str | None
) -> None:
    def process(events: Any) -> dict[str, Any]:
        return {"deep": [(events["event"],)], "run": [events.run], "number": 3}

    result = process_node(build_ranges(nano_files), work(process, schema), RecordingMonitor())
    assert not result.failures
    deep = result.accumulator["deep"]
    assert [number for (array,) in deep for number in array.to_list()] == [*range(1, 290)]
    assert sum(map(len, result.accumulator["run"])) == 289
    assert {"event", "run"} <= result.metrics.columns


def test_reading_a_lazy_output_is_reading_and_not_user_code(nano_files: NanoFiles) -> None:
    ranges = build_ranges(nano_files)[:1]
    result = process_node(ranges, work(lambda events: {"x": events["event"]}), RecordingMonitor())
    total = result.metrics.hosts[host_name()]
    assert total.read_seconds > 0
    assert total.num_uncompressed_bytes == 400


def test_materialize_leaves_the_rest_alone() -> None:
    odd = object()
    histogram = hist.Hist.new.Reg(2, 0, 1).Double()
    assert materialize({"a": odd, "b": (odd, [histogram])}) == {"a": odd, "b": (odd, [histogram])}
    assert materialize(3) == 3


def test_files_are_inspected_or_fail(nano_files: NanoFiles, tmp_path: Path) -> None:
    files = [
        input_file(nano_files.paths[1]),
        input_file(tmp_path / "missing.root"),
        replace(input_file(nano_files.paths[0]), treename="Event"),
    ]
    good, missing, wrong = inspect_files(files, options=ReadOptions(), skipped=(FileNotFoundError,))
    assert isinstance(good, FileMetadata)
    assert good.num_entries == 149
    assert isinstance(missing, Failure)
    assert missing.is_skipped
    assert missing.entry_start is None
    assert missing.worker
    assert isinstance(wrong, Failure)
    assert not wrong.is_skipped
    assert "did you mean 'Events'" in wrong.message
