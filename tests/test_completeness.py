from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hepdask.completeness import (
    Completeness,
    DatasetCompleteness,
    Span,
    build_completeness,
)
from hepdask.errors import AccountingError
from hepdask.failures import Failure
from hepdask.fileset import InputFile
from hepdask.ranges import EntryRange


def input_file(number: int = 0, dataset: str = "dy") -> InputFile:
    path = f"{number}.root"
    return InputFile(dataset, path, "Events", (path,), {})


def span(start: int, stop: int, file: InputFile | None = None) -> Span:
    file = file or input_file()
    return Span(file.dataset, file.file_path, file.treename, start, stop)


def failure(start: int | None, stop: int | None, file: InputFile | None = None) -> Failure:
    file = file or input_file()
    return Failure(
        file.dataset, file.file_path, file.treename, start, stop, "input", "OSError", "gone"
    )


def ranges(*bounds: tuple[int, int], file: InputFile | None = None) -> list[EntryRange]:
    return [EntryRange(file or input_file(), start, stop) for start, stop in bounds]


def books(
    requested: list[EntryRange],
    processed: list[Span],
    failures: list[Failure],
    files: list[InputFile] | None = None,
) -> DatasetCompleteness:
    completeness = build_completeness(files or [input_file()], requested, processed, failures)
    completeness.check()
    return completeness["dy"]


def test_all_processed() -> None:
    one = books(ranges((0, 50), (50, 100)), [span(0, 100)], [])
    assert one == DatasetCompleteness(
        num_files_requested=1,
        num_files_processed=1,
        num_entries_requested=100,
        num_entries_processed=100,
    )
    assert one.is_complete
    assert one.fraction == 1


def test_processed_failed_and_not_reached() -> None:
    one = books(ranges((0, 50), (50, 100), (100, 120)), [span(0, 50)], [failure(50, 100)])
    assert one.num_files_failed == 1
    assert one.num_files_not_reached == 0
    assert one.num_entries_requested == 120
    assert one.num_entries_processed == 50
    assert one.num_entries_failed == 50
    assert one.num_entries_not_reached == 20
    assert not one.is_complete
    assert one.fraction == pytest.approx(50 / 120)


@pytest.mark.parametrize("processed", [[], [span(0, 10)]])
def test_a_file_that_was_not_finished_is_not_reached(processed: list[Span]) -> None:
    one = books(ranges((0, 10), (10, 20)), processed, [])
    assert (one.num_files_not_reached, one.num_files_failed, one.num_files_processed) == (1, 0, 0)
    assert one.num_entries_not_reached == 20 - 10 * len(processed)


def test_a_file_that_could_not_be_inspected_is_unknown() -> None:
    bad = input_file(1)
    one = books(ranges((0, 10)), [span(0, 10)], [failure(None, None, bad)], [input_file(), bad])
    assert (one.num_files_failed, one.num_files_unknown) == (1, 1)
    assert one.fraction == 1
    assert not one.is_complete


def test_an_empty_file_is_processed_when_its_empty_range_was() -> None:
    assert books(ranges((0, 0)), [span(0, 0)], []).is_complete
    assert books(ranges((0, 0)), [], []).num_files_not_reached == 1
    failed = books(ranges((0, 0)), [], [failure(0, 0)])
    assert (failed.num_files_failed, failed.is_complete) == (1, False)


def test_a_file_of_which_nothing_is_wanted_is_processed() -> None:
    assert books([], [], [], [replace(input_file(), steps=())]).is_complete


def test_a_file_that_nobody_has_inspected_is_not_reached() -> None:
    one = books(ranges((0, 10)), [span(0, 10)], [], [input_file(), input_file(1)])
    assert (one.num_files_processed, one.num_files_not_reached, one.num_files_unknown) == (1, 1, 1)
    assert not one.is_complete
    none = books([], [], [], [input_file()])
    table = str(Completeness({"dy": none}).to_table())
    assert "1 (1 unread)" in table
    assert "0%" in table
    assert "99.99%" not in table


def test_datasets_keep_their_order_and_are_summed() -> None:
    files = [input_file(0, "tt"), input_file(0, "dy"), input_file(1, "tt")]
    requested = [EntryRange(file, 0, 10) for file in files]
    completeness = build_completeness(files, requested, [span(0, 10, files[0])], [])
    completeness.check()
    assert list(completeness) == ["tt", "dy"]
    assert len(completeness) == 2
    assert completeness["tt"].num_entries_processed == 10
    assert completeness["dy"].num_entries_processed == 0
    assert completeness.total.num_files_requested == 3
    assert completeness.total.num_entries_requested == 30
    assert completeness.total.num_entries_not_reached == 20
    assert not completeness.is_complete


@pytest.mark.parametrize(
    ("processed", "failures", "match"),
    [
        # a range that nobody asked for, one that failed and was processed, one that failed twice
        ([span(0, 30)], [], r"'dy': 20 entries requested, but 30 processed"),
        ([span(0, 20)], [failure(0, 10)], r"20 processed \+ 10 failed \+ 0 not reached; .* bug"),
        ([], [failure(0, 20), failure(0, 20)], r"0 processed \+ 40 failed"),
    ],
)
def test_books_that_do_not_add_up_are_noticed(
    processed: list[Span], failures: list[Failure], match: str
) -> None:
    completeness = build_completeness([input_file()], ranges((0, 20)), processed, failures)
    with pytest.raises(AccountingError, match=match):
        completeness.check()


@pytest.mark.parametrize(
    "spans",
    [
        [span(0, 10), span(0, 10), span(20, 30)],
        [span(5, 15), span(0, 10)],
        [span(0, 100), span(40, 50)],
    ],
)
def test_entries_that_were_counted_twice_are_noticed(spans: list[Span]) -> None:
    # the sum alone could come out right
    with pytest.raises(AccountingError, match=r"of 0\.root were counted twice"):
        build_completeness([input_file()], ranges((0, 100)), spans, [])


def test_spans_may_come_in_any_order() -> None:
    assert books(ranges((0, 30)), [span(20, 30), span(0, 10), span(10, 20)], []).is_complete


def test_wrong_file_counts_are_noticed() -> None:
    wrong = Completeness({"dy": DatasetCompleteness(num_files_requested=2, num_files_processed=1)})
    with pytest.raises(AccountingError, match="2 files requested, but 1 processed"):
        wrong.check()


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({"num_entries_requested": 3, "num_entries_processed": 3}, "100%"),
        ({"num_entries_requested": 3, "num_entries_processed": 2}, "66.67%"),
        ({"num_entries_requested": 10**6, "num_entries_processed": 999_899}, "99.99%"),
        # never rounded up to something that looks complete
        ({"num_entries_requested": 10**6, "num_entries_processed": 999_999}, "99.99%"),
    ],
)
def test_only_what_is_complete_says_so(counts: dict[str, Any], text: str) -> None:
    is_complete = counts["num_entries_requested"] == counts["num_entries_processed"]
    one = DatasetCompleteness(num_files_requested=1, num_files_processed=int(is_complete), **counts)
    _, events = Completeness({"dy": one}).to_table().rows
    assert events[-1] == text


def test_the_table_flags_what_is_missing() -> None:
    bad = input_file(0, "tt")
    completeness = build_completeness(
        [input_file(), bad], ranges((0, 10)), [span(0, 10)], [failure(None, None, bad)]
    )
    table = completeness.to_table()
    assert [row[0] for row in table.rows] == ["dy", "", "tt", "", "all", ""]
    assert table.flagged == {2, 3, 4, 5}
    assert table.rows[2][4] == "1 (1 unread)"
    assert table.rows[3][2] == "0 + ?"
    assert "Completeness" in repr(completeness)
    assert completeness._repr_html_().count("color:") == 4
