"""Process one range again, in this process, to see what is wrong with it.

Nothing is turned into a value here: what the processor raises is raised. Its file stays open meanwhile and is kept
afterwards, so that a debugger can look at branches that were not read yet.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import sys
import sysconfig
import traceback as tracebacks
from dataclasses import dataclass, replace
from types import CodeType, TracebackType
from typing import TYPE_CHECKING, Any

from hepdask.attempt import Attempt, Work
from hepdask.errors import ExecutorError, FileReadError, OptionError, ProcessorError, RunError
from hepdask.metadata import read_file_metadata
from hepdask.processor import ProcessorCopies, find_process
from hepdask.ranges import EntryRange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hepdask.failures import Failure
    from hepdask.fileset import InputFile
    from hepdask.opening import ReadOptions
    from hepdask.readers import Reader

__all__ = [
    "ReplayContext",
    "enable_faulthandler",
    "find_user_traceback",
    "format_user_error",
    "replay_range",
    "start_debugger",
]

#: How the names of exceptions end that stand for a process which ended in the middle of a range.
_DEATHS = ("ProcessDiedError", "KilledWorker")
_LIBRARY_PATHS = ("stdlib", "platstdlib", "purelib", "platlib")


@dataclass(frozen=True, slots=True)
class ReplayContext:
    """What a run knows and its failures don't say.

    Attributes
    ----------
    reader : Reader
        Gives the events, with the schema and the options of the run.
    options : ReadOptions
        How files are inspected.
    files : tuple of InputFile
        All files of the run, with their replicas and the user's metadata.
    """

    reader: Reader
    options: ReadOptions
    files: tuple[InputFile, ...]

    def replay(self, failure: Failure, processor: Any, *, debug: bool = False) -> Any:
        """Process the range of a failure here; see `Failures.replay`."""
        find_process(processor)
        file = _prefer(failure.replica, self._find_file(failure))
        if failure.entry_start is None or failure.entry_stop is None:
            return _open_again(file, self.options)
        if failure.exception_type.endswith(_DEATHS):
            enable_faulthandler()
        entry_range = EntryRange(file, failure.entry_start, failure.entry_stop)
        return replay_range(entry_range, processor, self.reader, debug=debug)

    def _find_file(self, failure: Failure) -> InputFile:
        place = (failure.dataset, failure.file_path, failure.treename)
        for file in self.files:
            if (file.dataset, file.file_path, file.treename) == place:
                return file
        raise OptionError(f"{failure.where}: this run has no such file")


def replay_range(
    entry_range: EntryRange, processor: Any, reader: Reader, *, debug: bool = False
) -> Any:
    """Process a range here, once.

    Parameters
    ----------
    entry_range : EntryRange
        What to process.
    processor : object
        The user's, as for `Runner.run`; it is called itself, and not a copy of it.
    reader : Reader
        Gives the events.
    debug : bool
        True: what the processor raises is shown, and a debugger started; see `start_debugger`.

    Returns
    -------
    object
        What ``process`` returned; nothing in it is lazy any more.

    Raises
    ------
    OptionError
        If `processor` can't be one.
    FileReadError
        If the file can't be read.
    ProcessorError
        If ``process`` returned what can't be an output, or wanted to exit.
    Exception
        What ``process`` raised, as it was raised.
    """
    find_process(processor)
    observed = _ObservedProcessor(processor, start_debugger if debug else None)
    accumulator = Attempt(entry_range).process(Work(observed, reader))
    # only now, as an exception that leaves the reader closes the file, and a debugger may want more of it
    error = observed.raised
    if error is None:
        return accumulator
    if not isinstance(error, Exception):
        raise ProcessorError(f"process() raised {type(error).__name__}") from error
    frames = find_user_traceback(error, processor) or error.__traceback__
    raise error.with_traceback(frames)


class _ObservedProcessor(ProcessorCopies):
    """Keeps what the processor raises instead of raising it.

    Parameters
    ----------
    processor : object
        The user's.
    look : callable or None
        Is called with the exception and the processor, as long as the file is open.
    """

    def __init__(self, processor: Any, look: Callable[[BaseException, Any], None] | None) -> None:
        super().__init__(processor)
        self.raised: BaseException | None = None
        self._processor = processor
        self._look = look

    def __call__(self, events: Any) -> Any:
        try:
            return super().__call__(events)
        except (Exception, SystemExit) as error:
            if self._look is not None:
                self._look(error, self._processor)
            if isinstance(error, FileReadError | ExecutorError):
                raise  # the file, or its connection, must not be used again
            self.raised = error
        return ()  # anything but None, which would be a mistake of its own


def _prefer(replica: str, file: InputFile) -> InputFile:
    """Put the replica first that was read when it failed."""
    if replica not in file.replicas:
        return file
    others = tuple(one for one in file.replicas if one != replica)
    return replace(file, replicas=(replica, *others))


def _open_again(file: InputFile, options: ReadOptions) -> Any:
    num_entries = read_file_metadata(file, options).num_entries
    raise RunError(
        f"dataset {file.dataset!r}, file {file.file_path}: it can be opened now, and {file.treename!r} has {num_entries:,} "
        "entries: partial_result.resume(), or another run, processes them"
    )


def enable_faulthandler() -> None:
    """Let a crash (SIGSEGV and the like) say at which lines of Python it happened, if nobody has done so yet."""
    if not faulthandler.is_enabled():
        # no such descriptor in some notebooks and services
        with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):
            faulthandler.enable(file=sys.__stderr__)  # type: ignore[arg-type]  # None is a RuntimeError


def find_user_traceback(error: BaseException, processor: Any) -> TracebackType | None:
    """Return the traceback of an exception from the first frame of the user's code on.

    Parameters
    ----------
    error : BaseException
        What was raised.
    processor : object
        The user's: its package is the user's code even if it is installed.

    Returns
    -------
    traceback or None
        None if no frame is of the user's code, which is all that is neither hepdask nor installed nor Python's own.
    """
    return next(iter(_user_entries(error, processor)), None)


def format_user_error(error: BaseException, processor: Any) -> str:
    """Write an exception with its traceback, without the frames of hepdask above the user's.

    Parameters
    ----------
    error, processor
        See `find_user_traceback`.
    """
    frames = find_user_traceback(error, processor) or error.__traceback__
    return "".join(tracebacks.format_exception(type(error), error, frames))


def start_debugger(error: BaseException, processor: Any) -> None:
    """Show an exception, and start a debugger at the innermost frame of the user's code; nothing if there is none.

    It is IPython's where that is running, else the `post_mortem` of the module that ``PYTHONBREAKPOINT`` names (ipdb,
    pudb), else pdb.

    Parameters
    ----------
    error, processor
        See `find_user_traceback`.
    """
    entries = _user_entries(error, processor)
    if entries:
        sys.stderr.write(format_user_error(error, processor))
        sys.stderr.flush()
        _choose_debugger()(_join(entries))


def _user_entries(error: BaseException, processor: Any) -> list[TracebackType]:
    """List the entries of a traceback from the first to the last that is of the user's code."""
    entries = list(_entries(error.__traceback__))
    # whoever called us may be the user, too, in a notebook say
    above = [one for one, entry in enumerate(entries) if _code(entry) is replay_range.__code__]
    below = entries[above[-1] + 1 :] if above else entries
    package = _package_of(processor)
    users = [place for place, entry in enumerate(below) if _is_users(entry, package)]
    return below[users[0] : users[-1] + 1] if users else []


def _entries(entry: TracebackType | None) -> Iterator[TracebackType]:
    while entry is not None:
        yield entry
        entry = entry.tb_next


def _code(entry: TracebackType) -> CodeType:
    return entry.tb_frame.f_code


def _join(entries: list[TracebackType]) -> TracebackType | None:
    """Make a traceback of some entries: a debugger stands at the last one."""
    joined: TracebackType | None = None
    for one in reversed(entries):
        joined = TracebackType(joined, one.tb_frame, one.tb_lasti, one.tb_lineno)
    return joined


def _is_users(entry: TracebackType, package: str) -> bool:
    module = str(entry.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
    if module in ("hepdask", package):
        return module == package
    path = _code(entry).co_filename
    is_installed = "site-packages" in path or "dist-packages" in path or path[:8] == "<frozen "
    return not is_installed and not path.startswith(_library_directories())


@functools.cache
def _library_directories() -> tuple[str, ...]:
    return tuple({os.path.join(sysconfig.get_path(name), "") for name in _LIBRARY_PATHS})  # noqa: PTH118  # with its end


def _package_of(processor: Any) -> str:
    process = find_process(processor)
    while isinstance(process, functools.partial):
        process = process.func
    return str(getattr(process, "__module__", None) or "").partition(".")[0]


def _choose_debugger() -> Callable[[Any], None]:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None:
        return functools.partial(_debug_in_ipython, shell)
    name = os.environ.get("PYTHONBREAKPOINT", "").rpartition(".")[0]
    with contextlib.suppress(ImportError, AttributeError):
        import importlib

        chosen: Callable[[Any], None] = importlib.import_module(name or "pdb").post_mortem
        return chosen
    import pdb  # noqa: T100  # it was asked for

    return pdb.post_mortem


def _debug_in_ipython(shell: Any, entries: TracebackType) -> None:
    debugger = shell.debugger_cls()
    debugger.reset()
    debugger.interaction(None, entries)
