from __future__ import annotations

import struct
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hepdask.errors import OptionError
from hepdask.fileset import InputFile
from hepdask.ranges import EntryRange
from hepdask.tree import Merge, Node, ReductionTree, arrange, merge_in_order

if TYPE_CHECKING:
    import random

counts_of_files = st.lists(st.lists(st.integers(0, 9), max_size=9), max_size=5)
#: an expression: the index of a leaf, or a pair of expressions
Expression = Any


def expression(tree: ReductionTree, node: Node) -> Expression:
    return tree.fold(node, lambda leaf: leaf.start, lambda _, left, right: (left, right))


def run_tasks(tree: ReductionTree, cut: list[Node], split_every: int) -> Expression:
    """Work through the tasks and merges as an executor would, each with its own inputs alone."""
    results = {node: expression(tree, node) for node in cut}
    for merge in tree.merges(cut, split_every):
        inputs = [results.pop(node) for node in merge.inputs]
        results[merge.node] = merge_in_order(merge.order, inputs, lambda a, b: (a, b))
    assert list(results) == [tree.root]
    return results[tree.root]


def build_ranges(counts: list[list[int]]) -> list[EntryRange]:
    return [
        EntryRange(input_file(f"dataset{i}", f"{j}.root"), entry, entry + 1)
        for i, files in enumerate(counts)
        for j, count in enumerate(files)
        for entry in range(count)
    ]


def input_file(dataset: str, file_path: str) -> InputFile:
    return InputFile(dataset, file_path, "Events", (file_path,), {})


def shifted(node: Node, by: int) -> Node:
    return Node(node.start + by, node.stop + by)


def all_nodes(tree: ReductionTree) -> list[Node]:
    nodes, pending = [], [tree.root] if len(tree) else []
    while pending:
        nodes.append(pending.pop())
        pending.extend(tree.children(nodes[-1]))
    return nodes


BY_HAND: dict[int, Expression] = {
    1: 0,
    2: (0, 1),
    3: ((0, 1), 2),
    4: ((0, 1), (2, 3)),
    5: (((0, 1), (2, 3)), 4),
    6: (((0, 1), (2, 3)), (4, 5)),
    7: (((0, 1), (2, 3)), ((4, 5), 6)),
    8: (((0, 1), (2, 3)), ((4, 5), (6, 7))),
    9: ((((0, 1), (2, 3)), ((4, 5), (6, 7))), 8),
}


@pytest.mark.parametrize("number", BY_HAND)
def test_neighbours_are_paired_from_the_left(number: int) -> None:
    for counts in ([[number]], [[1] * number], [[1]] * number):
        tree = ReductionTree(counts)
        assert expression(tree, tree.root) == BY_HAND[number]


def test_datasets_come_before_files_and_files_before_ranges() -> None:
    tree = ReductionTree([[3, 1], [2], [1, 1]])
    dy = (((0, 1), 2), 3)
    tt, data = (4, 5), (6, 7)
    assert expression(tree, tree.root) == ((dy, tt), data)


@given(st.integers(1, 300))
def test_the_tree_is_what_pairing_level_by_level_gives(number: int) -> None:
    level: list[Expression] = list(range(number))
    while len(level) > 1:
        pairs = list(zip(level[::2], level[1::2], strict=False))
        level = [*pairs, *level[2 * len(pairs) :]]
    tree = ReductionTree([[number]])
    assert expression(tree, tree.root) == level[0]


@given(counts_of_files)
def test_each_leaf_once_and_in_order(counts: list[list[int]]) -> None:
    tree = ReductionTree(counts)
    total = sum(map(sum, counts))
    assert len(tree) == len(tree.root) == total
    if total:
        leaves = tree.fold(
            tree.root, lambda leaf: (leaf.start,), lambda _, left, right: left + right
        )
        assert leaves == tuple(range(total))
        assert len(all_nodes(tree)) == 2 * total - 1


@given(counts_of_files)
def test_children_divide_their_node(counts: list[list[int]]) -> None:
    tree = ReductionTree(counts)
    for node in all_nodes(tree):
        children = tree.children(node)
        if len(node) == 1:
            assert children == ()
        else:
            left, right = children
            assert (left.start, right.stop) == (node.start, node.stop)
            assert left.stop == right.start
            assert len(left) > 0
            assert len(right) > 0


@settings(deadline=None)
@given(counts_of_files, st.floats(0.1, 30), st.integers(2, 12), st.randoms(use_true_random=False))
def test_any_cut_gives_the_same_expression(
    counts: list[list[int]], max_weight: float, split_every: int, chance: random.Random
) -> None:
    tree = ReductionTree(counts)
    weights = [chance.uniform(0, 3) for _ in range(len(tree))]
    cut = tree.cut(weights, max_weight)
    if len(tree):
        assert run_tasks(tree, cut, split_every) == expression(tree, tree.root)
    else:
        assert cut == tree.merges(cut, split_every) == []


@given(counts_of_files, st.floats(0.1, 30), st.randoms(use_true_random=False))
def test_a_cut_has_each_leaf_once_in_the_largest_nodes_that_fit(
    counts: list[list[int]], max_weight: float, chance: random.Random
) -> None:
    tree = ReductionTree(counts)
    weights = [chance.choice([0.25, 0.5, 1.0, 4.0]) for _ in range(len(tree))]
    cut = tree.cut(weights, max_weight)
    assert [leaf for node in cut for leaf in range(node.start, node.stop)] == [*range(len(tree))]
    parents = {child: node for node in all_nodes(tree) for child in tree.children(node)}
    for node in cut:
        assert sum(weights[node.start : node.stop]) <= max_weight or len(node) == 1
        if node in parents:
            parent = parents[node]
            assert sum(weights[parent.start : parent.stop]) > max_weight


@given(counts_of_files)
def test_the_ranges_of_a_node_arranged_by_themselves_give_its_subtree(
    counts: list[list[int]],
) -> None:
    ranges = build_ranges(counts)
    tree = arrange(ranges)
    assert all_nodes(tree) == all_nodes(ReductionTree(counts))
    for node in all_nodes(tree):
        alone = arrange(ranges[node.start : node.stop])
        expected = all_nodes_below(tree, node)
        assert [shifted(one, node.start) for one in all_nodes(alone)] == expected


def all_nodes_below(tree: ReductionTree, node: Node) -> list[Node]:
    nodes, pending = [], [node]
    while pending:
        nodes.append(pending.pop())
        pending.extend(tree.children(nodes[-1]))
    return nodes


@given(counts_of_files, st.floats(0.1, 10), st.integers(2, 12))
def test_merges_come_after_what_they_merge(
    counts: list[list[int]], max_weight: float, split_every: int
) -> None:
    tree = ReductionTree(counts)
    cut = tree.cut([1.0] * len(tree), max_weight)
    made = set(cut)
    for merge in tree.merges(cut, split_every):
        assert 2 <= len(merge.inputs) <= split_every
        assert set(merge.inputs) <= made
        assert merge.inputs[0].start == merge.node.start
        assert merge.inputs[-1].stop == merge.node.stop
        assert all(left.stop == right.start for left, right in pairwise(merge.inputs))
        made.add(merge.node)
    assert not len(tree) or tree.root in made


def test_merges_by_hand() -> None:
    tree = ReductionTree([[5]])
    cut = tree.cut([1.0] * 5, 1)
    a, b, c, d, e = (Node(leaf, leaf + 1) for leaf in range(5))
    left, right, both = Node(0, 2), Node(2, 4), Node(0, 4)
    assert tree.merges(cut) == [
        Merge(left, (a, b), (0, 1)),
        Merge(right, (c, d), (0, 1)),
        Merge(both, (left, right), (0, 1)),
        Merge(tree.root, (both, e), (0, 1)),
    ]
    assert tree.merges(cut, 100) == [
        Merge(tree.root, (a, b, c, d, e), (((0, 1), (2, 3)), 4)),
    ]


@pytest.mark.parametrize("split_every", [1, 0, -2])
def test_a_merge_of_one_is_refused(split_every: int) -> None:
    with pytest.raises(OptionError, match=r"split_every is .*: a merge takes at least 2 inputs"):
        ReductionTree([[2]]).merges([], split_every)


@given(
    st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=80),
    st.floats(0.5, 20),
    st.integers(2, 9),
)
def test_sums_of_floats_have_the_same_bits_for_any_cut(
    values: list[float], max_weight: float, split_every: int
) -> None:
    third = len(values) // 3
    tree = ReductionTree([[third, len(values) - 2 * third], [third]])

    def add(left: float, right: float) -> float:
        return left + right

    whole = tree.fold(tree.root, lambda leaf: values[leaf.start], lambda _, *pair: add(*pair))
    cut = tree.cut([1.0] * len(values), max_weight)
    results = {
        node: tree.fold(node, lambda leaf: values[leaf.start], lambda _, *pair: add(*pair))
        for node in cut
    }
    for merge in tree.merges(cut, split_every):
        inputs = [results[node] for node in merge.inputs]
        results[merge.node] = merge_in_order(merge.order, inputs, add)
    assert struct.pack("d", results[tree.root]) == struct.pack("d", whole)


@pytest.mark.parametrize("num_files", [1, 7, 64, 100, 1000])
def test_an_appended_file_changes_the_right_edge_alone(num_files: int) -> None:
    before = set(all_nodes(ReductionTree([[3] * num_files])))
    tree = ReductionTree([[3] * (num_files + 1)])
    new = set(all_nodes(tree)) - before
    # its own 5 nodes, and at most one merge on each level above
    assert len(new) <= 5 + (num_files + 1).bit_length()
    assert all(node.stop == len(tree) or node.start >= 3 * num_files for node in new)


def test_the_frontier_is_what_is_finished_and_what_is_not() -> None:
    tree = ReductionTree([[8]])
    cut = tree.cut([1.0] * 8, 2)
    finished = {Node(0, 2), Node(2, 4), Node(0, 4), Node(4, 6)}
    assert list(tree.frontier(finished.__contains__, cut)) == [Node(0, 4), Node(4, 6), Node(6, 8)]
    assert list(tree.frontier(lambda _: True, cut)) == [tree.root]
    assert list(tree.frontier(lambda _: False, cut)) == cut
    assert list(ReductionTree([]).frontier(lambda _: True, [])) == []


def test_an_empty_run_has_no_node() -> None:
    for tree in (ReductionTree([]), ReductionTree([[], [0, 0]]), arrange([])):
        assert len(tree) == 0
        assert tree.children(tree.root) == ()
        assert tree.cut([], 1) == []
        assert tree.merges([]) == []


def test_two_trees_of_one_file_are_two_files() -> None:
    files = [InputFile("dy", "a.root", name, ("a.root",), {}) for name in ("Events", "Runs")]
    ranges = [EntryRange(files[0], i, i + 1) for i in range(3)]
    tree = arrange([*ranges, EntryRange(files[1], 0, 1), EntryRange(files[1], 1, 2)])
    assert expression(tree, tree.root) == (((0, 1), 2), (3, 4))


def test_merge_in_order_follows_the_brackets() -> None:
    merged = merge_in_order(((0, 1), (2, 3)), "abcd", lambda left, right: f"({left}{right})")
    assert merged == "((ab)(cd))"
    assert merge_in_order(0, ["only"], lambda left, right: left + right) == "only"


def test_many_ranges_are_arranged_and_cut() -> None:
    counts = [[17] * 150] * 20
    tree = ReductionTree(counts)
    assert len(tree) == 51_000
    cut = tree.cut([1.0] * len(tree), 17)
    assert len(cut) == 3_000
    merges = tree.merges(cut)
    assert len(merges) == 2_999
    # one merge of everything: its inputs are found without searching a list for each
    (flat,) = tree.merges(cut, len(cut))
    assert flat.inputs == tuple(cut)
    assert tree.fold(tree.root, lambda _: 1, lambda _, left, right: left + right) == 51_000
