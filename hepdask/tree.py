"""The reduction tree: datasets <- files <- entry ranges, neighbours in pairs. Pure.

The leaves are the entry ranges of a run, in dataset order. At each of the three levels neighbours are paired from
the left, level by level, and an odd one moves up unchanged. Five files pair like this::

        0   1   2   3   4
         0-1     2-3    4
             0-3        4
                 0-4

So a node is a half-open interval of leaves, and where it divides follows from the interval alone: among `n` neighbours,
the left part takes the largest power of two smaller than `n`. No node is stored: a tree of a million leaves is three
lists of offsets. It also means that the ranges of any node, arranged by themselves, give the same subtree: a worker
that is sent nothing but a node's ranges merges them exactly as everybody else would.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import accumulate
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from hepdask.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from hepdask.ranges import EntryRange

__all__ = ["Merge", "Node", "ReductionTree", "arrange", "merge_in_order"]

T = TypeVar("T")
#: In a cut, a part that is lighter than this, over the least weight, stays with its neighbour ...
CRUMB = 0.3
#: ... if together they are no heavier than this, over what is allowed.
TOLERANCE = 1.6
#: pairs of pairs of positions, ``((0, 1), 2)``
Shape: TypeAlias = "int | tuple[Shape, Shape]"


@dataclass(frozen=True, slots=True, order=True)
class Node:
    """A node of the tree: the half-open interval of the leaves below it."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Merge:
    """One merge task above the cut.

    Attributes
    ----------
    node : Node
        The node whose result it makes.
    inputs : tuple of Node
        The nodes that it merges, in dataset order.
    order : nested tuple of int
        The pairs, as positions in `inputs`: ``((0, 1), 2)`` is ``add(add(a, b), c)``. So a merge of many inputs adds
        in the order of the pairwise tree, and gives the same bits.
    """

    node: Node
    inputs: tuple[Node, ...]
    order: Shape


class ReductionTree:
    """The tree over the ranges of a run.

    Parameters
    ----------
    counts : iterable of iterable of int
        Number of ranges of each file of each dataset. Files without ranges and datasets without files may be there;
        they have no place in the tree.
    """

    __slots__ = ("_dataset_starts", "_file_starts", "root")

    def __init__(self, counts: Iterable[Iterable[int]]) -> None:
        sizes: list[int] = []
        dataset_sizes: list[int] = []
        for files in counts:
            filled = [count for count in files if count]
            sizes.extend(filled)
            if filled:
                dataset_sizes.append(len(filled))
        #: leaf at which each file starts, and one past the last leaf
        self._file_starts = [0, *accumulate(sizes)]
        #: file at which each dataset starts, and one past the last file
        self._dataset_starts = [0, *accumulate(dataset_sizes)]
        #: the node of all leaves (empty if there are none)
        self.root = Node(0, self._file_starts[-1])

    def __len__(self) -> int:
        return self.root.stop

    @property
    def dataset_stops(self) -> tuple[int, ...]:
        """One past the last leaf of each dataset: where a file that is appended would come."""
        return tuple(self._file_starts[file] for file in self._dataset_starts[1:])

    def children(self, node: Node) -> tuple[Node, ...]:
        """Return the two nodes that `node` merges, left and right; nothing for a leaf."""
        if len(node) < 2:
            return ()
        first = bisect_right(self._file_starts, node.start) - 1
        last = bisect_right(self._file_starts, node.stop - 1) - 1
        if first == last:
            middle = node.start + _left_share(len(node))
        else:
            middle = self._file_starts[self._middle_file(first, last)]
        return Node(node.start, middle), Node(middle, node.stop)

    def _middle_file(self, first: int, last: int) -> int:
        first_dataset = bisect_right(self._dataset_starts, first) - 1
        last_dataset = bisect_right(self._dataset_starts, last) - 1
        if first_dataset == last_dataset:
            return first + _left_share(last - first + 1)
        return self._dataset_starts[first_dataset + _left_share(last_dataset - first_dataset + 1)]

    def fold(
        self,
        node: Node,
        leaf: Callable[[Node], T],
        merge: Callable[[Node, T, T], T],
        known: Callable[[Node], T | None] = lambda _: None,
    ) -> T:
        """Reduce the leaves below a node, in order, merging as soon as a pair is there.

        Holds at most one result for each level of the tree: about ``log2(len(node))``.

        Parameters
        ----------
        node : Node
            Not empty.
        leaf : callable
            Makes the result of a leaf; called once for each, from left to right.
        merge : callable
            ``merge(node, left, right)`` makes the result of `node` from those of its children.
        known : callable
            Returns the result of a node that is there already, so that nothing below it is asked for; None for all others.
        """
        found = known(node)
        if found is not None:
            return found
        children = self.children(node)
        if not children:
            return leaf(node)
        left = self.fold(children[0], leaf, merge, known)
        return merge(node, left, self.fold(children[1], leaf, merge, known))

    def cut(
        self,
        weights: Sequence[float],
        max_weight: float,
        *,
        min_weight: float | None = None,
        num_lanes: int = 0,
    ) -> list[Node]:
        """Cut the tree into tasks: the largest nodes that weigh at most `max_weight`, and less towards the end.

        What is still to come after the start of a task is divided among all who work on it: so no task is long when
        others have run out of theirs (guided self-scheduling).

        Parameters
        ----------
        weights : sequence of float, shape (number of leaves,)
            What each leaf is expected to cost, in any unit.
        max_weight : float
            A node that weighs more is divided, down to single leaves.
        min_weight : float or None
            No node is divided at the end that weighs less than this, and none that is hardly too heavy into a part that is
            much lighter; None: all may weigh `max_weight`, and none more.
        num_lanes : int
            A task takes at most one part in so many of what is left from its start on; only with `min_weight`.

        Returns
        -------
        list of Node
            In dataset order; each leaf is in exactly one.
        """
        total = [0.0, *accumulate(weights)]
        floor = max_weight if min_weight is None else min(min_weight, max_weight)
        share = 1 / num_lanes if num_lanes else 1.0
        # a crumb may stay with its neighbour: the first range of a file also opens it, and would else be a task by itself
        crumb = 0.0 if min_weight is None else CRUMB * floor
        nodes = []
        pending = [self.root] if len(self.root) else []
        while pending:
            node = pending.pop()
            start, weight = total[node.start], total[node.stop] - total[node.start]
            limit = min(max_weight, max(floor, share * (total[-1] - start)))
            children = self.children(node)
            if not children or weight <= limit:
                nodes.append(node)
                continue
            left = total[children[0].stop] - start
            if min(left, weight - left) < crumb and weight <= TOLERANCE * limit:
                nodes.append(node)
            else:
                pending.extend(reversed(children))
        return nodes

    def merges(self, cut: Iterable[Node], split_every: int = 2) -> list[Merge]:
        """List the merges above a cut, each after those that make its inputs.

        Parameters
        ----------
        cut : iterable of Node
            The nodes that are tasks, as `cut` gives them.
        split_every : int
            How many inputs a merge task takes at most; 2 is the tree itself. More saves tasks and changes no bit.

        Raises
        ------
        OptionError
            If `split_every` is less than 2.
        """
        if split_every < 2:
            raise OptionError(f"split_every is {split_every}: a merge takes at least 2 inputs")
        tasks = set(cut)
        merges: list[Merge] = []
        pending = [self.root] if len(self.root) and self.root not in tasks else []
        while pending:
            merge = self._merge(pending.pop(), tasks, split_every)
            merges.append(merge)
            pending.extend(node for node in merge.inputs if node not in tasks)
        return merges[::-1]

    def _merge(self, node: Node, tasks: set[Node], split_every: int) -> Merge:
        children = self.children(node)
        inputs = set(children)
        # the largest first, the leftmost of equal ones: a list would be searched anew for each input
        divisible = [(-len(one), one) for one in children if one not in tasks]
        heapify(divisible)
        while divisible and len(inputs) < split_every:
            _, largest = heappop(divisible)
            inputs.remove(largest)
            for child in self.children(largest):
                inputs.add(child)
                if child not in tasks:
                    heappush(divisible, (-len(child), child))
        if len(inputs) == 2:
            return Merge(node, children, (0, 1))
        ordered = tuple(sorted(inputs))
        return Merge(node, ordered, self._order(node, {one: i for i, one in enumerate(ordered)}))

    def _order(self, node: Node, places: dict[Node, int]) -> Shape:
        if node in places:
            return places[node]
        left, right = self.children(node)
        return self._order(left, places), self._order(right, places)

    def frontier(self, finished: Callable[[Node], bool], cut: Iterable[Node]) -> Iterator[Node]:
        """Yield, in dataset order, the largest nodes that are finished, and the nodes of the cut that are not."""
        tasks = set(cut)
        pending = [self.root] if len(self.root) else []
        while pending:
            node = pending.pop()
            if node in tasks or finished(node):
                yield node
            else:
                pending.extend(reversed(self.children(node)))


def arrange(ranges: Sequence[EntryRange]) -> ReductionTree:
    """Arrange ranges, which are in dataset order, into their tree.

    Parameters
    ----------
    ranges : sequence of EntryRange
        Neighbours of one file are leaves of one file, neighbours of one dataset files of one dataset.
    """
    counts: list[list[int]] = []
    dataset: str | None = None
    file: tuple[str, str] | None = None
    for entry_range in ranges:
        source = entry_range.file
        if source.dataset != dataset:
            dataset, file = source.dataset, None
            counts.append([])
        if (source.file_path, source.treename) != file:
            file = (source.file_path, source.treename)
            counts[-1].append(0)
        counts[-1][-1] += 1
    return ReductionTree(counts)


def merge_in_order(order: Shape, inputs: Sequence[T], merge: Callable[[T, T], T]) -> T:
    """Merge inputs in the order that a `Merge` gives."""
    if isinstance(order, int):
        return inputs[order]
    left, right = order
    return merge(merge_in_order(left, inputs, merge), merge_in_order(right, inputs, merge))


def _left_share(count: int) -> int:
    # the largest power of two smaller than count: 2 --> 1, 3 --> 2, 4 --> 2, 5 --> 4
    return 1 << ((count - 1).bit_length() - 1)
