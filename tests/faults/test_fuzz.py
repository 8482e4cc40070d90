"""Damaged files of all kinds, some hundreds of the thousands that `fuzz` makes."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.faults import fuzz

if TYPE_CHECKING:
    from collections.abc import Sequence

FIRST = 77_000_000
NUM_INPUTS = 96


@pytest.fixture(scope="module")
def report() -> fuzz.Report:
    return fuzz.fuzz(range(FIRST, FIRST + NUM_INPUTS), num_jobs=2)


def test_each_ends_in_a_result_or_a_known_failure(report: fuzz.Report) -> None:
    assert [one.seed for one in report.outcomes] == [*range(FIRST, FIRST + NUM_INPUTS)]
    assert report.bad == [], str(report)


def test_all_kinds_of_files_are_hurt(report: fuzz.Report) -> None:
    failed = {one.sample for one in report.outcomes if one.end == "input"}
    assert failed == {one.sample for one in report.outcomes}
    # not so much that nothing is read any more
    assert {"same", "differs"} < {one.end for one in report.outcomes}


def test_failures_say_what_is_wrong(report: fuzz.Report) -> None:
    texts = [one.text for one in report.outcomes if one.end == "input"]
    assert all("dataset 'fuzz', file " in text for text in texts)
    advised = sum("damaged" in text or "truncated" in text for text in texts)
    assert advised > len(texts) / 2


def test_an_input_follows_from_its_seed() -> None:
    sample = fuzz.sample_of(FIRST)
    damaged, text = fuzz.mutate(sample, FIRST)
    assert (damaged, text) == fuzz.mutate(sample, FIRST)
    assert damaged != sample.raw
    assert fuzz.mutate(sample, FIRST + 12)[1] != text


def test_the_input_that_kills_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "examine", examine_deadly)
    report = fuzz.fuzz(range(FIRST, FIRST + 4))
    assert [(one.seed, one.end) for one in report.bad] == [(FIRST + 1, "crash")]
    assert len(report.outcomes) == 4
    assert f"crash: --only {FIRST + 1}" in str(report)


def examine_deadly(seeds: Sequence[int]) -> list[fuzz.Outcome]:
    """Examine nothing; one of the inputs kills its process."""
    if FIRST + 1 in seeds:
        signal.raise_signal(signal.SIGKILL)
    return [fuzz.Outcome(seed, "TTree plain", "", "same") for seed in seeds]


def test_an_input_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "examine", examine_for_ever)
    monkeypatch.setattr(fuzz, "INPUT_SECONDS", 0.5)
    report = fuzz.fuzz([FIRST])
    assert [(one.seed, one.end) for one in report.bad] == [(FIRST, "hang")]


def examine_for_ever(seeds: Sequence[int]) -> list[fuzz.Outcome]:
    """Wait for a signal that never comes."""
    while seeds:
        signal.pause()
    return []


def test_a_poisoned_process_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(directory: object, names: object) -> str:
        return "the good file TTree plain ends as 'input'"

    monkeypatch.setattr(fuzz, "_find_poisoned", poisoned)
    (outcome,) = fuzz.examine([FIRST])
    assert outcome.end == "poison"
    with pytest.raises(fuzz.PoisonedError, match="TTree plain"):
        fuzz.examine([FIRST, FIRST + 1])


def test_the_command_returns_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--only", str(FIRST)]) == 0
    text = capsys.readouterr().out
    assert fuzz.sample_of(FIRST).name in text
    assert fuzz.mutate(fuzz.sample_of(FIRST), FIRST)[1] in text
