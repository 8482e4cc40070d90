"""The files, servers and cluster of a round of the soak test, and how they are hurt and repaired."""

from __future__ import annotations

import signal
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
    Runner,
)
from tests.faults.injection import (
    TREENAME,
    Outages,
    Timed,
    Workers,
    damage_file,
    damage_store,
    restore,
    write_events,
)
from tests.faults.invariants import Facts
from tests.faults.rounds import HANGING, Fault, Round
from tests.servers import XrdServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from pathlib import Path

    from hepdask import RunResult

__all__ = ["SKIPS", "Stage"]

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
