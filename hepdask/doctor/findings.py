"""What will break, where, and what to do about it: judged from facts alone."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hepdask.shipping.credentials import PROXY, format_end
from hepdask.shipping.packing import format_bytes
from hepdask.versions import LIBRARIES, TRANSPORT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from hepdask.doctor.facts import ClusterFacts, Facts
    from hepdask.shipping.credentials import Lifetime

__all__ = ["Expectations", "Finding", "judge"]

Level = Literal["broken", "risky"]

#: Python, uproot and coffea alone take 300 MB.
MIN_MEMORY_BYTES, SMALL_MEMORY_BYTES = 600_000_000, 1_500_000_000
MIN_SCRATCH_BYTES, SMALL_SCRATCH_BYTES = 100_000_000, 2_000_000_000
#: A proxy that ends sooner is renewed before a run, however short that is.
SHORT_SECONDS = 1_800.0
#: Workers that are named; of the others, the number.
NUM_NAMED = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that isn't as it should be.

    Attributes
    ----------
    level : str
        "broken": the run will fail, or give wrong results; "risky": it may.
    check : str
        What was looked at.
    where : str
        On which workers, or on the client.
    found : str
        What is wrong.
    advice : str
        What to do.
    """

    level: Level
    check: str
    where: str
    found: str
    advice: str

    def __str__(self) -> str:
        return f"{self.check}, {self.where}: {self.found}; {self.advice}"


@dataclass(frozen=True, slots=True)
class Expectations:
    """What a run needs.

    Attributes
    ----------
    used : frozenset of str
        Distributions that the processor uses.
    run_seconds : float or None
        How long it will take, about; None if that isn't known.
    num_remote : int
        Files on servers.
    is_short : bool
        True: versions and unpickling alone are judged.
    """

    used: frozenset[str] = frozenset()
    run_seconds: float | None = None
    num_remote: int = 0
    is_short: bool = False


_Found = tuple[Level, str, str]  # level, what is found, advice


def judge(facts: ClusterFacts, expected: Expectations) -> list[Finding]:
    """Compare what there is with what a run needs.

    Parameters
    ----------
    facts : ClusterFacts
        Of the client, the scheduler, the workers.
    expected : Expectations
        Of the run.
    """
    reached = [one for one in facts.workers if not one.problem]
    findings = [*_judge_presence(facts.workers), *_judge_scheduler(facts)]
    if facts.delivery_problem:
        text, _, advice = facts.delivery_problem.partition("; ")
        findings.append(Finding("broken", "shipping", "cluster", text, advice))
    checks: dict[str, Callable[[Facts], Iterator[_Found]]] = {
        "Python": lambda one: _judge_python(one, facts.client),
        "packages": lambda one: _judge_packages(one, facts.client, expected.used),
        "processor": _judge_unpickling,
        "threads": _judge_threads,
    }
    if not expected.is_short:
        checks |= {
            "files": _judge_files,
            "credentials": lambda one: _judge_credentials(one, facts, expected),
            "memory": _judge_memory,
            "scratch space": _judge_scratch,
        }
    for check, look in checks.items():
        findings += _group(check, reached, look)
    return sorted(findings, key=lambda one: one.level != "broken")


def _group(
    check: str, workers: Iterable[Facts], look: Callable[[Facts], Iterable[_Found]]
) -> Iterator[Finding]:
    """Say what is the same on many workers once."""
    found: dict[_Found, list[str]] = defaultdict(list)
    for worker in workers:
        for one in look(worker):
            found[one].append(worker.name)
    for (level, text, advice), names in found.items():
        yield Finding(level, check, _name_workers(names), text, advice)


def _name_workers(names: Sequence[str]) -> str:
    named = ", ".join(sorted(names, key=lambda one: (len(one), one))[:NUM_NAMED])
    more = len(names) - NUM_NAMED
    return f"{'worker' if len(names) == 1 else 'workers'} {named}{f' and {more} more' if more > 0 else ''}"


def _judge_presence(workers: Sequence[Facts]) -> Iterator[Finding]:
    if not workers:
        yield Finding(
            "broken",
            "workers",
            "cluster",
            "there is none",
            "start some, cluster.scale(...) say, or look at the batch system's queue; a run would wait",
        )
    found: dict[str, list[str]] = defaultdict(list)
    for one in workers:
        if one.problem:
            found[one.problem].append(one.name)
    for problem, names in found.items():
        is_missing = "No module named 'hepdask" in problem
        yield Finding(
            "broken",
            "workers",
            _name_workers(names),
            "hepdask, or this version of it, is not installed there" if is_missing else problem,
            "install the client's version there: same environment, same container"
            if is_missing
            else "look at its log",
        )


def _judge_scheduler(facts: ClusterFacts) -> Iterator[Finding]:
    scheduler, client = facts.scheduler, facts.client
    if scheduler is None:
        return
    for name in TRANSPORT:
        there, here = scheduler.versions.get(name), client.versions.get(name)
        if name != "cloudpickle" and there != here:
            yield Finding(
                "broken" if name == "distributed" else "risky",
                "packages",
                "scheduler",
                f"{name} {there or 'is missing'} there, {here} here",
                f"use one version on both: pip install {name}=={there or here}",
            )
    if _minor(scheduler.python) != _minor(client.python):
        found = f"Python {scheduler.python} there, {client.python} here"
        advice = "use one environment; it may work all the same"
        yield Finding("risky", "Python", "scheduler", found, advice)


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _judge_python(worker: Facts, client: Facts) -> Iterator[_Found]:
    if _minor(worker.python) != _minor(client.python):
        yield (
            "broken",
            f"Python {worker.python} there, {client.python} here",
            "code of one can't be unpickled by the other: use the same environment or container on both",
        )


def _judge_packages(worker: Facts, client: Facts, used: frozenset[str]) -> Iterator[_Found]:
    for name, here in client.versions.items():
        there = worker.versions.get(name)
        if there == here:
            continue
        is_needed = name in LIBRARIES or name in used
        if there is None:
            if name in used or name in ("awkward", "hepdask", "uproot", "distributed"):
                yield (
                    "broken",
                    f"{name} is missing there",
                    f"install it there: pip install {name}=={here}",
                )
        elif is_needed:
            advice = f"results would depend on the worker: pip install {name}=={here} there, or =={there} here"
            yield "broken", f"{name} {there} there, {here} here", advice
        else:
            advice = f"use one version: pip install {name}=={here} there"
            yield "risky", f"{name} {there} there, {here} here", advice


def _judge_unpickling(worker: Facts) -> Iterator[_Found]:
    if worker.unpickling:
        yield (
            "broken",
            f"it can't be unpickled there: {worker.unpickling}",
            "install what it needs there; of your own modules, see that they are shipped (Runner(shipping=...))",
        )


def _judge_threads(worker: Facts) -> Iterator[_Found]:
    if worker.num_threads > 1:
        yield (
            "risky",
            f"{worker.num_threads} threads in a worker",
            "Python computes one at a time, and much code is not safe with threads: threads_per_worker=1, --nthreads 1",
        )


def _judge_files(worker: Facts) -> Iterator[_Found]:
    for path, problem in worker.files.items():
        if problem:
            yield (
                "broken",
                f"{path} can't be opened there: {problem}",
                "use a path or a server that workers reach, too",
            )


def _judge_credentials(
    worker: Facts, facts: ClusterFacts, expected: Expectations
) -> Iterator[_Found]:
    there = {one.variable: one for one in worker.lifetimes}
    for one in facts.client.lifetimes:
        if one.variable not in there:
            why = (
                f": {facts.plain_address} is not encrypted"
                if facts.plain_address is not None
                else ""
            )
            yield (
                "broken" if expected.num_remote else "risky",
                f"{one.variable} is not there{why}",
                "use tls://, or let the workers' own environment name it; Shipping(...) has the options",
            )
    for one in there.values():
        yield from _judge_lifetime(one, expected.run_seconds)


def _judge_lifetime(one: Lifetime, run_seconds: float | None) -> Iterator[_Found]:
    advice = (
        "voms-proxy-init --valid 192:00"
        if one.variable == PROXY
        else "get a new token, from oidc-agent or htgettoken say"
    )
    if one.problem:
        yield "broken", f"{one.variable}: {one.problem}", advice
    if one.ends is None:
        return
    left = one.ends - time.time()
    if left <= 0:
        yield "broken", f"{one.variable} has expired, {format_end(one.ends)}", advice
    elif run_seconds is not None and left < run_seconds:
        found = f"{one.variable} ends {format_end(one.ends)}, before a run of about {run_seconds / 60:.0f} min"
        yield "broken", found, advice
    elif left < SHORT_SECONDS:
        yield "risky", f"{one.variable} ends {format_end(one.ends)}, in {left / 60:.0f} min", advice


def _judge_memory(worker: Facts) -> Iterator[_Found]:
    if not worker.memory_bytes:
        return
    each = worker.memory_bytes / worker.num_threads
    level: Level = "broken" if each < MIN_MEMORY_BYTES else "risky"
    if each < SMALL_MEMORY_BYTES:
        yield (
            level,
            f"{format_bytes(worker.memory_bytes)} of memory, threads: {worker.num_threads}",
            f"ask for {format_bytes(SMALL_MEMORY_BYTES)} a thread or more: memory=..., --memory-limit",
        )


def _judge_scratch(worker: Facts) -> Iterator[_Found]:
    advice = (
        "name another directory: --local-directory, or temporary-directory in dask's configuration"
    )
    if worker.scratch_problem:
        yield "broken", f"{worker.scratch} can't be written to: {worker.scratch_problem}", advice
    elif worker.scratch_bytes is not None and worker.scratch_bytes < SMALL_SCRATCH_BYTES:
        level: Level = "broken" if worker.scratch_bytes < MIN_SCRATCH_BYTES else "risky"
        # figures of workers that share a disk differ a little
        free = f"{worker.scratch_bytes // 10_000_000 * 10} MB"
        yield level, f"{free} are free in {worker.scratch}", advice
