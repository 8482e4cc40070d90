"""Processors that tests send to workers: importable there, unlike what is defined in a test."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import awkward as ak
import hist
import numpy as np


class Weighted:
    """Fills float weights into Weight storage, whose sums depend on the order of additions in their last bits."""

    def process(self, events: Any) -> dict[str, Any]:
        dataset = events.metadata["dataset"]
        pt = ak.flatten(events.Muon.pt)
        weight = ak.flatten(ak.broadcast_arrays(events.genWeight, events.Muon.pt)[0])
        mass = (
            hist.Hist.new.StrCat([], growth=True, name="dataset")
            .Reg(40, 0, 100, name="pt")
            .Weight()
        )
        mass.fill(dataset=dataset, pt=pt, weight=np.asarray(weight, dtype=np.float64) / 3)
        return {
            "entries": {dataset: len(events)},
            "pt": mass,
            "ranges": [(Path(events.metadata["filename"]).name, events.metadata["entrystart"])],
            "sum": float(np.sum(np.asarray(events.genWeight, dtype=np.float64))),
        }


class RaisesAt(Weighted):
    """Raises in the range that holds one event."""

    def __init__(self, event: int, error: type[Exception] = ZeroDivisionError) -> None:
        self.event = event
        self.error = error

    def process(self, events: Any) -> dict[str, Any]:
        if ak.any(events.event == self.event):
            raise self.error(f"event {self.event}")
        return super().process(events)


class RaisesFrom(Weighted):
    """Raises in all ranges with an event of this number or a later one."""

    def __init__(self, event: int) -> None:
        self.event = event

    def process(self, events: Any) -> dict[str, Any]:
        if ak.any(events.event >= self.event):
            raise ZeroDivisionError("too late")
        return super().process(events)


class Warns(Weighted):
    """Logs in each range."""

    def process(self, events: Any) -> dict[str, Any]:
        import logging

        logging.getLogger("tests.analysis").warning("%d muons", ak.count(events.Muon.pt))
        return super().process(events)


class KillsWorkerAt(Weighted):
    """Kills its process in the range that holds one event."""

    def __init__(self, event: int) -> None:
        self.event = event

    def process(self, events: Any) -> dict[str, Any]:
        if ak.any(events.event == self.event):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().process(events)


class ReturnsNone(Weighted):
    """Returns nothing for one dataset."""

    def process(self, events: Any) -> Any:
        return None if events.metadata["dataset"] == "none" else super().process(events)


class OtherAxes(Weighted):
    """Fills another axis for one dataset: its output does not add to the others."""

    def process(self, events: Any) -> dict[str, Any]:
        output = super().process(events)
        if events.metadata["dataset"] == "other":
            output["pt"] = hist.Hist.new.Reg(3, 0, 1, name="x").Double()
        return output


class Keeps(Weighted):
    """Fills a histogram of its own in each range and returns it: works with coffea, which copies the processor."""

    def __init__(self) -> None:
        self.pt = hist.Hist.new.Reg(10, 0, 100, name="pt").Double()

    def process(self, events: Any) -> Any:
        self.pt.fill(pt=ak.flatten(events.Muon.pt))
        return {"pt": self.pt}


class FailsToUnpickle(Weighted):
    """Can be pickled, but not unpickled."""

    def __reduce__(self) -> Any:
        return _fail_to_unpickle, ()


def _fail_to_unpickle() -> Any:
    raise ImportError("No module named 'my_corrections'")


class WaitsForFile(Weighted):
    """Says that it has begun, and goes on when a file appears."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def process(self, events: Any) -> dict[str, Any]:
        name = f"{Path(events.metadata['filename']).stem}-{events.metadata['entrystart']}"
        (self.directory / f"begun-{name}").touch()
        wait_for(self.directory / "go")
        return super().process(events)


def wait_for(path: Path, timeout_seconds: float = 60) -> None:
    """Wait until a file is there."""
    import threading
    import time

    pause = threading.Event()
    end = time.monotonic() + timeout_seconds
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"{path} did not appear")
        pause.wait(0.02)


class NamesResources(Weighted):
    """Returns the names of the workers that it ran on."""

    def process(self, events: Any) -> Any:  # noqa: ARG002
        from distributed import get_worker

        return {"workers": {get_worker().name}}


class DiesAt:
    """Takes its process along at some events."""

    def __init__(self, events: set[int], how: str) -> None:
        self.events = events
        self.how = how

    def process(self, events: Any) -> dict[str, Any]:
        if np.isin(np.asarray(events.event), list(self.events)).any():
            if self.how == "exit":
                os._exit(7)
            if self.how == "allocate":
                _allocate_until_killed()
            os.kill(os.getpid(), getattr(signal, self.how))
        return {"entries": len(events)}


def _allocate_until_killed() -> None:
    held = []
    while True:
        held.append(np.ones(2**23, dtype=np.uint8))  # touched, so that it is really there


class Hungry:
    """Allocates memory in proportion to the entries of its range; says in a directory how many it was called with.

    Parameters
    ----------
    num_bytes_per_entry : int
        How much; every byte is written to.
    log_directory : Path
        There is a file for each call: its process, its file, its entries.
    files : str
        Only files whose names begin so need the memory.
    """

    def __init__(self, num_bytes_per_entry: int, log_directory: Path, files: str = "") -> None:
        self.num_bytes_per_entry = num_bytes_per_entry
        self.log_directory = log_directory
        self.files = files

    def process(self, events: Any) -> dict[str, Any]:
        metadata = events.metadata
        name, start = Path(metadata["filename"]).name, metadata["entrystart"]
        with (self.log_directory / "calls").open("a") as calls:
            calls.write(f"{os.getpid()} {name} {start} {metadata['entrystop']}\n")
        if name.startswith(self.files):
            self._allocate(len(events))
        return {
            "entries": len(events),
            "sum": int(np.sum(np.asarray(events.event, dtype=np.int64))),
        }

    def _allocate(self, num_entries: int) -> None:
        left = range(num_entries * self.num_bytes_per_entry, 0, -(2**23))
        held = [np.ones(min(one, 2**23), dtype=np.uint8) for one in left]
        del held


class AsksTooMuch(Hungry):
    """Asks at once for what no machine has, where the range is longer than some entries."""

    def _allocate(self, num_entries: int) -> None:
        if num_entries > self.num_bytes_per_entry:
            np.ones(2**55, dtype=np.uint8)


_leaked: list[Any] = []


class Leaky(Hungry):
    """Never frees what it has allocated."""

    def _allocate(self, num_entries: int) -> None:
        _leaked.append(np.ones(num_entries * self.num_bytes_per_entry, dtype=np.uint8))


class SlowSum:
    """Adds floats, and takes its time; says in a directory who has called it where."""

    def __init__(self, seconds: float, log_directory: Path | None = None) -> None:
        self.seconds = seconds
        self.log_directory = log_directory

    def process(self, events: Any) -> dict[str, Any]:
        import threading

        start = events.metadata["entrystart"]
        if self.log_directory is not None:
            (self.log_directory / f"{os.getpid()}-{start}").touch()
        threading.Event().wait(self.seconds)
        return {
            "sum": float(np.sum(np.asarray(events.MET.pt, dtype=np.float64)) / 3),
            "starts": [start],
        }


class HangsAt:
    """Hangs in the range that holds one event: where an exception can reach it ("loop"), or can't."""

    def __init__(self, event: int, how: str) -> None:
        self.event = event
        self.how = how

    def process(self, events: Any) -> dict[str, Any]:
        import threading

        while np.isin(self.event, np.asarray(events.event)).any():
            if self.how == "lock":
                lock = threading.Lock()
                lock.acquire()
                lock.acquire()
        return {"entries": len(events)}


class LateOnce(SlowSum):
    """Waits, in the range that starts at an entry, until somebody else has begun the same range."""

    def __init__(self, start: int, directory: Path) -> None:
        super().__init__(0.01)
        self.start = start
        self.directory = directory

    def process(self, events: Any) -> dict[str, Any]:
        if events.metadata["entrystart"] == self.start:
            is_first = not list(self.directory.glob("late-*"))
            (self.directory / f"late-{os.getpid()}").touch()
            if is_first:
                wait_for(self.directory / "go")
        return super().process(events)


class UnreachableFromFirst(SlowSum):
    """Can't reach its server from the first process that tries one range."""

    def __init__(self, start: int, directory: Path) -> None:
        super().__init__(0.01)
        self.start = start
        self.directory = directory

    def process(self, events: Any) -> dict[str, Any]:
        if events.metadata["entrystart"] == self.start:
            own = self.directory / str(os.getpid())
            if own.exists() or not list(self.directory.glob("*")):
                own.touch()
                raise ConnectionResetError("the server is not for you")
            own.touch()
        return super().process(events)


class RaisesAtEntry(SlowSum):
    """Raises in the range that starts at an entry."""

    def __init__(self, start: int, error: type[Exception]) -> None:
        super().__init__(0.01)
        self.start = start
        self.error = error

    def process(self, events: Any) -> dict[str, Any]:
        if events.metadata["entrystart"] == self.start:
            raise self.error("as ever")
        return super().process(events)


class Noted(Weighted):
    """Notes each call in a directory; raises in some ranges as long as there is a file "broken" in it."""

    def __init__(
        self,
        directory: Path,
        bad: frozenset[tuple[str, int]] = frozenset(),
        seconds: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        self.directory = directory
        self.bad = bad
        self.seconds = seconds
        self.scale = scale

    def process(self, events: Any) -> dict[str, Any]:
        import threading

        metadata = events.metadata
        place = (Path(metadata["filename"]).name, metadata["entrystart"])
        with (self.directory / "calls").open("a") as calls:
            calls.write(f"{metadata['dataset']} {place[0]} {place[1]} {metadata['entrystop']}\n")
        if place in self.bad and (self.directory / "broken").exists():
            raise ZeroDivisionError(f"{place} is broken")
        threading.Event().wait(self.seconds)
        output = super().process(events)
        output["sum"] *= self.scale
        return output


class Accounted:
    """Says in its output exactly which entries it has seen; some events are poisoned, as long as nobody has cured them.

    Parameters
    ----------
    directory : Path
        ``begun`` appears in it with the first call; a file ``cured`` lets all poison be harmless.
    poisons : mapping of int to str
        What the range does that holds an event: "raise", "memory", "misfit" (its output doesn't add to others), "loop",
        "sleep" and "lock" (it hangs), "exit", or the name of a signal.
    max_entries : int or None
        Longer ranges run out of memory, cured or not.
    seconds : float
        How long each range takes.
    """

    def __init__(
        self,
        directory: Path,
        poisons: dict[int, str] | None = None,
        *,
        max_entries: int | None = None,
        seconds: float = 0.0,
    ) -> None:
        self.directory = directory
        self.poisons = poisons or {}
        self.max_entries = max_entries
        self.seconds = seconds

    def process(self, events: Any) -> dict[str, Any]:
        import threading

        metadata = events.metadata
        numbers = np.asarray(events.event)
        (self.directory / "begun").touch()
        threading.Event().wait(self.seconds)
        if self.max_entries is not None and len(numbers) > self.max_entries:
            raise MemoryError(f"{len(numbers)} entries are too many")
        is_cured = (self.directory / "cured").exists()
        effects = {} if is_cured else self.poisons
        found = [effects[event] for event in sorted(effects) if (numbers == event).any()]
        for how in found:
            _suffer(how)
        key = f"{metadata['dataset']}/{Path(metadata['filename']).name}"
        name = "misfit" if "misfit" in found else "digit"
        digits = hist.Hist.new.Integer(0, 10, name=name).Int64()
        digits.fill(np.asarray(numbers % 10, dtype=np.int64))
        return {
            "counts": {key: len(numbers)},
            "sums": {key: int(numbers.sum())},
            "digits": digits,
            "weight": float(np.sum(np.asarray(events.genWeight, dtype=np.float64) / 3)),
            "spans": [(key, metadata["entrystart"], metadata["entrystop"])],
        }

    def postprocess(self, accumulator: Any, completeness: Any) -> Any:
        """Change the output in place, as many do."""
        if accumulator is not None:
            accumulator["processed"] = completeness.total.num_entries_processed
        return accumulator


class UnpicklableAccounted(Accounted):
    """Can't be unpickled before it is cured."""

    def __reduce__(self) -> Any:
        options = {"max_entries": self.max_entries, "seconds": self.seconds}
        return _unpickle_accounted, (self.directory, self.poisons, options)


def _unpickle_accounted(directory: Path, poisons: dict[int, str], options: Any) -> Accounted:
    if not (directory / "cured").exists():
        raise ImportError("No module named 'my_corrections'")
    return UnpicklableAccounted(directory, poisons, **options)


def _suffer(how: str) -> None:
    import threading
    import time

    if how == "raise":
        raise ZeroDivisionError("a poisoned event")
    if how == "memory":
        raise MemoryError("a poisoned event")
    if how == "exit":
        os._exit(7)
    if how.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, how))
    lock = threading.Lock()
    while how == "loop":
        pass
    while how == "sleep":
        time.sleep(0.05)
    if how == "lock":
        lock.acquire()
        lock.acquire()
