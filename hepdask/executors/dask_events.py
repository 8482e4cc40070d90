"""What the tasks of a run say of themselves, on its way from the workers to the progress display."""

from __future__ import annotations

import threading
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from hepdask.executors.dask_clients import LOST_ERRORS
from hepdask.executors.dask_monitor import SUMS, TOPIC

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hepdask.progress import Progress

__all__ = ["Display", "listen"]


class Display:
    """Turns the sums that tasks report into progress."""

    def __init__(self, progress: Progress, num_entries: int, num_merges: int) -> None:
        self._progress = progress
        self._sums: dict[str, dict[str, int]] = {}
        self._num_merges = num_merges
        self._num_merged = 0
        progress.start("processing", num_entries, "events")
        if num_merges:
            progress.start("merging", num_merges, "merges")

    def note(self, report: dict[str, Any]) -> dict[str, int]:
        """Take the sums of one task, and return what is new in them.

        A task that runs again, or a copy of it, starts at zero again: nothing is counted twice.
        """
        before = self._sums.setdefault(report["place"], {})
        now = {**{name: report[name] for name in SUMS}, **report["same"]}
        new = {name: max(0, count - before.get(name, 0)) for name, count in now.items()}
        for name, count in new.items():
            before[name] = before.get(name, 0) + count
        self._progress.advance(
            "processing", new["entries"], num_bytes=new["bytes"], num_failures=new["failures"]
        )
        return new

    def merged(self) -> None:
        """Take note of a merge; one that is made anew was counted before."""
        if self._num_merged < self._num_merges:
            self._num_merged += 1
            self._progress.advance("merging", 1)

    def finish(self) -> None:
        """End both stages."""
        self._progress.finish("processing")
        if self._num_merges:
            self._progress.finish("merging")


_handlers: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
_handlers_lock = threading.Lock()


@contextmanager
def listen(client: Any, run_id: str, handler: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Receive the events of one run; a client has one handler for a topic, and may have several runs."""
    with _handlers_lock:
        handlers = _handlers.setdefault(client, {})
        # also where there is one already: a scheduler forgets it with a connection
        client.subscribe_topic(TOPIC, lambda event: _pass_on(handlers, event))
        handlers[run_id] = handler
    try:
        yield
    finally:
        with _handlers_lock:
            del handlers[run_id]
            if not handlers:
                with suppress(*LOST_ERRORS):
                    client.unsubscribe_topic(TOPIC)


def _pass_on(handlers: dict[str, Any], event: tuple[float, dict[str, Any]]) -> None:
    _, message = event
    handler = handlers.get(message["run"])
    if handler is not None:
        handler(message)
