"""The user's processor: what may be one, how it is called, and what it must not do.

coffea unpickles the processor anew for each chunk. hepdask keeps it, since that can cost more than the range. But a
processor that fills histograms of its own (``self.hist.fill(...); return self.hist``), which works with coffea, would then
count each event again and again. `ProcessorCopies` notices that an output is a part of the processor, and gives
such a processor a fresh copy for each range.
"""

from __future__ import annotations

import dis
import functools
import inspect
import threading
from collections.abc import Callable
from enum import Enum
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from hepdask.errors import ExecutorError, OptionError, ProcessorError

if TYPE_CHECKING:
    from hepdask.completeness import Completeness

__all__ = ["Process", "ProcessorCopies", "call_postprocess", "find_process"]

Process = Callable[[Any], Any]

_KEEPS = (
    "process() returned an object that {}: the next range would fill it again and count its contents twice; "
    "make what you fill inside process()"
)
_LIBRARIES = frozenset(
    {
        "abc",
        "awkward",
        "boost_histogram",
        "builtins",
        "coffea",
        "correctionlib",
        "hist",
        "numba",
        "numpy",
        "vector",
    }
)
_IMMUTABLE = (
    type(None), str, bytes, int, float, complex, frozenset, type, FunctionType, BuiltinFunctionType, ModuleType,
    property, classmethod, staticmethod, Enum,
)  # fmt: skip

#: Objects of a processor or an output that are looked at for a shared one; enough for any dictionary of histograms.
MAX_OBJECTS = 5_000


def find_process(processor: Any) -> Process:
    """Return the function that is called with events.

    Parameters
    ----------
    processor : object
        Has a ``process(events)`` (coffea's `ProcessorABC` does), or is a callable itself.

    Raises
    ------
    OptionError
        If it is neither, or a class instead of an instance.
    """
    if inspect.isclass(processor):
        raise OptionError(
            f"the processor is the class {processor.__name__}: give an instance, {processor.__name__}(...)"
        )
    process = getattr(processor, "process", None)
    if callable(process):
        return process  # type: ignore[no-any-return]  # the user's
    if callable(processor):
        return processor  # type: ignore[no-any-return]
    raise OptionError(
        f"the processor is {type(processor).__name__}: it needs a method process(events), or to be a callable"
    )


def call_postprocess(processor: Any, accumulator: Any, completeness: Completeness) -> Any:
    """Call ``processor.postprocess``, if there is one.

    Parameters
    ----------
    processor : object
        Its `postprocess` takes the accumulator, and perhaps the completeness as a second argument.
    accumulator : object
        The merged output; None if nothing was processed, and then nothing is called.
    completeness : Completeness
        What is in it.

    Returns
    -------
    object
        What `postprocess` returned, or `accumulator` if it returned None, as with coffea.
    """
    postprocess = getattr(processor, "postprocess", None)
    if not callable(postprocess) or accumulator is None:
        return accumulator
    arguments = (accumulator, completeness) if _takes_two(postprocess) else (accumulator,)
    try:
        output = postprocess(*arguments)
    except Exception as error:
        raise ProcessorError(f"postprocess() raised {type(error).__name__}: {error}") from error
    return accumulator if output is None else output


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except (TypeError, ValueError):
        return False
    return True


class ProcessorCopies:
    """Gives each range a processor that is as the user made it.

    Parameters
    ----------
    processor : object
        The user's instance or callable.

    Notes
    -----
    Pickled, it is the processor's own pickle, loaded when the first range needs it; one instance for each thread.
    """

    def __init__(self, processor: Any) -> None:
        self._original = processor
        self._is_used = False
        # a snapshot, from before the first range; a processor that can't be pickled runs here all the same
        self._pickled = _try_pickle(processor) if _owned(processor) else None
        self._kept = threading.local()
        self._lock = threading.Lock()

    def __call__(self, events: Any) -> Any:
        """Call ``process(events)``.

        Raises
        ------
        ProcessorError
            If it returns an object that all its copies have in common, a global histogram say.
        """
        processor = getattr(self._kept, "processor", None)
        if processor is None:
            processor = self._kept.processor = self._make()
        output = find_process(processor)(events)
        if _shares_state(output, _owned(processor)):
            self._drop()
        elif _shares_state(output, _shared(processor)):
            raise ProcessorError(_KEEPS.format("is a global or a class attribute"))
        return output

    def __getstate__(self) -> bytes:
        if self._pickled is None:
            from hepdask.compiled import pickle_compiled

            self._pickled = pickle_compiled(self._original)
        return self._pickled

    def __setstate__(self, pickled: bytes) -> None:
        self._original = None
        self._is_used = True
        self._pickled = pickled
        self._kept = threading.local()
        self._lock = threading.Lock()

    def trial(self) -> Process:
        """Return a processor to try out, which no range will get (the user's own, if it can't be copied)."""
        return find_process(self._original if self._pickled is None else self._load())

    def _make(self) -> Any:
        with self._lock:
            is_first, self._is_used = not self._is_used, True
        return self._original if self._pickled is None or is_first else self._load()

    def _load(self) -> Any:
        import cloudpickle

        try:
            return cloudpickle.loads(self._pickled)
        except Exception as error:
            raise ExecutorError(
                f"the processor can't be unpickled here: {type(error).__name__}: {error}; install what it needs on the workers"
            ) from error

    def _drop(self) -> None:
        if self._pickled is None:
            raise ProcessorError(
                _KEEPS.format("belongs to a processor that can't be pickled to make a fresh one")
            )
        self._kept.processor = None


def _try_pickle(processor: Any) -> bytes | None:
    from hepdask.compiled import pickle_compiled

    try:
        return pickle_compiled(processor)
    except Exception:  # noqa: BLE001  # pickling runs anybody's code
        return None


def _shares_state(output: Any, owned: list[Any]) -> bool:
    return bool(owned) and not _mutable_ids([output]).isdisjoint(_mutable_ids(owned))


def _owned(processor: Any) -> list[Any]:
    """Collect what a processor brings with it, and what a pickled copy therefore has for itself."""
    if isinstance(processor, functools.partial):
        return [*processor.args, *processor.keywords.values(), *_owned(processor.func)]
    owner = getattr(processor, "__self__", processor)
    if inspect.ismodule(owner):  # a builtin function
        return []
    if inspect.isfunction(owner):
        cells = [cell.cell_contents for cell in owner.__closure__ or () if _is_filled(cell)]
        return [*cells, *(owner.__defaults__ or ()), *(owner.__kwdefaults__ or {}).values()]
    return _attributes(owner)


def _shared(processor: Any) -> list[Any]:
    """Collect what all copies of a processor have in common: class attributes, globals that `process` names."""
    process = find_process(processor)
    function = getattr(process, "__func__", process)
    code = getattr(function, "__code__", None)
    names = () if code is None else _global_names(code)
    found = [
        function.__globals__[name] for name in names if name in getattr(function, "__globals__", ())
    ]
    if not inspect.isfunction(processor):
        for kind in type(processor).__mro__:
            if not _is_library(kind):
                found.extend(
                    value for name, value in vars(kind).items() if not name.startswith("__")
                )
    return found


@functools.lru_cache(maxsize=256)
def _global_names(code: CodeType) -> tuple[str, ...]:
    """List the globals that a function reads; ``co_names`` has the names of attributes, too."""
    loads = ("LOAD_GLOBAL", "LOAD_NAME")
    return tuple({one.argval for one in dis.get_instructions(code) if one.opname in loads})


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a name that is bound only later
        return False


def _attributes(owner: Any) -> list[Any]:
    slots = [name for kind in type(owner).__mro__ for name in getattr(kind, "__slots__", ())]
    slotted = [
        getattr(owner, name) for name in slots if isinstance(name, str) and hasattr(owner, name)
    ]
    own = getattr(owner, "__dict__", None)
    # a proxy of something compiled may answer to this name, too
    return [*(own.values() if isinstance(own, dict) else ()), *slotted]


def _is_library(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _LIBRARIES


def _mutable_ids(roots: list[Any]) -> set[int]:
    """Collect the identities of the objects in nested containers that could be changed in place."""
    found: set[int] = set()
    pending = list(roots)
    while pending and len(found) < MAX_OBJECTS:
        one = pending.pop()
        if isinstance(one, _IMMUTABLE) or id(one) in found:
            continue
        if isinstance(one, tuple):
            pending.extend(one)
            continue
        found.add(id(one))
        if isinstance(one, dict):
            # no other mapping: an open file is one, and its values are all that is in it
            pending.extend(one.values())
        elif isinstance(one, list):
            pending.extend(one)
        elif not _is_library(type(one)):
            pending.extend(_attributes(one))
    return found
