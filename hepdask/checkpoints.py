"""Nodes of the tree in the store: under which names, which are there, which are worth their bytes.

A node is named by its leaves: the files (by UUID), the bounds of the ranges, and what the user wrote about the dataset.
All else that determines a result (the processor, its arguments and source, schema, versions) names the section of the
store. So a node is found again whatever the rest of the fileset is, and a file that is appended leaves all nodes but
those of the right edge as they were.

Only whole nodes are kept. A worker keeps a node once the time that would be lost with it is worth the time of writing: with
small histograms each task, with accumulators of gigabytes few nodes high up. Where a node is not whole, those of its
descendants that are get kept, so that nothing is computed twice.
"""

from __future__ import annotations

import hashlib
import struct
import time
import uuid
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from hepdask.errors import DamagedObjectError, StoreError
from hepdask.fingerprint import fingerprint
from hepdask.messages import Messages
from hepdask.metrics import Counters, PartialMetrics, host_name
from hepdask.partial import PartialResult, merge_results
from hepdask.store.names import object_name
from hepdask.tree import Node

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from hepdask.fileset import InputFile
    from hepdask.metrics import MetricsSum
    from hepdask.ranges import EntryRange
    from hepdask.store import Section
    from hepdask.tree import ReductionTree

__all__ = ["Checkpoints", "NodeKeys", "StoredNodes", "find_stored", "identify_files", "open_stored"]

#: Time for writing over time that would be lost: what the store may cost a run.
MAX_SHARE = 0.03
#: Less than this is not worth an object, except where nothing else could be gone on from.
MIN_UNSAVED_SECONDS = 0.1
#: In the middle of a task, what would be lost is written so often, as long as no worker has died in the run.
CHECKPOINT_SECONDS = 5.0
_BOUNDS = struct.Struct("<16sqq")
_DIGEST_BYTES = 20
#: Runs of which a process remembers how long writing takes.
MAX_RUNS = 4
_COMPLAINT = "hepdask.StoreError"


class NodeKeys:
    """Names of the nodes over some ranges.

    Parameters
    ----------
    ranges : sequence of EntryRange
        The leaves.
    identities : mapping of InputFile key to bytes
        As `identify_files` gives it; 16 bytes for each file.
    """

    def __init__(
        self, ranges: Sequence[EntryRange], identities: Mapping[tuple[str, str], bytes]
    ) -> None:
        self._leaves = b"".join(
            _BOUNDS.pack(
                identities[one.file.dataset, one.file.file_path], one.entry_start, one.entry_stop
            )
            for one in ranges
        )

    def key(self, node: Node) -> str:
        """Return the name of a node: in hex, a hash of its leaves, and how many these are."""
        leaves = self._leaves[_BOUNDS.size * node.start : _BOUNDS.size * node.stop]
        return f"{hashlib.blake2b(leaves, digest_size=_DIGEST_BYTES).hexdigest()}{len(node):08x}"


def identify_files(files: Sequence[InputFile]) -> dict[tuple[str, str], bytes]:
    """Hash what of each file decides about a processor's events: 16 bytes for each dataset and path.

    Parameters
    ----------
    files : sequence of InputFile
        Their UUIDs are known.
    """
    metadata = _MetadataDigests()
    return {
        (file.dataset, file.file_path): hashlib.blake2b(
            repr(
                (
                    file.dataset,
                    file.file_path,
                    file.treename,
                    file.uuid,
                    file.preload,
                    metadata.digest(file),
                )
            ).encode(),
            digest_size=16,
        ).digest()
        for file in files
    }


@dataclass(slots=True)
class _MetadataDigests:
    """Hashes the user's metadata once for each dataset, whose files share them."""

    _known: dict[int, tuple[Any, str]] = field(default_factory=dict)

    def digest(self, file: InputFile) -> str:
        known = self._known.get(id(file.metadata))
        if known is None:
            # the object is kept, so that its identity stays its own
            known = self._known[id(file.metadata)] = (
                file.metadata,
                fingerprint(dict(file.metadata)),
            )
        return known[1]


def find_stored(tree: ReductionTree, keys: NodeKeys, present: Collection[str]) -> list[Node]:
    """Find the largest nodes that are in the store, in dataset order.

    Parameters
    ----------
    tree : ReductionTree
        Over all ranges.
    keys : NodeKeys
        Over the same.
    present : collection of str
        Names of what is there.
    """
    sizes = {_num_ranges(key) for key in present} - {0}
    smallest = min(sizes, default=0)
    stored = []
    pending = [tree.root] if sizes and len(tree.root) else []
    while pending:
        node = pending.pop()
        if len(node) in sizes and keys.key(node) in present:
            stored.append(node)
        elif len(node) > smallest:
            pending.extend(reversed(tree.children(node)))
    return stored


@dataclass(frozen=True, slots=True)
class StoredNodes:
    """What the store has of a run.

    Attributes
    ----------
    checkpoints : Checkpoints
        Reads and writes.
    keys : NodeKeys
        Over the ranges of the run.
    identities : mapping
        As `identify_files` gives it.
    nodes : tuple of Node
        The largest ones that are there, in dataset order.
    root : PartialResult or None
        Of the whole run, if that is there: then nothing is left to do.
    """

    checkpoints: Checkpoints
    keys: NodeKeys
    identities: Mapping[tuple[str, str], bytes]
    nodes: tuple[Node, ...]
    root: PartialResult | None = None

    def names_in(self, node: Node) -> frozenset[str]:
        """Name the nodes of the store that are a node, or below it."""
        first = bisect_left(self.nodes, Node(node.start, 0))
        names = set()
        for one in self.nodes[first:]:
            if one.start >= node.stop:
                break
            if one.stop <= node.stop:
                names.add(self.keys.key(one))
        return frozenset(names)


def open_stored(section: Section, tree: ReductionTree, ranges: Sequence[EntryRange]) -> StoredNodes:
    """Look up what a store has of a run.

    Raises
    ------
    StoreError
        If the store can't be read.
    """
    files = [next(group) for _, group in groupby((one.file for one in ranges), id)]
    identities = identify_files(files)
    keys = NodeKeys(ranges, identities)
    checkpoints = Checkpoints(section, uuid.uuid4().hex)
    present = set(section.keys())
    name = keys.key(tree.root)
    root = checkpoints.load(name) if name in present else None
    if root is None:  # what is below a damaged one may be there, and is many tasks if it isn't
        present.discard(name)
    return StoredNodes(checkpoints, keys, identities, tuple(find_stored(tree, keys, present)), root)


@dataclass(slots=True)
class _Pace:
    """How long writing has taken in this process and run: accumulators of one run are much alike."""

    seconds: float = 0.0
    has_failed: bool = False
    is_seen: bool = False


_paces: dict[Checkpoints, _Pace] = {}


def _pace_of(checkpoints: Checkpoints) -> _Pace:
    while len(_paces) >= MAX_RUNS and checkpoints not in _paces:
        _paces.pop(next(iter(_paces)), None)
    return _paces.setdefault(checkpoints, _Pace())


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Keeps results of nodes in a store, and takes them from there. Pickled with each task.

    Attributes
    ----------
    section : Section
        For the results of one processor with one schema.
    run_id : str
        Unique: what goes wrong is said once in each run.
    """

    section: Section
    run_id: str = ""

    def list_keys(self) -> frozenset[str]:
        """List what is there; nothing if it can't be listed."""
        try:
            return frozenset(self.section.keys())
        except StoreError:
            return frozenset()

    def load(self, key: str) -> PartialResult | None:
        """Take a node; None if it isn't there or is damaged, so that it is to be computed."""
        started = time.perf_counter()
        try:
            accumulator, processed, messages = self.section.load(key)
        except (DamagedObjectError, StoreError):
            return None
        result = PartialResult(accumulator, processed, messages=messages, is_whole=True, key=key)
        seconds = time.perf_counter() - started
        return replace(result, metrics=_stored_metrics(result, _num_ranges(key), seconds))

    def offer(
        self,
        result: PartialResult,
        *,
        min_seconds: float = MIN_UNSAVED_SECONDS,
        is_last: bool = False,
    ) -> PartialResult:
        """Keep a node if that pays.

        Parameters
        ----------
        result : PartialResult
            With its `key`.
        min_seconds : float
            Time that would be lost with it, at least.
        is_last : bool
            True for the root, which is kept in any case.

        Returns
        -------
        PartialResult
            The same, with a note of what is saved.
        """
        if not result.is_whole or not result.key or not result.unsaved_seconds:
            return result
        pace = _pace_of(self)
        worth = MAX_SHARE * result.unsaved_seconds
        if is_last or (result.unsaved_seconds >= min_seconds and worth >= pace.seconds):
            return self.save(result)
        return result

    def save(self, result: PartialResult) -> PartialResult:
        """Keep a whole node that isn't kept yet. What can't be written is a message, and no more: the result is what counts."""
        if not result.is_whole or not result.key or not result.unsaved_seconds:
            return result
        pace = _pace_of(self)
        started = time.perf_counter()
        value = (result.accumulator, result.processed, _without_complaints(result.messages))
        summary = {"num_entries": result.num_entries}
        try:
            self._check_seen(pace)
            self.section.save(result.key, value, summary=summary)
        except StoreError as error:
            # once said is enough: the next one will most likely fail, too
            messages = Messages() if pace.has_failed else _complaint(error, result.key)
            pace.has_failed = True
            return replace(result, messages=result.messages + messages)
        finally:
            pace.seconds = time.perf_counter() - started
        cost = PartialMetrics(hosts={host_name(): Counters(store_seconds=pace.seconds)})
        return replace(result, metrics=result.metrics + cost, unsaved_seconds=0.0)

    def _check_seen(self, pace: _Pace) -> None:
        """Check that this machine sees the store that the client sees: a directory may be another one here."""
        pace.is_seen = pace.is_seen or bool(self.section.read_about())
        if not pace.is_seen:
            raise StoreError(
                f"{host_name()} does not see the store {self.section.url} that the client sees: take a directory that all "
                "machines share, or a URL"
            )

    def merge(
        self,
        left: PartialResult,
        right: PartialResult,
        *,
        key: str,
        worker: str,
        costs: MetricsSum | None = None,
        may_change_left: bool = False,
    ) -> PartialResult:
        """Merge two neighbours, see `merge_results`; where the result is not whole, what of them is gets kept."""
        both_whole = left.is_whole and right.is_whole
        if not both_whole:
            left, right = self.save(left), self.save(right)
        merged = merge_results(
            left, right, worker=worker, costs=costs, may_change_left=may_change_left
        )
        merged = replace(merged, key=key)
        if both_whole and not merged.is_whole:  # they could not be added, and are as they were
            self.save(left)
            self.save(right)
        return merged


def _num_ranges(key: str) -> int:
    return int(key[2 * _DIGEST_BYTES :] or "0", 16)


def _stored_metrics(result: PartialResult, num_ranges: int, seconds: float) -> PartialMetrics:
    files: dict[tuple[str, str], Counters] = {}
    for span in result.processed:
        counters = Counters(num_stored_entries=span.entry_stop - span.entry_start)
        file = (span.dataset, span.file_path)
        files[file] = files.get(file, Counters()) + counters
    total = Counters(
        num_stored_ranges=num_ranges, num_stored_entries=result.num_entries, store_seconds=seconds
    )
    return PartialMetrics(files=files, hosts={host_name(): total})


def _complaint(error: StoreError, key: str) -> Messages:
    # without the name of the one object, so that what all workers say is one message
    text = f"results are not kept: {error}".replace(f"/{object_name(key)}", "")
    return Messages.of("warning", _COMPLAINT, text)


def _without_complaints(messages: Messages) -> Messages:
    """Leave out what was wrong with the store: that is no part of a result."""
    kept = [one for one in messages if one.category != _COMPLAINT]
    return Messages(kept, messages.num_dropped)
