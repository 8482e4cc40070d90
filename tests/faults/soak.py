"""Random schedules of real faults, for a given time: whatever happens to a run, what it says of itself must be true.

``python -m tests.faults.soak --minutes 10 --seed 1`` draws rounds (see `rounds`), runs each on a cluster of its own while
workers, servers, files and events go wrong (see `stage`, `injection`), repairs what can be repaired, resumes, and checks after each
run what must hold (see `invariants`). It prints a line for each round, and returns 1 if something was violated, with the command
that repeats the round: ``--round-seed N``. A round that takes too long is a violation, too: then all stacks are shown.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hepdask import RunError
from tests.faults.injection import Injector, Timed
from tests.faults.invariants import check_result
from tests.faults.rounds import Round, draw_round
from tests.faults.stage import Stage
from tests.servers import FAST_XROOTD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from hepdask import RunResult

__all__ = ["Report", "main", "run_round", "soak"]

ROUND_SECONDS = 400.0
MAX_RESUMES = 4


@dataclass(frozen=True, slots=True)
class Report:
    """How a round ended.

    Attributes
    ----------
    one : Round
        Which.
    steps : tuple of str
        The runs and what became of them.
    violations : tuple of str
        What must not be.
    seconds : float
        How long it took.
    """

    one: Round
    steps: tuple[str, ...]
    violations: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        verdict = "VIOLATED" if self.violations else "ok"
        text = (
            f"{verdict} seed {self.one.seed} [{self.one.setup}] [{self.one.troubles}] "
            f"{' -> '.join(self.steps)} in {self.seconds:.1f} s"
        )
        again = f"\n    repeat it: python -m tests.faults.soak --round-seed {self.one.seed}"
        listed = "".join(f"\n    {one}" for one in self.violations)
        return text + (listed + again if self.violations else "")


@dataclass
class _Course:
    """The runs of a round, one after the other."""

    stage: Stage
    steps: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def play(self) -> None:
        """Run, repair, and resume until all is done, or nothing can be done."""
        stage = self.stage
        injector = self._schedule()
        result = self._step("run", stage.start, injector)
        self.steps[-1] += injector.summary
        stage.repair()
        for _ in range(MAX_RESUMES):
            if result is None:
                result = self._step("run again", stage.start)
                continue
            if result.is_complete:
                break
            before = result.completeness.total.num_entries_processed
            result = self._step("resume", result.resume) or result
            if result.completeness.total.num_entries_processed == before:
                break
        if result is None or (not result.is_complete and self._can_be_completed()):
            self.violations.append("what is repaired and cured can't be completed")
        elif result.is_complete and stage.store is not None:
            self._step("rerun", stage.start)

    def _schedule(self) -> Injector:
        stage = self.stage
        timed = stage.schedule()
        injector = Injector(stage.log / "begun", timed)
        for fault in stage.one.faults:
            if fault.how == "interrupt" and fault.seconds is not None:
                for number in range(fault.target):
                    injector.add(
                        Timed(fault.seconds + 0.3 * number, False, self._interrupt(injector))
                    )
        return injector

    def _interrupt(self, injector: Injector) -> Callable[[], None]:
        def interrupt() -> None:
            self.stage.facts.was_interrupted = True
            injector.interrupt()

        return interrupt

    def _can_be_completed(self) -> bool:
        one = self.stage.one
        return "misfit" not in one.hows and (one.is_cured or not one.poisons)

    def _step(
        self, name: str, run: Callable[[], RunResult], injector: Injector | None = None
    ) -> RunResult | None:
        raised = False
        try:
            result = _run_with(run, injector)
        except RunError as error:
            result, raised = error.partial_result, True
        except KeyboardInterrupt:  # before the first range, or after the last one
            self.steps.append(f"{name}: interrupted outside")
            if injector is None:
                raise
            return None
        except Exception:  # noqa: BLE001  # none may get out
            self.steps.append(f"{name}: ERROR")
            self.violations.append(f"{name} raised:\n{traceback.format_exc()}")
            return None
        found = check_result(self.stage.facts, result, raised=raised)
        self.violations.extend(f"{name}: {one}" for one in found)
        self.steps.append(f"{name}: {_describe(result)}")
        return result


def _run_with(run: Callable[[], RunResult], injector: Injector | None) -> RunResult:
    if injector is None:
        return run()
    injector.start()
    try:
        return run()
    finally:
        injector.disarm()
        injector.finish()


def _describe(result: RunResult) -> str:
    total = result.completeness.total
    if result.is_complete:
        return "complete"
    kinds = Counter(one.kind for one in result.failures)
    failed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    stopped = f", stopped by {result.stopped_by[:40]!r}" if result.stopped_by else ""
    return f"{total.num_entries_processed}/{total.num_entries_requested} ({failed or 'none'} failed{stopped})"


def run_round(one: Round, directory: Path) -> Report:
    """Run one round.

    Parameters
    ----------
    one : Round
        As drawn.
    directory : Path
        Empty, and readable to everybody.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        course = _Course(Stage(one, directory, stack))
        course.play()
    seconds = time.monotonic() - started
    return Report(one, tuple(course.steps), tuple(course.violations), seconds)


@contextmanager
def watchdog(one: Round, seconds: float, directory: Path) -> Iterator[None]:
    """End this process if a round takes too long, and show what it and its workers are doing."""

    def bark() -> None:
        print(f"HANGS seed {one.seed} [{one.setup}] [{one.troubles}]", flush=True)
        print(f"    repeat it: python -m tests.faults.soak --round-seed {one.seed}", flush=True)
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        for pid in _children():
            with suppress(OSError):
                os.kill(pid, signal.SIGUSR1 if _shows_stacks(pid) else signal.SIGKILL)
        time.sleep(1)
        for pid in _children():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        print(f"    its files are in {directory}", flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, bark)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _children() -> list[int]:
    """List the processes that this one has started."""
    tasks = Path("/proc/self/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


def _shows_stacks(pid: int) -> bool:
    """Return whether a process catches SIGUSR1, which ends others."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGUSR1 - 1) & 1)


def soak(
    seeds: Iterator[int] | Sequence[int], *, minutes: float, round_seconds: float
) -> list[Report]:
    """Run rounds until the time is up or there are no more seeds, and print each.

    Parameters
    ----------
    seeds : iterable of int
        Of the rounds.
    minutes : float
        No round is begun after this time.
    round_seconds : float
        What a round may take.
    """
    end = time.monotonic() + 60 * minutes
    reports = []
    for seed in seeds:
        if time.monotonic() > end:
            break
        one = draw_round(seed)
        with tempfile.TemporaryDirectory(
            prefix="hepdask-soak-", ignore_cleanup_errors=True
        ) as name:
            directory = Path(name)
            directory.chmod(0o755)
            with watchdog(one, round_seconds, directory):
                reports.append(run_round(one, directory))
        print(reports[-1], flush=True)
    return reports


def _totals(reports: Sequence[Report]) -> str:
    hows = Counter(how for report in reports for how in report.one.hows)
    bad = [report.one.seed for report in reports if report.violations]
    seconds = sum(report.seconds for report in reports)
    injected = ", ".join(f"{how} {count}" for how, count in sorted(hows.items()))
    return (
        f"{len(reports)} rounds in {seconds:.0f} s, {sum(len(one.steps) for one in reports)} runs\n"
        f"rounds with: {injected}\nviolated: {json.dumps(bad) if bad else 'none'}"
    )


def _round_seeds(seed: int) -> Iterator[int]:
    number = seed * 1_000_000
    while True:
        yield number
        number += 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return what the process exits with."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1, help="of the schedule of rounds")
    parser.add_argument("--round-seed", type=int, nargs="+", help="repeat these rounds")
    parser.add_argument("--round-seconds", type=float, default=ROUND_SECONDS)
    options = parser.parse_args(arguments)
    for name, value in FAST_XROOTD.items():
        os.environ.setdefault(name, value)
    seeds = options.round_seed or _round_seeds(options.seed)
    reports = soak(seeds, minutes=options.minutes, round_seconds=options.round_seconds)
    print(_totals(reports), flush=True)
    return 1 if any(report.violations for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
