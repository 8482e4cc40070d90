from __future__ import annotations

from typing import Any

import awkward as ak
import numpy as np
import pytest

from hepdask.errors import FileReadError
from hepdask.fileset import InputFile
from hepdask.ranges import EntryRange
from hepdask.readers.damage import (
    check_array,
    check_counts,
    check_offsets,
    find_read_error,
    has_offsets,
    layout_errors,
)

RANGE = EntryRange(InputFile("dy", "a.root", "Events", ("a.root",), {}), 0, 10)


def lists(offsets: list[int], content: Any) -> Any:
    index = ak.index.Index64(np.array(offsets))
    return ak.contents.ListOffsetArray(index, content)


NUMBERS = ak.contents.NumpyArray(np.arange(5.0))


@pytest.mark.parametrize(
    "layout",
    [
        NUMBERS,
        lists([0, 2, 2, 5], NUMBERS),
        lists([0, 1, 3], lists([0, 2, 2, 5], NUMBERS)),
        ak.contents.RegularArray(NUMBERS, 5),
    ],
)
def test_good_arrays_pass(layout: Any) -> None:
    check_array(ak.Array(layout), len(layout))


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (lists([0, 3, 2, 5], NUMBERS), "negative counts"),
        (lists([0, 2, 6], NUMBERS), "beyond the content"),
        (lists([0, 1, 3], lists([0, 3, 2, 5], NUMBERS)), "start"),
        (lists([0, 1, 4], lists([0, 2, 2, 5], NUMBERS)), "stop"),
    ],
)
def test_lists_that_point_nowhere(layout: Any, text: str) -> None:
    with pytest.raises(ValueError, match=f"inconsistent: .*{text}"):
        check_array(ak.Array(layout), len(layout))


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (lists([0, 2, 2, 5], NUMBERS), True),
        (lists([0, 2, 3, 5], NUMBERS), False),
        (lists([0, 2, 2], NUMBERS), False),
        (lists([0, 2, 2, 5], NUMBERS[:4]), False),
        (lists([0, 2, 2, 3], lists([0, 2, 2, 5], NUMBERS)), False),
        (NUMBERS, False),
    ],
)
def test_lists_like_those_that_were_checked(layout: Any, expected: bool) -> None:
    assert has_offsets(ak.Array(layout), np.array([0, 2, 2, 5])) is expected


def test_length_counts_and_offsets() -> None:
    with pytest.raises(ValueError, match="5 entries instead of 6"):
        check_array(ak.Array(NUMBERS), 6)
    check_counts(np.array([1, 2]), np.array([1, 2]), "nMuon")
    with pytest.raises(ValueError, match="not as long as 'nMuon' says"):
        check_counts(np.array([1, 2]), np.array([2, 1]), "nMuon")
    check_offsets(np.array([0, 0, 3]))
    with pytest.raises(ValueError, match="negative counts"):
        check_offsets(np.array([0, 3, 2]))


@pytest.mark.parametrize("kind", [KeyError, RuntimeError, NotImplementedError, RecursionError])
def test_whatever_a_layout_raises_is_a_read_error(kind: type[Exception]) -> None:
    with (
        pytest.raises(FileReadError, match=r"its branches as plain arrays failed"),
        layout_errors(RANGE, "plain arrays"),
    ):
        raise kind("x")


@pytest.mark.parametrize("kind", [MemoryError, ImportError])
def test_what_says_nothing_about_the_file_stays(kind: type[Exception]) -> None:
    with pytest.raises(kind, match="x"), layout_errors(RANGE, "plain arrays"):
        raise kind("x")


def test_an_error_of_a_lazy_array_is_found_below_the_users_own() -> None:
    form = {"class": "NumpyArray", "primitive": "float64", "form_key": "x"}
    lazy = ak.from_buffers(form, 9, {"x-data": lambda: np.ones(3)})
    try:
        try:
            ak.sum(lazy)
        except TypeError as error:
            raise ValueError("no muons here") from error
    except ValueError as error:
        found = find_read_error(error, RANGE)
    assert isinstance(found, FileReadError)
    assert "size of array" in str(found)


def test_an_error_of_the_user_is_none_of_the_file() -> None:
    with pytest.raises(TypeError, match="size of array") as caught:
        ak.from_buffers(
            {"class": "NumpyArray", "primitive": "int64", "form_key": "x"},
            9,
            {"x-data": np.ones(3, np.int64)},
        )
    assert find_read_error(caught.value, RANGE) is None
