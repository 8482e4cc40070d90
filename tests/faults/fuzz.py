"""Damaged ROOT files, thousands of them, through inspection and both readers: each must end in a result or a known failure.

``python -m tests.faults.fuzz --inputs 10000 --seed 1`` damages small files of all kinds in ways that follow from a seed, and
reads each in a child process with limits. It prints how the inputs ended, and returns 1 if one ended as none may: an exception
that escapes, a crash, a hang, or a failure that blames the processor, the server or hepdask for damaged bytes.
``--only SEED`` repeats one input and prints its failures.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import struct
import sys
import tempfile
import time
import traceback
import uuid
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hepdask.errors import ProcessDiedError
from hepdask.isolation import ChildRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from hepdask.failures import Failure
    from hepdask.metadata import FileMetadata

__all__ = ["Outcome", "Report", "examine", "fuzz", "main", "mutate", "sample_of"]

TREENAME = "Events"
CLUSTER_SIZE = 100
NUM_CLUSTERS = 3
#: Ranges that begin and end inside clusters.
CHUNKSIZE = 120
#: Inputs for each call of a child; the limits below are for a call.
BATCH_SIZE = 60
MEMORY_BYTES = 2**31
BATCH_SECONDS = 120.0
INPUT_SECONDS = 20.0
READERS = (None, "NanoAODSchema")
#: How a damaged file may end.
GOOD_ENDS = ("same", "differs", "input", "resources")
#: Of small and of large files.
_KEY_VERSIONS = (4, 1004)


# --- the files -----------------------------------------------------------------------------------------------------------


def _arrays(start: int, num_entries: int, random: np.random.Generator) -> dict[str, Any]:
    import awkward as ak

    event = np.arange(start, start + num_entries, dtype=np.uint64)
    counts = random.poisson(2.0, num_entries)
    total = int(counts.sum())
    tracks = {
        "pt": _draw_pt(random, total),
        "charge": random.choice(np.array([-1, 1], np.int32), total),
    }
    return {
        "run": ak.Array(np.ones(num_entries, np.uint32)),
        "luminosityBlock": ak.Array((event // 7).astype(np.uint32)),
        "event": ak.Array(event),
        "rho": ak.Array(_draw_pt(random, num_entries)),
        "HLT_Mu": ak.Array(random.random(num_entries) < 0.3),
        "Track": ak.zip({name: ak.unflatten(values, counts) for name, values in tracks.items()}),
    }


def _draw_pt(random: np.random.Generator, size: int) -> Any:
    # in steps of 1/4, so that baskets of a hundred are compressed and not left as they are
    return (random.exponential(30, size) * 4).round().astype(np.float32) / 4


def _clusters() -> Iterator[dict[str, Any]]:
    random = np.random.default_rng(7)
    for number in range(NUM_CLUSTERS):
        yield _arrays(number * CLUSTER_SIZE, CLUSTER_SIZE, random)


def _write_ttree(path: Path, compression: Any) -> None:
    import uproot

    first, *rest = _clusters()
    types = {name: array.type.content for name, array in first.items()}
    with uproot.recreate(path, compression=compression, uuid_function=_same_uuid) as file:
        tree = file.mktree(TREENAME, types, counter_name=lambda counted: f"n{counted}")
        for arrays in (first, *rest):
            tree.extend(arrays)


def _write_flat_ttree(path: Path, compression: Any) -> None:
    import uproot

    types = {"run": "u4", "luminosityBlock": "u4", "event": "u8", "vertex": np.dtype(("f8", (2,)))}
    with uproot.recreate(path, compression=compression, uuid_function=_same_uuid) as file:
        file.mktree(TREENAME, types)
        for arrays in _clusters():
            rho = arrays["rho"].to_numpy()
            ids = {name: arrays[name] for name in types if name in arrays}
            file[TREENAME].extend({**ids, "vertex": np.stack([rho, -rho], 1)})


def _write_rntuple(path: Path, compression: Any) -> None:
    import awkward as ak
    import uproot

    first, *rest = (_flattened(arrays) for arrays in _clusters())
    with uproot.recreate(path, compression=compression, uuid_function=_same_uuid) as file:
        ntuple = file.mkrntuple(TREENAME, ak.Array(first))
        for arrays in rest:
            ntuple.extend(ak.Array(arrays))


def _flattened(arrays: dict[str, Any]) -> dict[str, Any]:
    """Name the fields as a NanoAOD file has them as an RNTuple, with the numbers of tracks beside."""
    import awkward as ak

    tracks = arrays.pop("Track")
    return {
        **arrays,
        "nTrack": ak.values_astype(ak.num(tracks), np.int32),
        **{f"Track_{name}": tracks[name] for name in tracks.fields},
    }


def _same_uuid() -> uuid.UUID:
    return uuid.UUID("01234567-89ab-cdef-0123-456789abcdef")


def _writers() -> dict[str, Callable[[Path], None]]:
    import uproot

    compressions = {
        "plain": None,
        "zlib": uproot.ZLIB(1),
        "lzma": uproot.LZMA(1),
        "lz4": uproot.LZ4(1),
        "zstd": uproot.ZSTD(1),
    }
    kinds = {"TTree": _write_ttree, "flat": _write_flat_ttree, "RNTuple": _write_rntuple}
    return {
        f"{kind} {name}": lambda path, write=write, one=compression: write(path, one)
        for kind, write in kinds.items()
        for name, compression in compressions.items()
        if kind != "flat" or name in ("plain", "zlib")
    }


@dataclass(frozen=True, slots=True)
class Sample:
    """A good file.

    Attributes
    ----------
    name : str
        Its kind and compression.
    raw : bytes
        All of it.
    regions : dict of str to list of (int, int)
        Where the parts are that are parsed: "header", "keys", "objects" (all but events), "end".
    expected : dict
        What the readers give for it.
    """

    name: str
    raw: bytes
    regions: dict[str, list[tuple[int, int]]]
    expected: dict[str | None, Any]


@cache
def _samples() -> tuple[Sample, ...]:
    with tempfile.TemporaryDirectory(prefix="hepdask-fuzz-") as name:
        return tuple(_make_sample(Path(name), *one) for one in sorted(_writers().items()))


def _make_sample(directory: Path, name: str, write: Callable[[Path], None]) -> Sample:
    path = directory / f"{name.replace(' ', '_')}.root"
    write(path)
    read = read_all(path)
    if read.failures:
        raise AssertionError(f"the good file {name} can't be read: {read.failures[0]}")
    raw = path.read_bytes()
    return Sample(name, raw, _find_regions(raw), read.outputs)


def _find_regions(raw: bytes) -> dict[str, list[tuple[int, int]]]:
    """Find the records of a file: a key (class ``TKey`` of ROOT) each, then what it stands for."""
    position, end = 100, len(raw)
    regions: dict[str, list[tuple[int, int]]] = {"header": [(0, 100)], "keys": [], "objects": []}
    while position + 18 <= end:
        num_bytes, version, key_bytes = struct.unpack_from(">ih8xh", raw, position)
        if version not in _KEY_VERSIONS or not 26 < key_bytes < num_bytes <= end - position:
            position += 1  # space that is not in use
            continue
        regions["keys"].append((position, position + key_bytes))
        if b"TBasket" not in raw[position : position + key_bytes]:
            regions["objects"].append((position + key_bytes, position + num_bytes))
        position += num_bytes
    regions["end"] = [(max(0, end - 1_000), end)]
    return regions


def sample_of(seed: int) -> Sample:
    """Return the good file that an input is made from."""
    samples = _samples()
    return samples[seed % len(samples)]


# --- the damage ----------------------------------------------------------------------------------------------------------

_PLACES = ("header", "keys", "objects", "end", "anywhere")
_PLACE_WEIGHTS = (0.05, 0.2, 0.4, 0.05, 0.3)


def mutate(sample: Sample, seed: int) -> tuple[bytes, str]:
    """Damage a file.

    Returns
    -------
    damaged : bytes
        Never equal to the good ones.
    text : str
        What was done, in words.
    """
    random = np.random.default_rng(seed)
    raw = bytearray(sample.raw)
    texts = []
    while not texts or raw == sample.raw:
        for _ in range(1 if random.random() < 0.7 else int(random.integers(2, 5))):
            damage = _DAMAGES[random.choice(len(_DAMAGES), p=_DAMAGE_WEIGHTS)]
            position = min(_draw_position(sample, random), len(raw) - 1)
            texts.append(f"{damage.__name__.lstrip('_')} at {position}")
            damage(raw, position, random)
            if not raw:
                return b"", ", ".join(texts)
    return bytes(raw), ", ".join(texts)


def _draw_position(sample: Sample, random: np.random.Generator) -> int:
    place = str(random.choice(_PLACES, p=_PLACE_WEIGHTS))
    spans = [(0, len(sample.raw))] if place == "anywhere" else sample.regions[place]
    start, stop = spans[random.integers(len(spans))]
    return int(random.integers(start, max(start + 1, stop)))


def _flip_bits(raw: bytearray, position: int, random: np.random.Generator) -> None:
    for _ in range(int(random.integers(1, 4))):
        where = min(position + int(random.integers(0, 4)), len(raw) - 1)
        raw[where] ^= 1 << int(random.integers(8))


def _overwrite(raw: bytearray, position: int, random: np.random.Generator) -> None:
    size = min(int(random.integers(1, 33)), len(raw) - position)
    raw[position : position + size] = random.bytes(size)


def _set_extreme_number(raw: bytearray, position: int, random: np.random.Generator) -> None:
    numbers = (0, 1, -1, 2**31 - 1, -(2**31), 2**24, 2**62, -(2**62))
    number = int(numbers[random.integers(len(numbers))])
    size = 8 if abs(number) > 2**31 else 4
    size = min(size, len(raw) - position)
    raw[position : position + size] = struct.pack(">q", number)[-size:]


def _zero_block(raw: bytearray, position: int, random: np.random.Generator) -> None:
    size = min(int(random.integers(1, 513)), len(raw) - position)
    raw[position : position + size] = bytes(size)


def _swap_blocks(raw: bytearray, position: int, random: np.random.Generator) -> None:
    other = int(random.integers(len(raw)))
    first, second = sorted((position, other))
    size = min(int(random.integers(1, 129)), second - first, len(raw) - second)
    kept = raw[first : first + size]
    raw[first : first + size] = raw[second : second + size]
    raw[second : second + size] = kept


def _insert_block(raw: bytearray, position: int, random: np.random.Generator) -> None:
    start = int(random.integers(len(raw)))
    raw[position:position] = raw[start : start + int(random.integers(1, 65))]


def _remove_block(raw: bytearray, position: int, random: np.random.Generator) -> None:
    del raw[position : position + int(random.integers(1, 65))]


def _truncate(raw: bytearray, position: int, random: np.random.Generator) -> None:
    del raw[int(random.integers(len(raw))) :]


_DAMAGES: tuple[Callable[[bytearray, int, np.random.Generator], None], ...] = (
    _flip_bits,
    _overwrite,
    _set_extreme_number,
    _zero_block,
    _swap_blocks,
    _insert_block,
    _remove_block,
    _truncate,
)
_DAMAGE_WEIGHTS = (0.5, 0.12, 0.15, 0.06, 0.06, 0.04, 0.04, 0.03)


# --- reading -------------------------------------------------------------------------------------------------------------


def touch_all(events: Any) -> dict[str, Any]:
    """Be a processor that reads every branch: a histogram, sums, and a fingerprint of the values in their order."""
    import awkward as ak
    import hist

    histogram = hist.Hist.new.Reg(20, 0, 100, name="value").Double()
    output: dict[str, Any] = {"entries": len(events), "values": histogram, "branches": {}}
    for name, array in _columns(events):
        flat = ak.to_numpy(ak.flatten(array, axis=None))
        histogram.fill(value=flat.astype(np.float64))
        counts = ak.to_numpy(ak.num(array)) if array.ndim > 1 else np.zeros(len(array), np.int64)
        digest = hashlib.sha256(flat.tobytes() + counts.tobytes()).hexdigest()
        output["branches"][name] = [(float(np.sum(flat, dtype=np.float64)), flat.size, digest)]
    return output


def _columns(events: Any) -> Iterator[tuple[str, Any]]:
    for name in events.fields:
        column = events[name]
        if not column.fields:
            yield name, column
        for one in column.fields:
            yield f"{name}.{one}", column[one]


@dataclass(slots=True)
class Reading:
    """What came out of a file.

    Attributes
    ----------
    outputs : dict
        For each reader: the accumulators of its ranges in plain words, None for one that failed.
    failures : list of Failure
        Of the inspection or of the ranges.
    """

    outputs: dict[str | None, Any] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


def read_all(path: Path) -> Reading:
    """Inspect a file, split it, and process each range with each reader, as a run does."""
    from hepdask.attempt import Work
    from hepdask.fileset import InputFile
    from hepdask.opening import ReadOptions
    from hepdask.processor import ProcessorCopies
    from hepdask.ranges import SplitOptions, split_file
    from hepdask.readers import build_reader
    from hepdask.readers.handles import close_all
    from hepdask.task import attempt_range, inspect_files

    reading = Reading()
    options = ReadOptions()
    file = InputFile("fuzz", str(path), TREENAME, (str(path),), {})
    fact: FileMetadata | Failure
    (fact,) = inspect_files([file], options=options)
    if hasattr(fact, "kind") and hasattr(fact, "exception_type"):
        reading.failures.append(fact)  # type: ignore[arg-type]  # it is one
        return reading
    known = replace(file, num_entries=fact.num_entries, uuid=fact.uuid)  # type: ignore[union-attr]
    ranges = split_file(known, fact, SplitOptions(chunksize=CHUNKSIZE))  # type: ignore[arg-type]
    for schema in READERS:
        work = Work(ProcessorCopies(touch_all), build_reader(schema, options))
        results = [attempt_range(one, work, "fuzz") for one in ranges]
        reading.outputs[schema] = [_in_plain_words(one.accumulator) for one in results]
        reading.failures += [failure for one in results for failure in one.failures]
    close_all()
    return reading


def _in_plain_words(output: Any) -> Any:
    if output is None:
        return None
    # as text, so that NaN equals NaN
    return repr((output["entries"], output["values"].values().tolist(), output["branches"]))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an input ended.

    Attributes
    ----------
    seed : int
        Of the input.
    sample : str
        The good file.
    damage : str
        What was done to it.
    end : str
        "same" or "differs" for a result without any failure, compared with the good file's; the kind of the worst failure;
        "escaped", "crash", "hang" or "poison" (a good file can't be read afterwards).
    text : str
        The failures, or the traceback.
    seconds : float
        Wall time of reading it.
    """

    seed: int
    sample: str
    damage: str
    end: str
    text: str = ""
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        """True if a damaged file may end like this."""
        return self.end in GOOD_ENDS


def examine(seeds: Sequence[int]) -> list[Outcome]:
    """Read the inputs of some seeds, in this process."""
    with (
        warnings.catch_warnings(),
        np.errstate(all="ignore"),
        tempfile.TemporaryDirectory(prefix="hepdask-fuzz-") as name,
    ):
        warnings.simplefilter("ignore")
        _samples()
        outcomes = [_examine_one(seed, Path(name)) for seed in seeds]
        poisoned = _find_poisoned(Path(name), {one.sample for one in outcomes})
    if poisoned and len(seeds) == 1:
        return [replace(one, end="poison", text=poisoned) for one in outcomes]
    if poisoned:
        # a child of its own for each half: the culprit is among them
        raise PoisonedError(poisoned)
    return outcomes


class PoisonedError(Exception):
    """A good file can't be read after some damaged ones."""


def _examine_one(seed: int, directory: Path) -> Outcome:
    from hepdask.readers import branches

    sample = sample_of(seed)
    damaged, damage = mutate(sample, seed)
    path = directory / f"{seed}.root"
    path.write_bytes(damaged)
    # layouts that are kept from one input to the next would hide what a damaged description does
    branches._layouts.clear()
    started = time.perf_counter()
    try:
        reading = read_all(path)
    except Exception:  # noqa: BLE001  # what is looked for
        end, text = "escaped", traceback.format_exc()
    else:
        end, text = _judge(reading, sample)
    finally:
        path.unlink()
    return Outcome(seed, sample.name, damage, end, text, time.perf_counter() - started)


def _judge(reading: Reading, sample: Sample) -> tuple[str, str]:
    if reading.failures:
        worst = max(reading.failures, key=lambda one: _BADNESS.index(one.kind))
        return worst.kind, f"{worst}\n{worst.traceback}"
    return ("same" if reading.outputs == sample.expected else "differs"), ""


_BADNESS = ("input", "resources", "transient", "user", "setup")


def _find_poisoned(directory: Path, names: Iterable[str]) -> str:
    """Read the good files again: what damaged ones have left in this process must not hurt them."""
    for sample in _samples():
        if sample.name in names:
            path = directory / "good.root"
            path.write_bytes(sample.raw)
            try:
                end, text = _judge(read_all(path), sample)
            except Exception:  # noqa: BLE001  # what is looked for
                end, text = "escaped", traceback.format_exc()
            if end != "same":
                return f"the good file {sample.name} ends as {end!r}: {text}"
    return ""


# --- the run -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Report:
    """How all inputs ended.

    Attributes
    ----------
    outcomes : tuple of Outcome
        In the order of their seeds.
    wall_seconds : float
        Of all together.
    """

    outcomes: tuple[Outcome, ...]
    wall_seconds: float

    @property
    def bad(self) -> list[Outcome]:
        """Those that ended as no damaged file may."""
        return [one for one in self.outcomes if not one.is_good]

    def __str__(self) -> str:
        ends = [*GOOD_ENDS, *sorted({one.end for one in self.bad})]
        rows: dict[str, Counter[str]] = {}
        for one in self.outcomes:
            rows.setdefault(one.sample, Counter())[one.end] += 1
        total: Counter[str] = sum(rows.values(), Counter())
        lines = [f"{'file':16}{'inputs':>8}" + "".join(f"{end:>11}" for end in ends)]
        for name, counts in (*sorted(rows.items()), ("all", total)):
            figures = "".join(f"{counts[end]:11,}" for end in ends)
            lines.append(f"{name:16}{counts.total():8,}{figures}")
        slowest = max(self.outcomes, key=lambda one: one.seconds)
        lines.append(
            f"{self.wall_seconds:.0f} s; the slowest input, {slowest.seed}, took {slowest.seconds:.1f} s"
        )
        lines += [f"{one.end}: --only {one.seed} ({one.sample}; {one.damage})" for one in self.bad]
        return "\n".join(lines)


def fuzz(seeds: Sequence[int], *, num_jobs: int = 1) -> Report:
    """Read the inputs of some seeds, in child processes with limits."""
    started = time.perf_counter()
    batches = [seeds[start : start + BATCH_SIZE] for start in range(0, len(seeds), BATCH_SIZE)]
    shares = [batches[number::num_jobs] for number in range(num_jobs)]
    with ThreadPoolExecutor(num_jobs) as pool:
        outcomes = [one for part in pool.map(_run_batches, shares) for one in part]
    outcomes.sort(key=lambda one: one.seed)
    return Report(tuple(outcomes), time.perf_counter() - started)


def _run_batches(batches: list[Sequence[int]]) -> list[Outcome]:
    with closing(ChildRunner()) as runner:
        return [one for batch in batches for one in _run_batch(runner, batch)]


def _run_batch(runner: ChildRunner, seeds: Sequence[int]) -> list[Outcome]:
    """Read a batch in the child; if that ends badly, look for the input that did it."""
    limit = INPUT_SECONDS if len(seeds) == 1 else BATCH_SECONDS
    try:
        outcomes: list[Outcome] = runner.call(
            examine,
            seeds,
            memory_bytes=MEMORY_BYTES,
            timeout_seconds=limit,
            what=f"inputs {seeds[0]} to {seeds[-1]}",
        )
    except (ProcessDiedError, MemoryError, PoisonedError) as error:
        if isinstance(error, PoisonedError):
            runner.close()  # the next child must not have it
        if len(seeds) == 1:
            return [_dead_outcome(seeds[0], error)]
        middle = len(seeds) // 2
        return [*_run_batch(runner, seeds[:middle]), *_run_batch(runner, seeds[middle:])]
    if any(one.end == "poison" for one in outcomes):
        runner.close()
    return outcomes


def _dead_outcome(seed: int, error: BaseException) -> Outcome:
    sample = sample_of(seed)
    is_late = isinstance(error, ProcessDiedError) and error.timeout_seconds is not None
    notes = "\n".join(getattr(error, "__notes__", ()))
    seconds = INPUT_SECONDS if is_late else math.nan
    damage = mutate(sample, seed)[1]
    return Outcome(
        seed, sample.name, damage, "hang" if is_late else "crash", f"{error}\n{notes}", seconds
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return 1 if an input ended as none may."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000, help="how many (default: 1000)")
    parser.add_argument("--seed", type=int, default=1, help="other inputs for each (default: 1)")
    parser.add_argument("--jobs", type=int, default=1, help="children at a time (default: 1)")
    parser.add_argument("--only", type=int, help="the seed of one input, as the table names it")
    options = parser.parse_args(arguments)
    first = options.seed * 1_000_000
    seeds = range(first, first + options.inputs) if options.only is None else [options.only]
    report = fuzz(seeds, num_jobs=options.jobs)
    sys.stdout.write(f"{report}\n")
    if options.only is not None:
        sys.stdout.write("".join(f"{one.damage}\n{one.text}\n" for one in report.outcomes))
    return 1 if report.bad else 0


if __name__ == "__main__":
    # by its name, as children can't import what belongs to __main__
    from tests.faults import fuzz as module

    sys.exit(module.main())
