from __future__ import annotations

from typing import Any

import pytest

from hepdask import OptionError
from hepdask.clusters import WORDS, list_systems
from hepdask.clusters.vocabulary import check_words, format_walltime


@pytest.mark.parametrize(
    ("name", "given", "parsed"),
    [
        ("walltime", "08:00:00", 28_800),
        ("walltime", "1-12:00:00", 129_600),
        ("walltime", "02:30", 9_000),
        ("walltime", "90 min", 5_400),
        ("walltime", 3600, 3_600),
        ("memory", "2 GB", 2_000_000_000),
        ("memory", "1900 MiB", 1_992_294_400),
        ("queue", 8, "8"),
        ("prologue", "a\nb", ("a", "b")),
        ("prologue", ["a", "b"], ("a", "b")),
        ("environment", {"A": 1}, {"A": "1"}),
        ("directives", {"MY.X": 1}, {"MY.X": 1}),
        ("worker_ports", "10000:10100", "10000:10100"),
        ("workers", 0, 0),
    ],
)
def test_each_value_is_brought_into_one_form(name: str, given: Any, parsed: Any) -> None:
    assert check_words("slurm", {name: given}, WORDS) == {name: parsed}


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("walltime", "soon", "give a time, like"),
        ("walltime", True, "give a time, like"),
        ("memory", "much", "give bytes, like"),
        ("memory", -1, "give bytes, like"),
        ("cores", 0, "a whole number, 1 or more"),
        ("cores", 1.5, "a whole number, 1 or more"),
        ("workers", False, "a whole number"),
        ("nanny", "yes", "True or False"),
        ("queue", "a\nb", "a text of one line"),
        ("prologue", 3, "a list of lines"),
        ("environment", {"A B": 1}, "'A B' is no name"),
        ("environment", "A=1", "names and values"),
        ("worker_ports", "100:10", "a range of ports"),
        ("cluster_class", "dask_lxplus", "a module and a class"),
    ],
)
def test_a_wrong_value_says_what_is_right(name: str, given: Any, expected: str) -> None:
    with pytest.raises(OptionError, match=rf"^slurm: {name} is .*{expected}"):
        check_words("slurm", {name: given}, WORDS)


def test_a_wrong_word_lists_the_right_ones() -> None:
    with pytest.raises(
        OptionError,
        match=r"slurm has no option 'qeue'; did you mean 'queue'\?; its options are cores, queue$",
    ):
        check_words("slurm", {"qeue": "x"}, ["queue", "cores"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"workers": 2, "maximum": 3}, "workers is a fixed number, maximum lets it change"),
        ({"minimum": 5, "maximum": 3}, "minimum is 5, maximum 3"),
    ],
)
def test_numbers_of_workers_agree(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(OptionError, match=expected):
        check_words("slurm", options, WORDS)


def test_none_stands_for_nothing() -> None:
    assert check_words("slurm", {"queue": None}, WORDS) == {}


def test_every_system_has_words_of_the_vocabulary() -> None:
    used = {word for system in list_systems().values() for word in system.words}
    assert used <= set(WORDS)
    assert set(WORDS) <= used


def test_times_are_written_as_batch_systems_read_them() -> None:
    assert format_walltime(90_061) == "25:01:01"
