from __future__ import annotations

import pickle
from typing import Any

import boost_histogram as bh
import hist
import numpy as np
import pytest
from hist import Hist, axis, storage
from hypothesis import given
from hypothesis import strategies as st

from hepdask.accumulator import add
from hepdask.errors import AccumulatorError

STORAGES = [
    storage.Double(),
    storage.Int64(),
    storage.AtomicInt64(),
    storage.Unlimited(),
    storage.Weight(),
    storage.Mean(),
    storage.WeightedMean(),
    storage.MultiCell(2),
]


def filled(h: Any, rows: list[tuple[Any, ...]]) -> Any:
    """Fill a histogram of any storage; a row is a number, for weight and sample, and a value per axis.

    In one call: the second fill that grows a MultiCell histogram loses the first (boost-histogram 1.8.1).
    """
    columns = list(zip(*rows, strict=True))
    numbers = np.array(columns[0])
    extra: dict[str, Any] = {}
    if h.storage_type in (storage.Weight, storage.WeightedMean):
        extra["weight"] = numbers
    if h.storage_type in (storage.Mean, storage.WeightedMean):
        extra["sample"] = 2 * numbers
    if h.storage_type is storage.MultiCell:
        extra["weight"] = np.stack([numbers, -numbers], axis=1)
    return h.fill(*map(list, columns[1:]), **extra)


def raw(h: Any) -> Any:
    return np.asarray(h.view(flow=True))


def assert_close(left: Any, right: Any) -> None:
    assert left.dtype == right.dtype
    for name in left.dtype.names or [...]:
        np.testing.assert_allclose(left[name], right[name], rtol=1e-12)


@pytest.mark.parametrize("store", STORAGES, ids=repr)
def test_histograms_of_every_storage_grow_as_if_filled_by_one(store):
    def empty() -> Any:
        return Hist(
            axis.StrCategory([], growth=True, name="c", label="C"),
            axis.IntCategory([], growth=True, name="k"),
            axis.Regular(4, 0, 1, growth=True, name="x"),
            axis.Integer(0, 2, growth=True, name="i"),
            axis.Regular(2, 0, 1, name="fixed"),
            storage=store,
            name="n",
        )

    left = [(1.0, "z", 5, -0.6, -1, 0.1), (2.0, "a", 3, 0.1, 0, 7), (3.0, "z", 5, 0.1, 1, 0.1)]
    right = [(4.0, "b", 4, 1.6, 3, 0.6), (5.0, "z", 5, np.inf, 0, -1), (6.0, "z", 5, 0.1, 1, 0.1)]
    a, b = filled(empty(), left), filled(empty(), right)
    before = pickle.dumps((a, b))

    total = add(a, b)

    expected = filled(empty(), left + right)
    assert list(total.axes["c"]) == ["z", "a", "b"]
    assert list(total.axes["k"]) == [5, 3, 4]
    assert list(total.axes["i"]) == list(range(-1, 4))
    np.testing.assert_allclose(total.axes["x"].edges, expected.axes["x"].edges)
    assert_close(raw(total), raw(expected))
    assert total.axes.name == expected.axes.name
    assert total.axes.label == expected.axes.label
    assert [ax.traits for ax in total.axes] == [ax.traits for ax in a.axes]
    assert type(total) is Hist
    assert repr(total.storage) == repr(a.storage)
    assert pickle.dumps((a, b)) == before


@pytest.mark.parametrize("store", STORAGES, ids=repr)
def test_variable_axes_grow_by_dropping_the_edges_that_cut_bins(store):
    def empty() -> Any:
        return Hist(
            axis.StrCategory(["a"], name="c"),
            axis.Variable([0, 1, 3], growth=True, name="x"),
            storage=store,
        )

    left = [(1.0, "a", 5), (2.0, "a", 8), (3.0, "a", 0.5), (4.0, "b", -2)]
    right = [(5.0, "a", 6), (6.0, "a", 2), (7.0, "a", 20), (8.0, "a", np.nan)]

    total = add(filled(empty(), left), filled(empty(), right))

    edges = total.axes["x"].edges
    np.testing.assert_allclose(edges, [-2, 0, 1, 3, edges[-1]])
    assert edges[-1] > 20
    plain = Hist(axis.StrCategory(["a"], name="c"), axis.Variable(edges, name="x"), storage=store)
    assert_close(raw(total), raw(filled(plain, left + right)))


@pytest.mark.parametrize("store", STORAGES, ids=repr)
def test_empty_histograms_add_nothing(store):
    h = Hist(axis.Regular(2, 0, 1), storage=store)
    full = filled(h.copy(), [(1.0, 0.1), (3.0, 0.1)])
    assert_close(raw(add(full, h)), raw(full))
    assert_close(raw(add(h, full)), raw(full))
    assert_close(raw(add(h, h)), raw(h))


def test_attributes_come_from_the_left_and_are_not_shared():
    def build(name: str) -> Any:
        x = axis.StrCategory([], growth=True, name="x", label="X", metadata=["m"])
        return Hist(x, storage.Double(), name=name, label=f"{name} label", metadata={"k": [1]})

    a, b = build("a").fill(["p"]), build("b").fill(["q"])
    total = add(a, b)
    assert (total.name, total.label, total.metadata) == ("a", "a label", {"k": [1]})
    assert (total.axes[0].label, total.axes[0].metadata) == ("X", ["m"])

    total.metadata["k"].append(2)
    total.axes[0].metadata.append("n")
    total.axes[0].label = "changed"
    for h in (a, b):
        assert (h.metadata, h.axes[0].metadata, h.axes[0].label) == ({"k": [1]}, ["m"], "X")


def test_variances_of_plain_counts_stay_known():
    h = Hist.new.Reg(2, 0, 1).Double().fill([0.1, 0.2, 0.7])
    np.testing.assert_array_equal(add(h, h).variances(), [4, 2])
    weighted = h.copy().fill([0.1], weight=2)
    assert add(h, weighted).variances() is None


def test_boost_histograms_and_named_histograms():
    h = bh.Histogram(bh.axis.Regular(2, 0, 1, growth=True)).fill([0.1])
    total = add(h, bh.Histogram(bh.axis.Regular(2, 0, 1, growth=True)).fill([1.2]))
    assert type(total) is bh.Histogram
    assert total.view().tolist() == [1, 0, 1]
    named = hist.NamedHist(axis.Regular(2, 0, 1, growth=True, name="x")).fill(x=[0.1])
    other = hist.NamedHist(axis.Regular(2, 0, 1, growth=True, name="x")).fill(x=[1.2])
    assert type(add(named, other)) is hist.NamedHist


X = axis.Regular(2, 0, 1, name="x")


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        (Hist(X), Hist(X, axis.Boolean(name="ok")), r"axes differ: 1 \(x\) and 2 \(x, ok\)"),
        (
            Hist(X),
            Hist(axis.Regular(2, 0, 2, name="x")),
            r"axis 0 \('x'\): Regular\(2, 0, 1, .*0, 2",
        ),
        (Hist(X), Hist(axis.Regular(2, 0, 1, name="y")), r"axis 0 \('x'\): name 'x' and 'y'"),
        (Hist(X), Hist(axis.Regular(2, 0, 1, name="x", label="m")), "label '' and 'm'"),
        (Hist(X), Hist(axis.Regular(2, 0, 1, name="x", metadata=1)), "metadata None and 1"),
        (Hist(X), Hist(axis.Variable([0, 0.5, 1], name="x")), r"Regular\(.* and Variable\("),
        (
            Hist(X),
            Hist(axis.Regular(2, 0, 1, name="x", flow=False)),
            "underflow=True and underflow=False",
        ),
        (
            Hist(X),
            Hist(axis.Regular(2, 0, 1, name="x", growth=True)),
            "growth=False and growth=True",
        ),
        (Hist(X), Hist(X, storage=storage.Weight()), r"storages differ: Double\(\) and Weight\(\)"),
        (
            Hist(X, storage=storage.MultiCell(2)),
            Hist(X, storage=storage.MultiCell(3)),
            r"storages differ: MultiCell\(2\) and MultiCell\(3\)",
        ),
        (
            Hist(axis.StrCategory(["a", "b"])),
            Hist(axis.StrCategory(["b", "a"])),
            r"axis 0: StrCategory\(\['a', 'b'\]",
        ),
        (
            Hist(axis.Regular(4, 0, 1, growth=True)),
            Hist(axis.Regular(5, 0, 1, growth=True)),
            r"Regular\(4, 0, 1, .*Regular\(5",
        ),
        (
            Hist(axis.Regular(4, 0, 1, growth=True)),
            Hist(axis.Regular(4, 0.1, 1.1, growth=True)),
            r"Regular\(4, 0, 1, .*Regular\(4",
        ),
        (
            Hist(axis.Variable([0, 1, 3], growth=True)),
            Hist(axis.Variable([0, 2, 3], growth=True)),
            r"Variable\(\[0, 1, 3\], .*Variable\(\[0, 2",
        ),
        (
            Hist(axis.Regular(2, 0, 1, name="x", metadata=np.arange(2))),
            Hist(axis.Regular(2, 0, 1, name="x", metadata=np.arange(2))),
            "metadata array",
        ),
    ],
)
def test_histograms_that_differ_say_in_what(a, b, text):
    with pytest.raises(AccumulatorError, match=r'^output\["dy"\]\["mass"\]: .*' + text) as caught:
        add({"dy": {"mass": a}}, {"dy": {"mass": b}})
    assert str(caught.value).endswith(
        "build the histogram in the same way in every call of process()"
    )


def grown(kind: str, values: list[float]) -> Any:
    edges: dict[str, Any] = {
        "regular": axis.Regular(5, -0.3, 1.1, growth=True, name="x"),
        "variable": axis.Variable([-0.3, 0.2, 1.1], growth=True, name="x"),
        "integer": axis.Integer(-1, 2, growth=True, name="x"),
    }
    h = Hist(edges[kind], storage=storage.Int64())
    for value in values:
        h.fill([value if kind != "integer" else int(value)])
    return h


VALUES = st.lists(st.floats(-30, 40), max_size=6)


@pytest.mark.parametrize("kind", ["regular", "variable", "integer"])
@given(parts=st.lists(VALUES, min_size=3, max_size=3))
def test_growing_axes_lose_nothing_and_the_grouping_does_not_matter(kind, parts):
    a, b, c = (grown(kind, values) for values in parts)
    left, right = add(add(a, b), c), add(a, add(b, c))
    np.testing.assert_array_equal(left.view(flow=True), right.view(flow=True))
    # a regular axis keeps its lower edge and its length, so its upper edge may be rounded
    np.testing.assert_allclose(left.axes[0].edges, right.axes[0].edges, rtol=1e-13, atol=1e-13)
    if kind == "variable":
        values = [value for part in parts for value in part]
        np.testing.assert_array_equal(left.view(), np.histogram(values, left.axes[0].edges)[0])
    if kind == "regular":
        np.testing.assert_allclose(left.axes[0].widths, 0.28)
    assert left.sum(flow=True) == sum(map(len, parts))
