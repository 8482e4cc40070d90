"""coffea and hepdask as a user runs them, on the same two workers."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import tempfile
import warnings
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepdask.allocator import DASK_TRIM_THRESHOLD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Client

__all__ = [
    "CoffeaRun",
    "HepdaskRun",
    "as_nannies_start_them",
    "forget_everything",
    "import_libraries",
    "private_cache",
    "two_workers",
]

TREENAME = "Events"
#: That a layout lacks some cross references, that photons have no mass, that coffea traces with an array of length zero because
#: histograms can't be filled without data.
USUAL_WARNINGS = (
    "Missing cross-reference index|Branch .* already exists|Exception during typetracer tracing"
)


@contextmanager
def two_workers() -> Iterator[Client]:
    """Start two worker processes with one thread each, and a cache directory of their own for all of hepdask."""
    from distributed import Client, LocalCluster

    from hepdask.executors.dask_local import keeping_nannies

    with (
        tempfile.TemporaryDirectory(prefix="hepdask-benchmark-") as name,
        private_cache(name),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            local_directory=name,
            silence_logs=logging.ERROR,  # that workers start anew
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
        keeping_nannies(client),  # cases start workers anew
    ):
        client.run(import_libraries)
        yield client


@contextmanager
def private_cache(directory: str) -> Iterator[None]:
    """Let hepdask keep its caches in a directory, here and in the worker processes that start inside the block."""
    before = os.environ.get("HEPDASK_CACHE_DIR")
    os.environ["HEPDASK_CACHE_DIR"] = str(Path(directory, "cache"))
    try:
        yield
    finally:
        if before is None:
            del os.environ["HEPDASK_CACHE_DIR"]
        else:
            os.environ["HEPDASK_CACHE_DIR"] = before


def import_libraries() -> None:
    """Import what either system needs on a worker, and do nothing with it."""
    # workers would print pages of it
    warnings.filterwarnings("ignore", USUAL_WARNINGS, RuntimeWarning)
    import awkward  # noqa: F401
    import hist  # noqa: F401
    import uproot  # noqa: F401

    from hepdask import DaskExecutor, Runner  # noqa: F401


def as_nannies_start_them() -> None:
    """Let glibc's allocator do what it does in workers of dask alone, where hepdask's tasks have changed that."""
    with suppress(AttributeError):  # elsewhere nobody has
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 128 * 2**10)  # M_MMAP_THRESHOLD, see mallopt(3)
        libc.mallopt(-1, int(DASK_TRIM_THRESHOLD))


def forget_everything(client: Client) -> None:
    """Start worker processes anew, with the libraries imported and nothing else, and empty hepdask's cache."""
    shutil.rmtree(os.environ["HEPDASK_CACHE_DIR"], ignore_errors=True)
    client.restart(timeout=600)  # a busy machine takes minutes
    client.wait_for_workers(2, timeout=600)
    client.run(import_libraries)


class CoffeaRun:
    """coffea's Runner over its DaskExecutor.

    Parameters
    ----------
    client : Client
        The workers.
    fileset : dict
        In coffea's dialect.
    processor : callable or ProcessorABC
        What is run.
    schema : type
        Of `coffea.nanoevents`.
    chunksize : int or None
        None: coffea's default.
    is_traced : bool
        True: columns are traced before, and then read in bulk (coffea's ``trace=``).
    skipbadfiles : bool
        True: what fails is left out.
    """

    def __init__(
        self,
        client: Client,
        fileset: Any,
        processor: Any,
        *,
        schema: Any,
        chunksize: int | None = None,
        is_traced: bool = False,
        skipbadfiles: bool = False,
    ) -> None:
        self._client = client
        self._what = (fileset, processor)
        self._options: dict[str, Any] = {"schema": schema, "skipbadfiles": skipbadfiles}
        if chunksize:
            self._options["chunksize"] = chunksize
        self._is_traced = is_traced
        self._cache: dict[Any, Any] = {}

    def __call__(self) -> Any:
        """Run, and return the output."""
        from coffea import processor
        from coffea.nanoevents.trace import trace

        executor = processor.DaskExecutor(client=self._client, status=False)
        run = processor.Runner(executor, metadata_cache=self._cache, **self._options)
        self._client.run(as_nannies_start_them)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", USUAL_WARNINGS, RuntimeWarning)
            return run(*self._what, treename=TREENAME, trace=trace if self._is_traced else None)

    def forget(self) -> None:
        """Forget what is known about files."""
        self._cache = {}


class HepdaskRun:
    """hepdask's Runner over its DaskExecutor, or over any other of its executors.

    Parameters
    ----------
    executor : Client or Executor
        The workers.
    fileset, processor, schema, chunksize
        As for `CoffeaRun`.
    **options
        More options of the runner.
    """

    def __init__(
        self,
        executor: Any,
        fileset: Any,
        processor: Any,
        *,
        schema: Any,
        chunksize: int | None = None,
        **options: Any,
    ) -> None:
        self._executor = executor
        self._what = (fileset, processor)
        self._options = {"schema": schema, "chunksize": chunksize, "progress": False, **options}
        self.result: Any = None
        """The `RunResult` of the last run."""
        self.resources = ExitStack()
        """What must stay open while this is run: servers."""
        self.forget()

    def __call__(self) -> Any:
        """Run, and return the output."""
        fileset, processor = self._what
        self.result = self._run.run(fileset, TREENAME, processor_instance=processor)
        return self.result.output

    def forget(self) -> None:
        """Make a new runner; the cache on disk is emptied by `forget_everything`."""
        from hepdask import DaskExecutor, LocalExecutor, Runner

        is_local = isinstance(self._executor, LocalExecutor)
        executor = self._executor if is_local else DaskExecutor(self._executor, status=False)
        self._run = Runner(executor, **self._options)

    def close(self) -> None:
        """End the servers that this run has to itself."""
        self.resources.close()

    @property
    def facts(self) -> dict[str, float]:
        """Where the time of the last run went, summed over workers, by hepdask's own metrics."""
        metrics = self.result.metrics
        total = metrics.total
        num_ranges = max(1, total.num_ranges)
        return {
            "ranges": total.num_ranges,
            "tasks": metrics.num_tasks,
            "open_seconds": total.open_seconds,
            "form_seconds": total.form_seconds,
            "read_seconds": total.read_seconds,
            "process_seconds": total.process_seconds,
            "open_and_form_ms_per_range": 1e3
            * (total.open_seconds + total.form_seconds)
            / num_ranges,
            "requested_mb": total.num_requested_bytes / 1e6,
            "compressed_mb": total.num_compressed_bytes / 1e6,
        }

    def check_read(self) -> None:
        """Raise if the last run took columns from memory that it should have read.

        Raises
        ------
        AssertionError
            A run that reads nothing is no measure of reading.
        """
        total = self.result.metrics.total
        if total.num_requested_bytes < 0.9 * total.num_compressed_bytes:
            raise AssertionError(
                f"{total.num_requested_bytes} bytes were requested for columns of {total.num_compressed_bytes} bytes on disk"
            )
