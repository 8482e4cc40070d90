from __future__ import annotations

import collections
import copy
import operator
import pickle
import subprocess
import sys
from decimal import Decimal
from functools import reduce
from typing import Any, NamedTuple

import awkward as ak
import numpy as np
import pytest
from coffea import processor
from hist import Hist, axis, storage
from hypothesis import given
from hypothesis import strategies as st

from hepdask.accumulator import add, copy_accumulator
from hepdask.errors import AccumulatorError

# --------------------------------------------------------------------------------------------- plain values


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (1, 2, 3),
        (1, 2.5, 3.5),
        (1, 2j, 1 + 2j),
        (True, True, 2),
        (Decimal("0.1"), 1, Decimal("1.1")),
        ("dy", "dy", "dy"),
        (b"x", b"x", b"x"),
        ([1, 2], [1], [1, 2, 1]),
        ((1, "a"), (2,), (1, "a", 2)),
        ({1, 2}, {2, 3}, {1, 2, 3}),
        (frozenset({1}), frozenset({2}), frozenset({1, 2})),
        ({1}, frozenset({2}), {1, 2}),
        (None, None, None),
        (None, [1], [1]),
        ({"a": None}, {"a": 3}, {"a": 3}),
        (
            {"n": 1, "in": {"x": [1]}},
            {"in": {"y": 2, "x": [0]}},
            {"n": 1, "in": {"x": [1, 0], "y": 2}},
        ),
    ],
)
def test_add_follows_the_table(a, b, expected):
    before = pickle.dumps((a, b))

    total = add(a, b)

    assert total == expected
    assert type(total) is type(expected)
    assert pickle.dumps((a, b)) == before


def test_numpy_scalars_keep_numpys_rules():
    total = add(np.float32(1), np.float32(2))
    assert total == 3
    assert type(total) is np.float32


class Cutflow(NamedTuple):
    n: int
    names: set[str]


def test_named_tuples_are_added_field_by_field():
    assert add(Cutflow(1, {"a"}), Cutflow(2, {"b"})) == Cutflow(3, {"a", "b"})
    with pytest.raises(AccumulatorError, match=r'^output\["c"\]\.n: can\'t add int and str'):
        add({"c": Cutflow(1, set())}, {"c": Cutflow("x", set())})  # type: ignore[arg-type]
    with pytest.raises(AccumulatorError, match="can't add Cutflow and tuple"):
        add(Cutflow(1, set()), (1, 2))


def test_mappings_keep_order_type_and_factory():
    a = collections.defaultdict(lambda: 7, {"z": 1, "a": 1})
    total = add(a, {"c": 1, "a": 1, "b": 1})
    assert list(total.items()) == [("z", 1), ("a", 2), ("c", 1), ("b", 1)]
    assert type(total) is collections.defaultdict
    assert total["new"] == 7
    assert "new" not in a
    assert type(add(collections.OrderedDict(x=1), {"x": 1})) is collections.OrderedDict


def test_defaultdict_inputs_get_no_new_keys():
    a, b = collections.defaultdict(int, x=1), collections.defaultdict(int, y=1)
    assert add(a, b) == {"x": 1, "y": 1}
    assert (list(a), list(b)) == (["x"], ["y"])


def test_counter_keeps_counts_that_are_not_positive():
    total = add(collections.Counter(a=1, b=-2), collections.Counter(a=-1))
    assert type(total) is collections.Counter
    assert dict(total) == {"a": 0, "b": -2}


class Tagged(dict):
    """A dict with attributes and an __init__ of its own."""

    def __init__(self, tags):
        super().__init__()
        self.tags = tags


class Names(list):
    pass


class Runs(set):
    pass


class Loud(dict):
    def __add__(self, other):
        return Loud(total=sum(self.values()) + sum(other.values()))


def test_subclasses_of_containers_keep_their_type_and_own_their_attributes():
    a = Tagged(["t"])
    a["n"] = 1
    total = add(a, a)
    assert (type(total), total["n"], total.tags) == (Tagged, 2, ["t"])
    assert total.tags is not a.tags
    names = add(Names("a"), Names("b"))
    assert (type(names), names) == (Names, ["a", "b"])
    assert type(add(Runs({1}), Runs({2}))) is Runs
    assert type(copy_accumulator(Runs({1}))) is Runs


def test_mapping_that_is_no_dict_is_not_emptied():
    a = collections.UserDict(x=[1])
    total = add(a, collections.UserDict(x=[2], y=1))
    assert dict(total) == {"x": [1, 2], "y": 1}
    assert dict(a) == {"x": [1]}


def test_a_plus_defined_by_the_user_wins():
    assert add(Loud(a=1), Loud(b=2)) == {"total": 3}


class Sharing:
    """Its ``+`` hands the items of both operands on."""

    def __init__(self, items):
        self.items = items

    def __add__(self, other):
        return Sharing(self.items + other.items)


def test_result_of_a_foreign_plus_shares_nothing():
    a, b = Sharing([[1]]), Sharing([[2]])
    total = add({"s": a}, {"s": b})["s"]
    total.items[0].append(9)
    total.items[1].append(9)
    assert (a.items, b.items) == ([[1]], [[2]])


def test_memory_error_stays_a_memory_error():
    class Huge:
        def __add__(self, other):
            raise MemoryError("2 TB")

    with pytest.raises(MemoryError, match="2 TB"):
        add({"x": Huge()}, {"x": Huge()})


# ---------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        (
            1,
            {},
            r"^output: can't add int and dict: int 1 and dict of 0 \{\}; return the same types",
        ),
        ({"n": 1}, {"n": []}, r'^output\["n"\]: can\'t add int and list'),
        (
            {"a": {("b", 1): "x"}},
            {"a": {("b", 1): "y"}},
            r"^output\[\"a\"\]\[\('b', 1\)\]: the texts differ",
        ),
        ("a", b"a", "the texts differ"),
        ([1], (1,), "can't add list and tuple"),
        (object(), object(), r"can't add object and object: .*TypeError: unsupported operand"),
        (
            np.zeros(3),
            np.zeros(1),
            r"shapes differ: \(3,\) and \(1,\); arrays are added element by",
        ),
        (np.zeros(3), 1, r"shapes differ: \(3,\) and \(\)"),
        (Hist.new.Reg(2, 0, 1).Double(), 1, "can't add Hist and int"),
        (ak.Array([1]), ak.Array([1, 2]), "lengths of the awkward arrays differ: 1 and 2"),
        (ak.Array([1, 2]), ak.Array([[1], [2]]), "depths of the awkward arrays differ: 1 and 2"),
        (ak.Array([{"x": 1}]), ak.Array([{"x": 1}]), "can't add Array and Array.*cannot broadcast"),
    ],
)
def test_errors_name_the_place_and_both_sides(a, b, text):
    with pytest.raises(AccumulatorError, match=text):
        add(a, b)


def test_error_survives_pickling_with_its_cause_in_the_text():
    with pytest.raises(AccumulatorError, match="unsupported operand") as caught:
        add({"x": object()}, {"x": object()})
    assert isinstance(caught.value.__cause__, TypeError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_what_cannot_be_copied_is_named():
    with pytest.raises(AccumulatorError, match=r'^output\["a"\]\["g"\]: can\'t copy generator'):
        add({"a": {}}, {"a": {"g": (i for i in range(3))}})
    with pytest.raises(AccumulatorError, match=r'^output\["g"\]: can\'t copy generator'):
        copy_accumulator({"g": (i for i in range(3))})


# ---------------------------------------------------------------------------------------------------- arrays


def test_arrays_are_added_element_by_element():
    a = np.asfortranarray([[1, 2], [3, 4]])
    np.testing.assert_array_equal(add(a, a), 2 * a)
    assert add(np.array(1), 2) == 3
    np.testing.assert_array_equal(add(np.array(["dy"]), np.array(["dy"])), ["dy"])
    copied = copy_accumulator(a)
    assert copied.flags.f_contiguous
    assert not np.shares_memory(copied, a)


def test_object_arrays_share_no_items():
    a = np.array([None], dtype=object)
    a[0] = [[1]]
    for result in (add(a, a), copy_accumulator(a)):
        result[0][0].append(2)
        assert a[0] == [[1]]


def test_awkward_arrays_are_added_element_by_element():
    a = ak.Array([[1, 2], [3]])
    assert add(a, a).to_list() == [[2, 4], [6]]
    copied = copy_accumulator(a)
    np.asarray(copied.layout.content.data)[0] = 99
    assert a.to_list() == [[1, 2], [3]]


# ---------------------------------------------------------------------------------------- coffea's own types


def test_coffeas_accumulators():
    def output(n: int) -> Any:
        return processor.dict_accumulator(
            {
                "n": n,
                "value": processor.value_accumulator(int, n),
                "list": processor.list_accumulator([n]),
                "set": processor.set_accumulator({n}),
                "counts": processor.defaultdict_accumulator(int, {f"k{n}": n}),
                "column": processor.column_accumulator(np.array([float(n)])),
            }
        )

    a, b = output(1), output(2)
    before = pickle.dumps((a, b))
    total = add(a, b)

    assert pickle.dumps((a, b)) == before
    assert {name: type(value) for name, value in total.items()} == {
        name: type(value) for name, value in a.items()
    }
    assert type(total) is processor.dict_accumulator
    assert (total["n"], total["value"].value, total["list"], total["set"]) == (3, 3, [1, 2], {1, 2})
    assert total["counts"] == {"k1": 1, "k2": 2}
    assert total["column"].value.tolist() == [1.0, 2.0]


def test_coffeas_value_accumulator_takes_plain_values_too():
    assert add(processor.value_accumulator(int, 1), 2).value == 3


def test_agrees_with_coffea_where_coffea_does_not_surprise():
    a = {
        "h": Hist.new.Reg(3, 0, 1).Weight().fill([0.1], weight=2),
        "s": {1},
        "d": {"l": [1]},
        "x": 1,
    }
    b = {
        "h": Hist.new.Reg(3, 0, 1).Weight().fill([0.5], weight=3),
        "s": {2},
        "d": {"l": [2]},
        "y": 2,
    }
    ours, theirs = add(a, b), processor.accumulate([a, b])
    assert list(ours) == list(theirs)
    assert ours == theirs


# ------------------------------------------------------------------------------------------------ properties


CATEGORIES = st.lists(st.sampled_from("abcde"), max_size=4)


@st.composite
def accumulators(draw: Any) -> dict[str, Any]:
    """Draw outputs whose equal keys hold things of equal kinds, in any order."""
    h = Hist(axis.StrCategory([], growth=True, name="c"), storage=storage.Int64())
    makers = {
        "n": st.integers(),
        "none": st.none() | st.integers(),
        "list": st.lists(st.integers() | st.lists(st.integers(), max_size=2), max_size=3),
        "set": st.frozensets(st.integers(0, 5)).map(set),
        "in": st.dictionaries(st.sampled_from("xyz"), st.integers(), max_size=3),
        "hist": CATEGORIES.map(
            lambda categories: h.copy().fill(categories) if categories else h.copy()
        ),
        "array": st.lists(st.integers(-9, 9), min_size=3, max_size=3).map(np.array),
    }
    names = draw(st.permutations(sorted(makers)))[: draw(st.integers(0, len(makers)))]
    return {name: draw(makers[name]) for name in names}


def seen(value: Any) -> Any:
    """Write an accumulator as plain data, with the order of keys and categories."""
    if isinstance(value, dict):
        return [(key, seen(item)) for key, item in value.items()]
    if isinstance(value, Hist):
        return list(value.axes[0]), value.view(flow=True).tolist()
    return value.tolist() if isinstance(value, np.ndarray) else value


def spoil(value: Any) -> None:
    """Change in place all that can be changed."""
    if isinstance(value, Hist):
        value.fill(["spoilt"])
        value.axes[0].label = "spoilt"
    elif isinstance(value, np.ndarray):
        value[...] = 99
    elif isinstance(value, set):
        value.add("spoilt")
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            spoil(item)
        value.clear()


@given(accumulators(), accumulators(), accumulators())
def test_grouping_does_not_matter_and_order_is_the_inputs(a, b, c):
    assert seen(add(add(a, b), c)) == seen(add(a, add(b, c)))
    keys = list(dict.fromkeys([*a, *b, *c]))
    assert list(add(add(a, b), c)) == keys


@given(accumulators(), accumulators())
def test_inputs_and_results_are_independent(a, b):
    before = pickle.dumps((a, b))
    total = add(a, b)
    assert pickle.dumps((a, b)) == before
    assert pickle.dumps(add(a, b)) == pickle.dumps(total)

    spoil(total)
    assert pickle.dumps((a, b)) == before

    total = add(a, b)
    shown = copy.deepcopy(seen(total))
    spoil(a)
    spoil(b)
    assert seen(total) == shown


@given(accumulators())
def test_none_is_neutral_and_copies_are_independent(a):
    before = pickle.dumps(a)
    for result in (add(None, a), add(a, None), copy_accumulator(a)):
        assert seen(result) == seen(a)
        spoil(result)
        assert pickle.dumps(a) == before


def test_many_outputs_in_order():
    outputs = [{"runs": [i], f"k{i % 7}": 1} for i in range(200)]
    total = reduce(add, outputs)
    assert total["runs"] == list(range(200))
    assert sum(total[f"k{i}"] for i in range(7)) == 200
    assert total["runs"] == reduce(operator.add, (o["runs"] for o in outputs))


def test_module_imports_no_heavy_library():
    code = (
        "import sys;"
        "import hepdask.errors;"
        "known = set(sys.modules);"
        "import hepdask.accumulator;"
        "print(sorted({m.partition('.')[0] for m in set(sys.modules) - known}"
        " & {'numpy', 'hist', 'boost_histogram', 'awkward', 'coffea', 'pandas'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
