from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hepdask.errors import OptionError
from hepdask.fileset import InputFile
from hepdask.metadata import FileMetadata
from hepdask.ranges import (
    MAX_RANGE_ENTRIES,
    TARGET_RANGE_BYTES,
    UNKNOWN_RANGE_ENTRIES,
    EntryRange,
    SplitOptions,
    choose_max_entries,
    limit_ranges,
    split_file,
)


def input_file(num_entries: int | None, dataset: str = "dy", **known: Any) -> InputFile:
    return InputFile(dataset, "a.root", "Events", ("a.root",), {}, num_entries=num_entries, **known)


def file_metadata(offsets: tuple[int, ...]) -> FileMetadata:
    return FileMetadata("a.root", "Events", offsets[-1], "0", offsets, (), "TTree")


def split(offsets: tuple[int, ...], options: SplitOptions, **more: Any) -> list[tuple[int, int]]:
    ranges = split_file(input_file(offsets[-1]), file_metadata(offsets), options, **more)
    return bounds(ranges)


def bounds(ranges: list[EntryRange]) -> list[tuple[int, int]]:
    return [(one.entry_start, one.entry_stop) for one in ranges]


def check_covers(found: list[tuple[int, int]], num_entries: int) -> None:
    """Check that every entry is in exactly one range, in order."""
    assert found[0][0] == 0
    assert found[-1][1] == num_entries
    assert all(left[1] == right[0] for left, right in pairwise(found))
    assert all(start < stop for start, stop in found) or found == [(0, 0)]


@pytest.mark.parametrize(
    ("num_entries", "chunksize", "sizes"),
    [
        (149, 100, [74, 75]),
        (100, 100, [100]),
        (101, 100, [50, 51]),
        (200, 100, [100, 100]),
        (10, 3, [2, 3, 2, 3]),
        (3, 1, [1, 1, 1]),
        (1, 100, [1]),
    ],
)
def test_files_are_cut_evenly(num_entries: int, chunksize: int, sizes: list[int]) -> None:
    ranges = split_file(input_file(num_entries), None, SplitOptions(chunksize))
    assert [one.num_entries for one in ranges] == sizes
    check_covers(bounds(ranges), num_entries)


@pytest.mark.parametrize(
    ("offsets", "chunksize", "align_clusters", "expected"),
    [
        # clusters of 50 of 149 entries: the cut is at an edge, not at 74
        ((0, 50, 100, 149), 100, None, [(0, 50), (50, 149)]),
        ((0, 50, 100, 149), 100, True, [(0, 50), (50, 149)]),
        ((0, 50, 100, 149), 100, False, [(0, 74), (74, 149)]),
        # a cluster that is larger than the maximum: cut, or kept whole where that is wanted
        ((0, 90, 100), 40, None, [(0, 30), (30, 60), (60, 100)]),
        ((0, 90, 100), 40, True, [(0, 90), (90, 100)]),
        ((0, 300), 100, True, [(0, 300)]),
        ((0, 300), 100, None, [(0, 100), (100, 200), (200, 300)]),
        # small ones are joined to as few, as equal ranges as possible
        ((0, 10, 20, 30, 40, 50, 60), 50, None, [(0, 30), (30, 60)]),
        ((0, 10, 20, 30), 1000, None, [(0, 30)]),
    ],
)
def test_ranges_end_at_cluster_edges(
    offsets: tuple[int, ...],
    chunksize: int,
    align_clusters: bool | None,
    expected: list[tuple[int, int]],
) -> None:
    assert split(offsets, SplitOptions(chunksize, align_clusters)) == expected


def test_a_cluster_up_to_twice_the_automatic_maximum_stays_whole() -> None:
    maximum = choose_max_entries(None)
    whole, cut = 2 * maximum, 2 * maximum + 1
    assert split((0, whole), SplitOptions()) == [(0, whole)]
    assert len(split((0, cut), SplitOptions())) == 2
    assert split((0, whole), SplitOptions(maximum)) == [(0, maximum), (maximum, whole)]


cluster_offsets = st.lists(st.integers(1, 60), min_size=1, max_size=40).map(
    lambda sizes: (0, *accumulate(sizes))
)


@settings(deadline=None)
@given(cluster_offsets, st.integers(1, 150), st.sampled_from([None, True, False]))
def test_each_entry_once_and_no_range_too_large(
    offsets: tuple[int, ...], chunksize: int, align_clusters: bool | None
) -> None:
    found = split(offsets, SplitOptions(chunksize, align_clusters))
    check_covers(found, offsets[-1])
    clusters = set(pairwise(offsets))
    for start, stop in found:
        if align_clusters:
            assert {start, stop} <= set(offsets)
            assert stop - start <= chunksize or (start, stop) in clusters
        else:
            assert stop - start <= chunksize


@settings(deadline=None)
@given(cluster_offsets, st.integers(1, 150))
def test_clusters_that_fit_are_never_cut(offsets: tuple[int, ...], chunksize: int) -> None:
    edges = {edge for piece in split(offsets, SplitOptions(chunksize)) for edge in piece}
    for start, stop in pairwise(offsets):
        if stop - start <= chunksize:
            assert not any(start < edge < stop for edge in edges)


@given(st.integers(1, 2_000), st.integers(1, 200))
def test_even_ranges_differ_by_one_entry_at_most(num_entries: int, chunksize: int) -> None:
    found = bounds(split_file(input_file(num_entries), None, SplitOptions(chunksize)))
    sizes = [stop - start for start, stop in found]
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-num_entries // chunksize)
    check_covers(found, num_entries)


@settings(deadline=None)
@given(cluster_offsets, st.integers(60, 150))
def test_groups_are_as_few_as_filling_one_after_the_other(
    offsets: tuple[int, ...], chunksize: int
) -> None:
    filled, start = 1, 0
    for left, right in pairwise(offsets):
        if right - start > chunksize:
            filled, start = filled + 1, left
    assert len(split(offsets, SplitOptions(chunksize))) == filled


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=1), st.booleans())
def test_steps_are_the_ranges(gaps_and_sizes: list[tuple[int, int]], is_inspected: bool) -> None:
    steps: list[tuple[int, int]] = []
    for gap, size in gaps_and_sizes:
        start = (steps[-1][1] if steps else 0) + gap
        steps.append((start, start + size))
    num_entries = steps[-1][1]
    metadata = file_metadata((0, num_entries)) if is_inspected else None
    file = input_file(num_entries if is_inspected else None, steps=tuple(steps))
    assert bounds(split_file(file, metadata, SplitOptions())) == steps


def test_only_an_explicit_chunksize_cuts_steps() -> None:
    file = input_file(1_000_000, steps=((0, 149), (200, 210), (300, 900_000)))
    assert bounds(split_file(file, None, SplitOptions())) == [(0, 149), (200, 210), (300, 900_000)]
    found = bounds(split_file(file, None, SplitOptions(500_000)))
    assert found == [(0, 149), (200, 210), (300, 450_150), (450_150, 900_000)]


@pytest.mark.parametrize("options", [SplitOptions(), SplitOptions(10), SplitOptions(10, True)])
def test_an_empty_file_gives_one_empty_range(options: SplitOptions) -> None:
    file = input_file(0)
    assert split_file(file, file_metadata((0,)), options) == [EntryRange(file, 0, 0)]
    assert split_file(file, None, options) == [EntryRange(file, 0, 0)]
    assert bounds(split_file(input_file(0, steps=()), None, options)) == [(0, 0)]


def test_no_steps_of_a_file_with_entries_give_no_range() -> None:
    assert split_file(input_file(10, steps=()), None, SplitOptions()) == []


def test_automatic_size_follows_the_bytes_in_use() -> None:
    assert choose_max_entries(None) == UNKNOWN_RANGE_ENTRIES
    assert choose_max_entries(0.0) == MAX_RANGE_ENTRIES
    assert choose_max_entries(1.0) == MAX_RANGE_ENTRIES
    assert choose_max_entries(1_024.0) == TARGET_RANGE_BYTES // 1_024
    assert choose_max_entries(1e12) == 1_024


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_automatic_size_falls_with_the_bytes(one: float, other: float) -> None:
    fewer, more = sorted((one, other))
    assert choose_max_entries(fewer) >= choose_max_entries(more)


def test_automatic_ranges_are_balanced_and_aligned() -> None:
    offsets = tuple(range(0, 1_000_001, 10_000))
    found = split(offsets, SplitOptions(), bytes_per_entry=1_024.0)  # at most 65,536 entries
    sizes = {stop - start for start, stop in found}
    check_covers(found, 1_000_000)
    assert sizes == {60_000, 50_000}
    assert len(found) == 17


@pytest.mark.parametrize("chunksize", [0, -1, True, 10.0, "10"])
def test_a_wrong_chunksize_is_refused(chunksize: Any) -> None:
    with pytest.raises(OptionError, match=r"chunksize is .*: give a positive number of entries"):
        SplitOptions(chunksize)


def test_limit_counts_by_dataset() -> None:
    ranges = [
        EntryRange(input_file(10, dataset), start, start + 1)
        for dataset in ("dy", "tt")
        for start in range(3)
    ]
    assert limit_ranges(iter(ranges), None) == ranges
    assert limit_ranges(ranges, 2) == [*ranges[:2], *ranges[3:5]]
    assert limit_ranges(ranges, 5) == ranges


def test_a_range_says_where_it_is() -> None:
    text = str(EntryRange(input_file(10), 3, 7))
    assert text == "entries 3 to 7 of 'Events' in a.root (dataset 'dy')"
    assert EntryRange(input_file(10), 3, 7).num_entries == 4
