from __future__ import annotations

import copy
import pickle
from collections import Counter, defaultdict
from typing import Any

import boost_histogram as bh
import hist
import numpy as np
import pytest

from hepdask import inplace
from hepdask.accumulator import add
from hepdask.errors import AccumulatorError
from hepdask.inplace import HalfAdded, add_into
from hepdask.partial import PartialResult, merge_results


def filled(storage: Any, seed: int) -> hist.Hist:
    random = np.random.default_rng(seed)
    h = hist.Hist(hist.axis.Regular(7, -1, 1, name="x"), storage=storage)
    values = random.normal(size=50)
    if isinstance(storage, (hist.storage.Mean, hist.storage.WeightedMean)):
        h.fill(values, sample=random.normal(size=50))
    elif isinstance(storage, (hist.storage.Double, hist.storage.Weight)):
        h.fill(values, weight=random.normal(size=50))
    else:
        h.fill(values)
    return h


def categories(*names: str) -> hist.Hist:
    h = hist.Hist(hist.axis.StrCategory([], growth=True, name="dataset"), storage="weight")
    for name in names:
        h.fill(name, weight=0.1)
    return h


def growing(*values: float) -> hist.Hist:
    h = hist.Hist(hist.axis.Regular(4, 0, 1, growth=True, name="x"))
    h.fill(values)
    return h


STORAGES = [
    storage()
    for storage in (
        hist.storage.AtomicInt64,
        hist.storage.Double,
        hist.storage.Int64,
        hist.storage.Mean,
        hist.storage.Unlimited,
        hist.storage.Weight,
        hist.storage.WeightedMean,
    )
]
RANDOM = np.random.default_rng(3)
#: three neighbours: the sum of the first two takes up the third
TRIPLES: dict[str, tuple[Any, Any, Any]] = {
    **{
        type(storage).__name__: tuple(filled(storage, seed) for seed in range(3))
        for storage in STORAGES
    },
    "categories": (categories("a", "b"), categories("b"), categories("c", "a")),
    "equal categories": (categories("a"), categories("a"), categories("a")),
    "growing": (growing(0.5), growing(0.2), growing(7.5)),
    "boost": tuple(bh.Histogram(bh.axis.Integer(0, 3)).fill([one]) for one in (0, 1, 1)),
    "arrays": tuple(RANDOM.normal(size=(5, 3)) for _ in range(3)),
    "small arrays": tuple(RANDOM.normal(size=4).astype("f4") for _ in range(3)),
    "mixed arrays": (np.arange(3), np.arange(3), np.arange(3) / 3),
    "fortran arrays": tuple(np.asfortranarray(RANDOM.normal(size=(5, 3))) for _ in range(3)),
    "texts in arrays": tuple(np.array(["a", "b"]) for _ in range(3)),
    "numbers": (0.1, 0.2, 0.3),
    "lists": ([1, [2]], [3.0], [[4], 5]),
    "tuples": ((1,), (2,), (3,)),
    "sets": ({1}, {2}, {1, 3}),
    "counters": (Counter(a=1), Counter(a=-2), Counter(b=0)),
    "nothing": ({"a": 1}, None, None),
    "dicts": (
        {"b": 1.5, "n": {"x": [1], "h": filled(hist.storage.Weight(), 5)}},
        {"a": 2, "n": {"h": filled(hist.storage.Weight(), 6)}},
        {"c": {"y": {3}}, "b": 0.1, "n": {"x": [2], "h": filled(hist.storage.Weight(), 7)}},
    ),
    "default dicts": (defaultdict(int, a=1), defaultdict(int, b=2), {"a": 3, "c": 4}),
}


def bits(value: Any) -> Any:
    if isinstance(value, dict):
        return type(value), [(key, bits(one)) for key, one in value.items()]
    if isinstance(value, bh.Histogram):
        view = value.view(flow=True)
        return (
            repr(value.axes),
            np.ascontiguousarray(view).tobytes(),
            vars(value).get("_variance_known"),
        )
    if isinstance(value, np.ndarray):
        return value.dtype, value.tolist()
    return type(value), value


@pytest.mark.parametrize("name", TRIPLES)
def test_it_gives_the_bits_of_add_and_leaves_the_right_one_alone(name: str) -> None:
    first, second, third = TRIPLES[name]
    before = bits(copy.deepcopy(third))
    expected = bits(add(add(first, second), third))
    own = add(first, second)
    assert bits(add_into(own, third)) == expected
    assert bits(third) == before


@pytest.mark.parametrize("name", ["Double", "Weight", "arrays", "lists", "sets", "dicts"])
def test_it_is_in_place_and_shares_nothing_with_the_right_one(name: str) -> None:
    first, second, third = copy.deepcopy(TRIPLES[name])
    own = add(first, second)
    result = add_into(own, third)
    assert result is own
    expected = bits(pickle.loads(pickle.dumps(result)))
    if name == "dicts":
        third["n"]["x"].append(7)
        third["n"]["h"].reset()
        third["c"]["y"].add(4)
    elif name == "lists":
        third[0].append(6)
    assert bits(result) == expected


def test_large_histograms_inside_dicts_stay_where_they_are() -> None:
    own = add({"n": {"h": filled(hist.storage.Double(), 1)}}, {"n": {}})
    inner = own["n"]["h"]
    assert add_into(own, {"n": {"h": filled(hist.storage.Double(), 2)}})["n"]["h"] is inner


def test_what_does_not_fit_leaves_it_as_it_was() -> None:
    own = add({"a": [1], "h": filled(hist.storage.Double(), 1), "z": "text"}, None)
    before = bits(copy.deepcopy(own))
    other = {"a": [2], "new": 1, "h": filled(hist.storage.Double(), 2), "z": "another"}
    with pytest.raises(AccumulatorError, match=r'output\["z"\]: the texts differ'):
        add_into(own, other)
    assert bits(own) == before


def test_what_brings_its_own_addition_is_added_by_that() -> None:
    class Total:
        def __init__(self, value: int) -> None:
            self.value = value

        def __add__(self, other: Total) -> Total:
            return Total(self.value + other.value)

    own = add(Total(1), Total(2))
    assert add_into(own, Total(3)).value == 6
    assert own.value == 3


def test_a_half_added_accumulator_is_not_taken_for_a_good_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(a: Any, b: Any) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(inplace, "_add_histogram", fail)
    left = PartialResult({"n": [1], "h": filled(hist.storage.Double(), 1)})
    right = PartialResult({"n": [2], "h": filled(hist.storage.Double(), 2)})
    with pytest.raises(HalfAdded, match="MemoryError: no more"):
        merge_results(left, right, may_change_left=True)
