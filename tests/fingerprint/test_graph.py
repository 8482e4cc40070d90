from __future__ import annotations

import random

import pytest

from hepdask.fingerprint.graph import Node, digest_graph


def build(children: dict[str, str], *, unordered: str = "") -> list[Node]:
    """Build a graph from the letters of its nodes; capitals are labels of nodes whose small letters are names."""
    names = list(children)
    return [
        Node(name[0].lower().encode(), [names.index(one) for one in children[name].split()], name in unordered.split())
        for name in names
    ]  # fmt: skip


def test_graphs_that_look_different_differ() -> None:
    graphs = [
        build({"a": ""}),
        build({"b": ""}),
        build({"a": "a"}),
        build({"a": "b", "b": ""}),
        build({"a": "b b", "b": ""}),
        build({"a": "b", "b": "b"}),
        build({"a": "b", "b": "a"}),
        build({"a": "b", "b": "c", "c": "a"}),
        build({"a": "b", "b": "c", "c": "b"}),
        build({"a": "b c", "b": "a", "c": "a"}),
        build({"a": "c b", "b": "a", "c": "a"}),
        build({"a": "c b", "b": "a", "c": "a"}, unordered="a"),
        build({"a": "a1", "a1": "a2", "a2": "b", "b": "a"}),
        build({"a": "a1", "a1": "b", "b": "a"}),
    ]
    assert len({digest_graph(graph) for graph in graphs}) == len(graphs)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (build({"a": "b b", "b": ""}), build({"a": "b1 b2", "b1": "", "b2": ""})),
        (build({"a": "a"}), build({"a1": "a2", "a2": "a1"})),
        (build({"a": "b", "b": "a"}), build({"a1": "b1", "b1": "a2", "a2": "b2", "b2": "a1"})),
        (
            build({"a": "b c", "b": "a", "c": "a"}, unordered="a"),
            build({"a": "c b", "b": "a", "c": "a"}, unordered="a"),
        ),
        (build({"a": "b", "b": ""}), build({"a": "b", "b": "", "c": "a"})),
    ],
)
def test_graphs_that_look_the_same_are_the_same(left: list[Node], right: list[Node]) -> None:
    assert digest_graph(left) == digest_graph(right)


def test_the_order_of_the_nodes_does_not_count() -> None:
    generator = random.Random(1)
    children = [[generator.randrange(60) for _ in range(3)] for _ in range(60)]
    before = digest_graph([Node(b"%d" % (n % 3), list(one)) for n, one in enumerate(children)])
    order = list(range(60))
    generator.shuffle(order)
    places = [order.index(n) for n in range(60)]
    shuffled = [Node(b"%d" % (n % 3), [places[child] for child in children[n]]) for n in order]
    assert digest_graph(shuffled, places[0]) == before
    changed = [
        Node(b"%d" % (n % 3), [places[child] for child in children[n][: 2 if n == 59 else 3]])
        for n in order
    ]
    assert digest_graph(changed, places[0]) != before
