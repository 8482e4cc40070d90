"""A cluster as at a facility: workers are processes of their own, in another directory, that can import hepdask and no more."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import distributed

import hepdask
from tests.servers import stop_process

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Site", "run_site"]

PACKAGE = Path(hepdask.__file__).parent
#: What of the environment of a test its workers don't get: as on another machine.
HIDDEN = ("BEARER_TOKEN", "BEARER_TOKEN_FILE", "PYTHONPATH", "X509_USER_PROXY")


@dataclass(slots=True)
class Site:
    """A running scheduler, to which workers can be added."""

    directory: Path
    client: Any
    stack: ExitStack
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start_worker(
        self,
        name: str,
        *options: str,
        path: tuple[Path, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        """Start a worker process; it is there some time later."""
        libraries = self.directory / "libraries"
        if not libraries.exists():
            libraries.mkdir()
            (libraries / "hepdask").symlink_to(PACKAGE)
        home = self.directory / name
        home.mkdir()
        known = {one: value for one, value in os.environ.items() if one not in HIDDEN}
        paths = (*path, libraries)
        with closing((home / "log").open("ab")) as log:
            process = subprocess.Popen(
                [
                    sys.executable,
                    *("-m", "distributed.cli.dask_worker", self.client.scheduler.address),
                    *(
                        "--name",
                        name,
                        "--no-dashboard",
                        "--nthreads",
                        "1",
                        "--local-directory",
                        str(home),
                    ),
                    *(() if "--nanny" in options else ("--no-nanny",)),
                    *("--death-timeout", "60", *options),
                ],
                cwd=home,
                env={
                    **known,
                    "PYTHONPATH": os.pathsep.join(map(str, paths)),
                    **(environment or {}),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if not self.processes:
            self.stack.callback(self._end)
        self.processes[name] = process

    def _end(self) -> None:
        """End all workers at a time."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            stop_process(process)

    def wait(self, number: int | None = None) -> None:
        """Wait until so many workers are there, by default all that were started."""
        self.client.wait_for_workers(number or len(self.processes), timeout=60)

    def call(self, function: Any, argument: Any) -> Any:
        """Call a function in a task; it may be one that workers can't import."""
        packed = cloudpickle.dumps((function, argument))
        return self.client.submit(make_caller(), packed, pure=False).result(timeout=60)

    def log(self, name: str) -> str:
        """Return what a worker has printed."""
        return (self.directory / name / "log").read_text(errors="replace")


@contextmanager
def run_site(directory: Path, **options: Any) -> Iterator[Site]:
    """Run a scheduler without workers, and a client that is not the session's."""
    with (
        distributed.LocalCluster(
            n_workers=0, processes=True, dashboard_address=":0", **options
        ) as cluster,
        # as one that was started by somebody else
        distributed.Client(cluster.scheduler_address, set_as_default=False) as client,
        ExitStack() as stack,  # workers go before their scheduler does
    ):
        yield Site(directory, client, stack)


def make_caller() -> Any:
    """Make a function that calls a pickled function with its pickled argument; it goes to workers by value."""

    def call(packed: bytes) -> Any:
        function, argument = cloudpickle.loads(packed)
        return function(argument)

    return call
