"""What could not be processed, as data."""

from __future__ import annotations

import contextlib
import operator
import re
import shlex
import traceback as tracebacks
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

from hepdask.errors import (
    AccumulatorError,
    FileReadError,
    MissingDependencyError,
    OptionError,
    ProcessDiedError,
    ProcessorError,
    RangeTimeoutError,
    RunError,
)
from hepdask.tables import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from hepdask.fileset import InputFile

__all__ = [
    "BAD_EVENTS",
    "BAD_FILES",
    "Failure",
    "FailureKind",
    "Failures",
    "build_failure",
    "exception_chain",
    "is_skippable",
]

#: transient: may work next time (timeout, connection); input: the file is bad; user: the processor's code;
#: resources: memory, a worker that died; setup: the worker lacks something, or hepdask itself erred
FailureKind = Literal["transient", "input", "user", "resources", "setup"]
#: What is raised for files that can't be read, and for events that kill their process or need more memory than there is.
BAD_FILES, BAD_EVENTS = (FileReadError,), (ProcessDiedError, MemoryError)


_FRAME = re.compile(r'^ +File "(.*)", line (\d+), in (.*)$', re.MULTILINE)
_CHAINED = re.compile(
    r"^(?:The above exception was the direct cause|During handling of the above exception).*$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Failure:
    """One range, or one file that could not be inspected, and why.

    Attributes
    ----------
    dataset, file_path, treename : str
        Where; `file_path` is the logical name, the first of the replicas.
    entry_start, entry_stop : int or None
        The half-open range; None where the file could not be inspected, so that its entries are not known.
    kind : str
        Class of the failure: "transient", "input", "user", "resources" or "setup".
    exception_type : str
        Qualified name of the class of the exception.
    message, traceback : str
        Its text, and where it came from on the worker.
    worker : str
        Address or host and process that it happened on.
    replica : str
        The URL that was read, if one was opened.
    attempts : int
        How often it was tried.
    is_skipped : bool
        True if `skipbadfiles` allows it.
    exception : Exception or None
        The exception itself, as long as the failure stays in its process; it is not pickled.
    """

    dataset: str
    file_path: str
    treename: str
    entry_start: int | None
    entry_stop: int | None
    kind: FailureKind
    exception_type: str
    message: str
    traceback: str = ""
    worker: str = ""
    replica: str = ""
    attempts: int = 1
    is_skipped: bool = False
    exception: BaseException | None = field(default=None, compare=False, repr=False)

    @property
    def num_entries(self) -> int:
        """Entries that are missing; zero where they are not known."""
        return (
            0
            if self.entry_start is None or self.entry_stop is None
            else self.entry_stop - self.entry_start
        )

    @property
    def is_late(self) -> bool:
        """True if it took longer than it may."""
        return self.exception_type.endswith("RangeTimeoutError")

    @property
    def signature(self) -> str:
        """Where in the code it was raised: the same for the same mistake in all ranges."""
        parts = _CHAINED.split(self.traceback)
        is_wrapped = len(parts) > 1 and "ProcessorError" in parts[-1]
        frames = _FRAME.findall(parts[-2] if is_wrapped else parts[-1])
        path, line, function = frames[-1] if frames else ("", "", "")
        place = f" at {path}, line {line}, in {function}" if frames else ""
        return f"{_short_name(self)}{place}"

    @property
    def where(self) -> str:
        """The place, in words."""
        what = (
            "all entries"
            if self.entry_start is None
            else f"entries {self.entry_start} to {self.entry_stop}"
        )
        return f"{what} of {self.treename!r} in {self.file_path} (dataset {self.dataset!r})"

    @property
    def how_to_skip(self) -> str:
        """How the run could have gone on without it; empty if it had better not."""
        if self.kind in ("input", "transient"):
            return "skipbadfiles=True leaves out, and lists, files that can't be read"
        names = tuple(one.__name__ for one in BAD_EVENTS)
        if self.exception_type.endswith(names):
            return (
                f"skipbadfiles=({', '.join(names)}) leaves out, and lists, events that kill their process or need more memory "
                "than there is"
            )
        return ""

    def __str__(self) -> str:
        worker = f" (on {self.worker})" if self.worker else ""
        place = f"{self.where}: "
        if self.file_path in self.message:  # errors of reading say themselves where they are from
            place = (
                ""
                if self.entry_start is None
                else f"entries {self.entry_start} to {self.entry_stop}: "
            )
        return f"{place}{_short_name(self)}: {self.message}{worker}"

    def __reduce__(self) -> tuple[Any, ...]:
        values = [getattr(self, name) for name in self.__slots__ if name != "exception"]
        return type(self), tuple(values)


class FailureContext(Protocol):
    """What a run knows and its failures don't say."""

    def replay(self, failure: Failure, processor: Any, *, debug: bool = False) -> Any:
        """Process the range of a failure here; see `Failures.replay`."""
        ...


class Failures(Sequence[Failure]):
    """The failures of a run, in dataset order.

    Parameters
    ----------
    failures : iterable of Failure
        In that order.
    context : FailureContext or None
        What `replay` needs; None if they are not from a run in this process. It is not pickled.
    """

    def __init__(
        self, failures: Iterable[Failure] = (), context: FailureContext | None = None
    ) -> None:
        self._failures = tuple(failures)
        self._context = context

    @overload
    def __getitem__(self, index: int) -> Failure: ...
    @overload
    def __getitem__(self, index: slice) -> Failures: ...
    def __getitem__(self, index: int | slice) -> Failure | Failures:
        if isinstance(index, slice):
            return Failures(self._failures[index], self._context)
        return self._failures[index]

    def __len__(self) -> int:
        return len(self._failures)

    def __iter__(self) -> Iterator[Failure]:
        return iter(self._failures)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._failures,)

    def __repr__(self) -> str:
        if not self:
            return "<no failures>"
        return f"<{len(self)} failure{'s' if len(self) > 1 else ''}>\n{self.to_table()}"

    def _repr_html_(self) -> str:
        return self.to_table()._repr_html_() if self else "<p>no failures</p>"

    def to_table(self, max_rows: int = 20) -> Table:
        """Return the first failures, one a row."""
        rows = [(_place(failure), _cause(failure)) for failure in self._failures[:max_rows]]
        title = f"Failures: {len(self)}" + (
            f", the first {max_rows}" if len(self) > max_rows else ""
        )
        return Table(title, ("where", "what"), tuple(rows))

    def to_fileset(self) -> dict[str, Any]:
        """Return what failed as a fileset, the ranges as ``steps``, that any tool can run.

        Returns
        -------
        dict
            ``{dataset: {"files": {file_path: {"object_path", "steps"}}}}``; a file that could not be inspected has
            no ``steps``: all of it is to be done. The user's metadata is not in it.
        """
        fileset: dict[str, Any] = {}
        for failure in self:
            files = fileset.setdefault(failure.dataset, {"files": {}})["files"]
            entry = files.setdefault(failure.file_path, {"object_path": failure.treename})
            if failure.entry_start is not None:
                entry.setdefault("steps", []).append([failure.entry_start, failure.entry_stop])
        return fileset

    def replay(self, index: int | Failure, processor: Any, *, debug: bool = False) -> Any:
        """Process exactly the range that failed, here in this process.

        Schema, options, replicas and metadata are those of the run; the replica that was read when it failed comes first.

        Parameters
        ----------
        index : int or Failure
            Which one; -1 is the last.
        processor : object
            As for `Runner.run`. It is called itself, and not a copy, so that breakpoints in it work; one that fills histograms
            of its own has to be made anew before.
        debug : bool
            True: where the processor raises, the traceback is shown and a debugger started at the innermost frame of the
            user's code, as long as the file is open: IPython's where that is running. When it is left, the exception is raised.

        Returns
        -------
        object
            What ``process`` returned, if it doesn't fail this time.

        Raises
        ------
        Exception
            What ``process`` raised: the exception itself, whose traceback ends in the user's code, for ``%debug`` and
            ``pdb.pm()``.
        FileReadError
            If the file can't be read, or, where the failure has no range, can't be inspected.
        OptionError
            If there is no such failure, or `processor` can't be one.
        RunError
            If these failures are not from a run in this process; the text has the command that does the same. Also if the
            file of a failure without a range can be opened now: no range is known that could be processed.

        Notes
        -----
        A range that killed its worker kills this process, too: save what you have, or use ``hepdask replay``. Python's
        `faulthandler` is enabled for such a range, which shows at which lines a crash happened.
        """
        failure = self._find(index)
        if self._context is None:
            raise RunError(
                "these failures are not from a Runner in this process, so that schema and files are not known; type: "
                f"{_replay_command(failure)}"
            )
        return self._context.replay(failure, processor, debug=debug)

    def _find(self, index: int | Failure) -> Failure:
        if isinstance(index, Failure):
            if index in self._failures:
                return index
        else:
            with contextlib.suppress(IndexError, TypeError):
                return self._failures[operator.index(index)]
        numbers = f"give a number from 0 to {len(self) - 1}" if self else "there is none at all"
        raise OptionError(f"there is no failure {index!r}: {numbers}")


def _replay_command(failure: Failure) -> str:
    options = ["--dataset", failure.dataset, "--file", failure.file_path]
    if failure.entry_start is not None:
        options += ["--entries", f"{failure.entry_start}:{failure.entry_stop}"]
    return f"hepdask replay PROCESSOR FILESET {shlex.join(options)}"


def exception_chain(exception: BaseException) -> Iterator[BaseException]:
    """Yield an exception and what it was raised from, the innermost last."""
    current: BaseException | None = exception
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        # ``raise ... from None`` says that what was handled meanwhile is not the reason
        hidden = current.__suppress_context__
        current = current.__cause__ if hidden else current.__context__


def is_skippable(exception: BaseException, skipped: tuple[type[BaseException], ...]) -> bool:
    """Return whether an exception, or what it was raised from, is of a class that the user lets pass."""
    return any(isinstance(one, skipped) for one in exception_chain(exception))


def build_failure(
    exception: BaseException,
    file: InputFile,
    bounds: tuple[int, int] | None,
    *,
    worker: str = "",
    replica: str = "",
    skipped: tuple[type[BaseException], ...] = (),
    kinds: Mapping[type[BaseException], FailureKind] | None = None,
) -> Failure:
    """Make the record of an exception.

    Parameters
    ----------
    exception : BaseException
        As it was caught.
    file : InputFile
        Where.
    bounds : (int, int) or None
        The half-open range; None if the file could not be inspected.
    worker, replica : str
        On what, from where.
    skipped : tuple of exception types
        What `skipbadfiles` lets pass.
    kinds : mapping of exception type to str, or None
        Classes of failures that the user has chosen for exceptions.
    """
    # a ProcessorError wraps what the user's code raised: that is what the user wants to see
    shown = (
        exception.__cause__
        if type(exception) is ProcessorError and exception.__cause__
        else exception
    )
    return Failure(
        dataset=file.dataset,
        file_path=file.file_path,
        treename=file.treename,
        entry_start=bounds[0] if bounds else None,
        entry_stop=bounds[1] if bounds else None,
        kind=classify(exception, kinds),
        exception_type=_qualified_name(type(shown)),
        message=_text(shown),
        traceback="".join(tracebacks.format_exception(exception)),
        worker=worker,
        replica=replica,
        is_skipped=is_skippable(exception, skipped),
        exception=exception,
    )


def classify(
    exception: BaseException, kinds: Mapping[type[BaseException], FailureKind] | None = None
) -> FailureKind:
    """Return the class of a failure, by the exceptions in its chain; the user's own choice first."""
    chain = list(exception_chain(exception))
    for one in chain:
        for kind, chosen in (kinds or {}).items():
            if isinstance(one, kind):
                return chosen
    if any(isinstance(one, RangeTimeoutError) for one in chain):
        return "transient"
    if any(isinstance(one, MemoryError) for one in chain):
        return "resources"
    if any(isinstance(one, ProcessDiedError) and one.is_by_call for one in chain):
        return "resources"
    if any(isinstance(one, MissingDependencyError) for one in chain):
        return "setup"
    if any(isinstance(one, FileReadError) for one in chain):
        return (
            "transient"
            if any(isinstance(one, TimeoutError | ConnectionError) for one in chain)
            else "input"
        )
    if any(isinstance(one, ProcessorError | AccumulatorError) for one in chain):
        return "user"
    return "setup"


def _text(exception: BaseException) -> str:
    try:
        return str(exception)
    except Exception:  # noqa: BLE001  # the user's class: its failure must not hide that of the range
        return "(its text can't be made)"


def _qualified_name(kind: type) -> str:
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def _place(failure: Failure) -> str:
    bounds = (
        "all entries"
        if failure.entry_start is None
        else f"entries {failure.entry_start} to {failure.entry_stop}"
    )
    return f"{failure.dataset}\n{failure.file_path}\n{bounds}"


def _cause(failure: Failure) -> str:
    text = failure.message.strip().split("\n", 1)[0]
    # errors of reading begin with the place, which stands beside them
    text = text.removeprefix(f"dataset {failure.dataset!r}, file {failure.file_path}").lstrip(":, ")
    worker = f"\non {failure.worker}" if failure.worker else ""
    return f"{_short_name(failure)} ({failure.kind}): {text}{worker}"


def _short_name(failure: Failure) -> str:
    """Name the exception without its module."""
    return failure.exception_type.rpartition(".")[2]
