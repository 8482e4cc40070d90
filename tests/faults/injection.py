"""Faults, each of them real: signals to processes by their id, damaged bytes, servers that go away and come back."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from random import Random

    from tests.servers import XrdServer

__all__ = [
    "FileFault",
    "Injector",
    "Outages",
    "Timed",
    "Workers",
    "damage_file",
    "damage_store",
    "restore",
    "write_events",
]

TREENAME = "Events"
#: Of a key of ROOT's own compression: nine bytes that say how it was done; what follows has a checksum.
COMPRESSION_HEADER_BYTES = 9


def write_events(path: Path, first_event: int, num_entries: int, cluster_size: int) -> None:
    """Write numbered events, each cluster with a basket of its own in each branch."""
    import uproot

    random = np.random.default_rng(first_event)
    types = {"run": "u4", "luminosityBlock": "u4", "event": "u8", "genWeight": "f4"}
    with uproot.recreate(path) as file:
        tree = file.mktree(TREENAME, types)
        for start in range(0, num_entries, cluster_size):
            size = min(cluster_size, num_entries - start)
            event = np.arange(first_event + start, first_event + start + size, dtype=np.uint64)
            columns = {
                "run": np.ones(size, np.uint32),
                "luminosityBlock": (event // 100).astype(np.uint32),
                "event": event,
                "genWeight": random.normal(1, 0.5, size).astype(np.float32),
            }
            tree.extend(columns)


@dataclass(frozen=True, slots=True)
class FileFault:
    """What was done to a file.

    Attributes
    ----------
    how : str
        "flip", "cut" (in place), "replace" (by its first half), "blank" (its header), or "remove".
    entry_start, entry_stop : int or None
        Entries that can't be read any more; None: that is not known, perhaps none of them.
    """

    how: str
    entry_start: int | None = None
    entry_stop: int | None = None


def damage_file(path: Path, how: str, random: Random) -> FileFault:
    """Damage a file, in a way that a reader can notice."""
    if how == "flip":
        return _flip_bit(path, random)
    size = path.stat().st_size
    if how == "remove":
        path.unlink()
    elif how == "cut":
        os.truncate(path, random.randrange(size))
    elif how == "replace":
        half = path.with_suffix(".half")
        half.write_bytes(path.read_bytes()[: size // 2])
        half.chmod(0o644)
        half.replace(path)
    elif how == "blank":
        with path.open("r+b") as file:
            file.write(bytes(64))
    return FileFault(how)


def _flip_bit(path: Path, random: Random) -> FileFault:
    import uproot

    with uproot.open(path) as file:
        branch = file[TREENAME]["event"]
        number = random.randrange(branch.num_baskets)
        key = branch.basket_key(number)
        bounds = branch.entry_offsets[number], branch.entry_offsets[number + 1]
        assert key.fNbytes - key.fKeylen < key.fObjlen, "it has no checksum"
        first = key.fSeekKey + key.fKeylen + COMPRESSION_HEADER_BYTES
        place = random.randrange(first, key.fSeekKey + key.fNbytes)
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0] ^ (1 << random.randrange(8))
        file.seek(place)
        file.write(bytes([byte]))
    return FileFault("flip", *map(int, bounds))


def damage_store(directory: Path, random: Random) -> int:
    """Damage about half of the objects of a store; return how many."""
    objects = sorted(directory.glob("*/*.hepdask"))
    chosen = [one for one in objects if random.random() < 0.5]
    for one in chosen:
        content = bytearray(one.read_bytes())
        how = random.choice(["flip", "cut", "empty", "remove", "swap"])
        if how == "remove":
            one.unlink()
            continue
        if how == "flip":
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        elif how == "cut":
            del content[random.randrange(len(content)) :]
        elif how == "empty":
            content.clear()
        else:
            content[:] = random.choice(objects).read_bytes() if one.exists() else b""
        one.write_bytes(content)
    return len(chosen)


class Workers:
    """The worker processes of a local cluster, by the process ids that their nannies know.

    Parameters
    ----------
    cluster : distributed.LocalCluster
        With nannies.
    client : distributed.Client
        Of it.
    """

    def __init__(self, cluster: Any, client: Any) -> None:
        self._cluster = cluster
        self._client = client
        self._paused: set[int] = set()
        self._num_wanted = len(cluster.workers)

    def pids(self) -> list[int]:
        """List the processes that run now."""
        nannies = list(self._cluster.workers.values())
        return [one.pid for one in nannies if getattr(one, "pid", None)]

    def signal(self, number: int, what: signal.Signals) -> None:
        """Send a signal to one of them, if there is any."""
        pids = self.pids()
        if pids:
            self._send(pids[number % len(pids)], what)

    def pause(self, number: int, seconds: float) -> None:
        """Stop one of them for some time."""
        pids = self.pids()
        if not pids:
            return
        pid = pids[number % len(pids)]
        self._paused.add(pid)
        self._send(pid, signal.SIGSTOP)
        timer = threading.Timer(seconds, self._wake, [pid])
        timer.daemon = True
        timer.start()

    def restart(self, number: int) -> None:
        """Let its nanny replace one."""
        names = list(self._client.scheduler_info(n_workers=-1)["workers"])
        if names:
            name = names[number % len(names)]
            self._client.restart_workers([name], timeout=30, raise_for_error=False)

    def retire(self, number: int) -> None:
        """Retire one, and add another one."""
        names = list(self._client.scheduler_info(n_workers=-1)["workers"])
        if names:
            self._client.retire_workers([names[number % len(names)]])
        self.add()

    def add(self) -> None:
        """Add a worker."""
        self._num_wanted += 1
        self._cluster.scale(self._num_wanted)

    def wake_all(self) -> None:
        """Let all that are paused go on."""
        for pid in list(self._paused):
            self._wake(pid)

    def _wake(self, pid: int) -> None:
        if pid in self._paused:
            self._paused.discard(pid)
            # its number may be another process's by now: only one that is there and ours
            if pid in self.pids():
                self._send(pid, signal.SIGCONT)

    def _send(self, pid: int, what: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, what)


class Outages:
    """Takes a server away for some time, and knows how to bring it back.

    Parameters
    ----------
    server : XrdServer
        It runs.
    """

    def __init__(self, server: XrdServer) -> None:
        self._server = server
        self._timers: list[threading.Timer] = []

    def begin(self, how: str, seconds: float) -> None:
        """Let it be killed ("kill"), end by itself ("stop"), or be stopped with all its connections ("pause")."""
        if how == "pause":
            self._server.pause()
            self._later(seconds, self._server.resume)
            return
        if how == "kill":
            self._server.kill()
        else:
            os.kill(self._server.pid, signal.SIGTERM)
        self._later(seconds, self._server.start)

    def end(self, *, restart: bool = False) -> None:
        """Let it run again, now; a restart lets it forget the files that it has open."""
        for timer in self._timers:
            timer.cancel()
            timer.join()
        actions = [
            self._server.resume,
            *([self._server.kill] if restart else []),
            self._server.start,
        ]
        for action in actions:
            with suppress(RuntimeError):  # it was not paused, or doesn't run, or runs already
                action()

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        def act() -> None:
            with suppress(RuntimeError):  # something else has happened to it meanwhile
                action()

        timer = threading.Timer(seconds, act)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()


@dataclass(frozen=True, slots=True)
class Timed:
    """Something that is to happen.

    Attributes
    ----------
    seconds : float
        When: after the first range has begun, or after the run was started.
    from_start : bool
        Which of the two.
    action : callable
        What.
    """

    seconds: float
    from_start: bool
    action: Callable[[], None]


class Injector:
    """Lets faults happen at their times, from a thread of its own.

    Parameters
    ----------
    begun : Path
        Appears with the first range.
    what : sequence of Timed
        The schedule.
    """

    def __init__(self, begun: Path, what: Sequence[Timed]) -> None:
        self._begun = begun
        self._waiting = list(what)
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._is_armed = True
        self._thread = threading.Thread(target=self._run, name="injector", daemon=True)
        self._errors: list[str] = []
        self._num_injected = 0

    @property
    def summary(self) -> str:
        """What has happened, in a few words; empty if nothing has."""
        vain = f", in vain: {'; '.join(self._errors)}" if self._errors else ""
        return f" ({self._num_injected} injected{vain})" if self._num_injected or vain else ""

    def add(self, one: Timed) -> None:
        """Put something more on the schedule, before the start."""
        self._waiting.append(one)

    def start(self) -> None:
        """Begin to count the time."""
        self._thread.start()

    def interrupt(self) -> None:
        """Send Ctrl-C to this process, unless the run has ended."""
        with self._lock:
            if self._is_armed:
                os.kill(os.getpid(), signal.SIGINT)

    def disarm(self) -> None:
        """Send no Ctrl-C any more."""
        with self._lock:
            self._is_armed = False

    def finish(self) -> None:
        """Let nothing more happen, and wait for what happens right now."""
        self._end.set()
        self._thread.join(60)

    def _run(self) -> None:
        started, begun = time.monotonic(), None
        while self._waiting and not self._end.wait(0.02):
            if begun is None and self._begun.exists():
                begun = time.monotonic()
            for one in list(self._waiting):
                since = started if one.from_start else begun
                if since is not None and time.monotonic() - since >= one.seconds:
                    self._waiting.remove(one)
                    self._act(one)

    def _act(self, one: Timed) -> None:
        try:
            one.action()
            self._num_injected += 1
        except Exception as error:  # noqa: BLE001  # what was to be hurt may be gone already
            self._errors.append(f"{type(error).__name__}: {error}")


def restore(intact: Path, path: Path) -> None:
    """Put a damaged file right."""
    if not path.exists() or path.read_bytes() != intact.read_bytes():
        fresh = path.with_suffix(".fresh")
        shutil.copyfile(intact, fresh)
        fresh.chmod(0o644)
        fresh.replace(path)
