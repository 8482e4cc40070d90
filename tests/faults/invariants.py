"""What must hold after a run, whatever has happened to it.

`check_result` compares a result with what the processor says in its output, and blames nothing but what was hurt.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.faults.rounds import DEADLY, HANGING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hepdask import Failure, RunResult
    from tests.faults.injection import FileFault
    from tests.faults.rounds import Round, SampleFile

__all__ = ["Facts", "check_result"]

Span = tuple[str, int, int]


@dataclass
class Facts:
    """What has happened until now.

    Attributes
    ----------
    one : Round
        What was set up.
    reference : dict
        Output of a run without faults.
    file_faults : dict
        Of each file (its key), and each place that it can be read from, what is wrong with it.
    late_file_faults : set of str
        Keys of the files that were damaged when ranges had begun already.
    down_servers : set of int
        Places whose server was away.
    is_cured : bool
        True if the poison is gone.
    was_interrupted : bool
        True if Ctrl-C was sent.
    was_paused : bool
        True if workers or servers were stopped for a time.
    was_resumed : bool
        True if this is not the first run.
    """

    one: Round
    reference: dict[str, Any]
    file_faults: dict[tuple[str, int], list[FileFault]] = field(default_factory=dict)
    late_file_faults: set[str] = field(default_factory=set)
    down_servers: set[int] = field(default_factory=set)
    is_cured: bool = False
    was_interrupted: bool = False
    was_paused: bool = False
    was_resumed: bool = False

    @property
    def num_places(self) -> int:
        """From how many places each file can be read."""
        return 2 if self.one.source == "replicas" else 1

    def poisoned(self, key: str, hows: tuple[str, ...]) -> set[int]:
        """Return the entries of a file that are poisoned in one of these ways."""
        if self.is_cured:
            return set()
        found = [(self.one.file_of(event), event) for event, how in self.one.poisons if how in hows]
        return {event - file.first_event for file, event in found if file.key == key}

    def excuses(self, key: str) -> frozenset[str]:
        """Return the kinds of failures that a file may have by what was done to it, or to its servers."""
        places = [self._excuses_at(key, place) for place in range(self.num_places)]
        return frozenset().union(*places) if all(places) else frozenset()

    def _excuses_at(self, key: str, place: int) -> set[str]:
        faults = self.file_faults.get((key, place), ())
        kinds = {"input"} if faults else set()
        # a file that is mapped into memory and cut kills who looks at what is gone (SIGBUS)
        if key in self.late_file_faults and any(one.how == "cut" for one in faults):
            kinds.add("resources")
        return kinds | ({"transient"} if place in self.down_servers else set())

    def unreadable(self, key: str) -> list[tuple[int, int]]:
        """Return the entries of a file that can't be read from anywhere."""
        if self.num_places > 1 or key in self.late_file_faults:
            return []
        faults = self.file_faults.get((key, 0), [])
        return [
            (one.entry_start, one.entry_stop)
            for one in faults
            if one.entry_start is not None and one.entry_stop is not None
        ]


def check_result(facts: Facts, result: RunResult, *, raised: bool) -> list[str]:
    """Check a result.

    Parameters
    ----------
    facts : Facts
        What it was made of.
    result : RunResult
        Returned, or of the error.
    raised : bool
        Whether it came with an error.

    Returns
    -------
    list of str
        What is violated.
    """
    return [
        *_check_output(facts, result),
        *_check_books(facts, result),
        *_check_blame(facts, result),
        *_check_end(facts, result, raised=raised),
        *_check_bits(facts, result),
    ]


def _spans(result: RunResult) -> list[Span]:
    return [] if result.output is None else list(result.output["spans"])


def _failed(result: RunResult) -> list[Span]:
    return [
        (_key(one), one.entry_start, one.entry_stop or 0)
        for one in result.failures
        if one.entry_start is not None
    ]


def _key(failure: Failure) -> str:
    return f"{failure.dataset}/{Path(failure.file_path).name}"


def _entries(spans: list[Span]) -> dict[str, list[int]]:
    entries: dict[str, list[int]] = defaultdict(list)
    for key, start, stop in spans:
        entries[key].extend(range(start, stop))
    return entries


def _check_output(facts: Facts, result: RunResult) -> Iterator[str]:
    """Check that the output is the fault-free one, of exactly the entries that the processor has seen."""
    output = result.output
    if output is None:
        return
    files = {one.key: one for one in facts.one.files}
    entries = _entries(_spans(result))
    digits = np.zeros(10, dtype=np.int64)
    for key, found in entries.items():
        events = np.asarray(found, dtype=np.int64) + files[key].first_event
        digits += np.bincount(events % 10, minlength=10)
        if output["counts"].get(key) != len(found) or output["sums"].get(key) != int(events.sum()):
            yield f"the sums of {key} are not those of its entries"
    if set(output["counts"]) != set(entries):
        yield "counts and spans are of different files"
    axis = output["digits"].axes[0].name
    if axis == "misfit" and "misfit" not in facts.one.hows:
        yield "the histogram is another one"
    elif axis != "misfit" and output["digits"].values().tolist() != digits.tolist():
        yield "the histogram is not that of the entries"
    if output["processed"] != sum(map(len, entries.values())):
        yield f"postprocess was told of {output['processed']} entries"


def _check_books(facts: Facts, result: RunResult) -> Iterator[str]:
    """Check the figures of each dataset, in entries and files."""
    done, failed = _entries(_spans(result)), _entries(_failed(result))
    unknown = {_key(one) for one in result.failures if one.entry_start is None}
    for file in facts.one.files:
        seen = done[file.key] + failed[file.key]
        if len(set(seen)) != len(seen):
            yield f"entries of {file.key} are in the output twice, or in output and failures, or in two failures"
        if not set(seen) <= set(range(file.num_entries)):
            yield f"entries of {file.key} that it doesn't have"
    for dataset in {one.dataset for one in facts.one.files}:
        files = [one for one in facts.one.files if one.dataset == dataset]
        expected = _expected_books(files, done, failed, unknown)
        books = result.completeness[dataset]
        found = {name: getattr(books, f"num_{name}") for name in expected}
        if found != expected:
            wrong = {
                one: (found[one], expected[one]) for one in found if found[one] != expected[one]
            }
            yield f"the books of {dataset} (found, expected): {wrong}"
    yield from _check_missing(facts, result, done, unknown)


def _expected_books(
    files: list[SampleFile],
    done: dict[str, list[int]],
    failed: dict[str, list[int]],
    unknown: set[str],
) -> dict[str, int]:
    known = [one for one in files if one.key not in unknown]
    bad = [one for one in files if one.key in unknown or failed[one.key]]
    whole = [one for one in known if len(done[one.key]) == one.num_entries and one not in bad]
    requested = sum(one.num_entries for one in known)
    num_done = sum(len(done[one.key]) for one in files)
    num_failed = sum(len(failed[one.key]) for one in files)
    return {
        "files_requested": len(files),
        "files_processed": len(whole),
        "files_failed": len(bad),
        "files_not_reached": len(files) - len(whole) - len(bad),
        "files_unknown": len([one for one in files if one.key in unknown]),
        "entries_requested": requested,
        "entries_processed": num_done,
        "entries_failed": num_failed,
        "entries_not_reached": requested - num_done - num_failed,
    }


def _check_missing(
    facts: Facts, result: RunResult, done: dict[str, list[int]], unknown: set[str]
) -> Iterator[str]:
    """Check that what is missing, as a fileset, is what is not in the output."""
    missing: dict[str, set[int]] = defaultdict(set)
    for dataset, one in result.missing_fileset().items():
        for path, entry in one["files"].items():
            key = f"{dataset}/{Path(path).name}"
            for start, stop in entry.get("steps") or ():
                missing[key].update(range(start, stop))
    for file in facts.one.files:
        if file.key in unknown:
            continue
        expected = set(range(file.num_entries)) - set(done[file.key])
        if missing[file.key] != expected:
            extra, lost = missing[file.key] - expected, expected - missing[file.key]
            yield f"missing_fileset() of {file.key} has {len(extra)} entries too many and {len(lost)} too few"


def _check_blame(facts: Facts, result: RunResult) -> Iterator[str]:
    """Check that each failure has its reason, and that what can't be processed was not."""
    for failure in result.failures:
        why = _find_fault(facts, failure)
        if why:
            yield f"{why}: {failure.kind} {failure}"
    for file in facts.one.files:
        done = set(_entries(_spans(result))[file.key])
        deadly = facts.poisoned(file.key, ("raise", *DEADLY, *HANGING))
        if done & deadly:
            yield f"poisoned entries {sorted(done & deadly)} of {file.key} are in the output"
        for start, stop in facts.unreadable(file.key):
            if done & set(range(start, stop)):
                yield f"damaged entries {start} to {stop} of {file.key} are in the output"


def _find_fault(facts: Facts, failure: Failure) -> str:
    """Say what is wrong with a failure; empty if it has its reason."""
    key = _key(failure)
    excuses = facts.excuses(key)
    if failure.entry_start is None:
        return "" if failure.kind in excuses else "a file that nobody has hurt"
    bounds = range(failure.entry_start, failure.entry_stop or 0)

    def holds(*hows: str) -> bool:
        return bool(facts.poisoned(key, hows) & set(bounds))

    if failure.is_late:
        is_allowed = holds(*HANGING) or "transient" in excuses or facts.was_paused
    elif failure.exception_type.endswith("AccumulatorError"):
        is_allowed = "misfit" in facts.one.hows
    elif failure.kind == "user":
        is_allowed = holds("raise")
    elif failure.kind == "resources":
        is_allowed = (len(bounds) == 1 and holds(*DEADLY)) or "resources" in excuses
    elif failure.kind == "setup":
        is_allowed = "unpickle" in facts.one.hows and not facts.is_cured
    else:
        is_allowed = failure.kind in excuses and _meets_damage(facts, key, bounds)
    return "" if is_allowed else "an innocent range is blamed"


def _meets_damage(facts: Facts, key: str, bounds: range) -> bool:
    faults = [
        fault for (one, _), found in facts.file_faults.items() if one == key for fault in found
    ]
    if facts.down_servers or any(one.entry_start is None for one in faults):
        return True
    return any(
        bounds.start < (one.entry_stop or 0) and (one.entry_start or 0) < bounds.stop
        for one in faults
    )


def _check_end(facts: Facts, result: RunResult, *, raised: bool) -> Iterator[str]:
    """Check that a run ends early only for a reason that is there, and says so."""
    fatal = [one for one in result.failures if not one.is_skipped]
    not_reached = result.completeness.total.num_entries_not_reached
    was_interrupted = result.stopped_by.startswith("interrupted")
    if not_reached and not result.stopped_by:
        yield f"{not_reached} entries were not reached, and nothing says why"
    if was_interrupted and not facts.was_interrupted:
        yield "nobody has interrupted it"
    if result.stopped_by and not was_interrupted and not fatal:
        yield f"stopped by what is not in the failures: {result.stopped_by}"
    if raised != bool(fatal or result.stopped_by or not_reached):
        yield f"{'an error' if raised else 'no error'} with {len(fatal)} fatal failures, {not_reached} not reached"
    if result.is_complete != (not result.failures and not not_reached):
        yield f"is_complete is {result.is_complete}"


def _check_bits(facts: Facts, result: RunResult) -> Iterator[str]:
    """Check the float sum, to the last bit, where nothing is missing and no range was split."""
    if not result.is_complete:
        return
    spans, expected = _spans(result), facts.reference["spans"]
    may_split = facts.one.max_entries is not None or "resources" in facts.one.hows
    may_split = may_split or any(how in DEADLY for how in facts.one.hows)
    has_order = facts.one.has_store or not facts.was_resumed
    if spans == expected:
        if result.output["weight"].hex() != facts.reference["weight"].hex():
            yield f"the sum is {result.output['weight'].hex()}, and not {facts.reference['weight'].hex()}"
    elif sorted(spans) == sorted(expected):
        if has_order:
            yield "the order is not that of the datasets"
    elif not may_split:
        yield "ranges were split without need"
    elif has_order and spans != sorted(spans):
        yield "the order of split ranges is not that of the datasets"
    if not np.isclose(result.output["weight"], facts.reference["weight"], rtol=1e-9):
        yield "the sum is another one"
