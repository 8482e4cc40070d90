"""The user's processor: what may be one, how it is called, and what it must not do.

coffea unpickles the processor anew for each chunk. hepdask keeps it, since that can cost more than the range. But a
processor that fills histograms of its own (``self.hist.fill(...); return self.hist``), which works with coffea, would then
count each event again and again. `ProcessorCopies` notices that an output is a part of the processor, and gives
such a processor a fresh copy for each range.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hepdask.errors import ExecutorError, OptionError, ProcessorError

if TYPE_CHECKING:
    from hepdask.completeness import Completeness

__all__ = ["Process", "ProcessorCopies", "call_postprocess", "find_process"]

Process = Callable[[Any], Any]

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
        self._pickled = _try_pickle(processor) if _state(processor) else None
        self._kept = threading.local()

    def __call__(self, events: Any) -> Any:
        """Call ``process(events)``."""
        processor = getattr(self._kept, "processor", None)
        if processor is None:
            processor = self._kept.processor = self._make()
        output = find_process(processor)(events)
        if _shares_state(output, processor):
            self._drop()
        return output

    def __getstate__(self) -> bytes:
        if self._pickled is None:
            import cloudpickle

            self._pickled = cloudpickle.dumps(self._original)
        return self._pickled

    def __setstate__(self, pickled: bytes) -> None:
        self._original = None
        self._is_used = True
        self._pickled = pickled
        self._kept = threading.local()

    def trial(self) -> Process:
        """Return a processor to try out, which no range will get (the user's own, if it can't be copied)."""
        return find_process(self._original if self._pickled is None else self._load())

    def _make(self) -> Any:
        if self._pickled is None or not self._is_used:
            self._is_used = True
            return self._original
        return self._load()

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
                "process() returned an object that the processor keeps, so the next range would count its contents "
                "again, and this processor can't be pickled to make a fresh one: make what you fill inside process()"
            )
        self._kept.processor = None


def _try_pickle(processor: Any) -> bytes | None:
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(processor))
    except Exception:  # noqa: BLE001  # pickling runs anybody's code
        return None


def _state(processor: Any) -> dict[str, Any]:
    owner = getattr(processor, "__self__", processor)
    return (
        {}
        if inspect.isfunction(owner) or inspect.ismodule(owner)
        else getattr(owner, "__dict__", {})
    )


def _shares_state(output: Any, processor: Any) -> bool:
    state = _state(processor)
    return bool(state) and not _mutable_ids(output).isdisjoint(_mutable_ids(state))


def _mutable_ids(root: Any) -> set[int]:
    """Collect the identities of the objects in nested containers that could be changed in place."""
    found: set[int] = set()
    pending = [root]
    while pending and len(found) < MAX_OBJECTS:
        one = pending.pop()
        if (
            one is None
            or isinstance(one, str | bytes | int | float | complex | frozenset)
            or id(one) in found
        ):
            continue
        if isinstance(one, tuple):
            pending.extend(one)
            continue
        found.add(id(one))
        if isinstance(one, dict):
            pending.extend(one.values())
        elif isinstance(one, list):
            pending.extend(one)
    return found
