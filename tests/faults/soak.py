"""Random schedules of real faults, for a given time: whatever happens to a run, what it says of itself must be true.

``python -m tests.faults.soak --minutes 10 --seed 1`` draws rounds (see `rounds`), runs each on a cluster of its own while
workers, servers, files and events go wrong (see `injection`), repairs what can be repaired, resumes, and checks after each
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
from random import Random
from typing import TYPE_CHECKING, Any

from hepdask import (
    AccumulatorError,
    DaskExecutor,
    FileReadError,
    LocalExecutor,
    ProcessDiedError,
    ProcessorError,
    RangeTimeoutError,
    RecoveryPolicy,
    RunError,
    Runner,
)
from tests.faults.injection import (
    TREENAME,
    Injector,
    Outages,
    Timed,
    Workers,
    damage_file,
    damage_store,
    restore,
    write_events,
)
from tests.faults.invariants import Facts, check_result
from tests.faults.rounds import HANGING, Fault, Round, draw_round
from tests.servers import FAST_XROOTD, XrdServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from hepdask import RunResult

__all__ = ["Report", "main", "run_round", "soak"]

ROUND_SECONDS = 400.0
MAX_RESUMES = 4
#: A range that hangs is found after this time. Innocent ones must never take so long, however busy the machine is.
HANG_SECONDS = 10.0
SKIPS = {
    "all": (
        AccumulatorError,
        FileReadError,
        MemoryError,
        ProcessDiedError,
        ProcessorError,
        RangeTimeoutError,
    ),
    "files": True,
    "nothing": False,
}
#: Workers show their stacks when they are asked to, those that were started in place of others too.
_PRELOAD = "import faulthandler, signal\nfaulthandler.register(signal.SIGUSR1, all_threads=True)\n"


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


class Stage:
    """The files, servers and cluster of one round.

    Parameters
    ----------
    one : Round
        What to set up.
    directory : Path
        Empty; servers must be able to read below it.
    stack : ExitStack
        Ends it all.
    """

    def __init__(self, one: Round, directory: Path, stack: ExitStack) -> None:
        self.one = one
        self.log = directory / "log"
        self.store = directory / "store" if one.has_store else None
        self._intact = directory / "intact"
        self._random = Random(one.seed + 1)
        self.places = [directory / f"place{number}" for number in range(self.num_places)]
        for path in (self.log, self._intact, *self.places):
            path.mkdir()
        for file in one.files:
            path = self._intact / file.name
            write_events(path, file.first_event, file.num_entries, file.cluster_size)
            for place in self.places:
                restore(path, place / file.name)
        self.facts = Facts(one, self._run_reference())
        self.servers = [] if one.source == "local" else self._start_servers(stack)
        self.outages = [Outages(server) for server in self.servers]
        self.client, self.workers = _start_cluster(directory, stack)

    @property
    def num_places(self) -> int:
        """From how many places files are read."""
        return 2 if self.one.source == "replicas" else 1

    def fileset(self) -> dict[str, Any]:
        """Return what is run."""
        fileset: dict[str, Any] = {}
        for file in self.one.files:
            urls = [server.url(file.name) for server in self.servers]
            where: Any = urls if len(urls) > 1 else (urls or [str(self.places[0] / file.name)])[0]
            fileset.setdefault(file.dataset, {"files": []})["files"].append(where)
        return fileset

    def processor(self) -> Any:
        """Make the processor, with its poisons."""
        from tests.example_processors import Accounted, UnpicklableAccounted

        hows = self.one.hows
        kind = UnpicklableAccounted if "unpickle" in hows else Accounted
        num_ranges = max(1, self.one.num_entries // self.one.chunksize)
        poisons = {event: how for event, how in self.one.poisons if how != "unpickle"}
        seconds = self.one.work_seconds / num_ranges
        return kind(self.log, poisons, max_entries=self.one.max_entries, seconds=seconds)

    def start(self) -> RunResult:
        """Run it."""
        executor = DaskExecutor(
            self.client,
            split_every=self.one.split_every,
            max_ranges_per_task=self.one.max_ranges_per_task,
        )
        runner = self._runner(executor, skipbadfiles=SKIPS[self.one.skips], store=self.store)
        return self._run(runner, self.fileset(), self.processor())

    def schedule(self) -> list[Timed]:
        """Do what is done before the run; list what is done while it goes on."""
        later = []
        for fault in self.one.faults:
            if fault.seconds is None:
                self._hurt(fault)
            elif fault.how != "interrupt":
                later.append(Timed(fault.seconds, False, self._action(fault)))
        return later

    def repair(self) -> None:
        """Put files and servers right."""
        self.workers.wake_all()
        for file in self.one.files:
            for place in self.places:
                restore(self._intact / file.name, place / file.name)
        for outage in self.outages:
            # an XRootD server goes on to serve what was replaced, as long as any client has it open
            outage.end(restart=bool(self.facts.file_faults))
        self.facts.file_faults.clear()
        self.facts.late_file_faults.clear()
        self.facts.down_servers.clear()
        self.facts.was_paused = self.facts.was_interrupted = False
        self.facts.was_resumed = True
        self.workers.add()
        if self.one.is_cured:
            (self.log / "cured").touch()
            self.facts.is_cured = True
        if self.store is not None and self.one.damages_store:
            damage_store(self.store, self._random)

    def _action(self, fault: Fault) -> Callable[[], None]:
        return lambda: self._hurt(fault)

    def _hurt(self, fault: Fault) -> None:
        actions: dict[str, Callable[[], None]] = {
            "worker-kill": lambda: self.workers.signal(fault.target, signal.SIGKILL),
            "worker-term": lambda: self.workers.signal(fault.target, signal.SIGTERM),
            "worker-pause": lambda: self._pause_worker(fault),
            "worker-restart": lambda: self.workers.restart(fault.target),
            "worker-retire": lambda: self.workers.retire(fault.target),
            "worker-add": self.workers.add,
            "server-kill": lambda: self._hurt_server(fault),
            "server-stop": lambda: self._hurt_server(fault),
            "server-pause": lambda: self._hurt_server(fault),
        }
        actions.get(fault.how, lambda: self._hurt_file(fault))()

    def _pause_worker(self, fault: Fault) -> None:
        self.facts.was_paused = True
        self.workers.pause(fault.target, fault.lasts)

    def _hurt_server(self, fault: Fault) -> None:
        number = fault.target % len(self.servers)
        self.facts.down_servers.add(number)
        self.outages[number].begin(fault.how.removeprefix("server-"), fault.lasts)

    def _hurt_file(self, fault: Fault) -> None:
        number = fault.target % self.num_places
        file = self.one.files[fault.target % len(self.one.files)]
        path = self.places[number] / file.name
        faults = self.facts.file_faults.setdefault((file.key, number), [])
        if fault.seconds is not None:
            self.facts.late_file_faults.add(file.key)
        if not faults:  # what is damaged twice may be right again
            faults.append(damage_file(path, fault.how, self._random))

    def _start_servers(self, stack: ExitStack) -> list[XrdServer]:
        return [
            stack.enter_context(XrdServer(place, place.with_name(f"{place.name}-server")))
            for place in self.places
        ]

    def _run_reference(self) -> dict[str, Any]:
        from tests.example_processors import Accounted

        fileset: dict[str, Any] = {}
        for file in self.one.files:
            files = fileset.setdefault(file.dataset, {"files": []})["files"]
            files.append(str(self._intact / file.name))
        result = self._run(self._runner(LocalExecutor()), fileset, Accounted(self.log))
        (self.log / "begun").unlink()
        output: dict[str, Any] = result.output
        return output

    def _runner(self, executor: Any, **options: Any) -> Runner:
        return Runner(
            executor,
            schema=self.one.schema,
            chunksize=self.one.chunksize,
            recovery=self._policy(),
            xrootdtimeout=5,
            metadata_cache=False,
            progress=False,
            **options,
        )

    def _policy(self) -> RecoveryPolicy:
        hangs = not self.one.hows.isdisjoint(HANGING)
        return RecoveryPolicy(
            wait_seconds=0.2,
            max_wait_seconds=1,
            max_silent_seconds=5,
            max_range_seconds=HANG_SECONDS if hangs else 60,
        )

    def _run(self, runner: Runner, fileset: dict[str, Any], processor: Any) -> RunResult:
        result: RunResult = runner.run(fileset, TREENAME, processor_instance=processor)
        return result


def _start_cluster(directory: Path, stack: ExitStack) -> tuple[Any, Workers]:
    import distributed

    cluster = stack.enter_context(
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=":0",
            silence_logs=50,
            memory_limit="2GB",
            preload=[_PRELOAD],
            local_directory=str(directory / "dask"),
        )
    )
    client = stack.enter_context(distributed.Client(cluster, set_as_default=False))
    workers = Workers(cluster, client)
    stack.callback(workers.wake_all)
    return client, workers


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
