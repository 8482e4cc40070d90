"""A round of the soak test, as data: what is set up, what is done to it. It follows from its seed alone."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

__all__ = ["Fault", "Round", "SampleFile", "draw_round"]

#: Events of different files never have the same number.
EVENTS_PER_FILE = 1_000_000
DEADLY = ("SIGSEGV", "SIGKILL", "exit", "memory")
HANGING = ("loop", "sleep", "lock")
POISONS = ("raise", *DEADLY, *HANGING, "misfit", "unpickle")
_POISON_WEIGHTS = (4, 2, 2, 1, 2, 1, 1, 0.5, 1, 0.3)
WORKER_FAULTS = (
    "worker-kill",
    "worker-term",
    "worker-pause",
    "worker-restart",
    "worker-retire",
    "worker-add",
)
SERVER_FAULTS = ("server-kill", "server-stop", "server-pause")
FILE_FAULTS = ("flip", "cut", "replace", "blank", "remove")


@dataclass(frozen=True, slots=True)
class SampleFile:
    """A file of numbered events.

    Attributes
    ----------
    dataset, name : str
        Names are unique.
    first_event, num_entries : int
        Its events are numbered from the one on.
    cluster_size : int
        Entries of a basket.
    """

    dataset: str
    name: str
    first_event: int
    num_entries: int
    cluster_size: int

    @property
    def key(self) -> str:
        """As the processor says it in its output."""
        return f"{self.dataset}/{self.name}"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is done to a round.

    Attributes
    ----------
    how : str
        One of the lists above, or "interrupt".
    target : int
        Which worker, server or file; the numbers go round.
    seconds : float or None
        When: after the first range has begun. None: before the run.
    lasts : float
        For how many seconds a process is stopped, or a server away.
    """

    how: str
    target: int
    seconds: float | None
    lasts: float = 0.0

    def __str__(self) -> str:
        when = "before" if self.seconds is None else f"@{self.seconds:.1f}s"
        return f"{self.how}#{self.target}{when}"


@dataclass(frozen=True, slots=True)
class Round:
    """A round.

    Attributes
    ----------
    seed : int
        Of which all this follows.
    files : tuple of SampleFile
        In dataset order.
    source : str
        "local", "xrootd" (one server) or "replicas" (on two).
    schema : str or None
        Of the Runner.
    chunksize, max_ranges_per_task, split_every : int or None
        Of the Runner and the executor.
    skips : str
        What `skipbadfiles` lets pass: "all", "files" or "nothing".
    has_store : bool
        Whether results are kept.
    work_seconds : float
        What all ranges take together, on one worker.
    poisons : tuple of (int, str)
        Events and what they do.
    max_entries : int or None
        Longer ranges run out of memory.
    faults : tuple of Fault
        From outside.
    is_cured : bool
        Whether the poison is taken away after the first run, so that the run can be completed.
    damages_store : bool
        Whether the store is damaged after the first run.
    """

    seed: int
    files: tuple[SampleFile, ...]
    source: str
    schema: str | None
    chunksize: int
    max_ranges_per_task: int | None
    split_every: int
    skips: str
    has_store: bool
    work_seconds: float
    poisons: tuple[tuple[int, str], ...]
    max_entries: int | None
    faults: tuple[Fault, ...]
    is_cured: bool
    damages_store: bool

    @property
    def hows(self) -> frozenset[str]:
        """All kinds of faults and poisons in it."""
        memory = {"too-large"} if self.max_entries else set()
        poisons = {how for _, how in self.poisons}
        return frozenset({one.how for one in self.faults} | poisons | memory)

    @property
    def num_entries(self) -> int:
        """Of all files."""
        return sum(one.num_entries for one in self.files)

    @property
    def setup(self) -> str:
        """The set-up, in a few words."""
        datasets = len({one.dataset for one in self.files})
        store = " store" if self.has_store else ""
        return (
            f"{datasets}/{len(self.files)} files {self.num_entries} events {self.source} chunk={self.chunksize} "
            f"task={self.max_ranges_per_task} merge={self.split_every} skip={self.skips}{store}"
        )

    @property
    def troubles(self) -> str:
        """The faults, in a few words."""
        poisons = [f"{how}@{event}" for event, how in self.poisons]
        memory = [f"memory>{self.max_entries}"] if self.max_entries else []
        after = ["cured"] if self.is_cured else []
        damage = ["store damaged"] if self.damages_store else []
        return ", ".join([*map(str, self.faults), *poisons, *memory, *after, *damage]) or "none"

    def file_of(self, event: int) -> SampleFile:
        """Return the file that holds an event."""
        return self.files[event // EVENTS_PER_FILE]


def draw_round(seed: int) -> Round:
    """Draw a round."""
    random = Random(seed)
    chunksize = random.choice([30, 50, 100, 250])
    files = _draw_files(random, chunksize)
    source = random.choice(["local", "local", "xrootd", "replicas"])
    has_store = random.random() < 0.4
    return Round(
        seed=seed,
        files=files,
        source=source,
        schema=random.choice(["NanoAODSchema", None, None]),
        chunksize=chunksize,
        max_ranges_per_task=random.choice([None, 1, 1, 2, 3, 7]),
        split_every=random.choice([2, 2, 3, 8]),
        skips=random.choice(["all", "all", "all", "files", "nothing"]),
        has_store=has_store,
        work_seconds=random.uniform(2, 8),
        poisons=_draw_poisons(random, files),
        max_entries=random.choice([None] * 7 + [chunksize // 3]),
        faults=_draw_faults(random, source),
        is_cured=random.random() < 0.7,
        damages_store=has_store and random.random() < 0.5,
    )


def _draw_files(random: Random, chunksize: int) -> tuple[SampleFile, ...]:
    num_files = random.randint(1, 6)
    num_datasets = random.randint(1, min(3, num_files))
    files = []
    for number in range(num_files):
        dataset = f"d{number * num_datasets // num_files}"
        num_entries = random.randint(20, 8 * chunksize)
        first = number * EVENTS_PER_FILE
        cluster_size = random.choice([50, 100, 300])
        files.append(SampleFile(dataset, f"f{number}.root", first, num_entries, cluster_size))
    return tuple(files)


def _draw_poisons(random: Random, files: tuple[SampleFile, ...]) -> tuple[tuple[int, str], ...]:
    found = {}
    for _ in range(random.choice([0, 0, 1, 1, 2, 3])):
        file = random.choice(files)
        event = file.first_event + random.randrange(file.num_entries)
        found[event] = random.choices(POISONS, _POISON_WEIGHTS)[0]
    return tuple(sorted(found.items()))


def _draw_faults(random: Random, source: str) -> tuple[Fault, ...]:
    faults = []
    for _ in range(random.choice([0, 0, 1, 1, 2, 3])):
        how = random.choice(WORKER_FAULTS)
        faults.append(Fault(how, random.randrange(4), random.uniform(0, 5), random.uniform(1, 9)))
    for _ in range(random.choice([0, 1, 1, 2]) if source != "local" else 0):
        how = random.choice(SERVER_FAULTS)
        faults.append(Fault(how, random.randrange(2), random.uniform(0, 4), random.uniform(0.5, 8)))
    for _ in range(random.choice([0, 0, 0, 1, 1, 2])):
        seconds = random.choice([None, random.uniform(0, 3)])
        faults.append(Fault(random.choice(FILE_FAULTS), random.randrange(12), seconds))
    if random.random() < 0.15:
        faults.append(Fault("interrupt", random.choice([1, 1, 2]), random.uniform(0, 4)))
    return tuple(sorted(faults, key=lambda one: -1.0 if one.seconds is None else one.seconds))
