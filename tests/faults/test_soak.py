"""The soak test: a short schedule, and whether what it checks can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from hepdask import Failures, LocalExecutor, RunError, Runner
from tests.example_processors import Accounted
from tests.faults import rounds, stage
from tests.faults.injection import damage_file, damage_store, write_events
from tests.faults.invariants import Facts, check_result

if TYPE_CHECKING:
    from collections.abc import Callable

REPOSITORY = Path(__file__).resolve().parent.parent.parent
CHUNKSIZE = 50
#: Workers that are killed and restarted, an event that kills, a file that is damaged meanwhile; a store, and the same run again.
SHORT_SEEDS = (5643,)
#: Two datasets, three files, of 120 entries each.
ONE = replace(
    rounds.draw_round(1),
    files=tuple(
        rounds.SampleFile(dataset, f"f{number}.root", number * rounds.EVENTS_PER_FILE, 120, 60)
        for number, dataset in enumerate(["d0", "d0", "d1"])
    ),
    source="local",
    chunksize=CHUNKSIZE,
    has_store=False,
    poisons=(),
    max_entries=None,
    faults=(),
)


@pytest.fixture
def fileset(tmp_path: Path) -> dict[str, Any]:
    """Write the files of `ONE`."""
    fileset: dict[str, Any] = {}
    for file in ONE.files:
        path = tmp_path / file.name
        write_events(path, file.first_event, file.num_entries, file.cluster_size)
        fileset.setdefault(file.dataset, {"files": []})["files"].append(str(path))
    return fileset


def run(fileset: dict[str, Any], log: Path, poisons: Any = None, **options: Any) -> Any:
    """Run here; an error's result is a result."""
    runner = Runner(
        LocalExecutor(),
        schema=None,
        chunksize=CHUNKSIZE,
        align_clusters=False,
        metadata_cache=False,
        progress=False,
        skipbadfiles=options.pop("skipbadfiles", stage.SKIPS["all"]),
        **options,
    )
    try:
        return runner.run(fileset, "Events", Accounted(log, poisons))
    except RunError as error:
        return error.partial_result


def test_a_round_follows_from_its_seed() -> None:
    assert rounds.draw_round(5) == rounds.draw_round(5)
    assert rounds.draw_round(5) != rounds.draw_round(6)


def test_every_fault_is_drawn() -> None:
    every = {
        *rounds.POISONS,
        *rounds.WORKER_FAULTS,
        *rounds.SERVER_FAULTS,
        *rounds.FILE_FAULTS,
        "interrupt",
        "too-large",
    }
    assert frozenset().union(*(rounds.draw_round(seed).hows for seed in range(300))) == every


def soak_command(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.faults.soak", *options],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_a_short_schedule() -> None:
    done = soak_command("--round-seed", *map(str, SHORT_SEEDS))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:3] for line in lines[: len(SHORT_SEEDS)]] == [
        ["ok", "seed", str(seed)] for seed in SHORT_SEEDS
    ]
    assert lines[-1] == "violated: none"


def test_a_round_that_hangs_is_shown(tmp_path: Path) -> None:
    done = soak_command("--round-seed", "4", "--round-seconds", "0.5", TMPDIR=str(tmp_path))
    assert done.returncode == 1
    assert "HANGS seed 4" in done.stdout
    assert "--round-seed 4" in done.stdout
    assert "in run_round" in done.stderr


def test_a_fault_free_run_violates_nothing(fileset: dict[str, Any], tmp_path: Path) -> None:
    result = run(fileset, tmp_path)
    assert check_result(Facts(ONE, result.output), result, raised=False) == []


def test_what_is_poisoned_may_fail(fileset: dict[str, Any], tmp_path: Path) -> None:
    poisons = {30: "raise", 1_000_070: "memory"}
    reference = run(fileset, tmp_path).output
    result = run(fileset, tmp_path, poisons)
    assert [one.num_entries for one in result.failures] == [40, 1]
    facts = Facts(replace(ONE, poisons=tuple(poisons.items())), reference)
    assert check_result(facts, result, raised=False) == []
    # without the excuse each is blamed on somebody innocent
    violations = check_result(Facts(ONE, reference), result, raised=False)
    assert ["innocent" in one for one in violations] == [True, True]
    cured = replace(facts, is_cured=True)
    assert len(check_result(cured, result, raised=False)) == 2


def _count_twice(result: Any) -> Any:
    result.output["spans"].append(result.output["spans"][0])
    return result


def _lose_a_span(result: Any) -> Any:
    del result.output["spans"][1]
    return result


def _change_a_sum(result: Any) -> Any:
    result.output["sums"]["d1/f2.root"] += 1
    return result


def _change_a_bin(result: Any) -> Any:
    result.output["digits"].view()[3] += 1
    return result


def _change_a_bit(result: Any) -> Any:
    result.output["weight"] *= 1 + 2**-52
    return result


def _change_the_order(result: Any) -> Any:
    result.output["spans"].reverse()
    return result


def _lie_to_postprocess(result: Any) -> Any:
    result.output["processed"] -= 1
    return result


def _stop_without_reason(result: Any) -> Any:
    return replace(result, stopped_by="task x could not be run")


def _interrupt_by_nobody(result: Any) -> Any:
    return replace(result, stopped_by="interrupted")


TAMPERED: dict[Callable[[Any], Any], str] = {
    _count_twice: "twice",
    _lose_a_span: "not those of its entries",
    _change_a_sum: "not those of its entries",
    _change_a_bin: "not that of the entries",
    _change_a_bit: "the sum is",
    _change_the_order: "the order is not",
    _lie_to_postprocess: "postprocess was told",
    _stop_without_reason: "not in the failures",
    _interrupt_by_nobody: "nobody has interrupted",
}


@pytest.mark.parametrize("tamper", TAMPERED, ids=lambda one: one.__name__)
def test_what_is_wrong_is_noticed(
    fileset: dict[str, Any], tmp_path: Path, tamper: Callable[[Any], Any]
) -> None:
    facts = Facts(ONE, run(fileset, tmp_path).output)
    violations = check_result(facts, tamper(run(fileset, tmp_path)), raised=False)
    assert any(TAMPERED[tamper] in one for one in violations)


def test_a_failure_that_is_not_listed_is_noticed(fileset: dict[str, Any], tmp_path: Path) -> None:
    poisons = {30: "raise"}
    facts = Facts(replace(ONE, poisons=tuple(poisons.items())), run(fileset, tmp_path).output)
    result = replace(run(fileset, tmp_path, poisons), failures=Failures())
    violations = check_result(facts, result, raised=False)
    assert any("the books of d0" in one for one in violations)


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_costs_its_basket(fileset: dict[str, Any], tmp_path: Path, seed: int) -> None:
    reference = run(fileset, tmp_path).output
    fault = damage_file(tmp_path / "f1.root", "flip", Random(seed))
    result = run(fileset, tmp_path)
    facts = Facts(ONE, reference, file_faults={("d0/f1.root", 0): [fault]})
    assert result.failures
    assert check_result(facts, result, raised=False) == []


@pytest.mark.parametrize("how", ["cut", "replace", "blank", "remove"])
def test_a_damaged_file_fails(fileset: dict[str, Any], tmp_path: Path, how: str) -> None:
    reference = run(fileset, tmp_path).output
    fault = damage_file(tmp_path / "f1.root", how, Random(1))
    result = run(fileset, tmp_path)
    facts = Facts(ONE, reference, file_faults={("d0/f1.root", 0): [fault]})
    assert {Path(one.file_path).name for one in result.failures} == {"f1.root"}
    assert check_result(facts, result, raised=False) == []


@pytest.mark.parametrize("has_store", [False, True])
def test_a_range_that_was_done_in_part_is_resumed_in_part(
    fileset: dict[str, Any], tmp_path: Path, has_store: bool
) -> None:
    poisons = {30: "memory", 45: "memory", 1_000_070: "memory"}
    one = replace(ONE, poisons=tuple(poisons.items()), has_store=has_store)
    facts = Facts(one, run(fileset, tmp_path).output)
    result = run(fileset, tmp_path, poisons, store=tmp_path / "store" if has_store else None)
    assert [one.num_entries for one in result.failures] == [1, 1, 1]
    missing = result.missing_fileset()["d0"]["files"].values()
    assert [one["steps"] for one in missing] == [[[30, 31], [45, 46]], [[70, 71]]]
    assert check_result(facts, result, raised=False) == []
    (tmp_path / "cured").touch()
    resumed = result.resume()
    assert resumed.is_complete
    facts = replace(facts, is_cured=True, was_resumed=True)
    assert check_result(facts, resumed, raised=False) == []
    if not has_store:
        assert resumed.metrics.total.num_entries == ONE.num_entries


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_store_changes_nothing(
    fileset: dict[str, Any], tmp_path: Path, seed: int
) -> None:
    poisons = {30: "raise", 1_000_070: "raise"}
    store = tmp_path / "store"
    one = replace(ONE, poisons=tuple(poisons.items()), has_store=True)
    facts = Facts(one, run(fileset, tmp_path).output, is_cured=True)
    run(fileset, tmp_path, poisons, store=store)
    assert damage_store(store, Random(seed)) > 0
    (tmp_path / "cured").touch()
    result = run(fileset, tmp_path, poisons, store=store)
    assert result.is_complete
    assert check_result(facts, result, raised=False) == []
