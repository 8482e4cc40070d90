from __future__ import annotations

import itertools
import shutil
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hepdask import checkpoints as checkpoints_module
from hepdask.checkpoints import (
    Checkpoints,
    NodeKeys,
    find_stored,
    identify_files,
    open_stored,
)
from hepdask.completeness import Span
from hepdask.failures import Failure
from hepdask.fileset import InputFile
from hepdask.messages import Messages
from hepdask.partial import PartialResult
from hepdask.ranges import EntryRange
from hepdask.store import Store
from hepdask.tree import Node, arrange
from tests.store.storing import CODE, object_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from hepdask.store import Section
    from hepdask.tree import ReductionTree

counts_of_files = st.lists(st.lists(st.integers(0, 7), max_size=7), max_size=4)


@pytest.fixture
def section(tmp_path: Path) -> Section:
    return described(Store(tmp_path / "store").section(CODE))


def described(section: Section) -> Section:
    """Write what a run writes before its first task: by it others know that they see the same place."""
    section.describe({"processor": "Weighted"})
    return section


def input_file(dataset: str = "a", file_path: str = "0.root", **facts: Any) -> InputFile:
    known: dict[str, Any] = {"replicas": (file_path,), "metadata": {}, "uuid": "u"}
    return InputFile(dataset, file_path, "Events", **{**known, **facts})


def build_ranges(counts: list[list[int]]) -> list[EntryRange]:
    """Make ranges of one entry, so many of each file of each dataset."""
    return [
        EntryRange(file, entry, entry + 1)
        for i, files in enumerate(counts)
        for j, count in enumerate(files)
        for file in [input_file(f"dataset{i}", f"{j}.root", uuid=f"{i}-{j}")]
        for entry in range(count)
    ]


def keys_of(ranges: Sequence[EntryRange]) -> NodeKeys:
    return NodeKeys(ranges, identify_files([one.file for one in ranges]))


def all_nodes(tree: ReductionTree) -> list[Node]:
    nodes, pending = [], [tree.root] if len(tree) else []
    while pending:
        nodes.append(pending.pop())
        pending.extend(tree.children(nodes[-1]))
    return nodes


def contains(outer: Node, inner: Node) -> bool:
    return outer.start <= inner.start and inner.stop <= outer.stop


# Names


@given(counts_of_files, st.data())
def test_the_largest_stored_nodes_are_found(counts: list[list[int]], data: st.DataObject) -> None:
    ranges = build_ranges(counts)
    tree, keys = arrange(ranges), keys_of(ranges)
    nodes = all_nodes(tree)
    stored = data.draw(st.sets(st.sampled_from(nodes)) if nodes else st.just(set()))
    noise = {f"{number:040x}{data.draw(st.integers(0, 9)):08x}" for number in range(3)}
    found = find_stored(tree, keys, {keys.key(node) for node in stored} | noise)
    # true nodes that are there, in order, none in another, and each that is there is in one of them
    assert set(found) <= stored
    assert all(left.stop <= right.start for left, right in itertools.pairwise(found))
    assert all(any(contains(outer, node) for outer in found) for node in stored)


@given(counts_of_files)
def test_no_two_nodes_have_one_name(counts: list[list[int]]) -> None:
    ranges = build_ranges(counts)
    keys = keys_of(ranges)
    nodes = all_nodes(arrange(ranges))
    assert len({keys.key(node) for node in nodes}) == len(nodes)


@given(counts_of_files)
def test_names_do_not_depend_on_the_rest(counts: list[list[int]]) -> None:
    ranges = build_ranges(counts)
    keys = keys_of(ranges)
    for node in all_nodes(arrange(ranges)):
        alone = ranges[node.start : node.stop]
        assert keys_of(alone).key(Node(0, len(alone))) == keys.key(node)


leaves = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.integers(0, 3), st.integers(0, 3)),
    min_size=1,
    max_size=4,
)


@given(leaves, leaves)
def test_names_are_equal_if_all_leaves_are(left: list[Any], right: list[Any]) -> None:
    def name(drawn: list[Any]) -> str:
        ranges = [
            EntryRange(input_file(dataset, path), start, start + size)
            for dataset, path, start, size in drawn
        ]
        return keys_of(ranges).key(Node(0, len(ranges)))

    assert (name(left) == name(right)) == (left == right)


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "b"},
        {"file_path": "1.root"},
        {"treename": "Runs"},
        {"uuid": "v"},
        {"preload": ("Muon_pt",)},
        {"metadata": {"xs": 2.0}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_processors_see_of_a_file_is_in_its_identity(change: dict[str, Any]) -> None:
    first = input_file(metadata={"xs": 1.0})
    other = replace(first, **change)
    assert list(identify_files([first]).values()) != list(identify_files([other]).values())


def test_what_processors_do_not_see_is_not() -> None:
    first = input_file(metadata={"xs": 1.0})
    other = replace(
        first,
        replicas=("0.root", "elsewhere/0.root"),
        num_entries=7,
        steps=((0, 7),),
        metadata={"xs": 1.0},
    )
    assert identify_files([first]) == identify_files([other])


def test_metadata_of_two_datasets_are_not_mixed_up() -> None:
    # a dictionary that is gone may leave its identity to the next one
    files = [input_file(str(number), metadata={"xs": float(number)}) for number in range(50)]
    alone = [identify_files([replace(one, metadata=dict(one.metadata))]) for one in files]
    assert identify_files(files) == {key: value for one in alone for key, value in one.items()}


# What is looked up


def whole(
    node: Node, keys: NodeKeys, accumulator: Any = 1.0, seconds: float = 1e6
) -> PartialResult:
    """Make the result of a node, worth any time of writing."""
    spans = (Span("a", "0.root", "Events", node.start, node.stop),)
    return PartialResult(
        accumulator, spans, is_whole=True, key=keys.key(node), unsaved_seconds=seconds
    )


def test_the_root_is_looked_up_first(section: Section) -> None:
    ranges = build_ranges([[4]])
    tree, keys = arrange(ranges), keys_of(ranges)
    assert open_stored(section, tree, ranges).nodes == ()
    writer = Checkpoints(section)
    writer.save(whole(Node(0, 2), keys, 2.0))
    stored = open_stored(section, tree, ranges)
    assert (stored.nodes, stored.root) == ((Node(0, 2),), None)
    writer.save(whole(tree.root, keys, 4.0))
    stored = open_stored(section, tree, ranges)
    assert stored.root is not None
    assert stored.root.accumulator == 4.0
    object_path(section, keys.key(tree.root)).write_bytes(b"")
    stored = open_stored(section, tree, ranges)
    assert (stored.nodes, stored.root) == ((Node(0, 2),), None)


@given(counts_of_files, st.data())
@settings(deadline=None)
def test_each_task_is_told_what_is_below_it(counts: list[list[int]], data: st.DataObject) -> None:
    ranges = build_ranges(counts)
    tree = arrange(ranges)
    if not ranges:
        return
    keys = keys_of(ranges)
    section = memory_section()
    writer = Checkpoints(section)
    for node in data.draw(st.sets(st.sampled_from(all_nodes(tree)), max_size=5)):
        if node != tree.root:
            writer.save(whole(node, keys))
    stored = open_stored(section, tree, ranges)
    for node in all_nodes(tree):
        below = {keys.key(one) for one in stored.nodes if contains(node, one)}
        assert stored.names_in(node) == below


def memory_section() -> Section:
    return described(Store(f"memory://{uuid.uuid4().hex}").section(CODE))


# What is kept


def one_node(num_ranges: int = 4) -> tuple[NodeKeys, Node]:
    return keys_of(build_ranges([[num_ranges]])), Node(0, num_ranges)


def test_a_node_comes_back_as_it_was(section: Section) -> None:
    keys, node = one_node()
    said = Messages.of("warning", "UserWarning", "careful")
    result = replace(whole(node, keys, {"sum": 0.1}), messages=said)
    saved = Checkpoints(section).save(result)
    assert saved.unsaved_seconds == 0
    assert sum(one.store_seconds for one in saved.metrics.hosts.values()) > 0
    loaded = Checkpoints(section).load(keys.key(node))
    assert loaded is not None
    assert (loaded.accumulator, loaded.processed) == ({"sum": 0.1}, result.processed)
    assert loaded.messages == said
    assert loaded.is_whole
    assert loaded.unsaved_seconds == 0
    (host,) = loaded.metrics.hosts.values()
    assert (host.num_stored_ranges, host.num_stored_entries) == (4, 4)
    assert (host.num_ranges, host.num_entries) == (0, 0)
    # from the store: not to be written again
    shutil.rmtree(section.url)
    assert Checkpoints(section).save(loaded) == loaded
    assert section.keys() == {}


@pytest.mark.parametrize(
    "change",
    [{"is_whole": False}, {"key": ""}, {"unsaved_seconds": 0.0}],
    ids=lambda change: next(iter(change)),
)
def test_what_is_never_kept(section: Section, change: dict[str, Any]) -> None:
    result = replace(whole(Node(0, 4), one_node()[0]), **change)
    writer = Checkpoints(section)
    assert writer.save(result) is writer.offer(result, is_last=True) is result
    assert section.keys() == {}


@pytest.mark.parametrize(
    ("unsaved_seconds", "write_seconds", "is_last", "is_kept"),
    [
        (0.05, 0.0, False, False),  # too little to lose
        (0.05, 0.0, True, True),
        (100.0, 3.1, False, False),  # 3% of it are less than writing takes
        (100.0, 2.9, False, True),
        (100.0, 1e6, True, True),
    ],
)
def test_a_node_is_kept_if_that_pays(
    section: Section, unsaved_seconds: float, write_seconds: float, is_last: bool, is_kept: bool
) -> None:
    keys, node = one_node()
    writer = Checkpoints(section, "run")
    checkpoints_module._pace_of(writer).seconds = write_seconds
    result = whole(node, keys, seconds=unsaved_seconds)
    offered = writer.offer(result, is_last=is_last)
    assert (offered.unsaved_seconds == 0) == is_kept
    assert set(section.keys()) == ({keys.key(node)} if is_kept else set())


def test_few_runs_are_remembered(section: Section) -> None:
    for number in range(20):
        checkpoints_module._pace_of(Checkpoints(section, str(number))).seconds = 1.0
    assert len(checkpoints_module._paces) <= checkpoints_module.MAX_RUNS
    assert checkpoints_module._pace_of(Checkpoints(section, "19")).seconds == 1.0


def merge_all(
    writer: Checkpoints, ranges: list[EntryRange], bad: set[int]
) -> tuple[PartialResult, NodeKeys]:
    """Merge a whole tree, some leaves of which have failed."""
    tree, keys = arrange(ranges), keys_of(ranges)

    def leaf(node: Node) -> PartialResult:
        if node.start in bad:
            failure = Failure("a", "0.root", "Events", node.start, node.stop, "user", "E", "no")
            return PartialResult(failures=(failure,), key=keys.key(node))
        return whole(node, keys, seconds=0.01)

    def merge(node: Node, left: PartialResult, right: PartialResult) -> PartialResult:
        return writer.merge(left, right, key=keys.key(node), worker="")

    return tree.fold(tree.root, leaf, merge), keys


@given(st.integers(2, 70), st.data())
@settings(deadline=None, max_examples=40)
def test_around_failures_the_largest_whole_nodes_are_kept(
    num_ranges: int, data: st.DataObject
) -> None:
    bad = data.draw(st.sets(st.integers(0, num_ranges - 1), max_size=3))
    section = memory_section()
    ranges = build_ranges([[num_ranges]])
    result, keys = merge_all(Checkpoints(section), ranges, bad)
    tree = arrange(ranges)

    def is_whole(node: Node) -> bool:
        return not any(node.start <= one < node.stop for one in bad)

    nodes = all_nodes(tree)
    parents = {child: node for node in nodes for child in tree.children(node)}
    largest = {
        keys.key(node)
        for node in nodes
        if is_whole(node) and node in parents and not is_whole(parents[node])
    }
    assert set(section.keys()) == largest
    assert len(largest) <= len(bad) * (num_ranges - 1).bit_length()
    assert result.is_whole == (not bad)
    assert result.accumulator == (num_ranges - len(bad) or None)


def test_what_can_not_be_added_is_kept_on_both_sides(section: Section) -> None:
    keys, _ = one_node()
    left, right = whole(Node(0, 2), keys, 1.0), whole(Node(2, 4), keys, {"no": "number"})
    merged = Checkpoints(section).merge(left, right, key=keys.key(Node(0, 4)), worker="")
    assert not merged.is_whole
    assert [one.exception_type for one in merged.failures] == ["hepdask.errors.AccumulatorError"]
    assert set(section.keys()) == {left.key, right.key}


# Damage


def damaged(content: bytes, other: bytes) -> Iterator[bytes]:
    yield b""
    yield other
    yield from (content[:size] for size in (1, 20, 60, len(content) // 2, len(content) - 1))
    for place in range(0, len(content), 7):
        yield content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
    yield content + b"x"


def test_what_is_damaged_is_never_trusted(section: Section) -> None:
    keys, node = one_node()
    writer = Checkpoints(section)
    writer.save(whole(node, keys, {"sum": 0.1}))
    writer.save(whole(Node(0, 2), keys, {"sum": 0.2}))
    path = object_path(section, keys.key(node))
    content = path.read_bytes()
    other = object_path(section, keys.key(Node(0, 2))).read_bytes()
    for bad in damaged(content, other):
        path.write_bytes(bad)
        assert writer.load(keys.key(node)) is None
    path.unlink()
    assert writer.load(keys.key(node)) is None
    path.write_bytes(content)
    assert writer.load(keys.key(node)) is not None


class NotThere:
    """Can be pickled, but not be unpickled."""

    def __reduce__(self) -> Any:
        return int, ("not a number",)


def test_what_can_not_be_unpickled_is_computed_again(section: Section) -> None:
    keys, node = one_node()
    Checkpoints(section).save(whole(node, keys, NotThere()))
    assert set(section.keys()) == {keys.key(node)}
    assert Checkpoints(section).load(keys.key(node)) is None


# What can't be written


def put_a_file_in_the_way(place: Path) -> None:
    shutil.rmtree(place)
    place.write_text("in the way")


def test_what_can_not_be_kept_is_said_once_in_each_run(section: Section, tmp_path: Path) -> None:
    keys, node = one_node()
    put_a_file_in_the_way(tmp_path / "store")
    result = whole(node, keys)
    for run_id in ("one", "two"):
        writer = Checkpoints(section, run_id)
        first = writer.save(result)
        assert first.accumulator == result.accumulator
        assert first.unsaved_seconds == result.unsaved_seconds
        (message,) = first.messages
        assert message.text.startswith("results are not kept: ")
        assert "there is a file where a directory should be" in message.text
        assert writer.save(result).messages == Messages()


def test_processes_say_the_same(section: Section, tmp_path: Path) -> None:
    keys, _ = one_node()
    put_a_file_in_the_way(tmp_path / "store")
    said = [
        Checkpoints(section, str(start)).save(whole(Node(start, start + 1), keys)).messages
        for start in range(3)
    ]
    assert [one.count for one in said[0] + said[1] + said[2]] == [3]


def test_what_was_wrong_with_the_store_is_not_kept_in_it(section: Section, tmp_path: Path) -> None:
    keys, node = one_node()
    place = tmp_path / "store"
    put_a_file_in_the_way(place)
    writer = Checkpoints(section)
    own = Messages.of("warning", "UserWarning", "careful")
    result = writer.save(replace(whole(node, keys), messages=own))
    assert len(result.messages) == 2
    place.unlink()
    described(section)
    assert len(writer.save(result).messages) == 2
    loaded = writer.load(keys.key(node))
    assert loaded is not None
    assert loaded.messages == own


def test_what_can_not_be_pickled_is_a_message_too(section: Section) -> None:
    keys, node = one_node()
    result = Checkpoints(section).save(whole(node, keys, (number for number in "abc")))
    (message,) = result.messages
    assert "can't be pickled" in message.text


def test_a_store_that_this_machine_does_not_see(tmp_path: Path) -> None:
    """A worker elsewhere would make a directory of its own, where nobody looks."""
    unseen = Checkpoints(Store(tmp_path / "store").section(CODE))
    kept = unseen.save(PartialResult(1.0, is_whole=True, key="ab" * 24, unsaved_seconds=1.0))
    assert kept.unsaved_seconds == 1.0
    (message,) = kept.messages
    assert "does not see the store" in message.text
    assert not (tmp_path / "store").exists()
