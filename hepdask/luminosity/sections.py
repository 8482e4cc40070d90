"""Sets of luminosity sections, and their JSON format."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hepdask.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import ArrayLike, NDArray

__all__ = ["LumiSections"]

_SHIFT = 2**32
# one less than 32 bits hold, so that the end of an interval is never in the next run
_MAX_SECTION = 2**32 - 2


class LumiSections:
    """An immutable set of luminosity sections, each a pair (run, section).

    It holds intervals of consecutive sections, 16 bytes each, in memory and in a pickle: a year of data is some kB.

    Parameters
    ----------
    pairs : iterable of (int, int)
        Run and section; any order, repeated ones count once. `from_arrays` is the fast way.

    Raises
    ------
    OptionError
        If a number is no integer, or out of range.
    """

    __slots__ = ("_edges",)

    # run * 2**32 + section of the first section of an interval, and of the one after its last, in turns; strictly growing
    _edges: NDArray[np.uint64]

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        listed = list(pairs)
        codes = _encode([run for run, _ in listed], [section for _, section in listed])
        self._set(_unite_codes(codes))

    def _set(self, edges: NDArray[np.uint64]) -> None:
        edges.setflags(write=False)
        object.__setattr__(self, "_edges", edges)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"LumiSections can't be changed, and so {name!r} can't be set")

    @classmethod
    def _from_edges(cls, edges: NDArray[np.uint64]) -> LumiSections:
        made = cls.__new__(cls)
        made._set(edges)
        return made

    @classmethod
    def from_arrays(cls, runs: ArrayLike, sections: ArrayLike) -> LumiSections:
        """Build from the runs and sections of events.

        Parameters
        ----------
        runs, sections : array of int, shape (num_entries,)
            Any integer type; runs below 2**32, sections below 2**32 - 1, none negative.

        Raises
        ------
        OptionError
            If the shapes differ, or something in them is no such number.
        """
        return cls._from_edges(_unite_codes(_encode(runs, sections)))

    @classmethod
    def from_dict(cls, intervals: Mapping[Any, Any]) -> LumiSections:
        """Build from the CMS JSON format, a certified ("golden") JSON say.

        Parameters
        ----------
        intervals : mapping
            ``{"273158": [[1, 1279], [1281, 1290]]}``: run to closed intervals of sections, which may overlap.

        Raises
        ------
        OptionError
            If it isn't of this format.
        """
        if not isinstance(intervals, Mapping):
            raise OptionError(
                f"{type(intervals).__name__} given: give a mapping of run to intervals"
            )
        runs, bounds = [], []
        for run, pairs in intervals.items():
            for pair in _check_intervals(run, pairs):
                runs.append(_check_run(run))
                bounds.append(pair)
        starts = _encode(runs, [first for first, _ in bounds])
        stops = _encode(runs, [last for _, last in bounds]) + np.uint64(1)
        return cls._from_edges(_unite(starts, stops))

    @classmethod
    def unite(cls, many: Iterable[LumiSections]) -> LumiSections:
        """Build the union of any number of sets, in one go."""
        edges = np.concatenate([np.empty(0, np.uint64), *(one._edges for one in many)])
        return cls._from_edges(_unite(edges[::2], edges[1::2]))

    def to_dict(self) -> dict[str, list[list[int]]]:
        """Return the set in the CMS JSON format, as brilcalc and coffea's ``LumiMask`` read it.

        Returns
        -------
        dict
            ``{"273158": [[1, 1279], [1281, 1290]]}``: run to closed intervals of sections, both in order. ``json.dump``
            writes it.
        """
        written: dict[str, list[list[int]]] = {}
        for start, stop in self._edges.reshape(-1, 2).tolist():
            run, first = divmod(start, _SHIFT)
            written.setdefault(str(run), []).append([first, stop - 1 - run * _SHIFT])
        return written

    @property
    def runs(self) -> tuple[int, ...]:
        """The runs, in order."""
        # an interval never leaves its run
        return tuple(np.unique(self._edges[::2] // np.uint64(_SHIFT)).tolist())

    def __len__(self) -> int:
        return int((self._edges[1::2] - self._edges[::2]).sum())

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for start, stop in self._edges.reshape(-1, 2).tolist():
            for code in range(start, stop):
                yield divmod(code, _SHIFT)

    def __contains__(self, pair: object) -> bool:
        try:
            run, section = map(operator.index, pair)  # type: ignore[call-overload]  # what is no pair raises
        except (TypeError, ValueError):
            return False
        is_possible = 0 <= run < _SHIFT and 0 <= section <= _MAX_SECTION
        return is_possible and bool(self._holds(np.uint64(run * _SHIFT + section)))

    def __or__(self, other: object) -> LumiSections:
        return (
            self._combine(other, np.logical_or)
            if isinstance(other, LumiSections)
            else NotImplemented
        )

    def __and__(self, other: object) -> LumiSections:
        return (
            self._combine(other, np.logical_and)
            if isinstance(other, LumiSections)
            else NotImplemented
        )

    def __sub__(self, other: object) -> LumiSections:
        return self._combine(other, _but_not) if isinstance(other, LumiSections) else NotImplemented

    def __le__(self, other: object) -> bool:
        return not self - other if isinstance(other, LumiSections) else NotImplemented

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LumiSections):
            return NotImplemented
        return np.array_equal(self._edges, other._edges)

    def __hash__(self) -> int:
        return hash(self._edges.tobytes())

    def __reduce__(self) -> tuple[Any, ...]:
        return LumiSections._from_edges, (self._edges,)

    def __repr__(self) -> str:
        return f"<LumiSections: {len(self):,} in {len(self.runs):,} runs>"

    def _holds(self, codes: Any) -> Any:
        # an odd number of edges up to here: inside of an interval
        return np.searchsorted(self._edges, codes, side="right") % 2 == 1

    def _combine(self, other: LumiSections, choose: Callable[[Any, Any], Any]) -> LumiSections:
        edges = np.union1d(self._edges, other._edges)
        inside = choose(self._holds(edges), other._holds(edges))
        return self._from_edges(edges[np.diff(inside, prepend=False)])


def _but_not(here: Any, there: Any) -> Any:
    return here & ~there


def _unite_codes(codes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # events of a section mostly follow each other: a million of them are sorted in no time if these are one before
    is_new = np.ones(len(codes), bool)
    is_new[1:] = codes[1:] != codes[:-1]
    distinct = codes[is_new]
    return _unite(distinct, distinct + np.uint64(1))


def _unite(starts: NDArray[np.uint64], stops: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the edges of the union of half-open intervals, in any order."""
    edges, where = np.unique(np.concatenate([starts, stops]), return_inverse=True)
    opened = np.bincount(where[: len(starts)], minlength=len(edges))
    closed = np.bincount(where[len(starts) :], minlength=len(edges))
    inside = np.cumsum(opened - closed) > 0
    return edges[np.diff(inside, prepend=False)]


def _encode(runs: ArrayLike, sections: ArrayLike) -> NDArray[np.uint64]:
    """Pack each run and section into one number."""
    high = _check_numbers("run numbers", runs, _SHIFT - 1)
    low = _check_numbers("luminosity sections", sections, _MAX_SECTION)
    if high.shape != low.shape:
        raise OptionError(f"there are {len(high)} run numbers, but {len(low)} luminosity sections")
    return high * np.uint64(_SHIFT) + low


def _check_numbers(what: str, given: ArrayLike, largest: int) -> NDArray[np.uint64]:
    values = np.asarray(given)
    if values.size == 0:
        return np.empty(0, np.uint64)
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise OptionError(
            f"{what} are of type {values.dtype} and shape {values.shape}: give one integer for each event"
        )
    if values.min() < 0 or values.max() > largest:
        raise OptionError(
            f"{what} are between {values.min()} and {values.max()}: they must be between 0 and {largest}"
        )
    return values.astype(np.uint64)


def _check_run(run: object) -> int:
    try:
        return int(str(run))
    except ValueError:
        raise OptionError(f"{run!r} is no run number") from None


def _check_intervals(run: object, pairs: Any) -> list[tuple[int, int]]:
    try:
        checked = [(first, last) for first, last in pairs]
        is_ordered = all(first <= last for first, last in checked)
    except (TypeError, ValueError):
        is_ordered = False
    if not is_ordered:
        raise OptionError(
            f"run {run} has {pairs!r}: give a list of [first, last] luminosity sections"
        )
    return checked
