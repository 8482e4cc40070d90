"""A digest of a graph of objects that depends on what can be seen from its root, and on nothing else.

Objects refer to each other in circles (a function that calls itself, a class and its methods), and the same content may
be shared or repeated: after a round trip through pickle, equal strings are other objects. So the digest must not know
which objects are shared, nor the order in which a set is walked. Each node is hashed from its label and the digests of
its children, the lowest ones first. The nodes of a circle start with their labels alone and take their neighbours'
colours in, round by round, until no more of them can be told apart.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

__all__ = ["Node", "digest_graph"]


@dataclass(slots=True)
class Node:
    """One object of the graph."""

    label: bytes = b""
    """What the object is, without its children."""
    children: list[bytes | int] = field(default_factory=list)
    """Encoded small values, and indices of other nodes."""
    is_unordered: bool = False
    """True for a set, whose children come in any order."""


def digest_graph(nodes: list[Node], root: int = 0) -> bytes:
    """Return the digest of a node: 32 bytes.

    Parameters
    ----------
    nodes : list of Node
        All nodes; children are indices into it.
    root : int
        The node to start from; what can't be reached from it doesn't count.
    """
    digests: dict[int, bytes] = {}
    for circle in _list_circles(nodes, root):
        if len(circle) == 1 and circle[0] not in nodes[circle[0]].children:
            digests[circle[0]] = _digest_node(nodes[circle[0]], digests)
        else:
            _digest_circle(circle, nodes, digests)
    return digests[root]


def _digest_node(node: Node, digests: dict[int, bytes], own: bytes = b"") -> bytes:
    parts = [
        b"n" + digests[child] if isinstance(child, int) else b"v%d:" % len(child) + child
        for child in node.children
    ]
    if node.is_unordered:
        parts.sort()
    head = b"%d:%d:%d:%d:" % (len(own), len(node.label), len(parts), node.is_unordered)
    return hashlib.sha256(b"".join((head, own, node.label, *parts))).digest()


def _digest_circle(circle: list[int], nodes: list[Node], digests: dict[int, bytes]) -> None:
    """Hash the nodes of a circle by refining their colours.

    A colour contains the one of the round before, and at the end all colours of the circle are hashed with each: two
    circles with the same colours after the same rounds look the same in all rounds to come.
    """
    colours = dict.fromkeys(circle, b"")
    num_colours = 1
    while True:
        digests.update(colours)
        colours = {index: _digest_node(nodes[index], digests, colours[index]) for index in circle}
        now = len(set(colours.values()))
        if now == num_colours:
            break
        num_colours = now
    all_colours = b"".join(sorted(set(colours.values())))
    for index in circle:
        digests[index] = hashlib.sha256(b"circle" + colours[index] + all_colours).digest()


def _list_circles(nodes: list[Node], root: int) -> list[list[int]]:
    """List the strongly connected components that the root reaches, each after those it refers to (Tarjan, 1972)."""
    found: list[list[int]] = []
    order: dict[int, int] = {root: 0}
    low: dict[int, int] = {root: 0}
    open_nodes: list[int] = [root]
    is_open = {root}
    path = [(root, iter(nodes[root].children))]
    while path:
        index, children = path[-1]
        child = next((one for one in children if isinstance(one, int)), None)
        if child is None:
            path.pop()
            if path:
                parent = path[-1][0]
                low[parent] = min(low[parent], low[index])
            if low[index] == order[index]:
                found.append(_close(index, open_nodes, is_open))
        elif child not in order:
            order[child] = low[child] = len(order)
            open_nodes.append(child)
            is_open.add(child)
            path.append((child, iter(nodes[child].children)))
        elif child in is_open:
            low[index] = min(low[index], order[child])
    return found


def _close(index: int, open_nodes: list[int], is_open: set[int]) -> list[int]:
    start = len(open_nodes) - 1
    while open_nodes[start] != index:
        start -= 1
    circle = open_nodes[start:]
    del open_nodes[start:]
    is_open.difference_update(circle)
    return circle
