"""Ask the workers of a cluster what they are and can."""

from __future__ import annotations

import asyncio
import logging
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from distributed.comm import CommClosedError

from hepdask.doctor import ClusterFacts, Expectations, Facts, Request, collect_facts, judge
from hepdask.errors import ExecutorError
from hepdask.executors.dask_clients import LOST_ERRORS, ask
from hepdask.executors.dask_shipping import call_on_scheduler, find_plain_address
from hepdask.versions import LIBRARIES, TRANSPORT

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from hepdask.doctor import Finding

__all__ = ["check_first", "examine_cluster", "list_packages"]

logger = logging.getLogger(__name__)

#: How long all workers together may take to answer, and at a first run, which is not to wait for those that are busy.
ANSWER_SECONDS, FIRST_SECONDS = 120.0, 5.0
#: Workers that are asked at a first run: what is wrong is mostly wrong with all.
MAX_FIRST_WORKERS = 100
#: A processor larger than this is not sent around only to be tried.
MAX_TRIED_BYTES = 5_000_000


def list_packages(used: Iterable[str]) -> tuple[str, ...]:
    """Name the distributions whose versions matter, with those that a processor uses."""
    return tuple(sorted({*LIBRARIES, *TRANSPORT, *used}))


def examine_cluster(
    client: Any,
    request: Request,
    *,
    workers: Collection[str] | None = None,
    answer_seconds: float = ANSWER_SECONDS,
) -> ClusterFacts:
    """Ask workers, the scheduler, and this process.

    Parameters
    ----------
    client : distributed.Client
        A synchronous one.
    request : Request
        What is to be known; files are opened by one worker of each host.
    workers : collection of str or None
        Their addresses; None: all that are there.
    answer_seconds : float
        How long they may take.

    Raises
    ------
    one of LOST_ERRORS
        If they take longer.
    """
    general, packages = replace(request, files=()), request.packages
    # all at a time: behind a tunnel, each answer takes a tenth of a second
    with ThreadPoolExecutor(3) as pool:
        asked = pool.submit(_ask_workers, client, general, workers, answer_seconds)
        scheduler = pool.submit(call_on_scheduler, client, _make_asker(), packages=packages)
        plain = pool.submit(find_plain_address, client)
        own = collect_facts(replace(general, packed=b""), "client")
    found = asked.result()
    if request.files:
        one_of_each = {one.host: address for address, one in found.items() if not one.problem}
        opened = _ask_workers(client, request, list(one_of_each.values()), answer_seconds)
        found |= {address: one for address, one in opened.items() if not one.problem}
    there = Facts("scheduler", **scheduler.result())
    return ClusterFacts(own, there, tuple(found.values()), plain.result())


def _ask_workers(
    client: Any, request: Request, workers: Collection[str] | None, answer_seconds: float
) -> dict[str, Facts]:
    # of the client's own machinery: `run` has no time limit
    answers = client.sync(
        client._run,
        examine_worker,
        request,
        workers=None if workers is None else list(workers),
        on_error="return",
        callback_timeout=answer_seconds,
    )
    return {
        address: answer
        if isinstance(answer, Facts)
        else Facts(address, problem=f"{type(answer).__name__}: {answer}")
        for address, answer in answers.items()
        # one that left meanwhile fits as well as any other
        if not isinstance(answer, CommClosedError)
    }


async def examine_worker(request: Request, dask_worker: Any) -> Facts:
    """Find out about a worker, on it; without keeping it from saying that it lives."""
    return await asyncio.to_thread(
        collect_facts,
        request,
        str(dask_worker.name),
        num_threads=dask_worker.state.nthreads,
        memory_bytes=dask_worker.memory_manager.memory_limit,
        scratch=dask_worker.local_directory,
    )


def _make_asker() -> Any:
    def ask_scheduler(dask_scheduler: Any, packages: tuple[str, ...]) -> dict[str, Any]:  # noqa: ARG001
        import platform
        from importlib.metadata import PackageNotFoundError, version

        found = {}
        for name in packages:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
        return {"python": platform.python_version(), "versions": found}

    return ask_scheduler


_checked: set[str] = set()


def check_first(
    client: Any, scheduler_id: str, pack: Callable[[], bytes], used: frozenset[str]
) -> None:
    """Look whether the workers of a cluster fit, at the first run on it: versions, and whether they can unpickle.

    Parameters
    ----------
    client : distributed.Client
        A synchronous one.
    scheduler_id : str
        Of its scheduler.
    pack : callable
        Pickles the processor.
    used : frozenset of str
        Distributions that it uses.

    Raises
    ------
    ExecutorError
        If none of them can unpickle the processor.
    """
    if scheduler_id in _checked:
        return
    facts = None
    with suppress(*LOST_ERRORS):
        workers = list(ask(client, "identity", n_workers=MAX_FIRST_WORKERS)["workers"])
        if not workers:
            return
        _checked.add(scheduler_id)
        packed = pack()
        tried = packed if len(packed) <= MAX_TRIED_BYTES else b""
        request = Request(list_packages(used), tried, is_short=True)
        facts = examine_cluster(client, request, workers=workers, answer_seconds=FIRST_SECONDS)
    if facts is not None and facts.workers:  # all may have left
        _tell(facts, judge(facts, Expectations(used, is_short=True)))


def _tell(facts: ClusterFacts, findings: list[Finding]) -> None:
    reached = [one for one in facts.workers if not one.problem]
    if reached and all(one.unpickling for one in reached):
        raise ExecutorError("; ".join(str(one) for one in findings if one.level == "broken"))
    for one in findings:
        if one.level == "broken":
            warnings.warn(f"{one} (`hepdask doctor` looks closer)", UserWarning, stacklevel=2)
        else:
            logger.warning("%s", one)
