"""One run, from the plan to the result, and on from there after failures."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from hepdask.checkpoints import open_stored
from hepdask.completeness import build_completeness
from hepdask.errors import ProcessorError, RunError
from hepdask.executors import Job, Outcome
from hepdask.failures import Failures
from hepdask.fileset import Dataset, Fileset
from hepdask.luminosity import collect_luminosity
from hepdask.partial import PartialResult, merge_results
from hepdask.past import name_processor
from hepdask.plan import Limits
from hepdask.processor import call_postprocess
from hepdask.readers.uses import Uses
from hepdask.replay import ReplayContext
from hepdask.result import RunResult
from hepdask.run_metrics import RunMetrics
from hepdask.tree import arrange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from hepdask.attempt import Work
    from hepdask.executors import Executor
    from hepdask.fileset import InputFile
    from hepdask.luminosity import Luminosity
    from hepdask.metadata import MetadataCache
    from hepdask.metrics import Counters
    from hepdask.opening import ReadOptions
    from hepdask.past import PastCosts
    from hepdask.plan import Plan, Planner
    from hepdask.progress import Progress
    from hepdask.ranges import EntryRange
    from hepdask.shipping import Cargo
    from hepdask.stopping import StopRules
    from hepdask.store import Section

__all__ = ["Run"]


@dataclass(frozen=True, slots=True)
class _State:
    """What a run has come to: enough to go on."""

    plan: Plan
    partial: PartialResult
    outcome: Outcome
    inspect_seconds: float


@dataclass(frozen=True, slots=True)
class Run:
    """What is the same for a run and for those that resume it.

    Attributes
    ----------
    executor : Executor
        Where it runs.
    processor : object
        The user's, for its `postprocess`.
    work : Work
        What is done with each range.
    rules : StopRules
        What ends it early.
    make_planner : callable
        Makes the planner that shows its progress there.
    choose_progress : callable
        Makes a progress display.
    cache : MetadataCache or None
        Forgets files that turn out to have changed.
    section : Section or None
        Where the store keeps results of this work; None: there is no store.
    past : PastCosts or None
        Where what the run took is noted.
    load_cargo : callable or None
        Finds what the executor takes to the workers; a run that is resumed takes what has been edited since.
    """

    executor: Executor
    processor: Any
    work: Work
    rules: StopRules
    make_planner: Callable[[Progress], Planner]
    choose_progress: Callable[[], Progress]
    cache: MetadataCache | None
    section: Section | None = None
    past: PastCosts | None = None
    load_cargo: Callable[[], Cargo] | None = None

    def start(self, fileset: Any, treename: str | None) -> RunResult:
        """Run a fileset.

        Raises
        ------
        FilesetError
            If something is wrong in the fileset.
        StoreError
            If there is a store that can't be read.
        RunError
            If something failed that isn't skipped, or the run was interrupted.
        """
        progress = self.choose_progress()
        try:
            planner = self.make_planner(progress)
            started = time.perf_counter()
            with self.executor.carrying(self.load_cargo):
                plan = planner.plan(planner.load(fileset, treename).files, self.work)
                state = self._process(plan, progress, time.perf_counter() - started)
        finally:
            progress.close()
        return self._conclude(state, planner.options)

    def _resume(self, before: _State) -> RunResult:
        progress = self.choose_progress()
        try:
            # the limits have been applied to what is left
            planner = replace(self.make_planner(progress), limits=Limits())
            started = time.perf_counter()
            # with a store, what was done is found there, each node in its own place of the tree
            missing = _uninspected_files(before) if self.section else _missing_files(before)
            with self.executor.carrying(self.load_cargo):
                plan = planner.plan(missing, self.work)
                if self.section is not None:
                    plan = _unite_plans(before.plan, plan)
                state = self._process(plan, progress, time.perf_counter() - started)
        finally:
            progress.close()
        if self.section is None:
            state = _join(before, state)
        return self._conclude(state, planner.options)

    def _process(self, plan: Plan, progress: Progress, inspect_seconds: float) -> _State:
        bad = next((one for one in plan.failures if not one.is_skipped), None)
        stopped_by = plan.stopped_by or (str(bad) if bad else "")
        if stopped_by or not plan.ranges:
            outcome = Outcome(PartialResult(), stopped_by=stopped_by)
        else:
            job = self._build_job(plan)
            outcome = _find_finished(job) or self.executor.reduce(job, progress)
            while outcome.was_lost and self.executor.reconnect():
                # with a store, what was done is found there; else the scheduler has forgotten it
                job = self._build_job(plan)
                outcome = _find_finished(job) or self.executor.reduce(job, progress)
            if self.past is not None:
                sums = _sum_layouts(plan, outcome.root.metrics.files)
                self.past.note(name_processor(self.processor), sums)
        return _State(plan, outcome.root, outcome, inspect_seconds)

    def _build_job(self, plan: Plan) -> Job:
        tree = arrange(plan.ranges)
        name = getattr(self.processor, "__name__", type(self.processor).__name__)
        stored = None if self.section is None else open_stored(self.section, tree, plan.ranges)
        return Job(
            name,
            plan.ranges,
            tree,
            replace(self.work, uses=Uses(plan.seeds)),
            stored,
            self.rules,
            _estimate_failed(plan),
            plan.weigh(),
        )

    def _conclude(self, state: _State, options: ReadOptions) -> RunResult:
        plan, partial, outcome = state.plan, state.partial, state.outcome
        context = ReplayContext(self.work.reader, options, plan.files)
        failures = Failures((*plan.failures, *partial.failures), context)
        completeness = build_completeness(plan.files, plan.ranges, partial.processed, failures)
        completeness.check()
        completeness = completeness.with_luminosity(
            lambda: self.executor.dispatch(lambda: self._find_luminosity(state, options))
        )
        self._forget_changed(failures)
        accumulator = partial.accumulator
        if not completeness.is_complete:
            # postprocess may change it in place, and what is resumed goes on from here
            accumulator = copy.deepcopy(accumulator)
        result = RunResult(
            accumulator,
            _build_metrics(state),
            failures,
            completeness,
            outcome.stopped_by,
            partial.messages,
            lambda: self.executor.dispatch(lambda: self._resume(state)),
            lambda: _group_files(_missing_files(state)),
        )
        result = self._postprocess(result)
        self._check_finished(result)
        return result

    def _find_luminosity(self, state: _State, options: ReadOptions) -> Luminosity:
        progress = self.choose_progress()
        try:
            return collect_luminosity(
                self.executor,
                state.plan.files,
                state.plan.ranges,
                state.partial.processed,
                options=options,
                recovery=self.work.recovery,
                progress=progress,
            )
        finally:
            progress.close()

    def _postprocess(self, result: RunResult) -> RunResult:
        try:
            output = call_postprocess(self.processor, result.output, result.completeness)
        except ProcessorError as error:
            text = f"{error}\nthe output as it was before is in this error's partial_result"
            raise RunError(text, partial_result=result) from error
        return replace(result, output=output)

    def _check_finished(self, result: RunResult) -> None:
        """Raise if the run ended before everything was tried, or something failed that isn't skipped."""
        fatal = next((one for one in result.failures if not one.is_skipped), None)
        total = result.completeness.total
        if fatal is None and not result.stopped_by and not total.num_entries_not_reached:
            return
        unread = f" ({total.num_files_unknown} files were not inspected)"
        text = (
            f"{fatal or result.stopped_by or 'the executor did not reach all ranges'}\n"
            f"{total.num_entries_processed:,} of {total.num_entries_requested:,} entries were processed"
            f"{unread if total.num_files_unknown else ''}: they are in this error's partial_result (.output, "
            ".completeness, .failures), and partial_result.resume() goes on from there"
        )
        if fatal is not None and fatal.how_to_skip:
            text += f"; {fatal.how_to_skip}"
        if fatal is not None and fatal.kind == "user" and fatal.entry_start is not None:
            index = result.failures.index(fatal)
            text += f"\nreplay it here: error.partial_result.failures.replay({index}, processor)"
        if self.section is not None:
            text += f"\nwhat is done is in the store: the same run goes on from {self.section.url}"
        error = RunError(text, partial_result=result)
        cause = fatal.exception if fatal is not None else None
        if cause is None:
            raise error
        # a debugger then stands where it happened, in the user's frames
        innermost = cause.__cause__ or cause
        raise error.with_traceback(innermost.__traceback__) from cause

    def _forget_changed(self, failures: Failures) -> None:
        for failure in failures:
            if self.cache is not None and failure.exception_type.endswith("FileChangedError"):
                self.cache.forget(failure.file_path, failure.treename)


def _sum_layouts(plan: Plan, files: Mapping[tuple[str, str], Counters]) -> dict[str, Counters]:
    """Add up what the files of each layout took."""
    treenames = {_file_key(one): one.treename for one in plan.files}
    sums: dict[str, Counters] = {}
    for (dataset, file_path), counters in files.items():
        layout = plan.layouts.get((file_path, treenames.get((dataset, file_path), "")))
        digest = "" if layout is None else layout.digest
        sums[digest] = sums[digest] + counters if digest in sums else counters
    return sums


def _build_metrics(state: _State) -> RunMetrics:
    outcome = state.outcome
    predicted = state.plan.predict()
    return RunMetrics(
        state.partial.metrics,
        num_tasks=outcome.num_tasks,
        num_merges=outcome.num_merges,
        inspect_seconds=state.inspect_seconds,
        run_seconds=outcome.run_seconds,
        queue_seconds=outcome.queue_seconds,
        transfer_seconds=outcome.transfer_seconds,
        predicted_busy_seconds=predicted.busy_seconds,
        predicted_num_bytes=predicted.num_bytes,
    )


def _find_finished(job: Job) -> Outcome | None:
    """Take the root from the store, if it is there."""
    root = None if job.stored is None else job.stored.root
    return None if root is None else Outcome(root)


def _estimate_failed(plan: Plan) -> int:
    """Estimate the entries of files that could not be inspected, by the mean of the others."""
    num_known = len({_file_key(one.file) for one in plan.ranges})
    return plan.num_entries * len(plan.failures) // num_known if num_known else 0


def _join(before: _State | None, now: _State) -> _State:
    """Put what was resumed behind what was there."""
    if before is None:
        return now
    files = {(one.dataset, one.file_path): one for one in before.plan.files}
    files.update({(one.dataset, one.file_path): one for one in now.plan.files})
    ranges = _unite_ranges(before.plan.ranges, now.plan.ranges)
    return _State(
        replace(now.plan, files=tuple(files.values()), ranges=ranges),
        merge_results(replace(before.partial, failures=()), now.partial),
        replace(
            now.outcome,
            num_tasks=before.outcome.num_tasks + now.outcome.num_tasks,
            num_merges=before.outcome.num_merges + now.outcome.num_merges,
            run_seconds=before.outcome.run_seconds + now.outcome.run_seconds,
            transfer_seconds=before.outcome.transfer_seconds + now.outcome.transfer_seconds,
        ),
        before.inspect_seconds + now.inspect_seconds,
    )


def _unite_ranges(
    before: tuple[EntryRange, ...], now: tuple[EntryRange, ...]
) -> tuple[EntryRange, ...]:
    """Add the ranges of files that could be inspected only now; the others were asked for before."""
    known = {_file_key(one.file) for one in before}
    return before + tuple(one for one in now if _file_key(one.file) not in known)


def _unite_plans(before: Plan, now: Plan) -> Plan:
    """Put what could be inspected only now into its place in dataset order."""
    found = {_file_key(one): one for one in now.files}
    files = tuple(found.get(_file_key(one), one) for one in before.files)
    ranges: dict[tuple[str, str], list[EntryRange]] = {_file_key(one): [] for one in files}
    for one in _unite_ranges(before.ranges, now.ranges):
        ranges[_file_key(one.file)].append(one)
    return replace(now, files=files, ranges=tuple(chain.from_iterable(ranges.values())))


def _uninspected_files(state: _State) -> list[InputFile]:
    planned = {_file_key(one.file) for one in state.plan.ranges}
    failed = {(one.dataset, one.file_path) for one in state.plan.failures}
    return [
        one
        for one in state.plan.files
        if _file_key(one) not in planned and (_file_key(one) in failed or one.steps != ())
    ]


def _missing_files(state: _State) -> list[InputFile]:
    """Return the files of which something is missing, with what is missing as their steps."""
    done: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for span in state.partial.processed:
        done.setdefault(span[:2], []).append((span.entry_start, span.entry_stop))
    steps: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for one in state.plan.ranges:
        spans = done.get(_file_key(one.file), ())
        gaps = _find_gaps((one.entry_start, one.entry_stop), spans)
        if gaps:
            steps.setdefault(_file_key(one.file), []).extend(gaps)
    planned = {_file_key(one.file) for one in state.plan.ranges}
    missing = []
    for file in state.plan.files:
        key = _file_key(file)
        if key in steps:
            missing.append(replace(file, steps=tuple(steps[key])))
        elif key not in planned and file.num_entries is None:
            missing.append(file)
    return missing


def _find_gaps(bounds: tuple[int, int], spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return what of a range is not done: one that was halved may have been done in part."""
    start, stop = bounds
    if start == stop:  # the one range of an empty file
        return [] if any(first <= start <= last for first, last in spans) else [bounds]
    gaps = []
    for first, last in sorted(spans):
        if last <= start or first >= stop:
            continue
        if first > start:
            gaps.append((start, first))
        start = last
    return [*gaps, (start, stop)] if start < stop else gaps


def _group_files(files: Iterable[InputFile]) -> Fileset:
    datasets: dict[str, list[InputFile]] = {}
    for file in files:
        datasets.setdefault(file.dataset, []).append(file)
    return Fileset(
        tuple(Dataset(name, tuple(found), found[0].metadata) for name, found in datasets.items())
    )


def _file_key(file: InputFile) -> tuple[str, str]:
    return file.dataset, file.file_path
