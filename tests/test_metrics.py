from __future__ import annotations

import pickle
from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from hepdask.metrics import (
    Counters,
    MetricsSum,
    PartialMetrics,
    count_peak_memory,
    host_name,
)

DY, TT = ("dy", "a.root"), ("tt", "a.root")


def build_counters(scale: int) -> Counters:
    return Counters(*(scale * number for number, _ in enumerate(fields(Counters), start=1)))


counters = st.integers(0, 1_000).map(build_counters)
partials = st.builds(
    PartialMetrics,
    files=st.dictionaries(st.sampled_from([DY, TT]), counters),
    hosts=st.dictionaries(st.sampled_from(["one", "two"]), counters),
    peak_memory_bytes=st.dictionaries(st.sampled_from(["one", "two"]), st.integers(0, 10**10)),
    columns=st.frozensets(st.sampled_from(["x", "y", "z"])),
    first_start=st.none() | st.integers(0, 10**9).map(float),
    endpoints=st.dictionaries(st.sampled_from(["local", "root://a"]), counters),
    served=st.dictionaries(
        st.sampled_from([DY, TT]), st.frozensets(st.sampled_from(["b.root", "c.root"]), min_size=1)
    ),
)


def test_every_counter_is_added() -> None:
    total = build_counters(1) + build_counters(10)
    assert total == build_counters(11)
    assert all(value > 0 for value in total.to_dict().values())
    assert list(total.to_dict()) == [one.name for one in fields(Counters)]


@given(partials, partials, partials)
def test_adding_is_associative_and_has_a_zero(
    a: PartialMetrics, b: PartialMetrics, c: PartialMetrics
) -> None:
    assert (a + b) + c == a + (b + c)
    assert a + PartialMetrics() == a == PartialMetrics() + a


@given(partials, partials)
def test_adding_changes_neither(a: PartialMetrics, b: PartialMetrics) -> None:
    before = pickle.dumps((a, b))
    a + b
    assert pickle.dumps((a, b)) == before


def test_adding_by_hand() -> None:
    left = PartialMetrics({DY: Counters(num_entries=1)}, {"one": Counters(num_entries=1)})
    right = PartialMetrics(
        files={DY: Counters(num_entries=2), TT: Counters(num_entries=4)},
        hosts={"two": Counters(num_entries=6)},
        peak_memory_bytes={"one": 7, "two": 8},
        columns=frozenset({"x"}),
        first_start=5.0,
        endpoints={"root://a": Counters(num_opens=1)},
        served={DY: frozenset({"b.root"})},
    )
    left += PartialMetrics(
        endpoints={"root://a": Counters(num_failed_opens=2)},
        served={DY: frozenset({"c.root"}), TT: frozenset({"c.root"})},
    )
    right += PartialMetrics(peak_memory_bytes={"one": 6, "two": 9}, first_start=3.0)
    total = left + right
    assert {key: one.num_entries for key, one in total.files.items()} == {DY: 3, TT: 4}
    assert {key: one.num_entries for key, one in total.hosts.items()} == {"one": 1, "two": 6}
    assert total.peak_memory_bytes == {"one": 7, "two": 9}
    assert total.columns == {"x"}
    assert total.first_start == 3.0
    assert total.endpoints == {"root://a": Counters(num_opens=1, num_failed_opens=2)}
    assert total.served == {DY: {"b.root", "c.root"}, TT: {"c.root"}}


def test_this_process_has_memory_and_a_name() -> None:
    assert count_peak_memory() > 10**6
    assert host_name()


def test_a_sum_in_place_is_the_sum() -> None:
    parts = [
        PartialMetrics(
            files={("d", f"f{n % 2}"): Counters(num_ranges=1, open_seconds=0.25 * n)},
            hosts={"h": Counters(num_ranges=1, wall_seconds=0.5)},
            endpoints={"local": Counters(num_opens=n)},
            peak_memory_bytes={"h": 10 - n},
            columns=frozenset({f"x{n}"}),
            served={("d", "f0"): frozenset({f"root://{n}"})},
            first_start=5.0 - n,
        )
        for n in range(4)
    ]
    total = MetricsSum()
    for one in parts:
        total.add(one)
    assert total.total() == sum(parts, PartialMetrics())
    assert type(total.total().hosts["h"].num_ranges) is int


def test_merges_are_added_to_this_host() -> None:
    total = MetricsSum()
    total.add(PartialMetrics(hosts={host_name(): Counters(num_ranges=1)}))
    total.add_merge(0.5)
    total.add_merge(0.25)
    assert total.total().hosts == {host_name(): Counters(num_ranges=1, merge_seconds=0.75)}


def test_nothing_added_changes_nothing() -> None:
    one = PartialMetrics(hosts={"h": Counters(num_ranges=1)})
    assert one + PartialMetrics() is one
    assert PartialMetrics() + one is one
    assert not MetricsSum().total()
