"""The Runner: from a fileset and a processor to a result. The only room that knows all others.

All options and their defaults are here.
"""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from hepdask.attempt import Work
from hepdask.columns import CachedTraces
from hepdask.doctor import Checkup, Expectations, judge
from hepdask.errors import OptionError
from hepdask.executors import (
    Executor,
    NotReached,
    check_options,
    check_reached,
    estimate_seconds,
)
from hepdask.failures import BAD_FILES
from hepdask.fingerprint import fingerprint
from hepdask.metadata import MetadataCache
from hepdask.opening import ReadOptions
from hepdask.past import PastCosts, name_processor
from hepdask.plan import Limits, Plan, Planner
from hepdask.processor import ProcessorCopies, find_process
from hepdask.progress import choose_progress
from hepdask.ranges import SplitOptions
from hepdask.readers import build_reader
from hepdask.recovery import RecoveryPolicy
from hepdask.run import Run
from hepdask.shipping import Cargo, Resource, Shipping, declare, load_cargo, read_resources
from hepdask.stopping import StopRules
from hepdask.store import Store
from hepdask.versions import library_versions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike

    from hepdask.costs import Rates
    from hepdask.progress import Progress
    from hepdask.result import RunResult
    from hepdask.store import Section

__all__ = ["Runner"]

_IGNORED = {"processor_compression": "the processor is shipped once"}
_REFUSED = {
    "checkpointer": "say Runner(store='a/directory'): a run goes on from there, and knows when the code has changed",
    "cachestrategy": "open files are kept by themselves",
    "use_result_type": "run.run(...) returns a RunResult, and RunError carries partial_result",
    "pre_executor": "files are inspected on the executor that processes them",
}


class Runner:
    """Runs a processor over a fileset, on an executor.

    Parameters
    ----------
    executor : Executor
        `DaskExecutor` or `LocalExecutor`.
    schema : type, str or None
        A schema class of `coffea.nanoevents`, or its name; None for plain awkward arrays.
    chunksize : int or None
        Maximum number of entries that one call of the processor sees. None: chosen for each file, from its clusters and the
        bytes of the branches in use.
    maxchunks : int or None
        Ranges of each dataset that are processed, at most.
    maxfiles : int or None
        Files of each dataset that are processed, at most.
    skipbadfiles : bool, exception type, or tuple of exception types
        What is left out (and listed in `failures`) instead of ending the run: True stands for files that can't be read
        (`FileReadError`).
    xrootdtimeout : float or None
        Limit in seconds for a request to a remote server.
    align_clusters : bool or None
        None: ranges end at cluster edges, but clusters larger than `chunksize` are cut. True: clusters are never cut.
        False: files are cut evenly.
    savemetrics : bool
        True: calling the runner returns ``(output, metrics)``, as with coffea.
    format : str
        "root", for TTree and RNTuple.
    uproot_options : mapping or None
        Passed to `uproot.open`.
    metadata_cache : MetadataCache, path, False or None
        Where facts about files are kept between runs. None: the user's cache directory. False: nowhere.
    recovery : RecoveryPolicy or None
        What is done with ranges that fail: how often a server is tried, how far a range that needs too much memory, or kills its
        worker, is halved. None: the default policy.
    store : Store, path, URL or None
        Where results of parts of a run are kept, so that the next run computes only what is missing: a directory, or any URL of
        fsspec. What they depend on (files, ranges, the processor with its arguments and source, schema, versions) is part of their
        names. Loading one runs what is in it: give no place where others can write. None: nothing is kept.
    max_opens_per_endpoint : int or None
        Files that all workers together open at one server at a time. None: no limit.
    resources : sequence of paths, mapping of str to path, or None
        Data files that the processor opens by ``hepdask.resource(name)``, here and on every worker: by the last part of their path,
        or by the names that are given.
    shipping : Shipping, bool or None
        What of the user's own code, environment and credentials is sent to workers. None or True: all modules that the processor
        uses and that are not libraries, proxies, tokens. False: nothing, workers have it all.
    max_failed_fraction : float or None
        With `skipbadfiles`: a run in which more of the requested entries fail ends. None: no limit.
    max_same_failures : int
        With `skipbadfiles`: a mistake in the processor ends the run when so many ranges have failed with the same traceback, and
        these are more than have been processed.
    progress : bool, str, Progress or None
        None or "auto" shows it where there is somebody to look; False or "off" never; "rich", "jupyter", "plain".

    Raises
    ------
    OptionError
        If an option has a wrong name, type or value.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        schema: Any = "NanoAODSchema",
        chunksize: int | None = None,
        maxchunks: int | None = None,
        maxfiles: int | None = None,
        skipbadfiles: bool | type[BaseException] | tuple[type[BaseException], ...] = False,
        xrootdtimeout: float | None = 60.0,
        align_clusters: bool | None = None,
        savemetrics: bool = False,
        format: str = "root",  # coffea's word
        uproot_options: Mapping[str, Any] | None = None,
        metadata_cache: MetadataCache | str | PathLike[str] | bool | None = None,
        recovery: RecoveryPolicy | None = None,
        store: Store | str | PathLike[str] | None = None,
        max_opens_per_endpoint: int | None = None,
        max_failed_fraction: float | None = None,
        max_same_failures: int = 10,
        resources: Sequence[str | PathLike[str]] | Mapping[str, str | PathLike[str]] | None = None,
        shipping: Shipping | bool | None = None,
        progress: bool | str | Progress | None = None,
        **unknown: Any,
    ) -> None:
        known = [name for name in self.__init__.__annotations__ if name != "unknown"]  # type: ignore[misc]
        check_options("Runner", unknown, known, ignored=_IGNORED, refused=_REFUSED)
        if not isinstance(executor, Executor):
            raise OptionError(
                f"executor is {type(executor).__name__}: give DaskExecutor(client=...) or LocalExecutor(), of hepdask"
            )
        if format != "root":
            raise OptionError(f"format is {format!r}: hepdask reads 'root' (TTree and RNTuple)")
        _check_limit("maxchunks", maxchunks)
        _check_limit("maxfiles", maxfiles)
        _check_limit("max_opens_per_endpoint", max_opens_per_endpoint)
        choose_progress(progress)  # a wrong word is an error now, and not in the middle of a run
        self.executor = executor
        self.savemetrics = savemetrics
        self._schema = schema
        self._skipped = _skipped_types(skipbadfiles)
        self._split = SplitOptions(chunksize, align_clusters)
        self._limits = Limits(maxfiles, maxchunks)
        self._recovery = recovery if recovery is not None else RecoveryPolicy()
        self._timeout_seconds = xrootdtimeout
        self._uproot_options = dict(uproot_options or {})
        self._max_opens = max_opens_per_endpoint
        self._rules = StopRules(max_failed_fraction, max_same_failures)
        self._store = store if store is None or isinstance(store, Store) else Store(store)
        self._resources = read_resources(resources or ())
        self._shipping = _choose_shipping(shipping)
        self._cache = _open_cache(metadata_cache)
        # a neighbour of the cache: where nothing may be kept of files, nothing is kept of runs
        self._past = (
            None if self._cache is None else PastCosts(self._cache.path.with_name("costs.sqlite"))
        )
        self._progress = progress

    def __call__(
        self,
        fileset: Any,
        *arguments: Any,
        processor_instance: Any = None,
        treename: str | None = None,
        uproot_options: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a processor, and return what coffea's Runner returns.

        Parameters
        ----------
        fileset, *arguments, processor_instance, treename, uproot_options
            As for `run`.

        Returns
        -------
        object or (object, dict)
            The output; with ``savemetrics=True`` and the metrics. An awaitable of it with an asynchronous client.

        Raises
        ------
        RunError
            As for `run`.
        """
        result = self.run(
            fileset,
            *arguments,
            processor_instance=processor_instance,
            treename=treename,
            uproot_options=uproot_options,
        )
        return (
            self._in_coffea_shape_later(result)
            if isinstance(result, Awaitable)
            else self._in_coffea_shape(result)
        )

    def run(
        self,
        fileset: Any,
        *arguments: Any,
        processor_instance: Any = None,
        treename: str | None = None,
        uproot_options: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a processor over a fileset.

        Parameters
        ----------
        fileset : mapping, path or Fileset
            In any dialect, see `load_fileset`.
        *arguments : str, processor
            A tree name and a processor, in any order; both may be given by name instead.
        processor_instance : object
            Has ``process(events)``, and perhaps ``postprocess(accumulator)`` or ``postprocess(accumulator, completeness)``; or is a
            callable of events.
        treename : str or None
            For files that the fileset gives none.
        uproot_options : mapping or None
            Passed to `uproot.open`, in addition to those of the runner.

        Returns
        -------
        RunResult
            An awaitable of it with an asynchronous client.

        Raises
        ------
        FilesetError, OptionError, StoreError
            For a mistake in the arguments, or a store that can't be used, before anything is sent out.
        RunError
            If something failed that isn't skipped, or the run was interrupted. Its `partial_result` has all that was
            done.
        """
        processor, treename = _sort_arguments(arguments, processor_instance, treename)
        find_process(processor)
        options = self._read_options(uproot_options)
        work = Work(
            ProcessorCopies(processor),
            build_reader(self._schema, options),
            self._skipped,
            self._recovery,
        )
        return self.executor.dispatch(
            lambda: self._run(processor, work, options).start(fileset, treename)
        )

    def plan(self, fileset: Any, processor: Any = None, *, treename: str | None = None) -> Plan:
        """Say what a run would do: inspect files as far as needed, split them, process nothing.

        Parameters
        ----------
        fileset : mapping, path or Fileset
            In any dialect.
        processor : object or None
            To find the branches in use, which decide about the size of ranges; they are not looked for if the size is given.
        treename : str or None
            For files that the fileset gives none.
        """
        options = self._read_options(None)
        work = None
        if processor is not None:
            find_process(processor)
            work = Work(
                ProcessorCopies(processor),
                build_reader(self._schema, options),
                self._skipped,
                self._recovery,
            )
        progress = self._choose_progress()
        load = None if processor is None else self._loader(processor, options)
        try:
            section = None if processor is None else self._open_section(processor, options)
            cached = None if processor is None else self._open_traces(processor, options)
            rates = self._load_rates(processor)
            planner = self._planner(options, section, cached, rates, progress)
            with self.executor.carrying(load):
                plan = planner.plan(planner.load(fileset, treename).files, work)
            check_reached(map(NotReached, planner.stops))
            return plan
        finally:
            progress.close()

    def check(
        self,
        fileset: Any,
        processor: Any,
        *,
        treename: str | None = None,
        run_seconds: float | None = None,
    ) -> Any:
        """Look whether a run will work: versions, processor, a file of each dataset, credentials, memory, scratch space.

        Parameters
        ----------
        fileset : mapping, path or Fileset
            In any dialect.
        processor : object
            As for `run`.
        treename : str or None
            For files that the fileset gives none.
        run_seconds : float or None
            How long the run will take, for what ends meanwhile. None: estimated, if the numbers of entries are known.

        Returns
        -------
        Checkup
            Shows itself as a table; an awaitable of it with an asynchronous client.
        """
        find_process(processor)
        options = self._read_options(None)
        load = cache(self._loader(processor, options))

        def examine() -> Checkup:
            planner = self._planner(options, None, None, {}, choose_progress(False))
            files = planner.load(fileset, treename).files
            firsts = {one.dataset: one for one in reversed(files)}.values()
            with self.executor.carrying(load):
                facts = self.executor.examine(list(firsts), options)
            cargo = load()
            num_threads = sum(one.num_threads for one in facts.workers)
            expected = Expectations(
                cargo.used,
                run_seconds or estimate_seconds(planner.count_known(files), num_threads),
                sum("://" in one.file_path for one in files),
            )
            return Checkup(tuple(judge(facts, expected)), facts, cargo.describe())

        return self.executor.dispatch(examine)

    def _read_options(self, more: Mapping[str, Any] | None) -> ReadOptions:
        return ReadOptions(
            self._timeout_seconds, {**self._uproot_options, **(more or {})}, self._max_opens
        )

    def _load_rates(self, processor: Any) -> Mapping[str, Rates]:
        if self._past is None or processor is None:
            return {}
        return self._past.load(name_processor(processor))

    def _planner(
        self,
        options: ReadOptions,
        section: Section | None,
        cached: CachedTraces | None,
        rates: Mapping[str, Rates],
        progress: Progress,
    ) -> Planner:
        return Planner(
            self.executor,
            options,
            self._split,
            self._limits,
            self._skipped,
            self._recovery,
            self._cache,
            progress,
            section,
            cached,
            rates,
        )

    def _run(self, processor: Any, work: Work, options: ReadOptions) -> Run:
        section = self._open_section(processor, options)
        return Run(
            self.executor,
            processor,
            work,
            self._rules,
            partial(
                self._planner,
                options,
                section,
                self._open_traces(processor, options),
                self._load_rates(processor),
            ),
            self._choose_progress,
            self._cache,
            section,
            self._past,
            self._loader(processor, options),
        )

    def _loader(self, processor: Any, options: ReadOptions) -> Callable[[], Cargo]:
        """Return what finds, as it is then, all that the processor needs on workers."""
        declare(self._resources)
        used = (
            processor,
            self._schema,
            self._skipped,
            self._recovery,
            dict(options.uproot_options),
        )
        return partial(load_cargo, used, self._shipping, self._resources)

    def _open_section(self, processor: Any, options: ReadOptions) -> Section | None:
        """Open what the store has of this processor, with this schema and these versions."""
        if self._store is None:
            return None
        section = self._store.section(self._fingerprint(processor, options))
        versions = library_versions()
        name = getattr(processor, "__name__", type(processor).__name__)
        section.describe({"processor": name, "schema": str(self._schema), "versions": versions})
        return section

    def _open_traces(self, processor: Any, options: ReadOptions) -> CachedTraces | None:
        """Open what is known of the branches that this processor uses; None if the processor can't be told from others."""
        if self._cache is None:
            return None
        with suppress(OptionError):
            return CachedTraces(self._cache, self._fingerprint(processor, options))
        return None

    def _fingerprint(self, processor: Any, options: ReadOptions) -> str:
        # time limits change no result
        what: tuple[Any, ...] = (
            processor,
            self._schema,
            dict(options.uproot_options),
            library_versions(),
        )
        if self._resources:
            what += ({name: Resource(name, path) for name, path in self._resources.items()},)
        return fingerprint(what)

    def _choose_progress(self) -> Progress:
        return choose_progress(self._progress if self.executor.shows_progress else False)

    def _in_coffea_shape(self, result: RunResult) -> Any:
        return (result.output, result.metrics.to_dict()) if self.savemetrics else result.output

    async def _in_coffea_shape_later(self, result: Awaitable[RunResult]) -> Any:
        return self._in_coffea_shape(await result)


def _sort_arguments(
    arguments: tuple[Any, ...], processor: Any, treename: str | None
) -> tuple[Any, str | None]:
    """Tell a tree name from a processor: coffea has changed their order over the years."""
    for argument in arguments:
        if isinstance(argument, str) and treename is None:
            treename = argument
        elif argument is None and treename is None:
            continue  # run(fileset, None, processor): the fileset names the trees
        elif processor is None:
            processor = argument
        else:
            raise OptionError(
                f"unexpected argument {argument!r}: call run(fileset, 'Events', processor_instance=processor), "
                "run(fileset, processor, treename='Events') or run(fileset, processor)"
            )
    if processor is None:
        raise OptionError("no processor: call run(fileset, 'Events', processor_instance=processor)")
    return processor, treename


def _skipped_types(skipbadfiles: Any) -> tuple[type[BaseException], ...]:
    if skipbadfiles is True:
        return BAD_FILES
    types = (
        skipbadfiles if isinstance(skipbadfiles, tuple) else (skipbadfiles,) if skipbadfiles else ()
    )
    for one in types:
        if not (isinstance(one, type) and issubclass(one, BaseException)):
            raise OptionError(f"skipbadfiles has {one!r}: give True, False, or types of exceptions")
    return types


def _open_cache(chosen: Any) -> MetadataCache | None:
    if chosen is False:
        return None
    if chosen is None or chosen is True:
        return MetadataCache()
    return chosen if isinstance(chosen, MetadataCache) else MetadataCache(chosen)


def _choose_shipping(chosen: Any) -> Shipping | None:
    if chosen is None or chosen is True:
        return Shipping()
    if chosen is False or isinstance(chosen, Shipping):
        return chosen or None
    raise OptionError(f"shipping is {chosen!r}: give Shipping(...), True or False")


def _check_limit(name: str, value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise OptionError(f"{name} is {value!r}: give a positive number, or None for no limit")
