from __future__ import annotations

import array
import collections
import copy
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import io
import math
import operator
import pathlib
import pickle
import random
import re
import socket
import struct
import threading
import types
import weakref
import zoneinfo
from typing import Any, NamedTuple

import awkward as ak
import cloudpickle
import correctionlib
import hist
import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hepdask.errors import OptionError
from hepdask.fingerprint import fingerprint, walk


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Bits(enum.Flag):
    A = 1
    B = 2


@dataclasses.dataclass
class Cut:
    name: str
    value: float


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    value: Any


class Plain:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Other(Plain):
    pass


class Slotted:
    __slots__ = ("__dict__", "left", "right")


class WithState:
    def __init__(self, value: int, lock: Any) -> None:
        self.value, self.lock = value, lock

    def __getstate__(self) -> dict[str, int]:
        return {"value": self.value}


class WithHook:
    def __init__(self, state: Any) -> None:
        self.state, self.lock = state, threading.Lock()

    def __hepdask_fingerprint__(self) -> Any:
        return self.state


class OtherHook(WithHook):
    pass


class Text(str):
    __slots__ = ()


class Point(NamedTuple):
    x: int
    y: int


CORRECTION = (
    '{"schema_version":2,"corrections":[{"name":"a","version":1,"inputs":[{"name":"x","type":"real"}],'
    '"output":{"name":"w","type":"real"},"data":%s}]}'
)


def slotted(left: int, **more: int) -> Slotted:
    made = Slotted()
    made.left = left
    made.__dict__.update(more)
    return made


def filled(weight: float = 1.0, axis: str = "x") -> hist.Hist:
    made = hist.Hist.new.Reg(10, 0, 1, name=axis).StrCat([], growth=True, name="c").Weight()
    made.fill(**{axis: [0.1, 0.5], "c": "dy"}, weight=weight)
    return made


def draws(seed: int, num_draws: int) -> np.random.Generator:
    generator = np.random.default_rng(seed)
    generator.random(num_draws)
    return generator


DIFFERENT: dict[str, list[Any]] = {
    "numbers": [1, True, 1.0, "1", b"1", 1 + 0j, 0, False, -1, None, decimal.Decimal(1), 10**30],
    "floats": [0.0, -0.0, math.nan, math.inf, -math.inf, np.float64(0), np.float32(0), np.int64(0)],
    "strings": ["", "a", "b", b"", b"a", bytearray(b"a"), Text("a"), "\ud800"],
    "containers": [
        (1, 2), [1, 2], {1, 2}, frozenset({1, 2}), {1: 2}, (1, (2,)), ((1, 2),), ((1,), 2), [[1], 2], [1, [2]],
        (), [], {}, set(), [(), 0], [[], 0], collections.deque([1, 2]), collections.deque([1, 2], 5), Point(1, 2),
    ],
    "dictionaries": [
        {"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": {"b": 2}}, [("a", 1), ("b", 2)],
        collections.OrderedDict(a=1, b=2), collections.Counter(a=1, b=2), types.MappingProxyType({"a": 1, "b": 2}),
        collections.defaultdict(int, a=1, b=2), collections.defaultdict(list, a=1, b=2),
        collections.defaultdict(None, a=1, b=2),
    ],
    "boundaries": [["ab", "c"], ["a", "bc"], ["abc"], ["a", "b", "c"], [b"ab", "c"], ["i1"], [1], ["ab", ["c"]]],
    "ranges": [range(3), range(4), range(0, 3, 2), slice(3), slice(0, 3), slice(0, 3, 1), ..., NotImplemented],
    "constants": [Colour.RED, Colour.BLUE, 1, "RED", Bits.A, Bits.B, Bits.A | Bits.B, Bits(0)],
    "patterns": [re.compile("a"), re.compile("b"), re.compile("a", re.IGNORECASE), re.compile(b"a"), "a"],
    "times": [
        dt.date(2024, 1, 2), dt.date(2024, 1, 3), dt.datetime(2024, 1, 2),  # noqa: DTZ001
        dt.datetime(2024, 1, 2, tzinfo=dt.UTC),
        dt.datetime(2024, 1, 2, tzinfo=zoneinfo.ZoneInfo("Europe/Zurich")), dt.timedelta(1),
        np.datetime64("2024-01-02"),
    ],
    "exact numbers": [decimal.Decimal("1.0"), decimal.Decimal("1.00"), fractions.Fraction(1, 3), 0.1],
    "paths": [pathlib.Path("a"), pathlib.PurePosixPath("a"), pathlib.Path("b"), "a"],
    "numpy": [
        np.array([1, 2]), np.array([1.0, 2.0]), np.array([[1, 2]]), np.array([1, 2], dtype="i4"),
        np.array(["1"], dtype="T"), np.array(["a string that is too long to be kept in place"], dtype="T"), [1, 2], np.array([1, 3]), np.array(["1", "2"]), np.dtype("i8"), np.dtype("i4"),
        np.array([1, [2]], dtype=object), np.array([1, [3]], dtype=object), np.array([], "i8"), np.array([], "i4"),
        np.ma.masked_array([1, 2], [0, 1], fill_value=9), np.ma.masked_array([1, 2], [0, 0], fill_value=9),
        np.array([(1, 2.0)], dtype=[("a", "i8"), ("b", "f8")]), np.array([(1, 2.0)], dtype=[("a", "i8"), ("c", "f8")]),
    ],
    "functions of numpy": [np.add, np.multiply, np.sum, np.mean, np.linalg.norm],
    "generators": [draws(1, 0), draws(2, 0), draws(1, 1), np.random.RandomState(1), random.Random(1), random.Random(2)],
    "awkward": [
        ak.Array([[1], [2, 3]]), ak.Array([[1, 2], [3]]), ak.Array([[1.0], [2, 3]]), ak.Array([{"x": 1}]),
        ak.Array([{"y": 1}]), ak.with_name(ak.Array([{"x": 1}]), "Muon"), ak.Array(["a"]), ak.Record({"x": 1}),
    ],
    "histograms": [filled(), filled(2.0), filled(axis="y"), filled().project("x"), filled().reset(), filled().axes[0]],
    "corrections": [correctionlib.CorrectionSet.from_string(CORRECTION % value) for value in (1.5, 1.6)],
    "instances": [
        Cut("pt", 30.0), Cut("pt", 31.0), Cut("pt", 30), Cut("eta", 30.0), Frozen(1), Frozen(2), Frozen(Frozen(1)),
        Plain(a=1), Plain(a=2), Plain(b=1), Plain(a=1, b=None), Other(a=1), Plain(), Other(),
        slotted(1), slotted(2), slotted(1, more=1), Slotted(),
    ],
    "hooks": [WithHook("a"), WithHook("b"), WithHook(b"a"), WithHook(("a", 1)), OtherHook("a")],
    "callables": [
        operator.itemgetter(1), operator.itemgetter(2), operator.attrgetter("a"), functools.partial(max, 1),
        functools.partial(max, 2), functools.partial(min, 1), functools.partial(max, key=len), [].append, [1].append,
        len, max, str.upper, "a".upper, "b".upper, Plain(a=1).__init__, Plain(a=2).__init__, dict.fromkeys, math.sqrt,
    ],
    "types": [int, str, list[int], list[str], int | str, int | None, Plain, Other, Colour, np.float64, hist.Hist],
    "modules": [math, operator, np, np.linalg, ak],
    "others": [array.array("d", [1]), array.array("f", [1]), io.BytesIO(b"a"), io.BytesIO(b"b"), struct.Struct],
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_values_differ_also_inside_of_others(name: str) -> None:
    values = DIFFERENT[name]
    digests = [fingerprint(value) for value in values]
    digests += [fingerprint([value]) for value in values]
    digests += [fingerprint(Plain(inner={"key": value})) for value in values]
    assert len(set(digests)) == 3 * len(values)


@pytest.mark.parametrize("name", sorted(DIFFERENT.keys() - {"modules", "dictionaries"}))
def test_copies_are_the_same(name: str) -> None:
    for value in DIFFERENT[name]:
        if type(value) is WithHook or type(value) is OtherHook:
            continue
        assert fingerprint(pickle.loads(pickle.dumps(value))) == fingerprint(value)
        assert fingerprint(Plain(v=cloudpickle.loads(cloudpickle.dumps(value)))) == fingerprint(
            Plain(v=value)
        )


def test_copies_of_dictionaries_are_the_same() -> None:
    for value in DIFFERENT["dictionaries"]:
        if type(value) is not types.MappingProxyType:
            assert fingerprint(copy.deepcopy(value)) == fingerprint(value)


ATOMS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.binary(max_size=5) | st.complex_numbers() | st.sampled_from(Colour)
)  # fmt: skip
VALUES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=4)
        | st.frozensets(st.text(max_size=2) | st.integers(), max_size=5)
        | st.builds(Cut, st.text(max_size=3), inner)
        | st.builds(Frozen, inner)
    ),
    max_leaves=20,
)


def spell(value: Any) -> Any:
    """Spell a value such that equal spellings are equal types and values; unlike ``==``, which has 1 == True."""
    if isinstance(value, Cut | Frozen):
        fields = [spell(getattr(value, one.name)) for one in dataclasses.fields(value)]
        return type(value).__name__, tuple(fields)
    if isinstance(value, dict):
        return "dict", tuple((spell(key), spell(one)) for key, one in value.items())
    if isinstance(value, list | tuple):
        return type(value).__name__, tuple(spell(one) for one in value)
    if isinstance(value, frozenset):
        return "frozenset", frozenset(spell(one) for one in value)
    if isinstance(value, complex):
        return "complex", repr(value.real), repr(value.imag)
    return type(value).__name__, repr(value)


@settings(max_examples=150, deadline=None)
@given(VALUES, VALUES)
def test_equal_digests_are_equal_values(left: Any, right: Any) -> None:
    assert (fingerprint(left) == fingerprint(right)) == (spell(left) == spell(right))


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_round_trips_change_nothing(value: Any) -> None:
    before = fingerprint(value)
    assert fingerprint(pickle.loads(pickle.dumps(value))) == before
    assert fingerprint(copy.deepcopy(value)) == before


@settings(max_examples=50, deadline=None)
@given(VALUES, VALUES)
def test_sharing_changes_nothing(left: Any, right: Any) -> None:
    shared = [left, right, left, (left, right)]
    apart = [copy.deepcopy(one) for one in (left, right, left)]
    assert fingerprint(shared) == fingerprint([*apart, copy.deepcopy((left, right))])


def test_circles_have_a_digest() -> None:
    def ring(*names: str) -> list[Any]:
        links: list[Any] = [[name] for name in names]
        for link, following in zip(links, [*links[1:], links[0]], strict=True):
            link.append(following)
        return links[0]

    assert fingerprint(ring("a")) == fingerprint(ring("a"))
    assert fingerprint(ring("a", "b")) == fingerprint(copy.deepcopy(ring("a", "b")))
    assert fingerprint(ring("a", "b")) == fingerprint(ring("a", "b", "a", "b"))
    digests = [ring("a"), ring("b"), ring("a", "b"), ring("b", "a"), ring("a", "b", "c"), ["a", ["a", []]]]  # fmt: skip
    assert len({fingerprint(one) for one in digests}) == len(digests)


def test_parents_and_children_refer_to_each_other() -> None:
    def family(num_children: int) -> Plain:
        parent = Plain(name="parent", children=[])
        parent.children = [Plain(parent=parent, number=n) for n in range(num_children)]
        return parent

    assert fingerprint(family(3)) == fingerprint(pickle.loads(pickle.dumps(family(3))))
    assert fingerprint(family(3)) != fingerprint(family(4))


def test_deep_nesting_needs_no_deep_stack() -> None:
    def nest(depth: int) -> list[Any]:
        value: list[Any] = []
        for _ in range(depth):
            value = [value]
        return value

    assert fingerprint(nest(20_000)) != fingerprint(nest(20_001))


def test_sets_have_no_order() -> None:
    names = [f"name{n}" for n in range(100)]
    backwards = names[::-1]
    assert fingerprint(set(names)) == fingerprint(set(backwards))
    assert fingerprint({Frozen(name) for name in names}) == fingerprint(
        {Frozen(name) for name in reversed(names)}
    )


def test_attributes_of_an_enums_members_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(Colour.RED)
    monkeypatch.setattr(Colour.RED, "mass", 3.0, raising=False)
    assert fingerprint(Colour.RED) != before


def test_nans_are_equal_whatever_their_sign() -> None:
    assert fingerprint(math.nan) == fingerprint(-math.nan)
    assert fingerprint(complex(math.nan, 1)) == fingerprint(complex(-math.nan, 1))


def test_the_layout_of_an_array_in_memory_does_not_count() -> None:
    matrix = np.arange(6).reshape(2, 3)
    assert fingerprint(np.asfortranarray(matrix)) == fingerprint(matrix)
    assert fingerprint(matrix.astype(">i8")) == fingerprint(matrix)
    assert fingerprint(np.arange(12)[::2]) == fingerprint(np.arange(0, 12, 2).copy())


def test_a_getstate_leaves_out_what_it_leaves_out() -> None:
    lock = threading.Lock()
    assert fingerprint(WithState(1, lock)) == fingerprint(WithState(1, None))
    assert fingerprint(WithState(1, lock)) != fingerprint(WithState(2, lock))


def test_a_hook_must_return_a_plain_state() -> None:
    with pytest.raises(OptionError, match=r"processor\.h .*__hepdask_fingerprint__.* returned int"):
        fingerprint(Plain(h=WithHook(3)))


def test_numba_functions_count_by_what_they_are_compiled_from() -> None:
    def make(factor: int, **options: bool) -> Any:
        def scale(x: float) -> float:
            return factor * x

        return numba.njit(scale, **options)

    assert fingerprint(make(2)) == fingerprint(make(2))
    digests = {fingerprint(one) for one in (make(2), make(3), make(2, fastmath=True))}
    assert len(digests) == 3


OPAQUE = {
    "lock": threading.Lock(),
    "generator": (x for x in ()),
    "reference": weakref.ref(Plain),
    "event": threading.Event(),
    "weak": weakref.WeakValueDictionary(),
    "frompyfunc": np.frompyfunc(lambda x: x, 1, 1),
}


@pytest.mark.parametrize("name", OPAQUE)
def test_what_cannot_be_taken_apart_is_an_error_with_its_path(name: str) -> None:
    processor = Plain(helper=Plain(parts={"first": [1, OPAQUE[name]]}))
    with pytest.raises(
        OptionError, match=r"^processor\.helper\.parts\['first'\]\[1\].*run without store="
    ):
        fingerprint(processor)
    with pytest.raises(OptionError, match=r"^schema\.helper"):
        fingerprint(processor, name="schema")


def test_open_files_and_sockets_are_errors(tmp_path: pathlib.Path) -> None:
    with (
        (tmp_path / "a").open("w") as stream,
        pytest.raises(OptionError, match=r"processor\.log \(TextIOWrapper\)"),
    ):
        fingerprint(Plain(log=stream))
    with socket.socket() as connection, pytest.raises(OptionError, match=r"processor \(socket\)"):
        fingerprint(connection)


def test_an_endless_object_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        def __reduce__(self) -> Any:
            return Endless, (Endless(),)

    monkeypatch.setattr(walk, "MAX_OBJECTS", 1_000)
    with pytest.raises(OptionError, match="more than 1,000 parts"):
        fingerprint(Endless())


def test_files_that_are_named_count(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "corrections.json"
    for value in ("corrections.json", path, str(path), {"sf": ["corrections.json"]}):
        path.unlink(missing_ok=True)
        missing = fingerprint(value)
        path.write_text("1.0")
        first = fingerprint(value)
        path.write_text("1.1")
        second = fingerprint(value)
        path.write_text("1.0")
        assert len({missing, first, second}) == 3
        assert fingerprint(value) == first


def test_directories_and_remote_files_do_not_count(tmp_path: pathlib.Path) -> None:
    before = fingerprint(tmp_path), fingerprint(str(tmp_path)), fingerprint(f"file://{tmp_path}/a")
    (tmp_path / "a").write_text("1.0")
    after = fingerprint(tmp_path), fingerprint(str(tmp_path)), fingerprint(f"file://{tmp_path}/a")
    assert before == after


def test_iterators_count_by_what_is_left() -> None:
    started = iter([1, 2, 3])
    next(started)
    assert fingerprint(started) != fingerprint(iter([1, 2, 3]))
    with pytest.raises(OptionError, match="generator"):
        fingerprint(map(str, (x for x in ())))
