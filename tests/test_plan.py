from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import uproot

from hepdask import plan as plan_module
from hepdask.attempt import Work
from hepdask.errors import FileReadError, FilesetError
from hepdask.executors.local import LocalExecutor
from hepdask.metadata import MetadataCache
from hepdask.opening import ReadOptions
from hepdask.plan import Limits, Plan, Planner
from hepdask.processor import ProcessorCopies
from hepdask.progress import RecordingProgress
from hepdask.ranges import TARGET_RANGE_BYTES, SplitOptions
from hepdask.readers import build_reader
from hepdask.recovery import RecoveryPolicy

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import NanoFiles

OPTIONS = ReadOptions()


def planner(**more: Any) -> Planner:
    given = {
        "executor": LocalExecutor(),
        "options": OPTIONS,
        "split": SplitOptions(),
        "limits": Limits(),
        "skipped": (),
        "recovery": RecoveryPolicy(),
        "cache": None,
        "progress": RecordingProgress(),
        **more,
    }
    return Planner(**given)


def build_plan(fileset: Any, work: Work | None = None, **more: Any) -> Plan:
    one = planner(**more)
    return one.plan(one.load(fileset, "Events").files, work)


def bounds(plan: Plan) -> list[tuple[str, int, int]]:
    return [(one.file.dataset, one.entry_start, one.entry_stop) for one in plan.ranges]


def work(processor: Any) -> Work:
    return Work(ProcessorCopies(processor), build_reader(None, OPTIONS))


def test_files_are_inspected_and_split(nano_files: NanoFiles) -> None:
    progress = RecordingProgress()
    plan = build_plan(nano_files.fileset, split=SplitOptions(100), progress=progress)
    assert bounds(plan) == [
        ("nano", 0, 100),
        ("nano", 0, 50),
        ("nano", 50, 149),
        ("nano", 0, 40),
    ]
    assert plan.num_entries == 289
    assert plan.num_inspected == 3
    assert plan.failures == ()
    assert [file.num_entries for file in plan.files] == [100, 149, 40]
    assert all(file.uuid is not None for file in plan.files)
    # ranges carry what is known, so that a worker notices a file that was replaced
    assert {one.file for one in plan.ranges} == set(plan.files)
    assert progress.calls[0] == ("start", "inspecting", 3, "files")
    assert progress.sum_advances("inspecting") == (3, 0, 0)


@pytest.mark.parametrize(
    "known",
    [
        {"num_entries": 149},
        {"num_entries": 149, "uuid": "833a43a6-e6e7-11f1-b86b-02fc00000001"},
        {"steps": [[0, 74], [74, 149]]},
        {"num_entries": 149, "steps": [[0, 74], [74, 149]]},
    ],
)
def test_what_the_fileset_says_is_not_looked_up(known: dict[str, Any]) -> None:
    files = {"/not/there.root": {"object_path": "Events", **known}}
    progress = RecordingProgress()
    plan = build_plan({"dy": {"files": files}}, split=SplitOptions(100), progress=progress)
    assert bounds(plan) == [("dy", 0, 74), ("dy", 74, 149)]
    assert plan.num_inspected == 0
    assert plan.failures == ()
    assert progress.calls == []


def test_facts_are_kept_for_the_next_plan(nano_files: NanoFiles, tmp_path: Path) -> None:
    first = build_plan(nano_files.fileset, cache=MetadataCache(tmp_path / "cache.sqlite"))
    second = build_plan(nano_files.fileset, cache=MetadataCache(tmp_path / "cache.sqlite"))
    assert (first.num_inspected, second.num_inspected) == (3, 0)
    assert second.ranges == first.ranges
    assert second.files == first.files


def test_facts_of_another_uuid_are_not_used(nano_files: NanoFiles, tmp_path: Path) -> None:
    path = str(nano_files.paths[0])
    cache = MetadataCache(tmp_path / "cache.sqlite")
    (known,) = build_plan({"dy": [path]}, cache=cache).files

    def fileset(uuid: str | None) -> dict[str, Any]:
        return {"dy": {"files": {path: {"object_path": "Events", "uuid": uuid}}}}

    assert build_plan(fileset(known.uuid), cache=cache).num_inspected == 0
    other = build_plan(fileset("00000000-0000-0000-0000-000000000000"), cache=cache)
    assert other.num_inspected == 1
    assert other.ranges == ()
    assert other.failures[0].exception_type == "hepdask.errors.FileChangedError"


def test_a_file_in_two_datasets_is_opened_once(nano_files: NanoFiles) -> None:
    path = str(nano_files.paths[0])
    plan = build_plan({"one": [path], "two": {"files": [path], "metadata": {"xsec": 2.0}}})
    assert plan.num_inspected == 1
    assert bounds(plan) == [("one", 0, 100), ("two", 0, 100)]
    assert [dict(one.file.metadata) for one in plan.ranges] == [{}, {"xsec": 2.0}]


def test_bad_files_are_listed(nano_files: NanoFiles, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.root")
    path = str(nano_files.paths[0])
    fileset = {"dy": [missing, path], "tt": [missing]}
    progress = RecordingProgress()
    plan = build_plan(fileset, progress=progress)
    assert [(one.dataset, one.file_path, one.entry_start) for one in plan.failures] == [
        ("dy", missing, None),
        ("tt", missing, None),
    ]
    assert not any(one.is_skipped for one in plan.failures)
    assert plan.failures[0].kind == "input"
    assert bounds(plan) == [("dy", 0, 100)]
    assert len(plan.files) == 3
    assert progress.sum_advances("inspecting") == (2, 0, 1)
    skipping = build_plan(fileset, skipped=(FileReadError,))
    assert all(one.is_skipped for one in skipping.failures)


def test_a_batch_that_could_not_be_run_fails_its_files(nano_files: NanoFiles) -> None:
    class Broken(LocalExecutor):
        def map(self, _function: Any, items: Any, **_options: Any) -> list[Any]:
            return [MemoryError("the worker died") for _ in items]

    plan = build_plan(nano_files.fileset, executor=Broken())
    assert [one.kind for one in plan.failures] == ["resources"] * 3
    assert plan.ranges == ()


@pytest.mark.parametrize(
    ("max_ranges", "expected", "num_inspected"),
    [
        (1, [(0, 100)], 1),
        (2, [(0, 100), (0, 50)], 2),
        (3, [(0, 100), (0, 50), (50, 149)], 3),
        (100, [(0, 100), (0, 50), (50, 149), (0, 40)], 3),
    ],
)
def test_maxchunks_takes_the_first_ranges_and_opens_no_more_files_than_it_needs(
    nano_files: NanoFiles,
    max_ranges: int,
    expected: list[tuple[int, int]],
    num_inspected: int,
) -> None:
    limits = Limits(max_ranges=max_ranges)
    plan = build_plan(nano_files.fileset, split=SplitOptions(100), limits=limits)
    assert bounds(plan) == [("nano", *one) for one in expected]
    assert plan.num_inspected == num_inspected
    assert set(plan.files) == {one.file for one in plan.ranges}


def test_maxchunks_counts_by_dataset(nano_files: NanoFiles) -> None:
    paths = [str(path) for path in nano_files.paths]
    plan = build_plan({"dy": paths, "tt": paths[1:]}, limits=Limits(max_ranges=1))
    assert bounds(plan) == [("dy", 0, 100), ("tt", 0, 149)]


def test_maxchunks_passes_over_files_of_which_nothing_is_wanted(nano_files: NanoFiles) -> None:
    files = {
        "/not/there.root": {"object_path": "Events", "num_entries": 10, "steps": []},
        str(nano_files.paths[0]): "Events",
    }
    plan = build_plan({"dy": {"files": files}}, limits=Limits(max_ranges=1))
    assert bounds(plan) == [("dy", 0, 100)]


def test_maxchunks_finds_its_ranges_behind_bad_files(nano_files: NanoFiles, tmp_path: Path) -> None:
    fileset = {"dy": [str(tmp_path / "missing.root"), str(nano_files.paths[0])]}
    plan = build_plan(fileset, limits=Limits(max_ranges=1), skipped=(FileReadError,))
    assert bounds(plan) == [("dy", 0, 100)]
    assert len(plan.failures) == 1
    assert len(plan.files) == 2


def test_maxfiles_takes_the_first_files(nano_files: NanoFiles) -> None:
    paths = [str(path) for path in nano_files.paths]
    plan = build_plan({"dy": paths, "tt": paths[1:]}, limits=Limits(max_files=1))
    assert bounds(plan) == [("dy", 0, 100), ("tt", 0, 149)]


def test_globs_are_expanded(nano_files: NanoFiles) -> None:
    plan = build_plan({"dy": str(nano_files.paths[0].parent / "nano_*.root")})
    assert [file.file_path for file in plan.files] == [str(path) for path in nano_files.paths]


def test_an_empty_file_has_one_empty_range(nano_files: NanoFiles) -> None:
    plan = build_plan({"dy": [str(nano_files.empty_path)]})
    assert bounds(plan) == [("dy", 0, 0)]


def test_a_mistake_in_the_fileset_is_found_before_anything_is_opened() -> None:
    with pytest.raises(FilesetError, match="did you mean 'files'"):
        planner().load({"dy": {"file": ["a.root"]}}, "Events")


@pytest.mark.parametrize(("align_clusters", "number"), [(True, 6), (None, 0), (False, 0)])
def test_whole_clusters_that_are_too_large_are_named(
    nano_files: NanoFiles,
    align_clusters: bool | None,
    number: int,
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan = build_plan(nano_files.fileset, split=SplitOptions(30, align_clusters))
    texts = [str(one.message) for one in caught]
    if number:
        assert len(plan.ranges) == number
        assert len(texts) == 1
        assert texts[0].startswith("6 ranges are larger than chunksize=30")
        assert "the largest is entries 0 to 50 of 'Events'" in texts[0]
    else:
        assert texts == []
        assert all(one.num_entries <= 30 for one in plan.ranges)


def write_wide_and_narrow(path: Path, num_entries: int) -> None:
    types = {"narrow": np.dtype("f4"), "wide": np.dtype(("f4", (10,)))}
    with uproot.recreate(path, compression=None) as file:
        file.mktree("Events", types)
        for _ in range(4):
            file["Events"].extend(
                {
                    "narrow": np.ones(num_entries // 4, "f4"),
                    "wide": np.ones((num_entries // 4, 10), "f4"),
                }
            )


def test_ranges_are_sized_by_the_branches_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # so that files of a few thousand entries are large
    monkeypatch.setattr("hepdask.ranges.TARGET_RANGE_BYTES", TARGET_RANGE_BYTES // 2**10)
    paths = [tmp_path / "a.root", tmp_path / "b.root"]
    for path in paths:
        write_wide_and_narrow(path, 16_000)
    fileset = {"dy": [str(path) for path in paths]}
    narrow = build_plan(fileset, work(lambda events: {"n": events["narrow"].to_list()}))
    wide = build_plan(fileset, work(lambda events: {"n": events["wide"].to_list()}))
    assert narrow.columns == {"narrow"}
    assert wide.columns == {"wide"}
    assert len(narrow.ranges) == 4  # 65,536 bytes at 4 bytes and a little: 8,192 entries
    assert len(wide.ranges) == 16  # at 40 bytes 1,024 entries: clusters of 4,000 are cut in two
    for plan, num_bytes in ((narrow, 4), (wide, 40)):
        assert plan.num_entries == 32_000
        assert plan.num_bytes == pytest.approx(32_000 * num_bytes, rel=0.1)


def test_what_the_user_preloads_is_in_use(nano_files: NanoFiles) -> None:
    fileset = {"dy": {"files": [str(nano_files.paths[0])], "preload": ["Muon_pt"]}}
    plan = build_plan(fileset, work(lambda events: {"n": events["event"].to_list()}))
    assert plan.columns == {"Muon_pt", "event"}


def test_each_layout_is_traced_once(
    nano_files: NanoFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wide_and_narrow(tmp_path / "other.root", 400)
    calls = tmp_path / "calls"  # a file, as the trace has a copy of the processor

    def process(events: Any) -> dict[str, Any]:
        with calls.open("a") as log:
            log.write(events.metadata["filename"] + "\n")
        return {"n": events[events.fields[-1]].to_list()}

    other = str(tmp_path / "other.root")
    paths = [str(nano_files.empty_path), *map(str, nano_files.paths), other]
    plan = build_plan({"dy": paths}, work(process))
    assert calls.read_text().split() == [
        str(nano_files.paths[0]),
        other,
    ]  # an empty file has no bytes per entry
    assert "wide" in plan.columns


def test_with_a_chunksize_nothing_is_traced(nano_files: NanoFiles) -> None:
    def process(events: Any) -> None:
        raise AssertionError("it was called")

    plan = build_plan(nano_files.fileset, work(process), split=SplitOptions(1_000))
    assert plan.columns == frozenset()
    assert plan.num_bytes is None


def test_a_processor_that_fails_while_it_is_traced_does_not_stop_the_plan(
    nano_files: NanoFiles,
) -> None:
    plan = build_plan(nano_files.fileset, work(lambda _: 1 / 0))
    assert plan.num_entries == 289
    assert plan.columns == frozenset()
    assert plan.num_bytes is None


def test_the_key_of_a_layout_is_short(nano_files: NanoFiles) -> None:
    one = planner(cache=None)
    files = one.load(nano_files.fileset, None).files
    facts, _, _ = one._inspect(list(files), None)
    keys = {plan_module._layout(fact) for fact in facts.values()}
    assert len(keys) == 1
    assert isinstance(keys.pop(), str)


def test_the_table_has_a_row_for_each_dataset(nano_files: NanoFiles) -> None:
    paths = [str(path) for path in nano_files.paths]
    plan = build_plan({"dy": paths, "tt": paths[:1]}, split=SplitOptions(100))
    assert plan.to_table().rows == (
        ("dy", "3", "289", "4", "40", "100"),
        ("tt", "1", "100", "1", "100", "100"),
        ("all", "4", "389", "5", "40", "100"),
    )
    assert "Plan" in repr(plan)
    assert plan._repr_html_().startswith("<table>")


def test_a_plan_of_bad_files_alone_has_a_table(tmp_path: Path) -> None:
    plan = build_plan({"dy": [str(tmp_path / "missing.root")]})
    assert plan.to_table().rows == (("dy", "1", "0", "0", "0", "0"),)
