from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from hepdask.metrics import Counters, PartialMetrics
from hepdask.run_metrics import RunMetrics

DY, TT = ("dy", "a.root"), ("tt", "a.root")


@pytest.fixture
def metrics() -> RunMetrics:
    dy = Counters(
        num_ranges=2,
        num_entries=3_000,
        read_seconds=1.0,
        process_seconds=3.0,
        wall_seconds=6.0,
        cpu_seconds=3.0,
        num_requested_bytes=10**9,
    )
    tt = Counters(num_ranges=1, num_entries=1_000, wall_seconds=2.0)
    merge = Counters(merge_seconds=0.5)
    partial = PartialMetrics(
        files={DY: dy, TT: tt},
        hosts={"one": dy + merge, "two": tt + merge},
        peak_memory_bytes={"one": 2 * 10**9, "two": 10**9},
        columns=frozenset({"y", "x"}),
        endpoints={
            "root://a": Counters(num_failed_opens=1),
            "root://b:1095": replace(dy + tt, num_opens=2),
        },
        served={DY: frozenset({"root://c//a.root", "root://b:1095//a.root"})},
    )
    return RunMetrics(partial, num_tasks=2, num_merges=1, inspect_seconds=0.1, run_seconds=4.0)


def test_rates(metrics: RunMetrics) -> None:
    assert metrics.event_rate_khz == pytest.approx(1.0)  # 4,000 in 4 s
    assert metrics.event_rate_khz_per_core == pytest.approx(0.5)  # in 8 busy seconds
    assert metrics.data_rate_gbps == pytest.approx(2.0)  # 8 Gbit in 4 s
    assert metrics.merge_seconds == pytest.approx(1.0)
    assert metrics.total.num_entries == 4_000


def test_rates_of_an_empty_run_are_zero() -> None:
    empty = RunMetrics(PartialMetrics())
    assert (empty.event_rate_khz, empty.event_rate_khz_per_core, empty.data_rate_gbps) == (0, 0, 0)
    assert empty.to_dict()["peak_memory_bytes"] == 0
    assert "Metrics" in str(empty.to_table())


def test_datasets_are_the_sums_of_their_files() -> None:
    files = {("dy", f"{i}.root"): Counters(num_entries=i) for i in range(4)}
    run = RunMetrics(PartialMetrics(files={**files, TT: Counters(num_entries=9)}))
    assert {name: one.num_entries for name, one in run.datasets.items()} == {"dy": 6, "tt": 9}
    assert run.files[TT].num_entries == 9


def test_the_dictionary_has_coffeas_keys_first(metrics: RunMetrics) -> None:
    written: dict[str, Any] = metrics.to_dict()
    assert list(written)[:5] == ["bytesread", "columns", "entries", "processtime", "chunks"]
    assert written["bytesread"] == 10**9
    assert written["columns"] == ["x", "y"]
    assert written["entries"] == 4_000
    assert written["processtime"] == 4.0  # lazy reading included, as with coffea
    assert written["chunks"] == 3
    assert written["files"]["dy"]["a.root"]["num_entries"] == 3_000
    assert written["datasets"]["tt"]["num_entries"] == 1_000
    assert written["hosts"]["one"]["peak_memory_bytes"] == 2 * 10**9
    assert written["peak_memory_bytes"] == 2 * 10**9
    assert written["endpoints"]["root://b:1095"]["num_opens"] == 2
    assert written["endpoints"]["root://a"]["num_failed_opens"] == 1
    assert written["served"] == {"dy": {"a.root": ["root://b:1095//a.root", "root://c//a.root"]}}
    assert json.loads(json.dumps(written)) == written


def test_the_table_has_the_figures_that_people_quote(metrics: RunMetrics) -> None:
    text = str(metrics.to_table())
    for figure in ("1.0 kHz", "2.000 Gbps", "4,000", "2000 MB", "0.5 kHz per busy core"):
        assert figure in text
    assert metrics._repr_html_().startswith("<table>")


def test_the_table_says_who_served_what(metrics: RunMetrics) -> None:
    *_, first, second, others = str(metrics.to_table()).splitlines()
    assert re.search(r"from root://b:1095 +1000\.0 MB +in 3 ranges, 2 opens$", first)
    assert re.search(r"from root://a +0\.0 MB +in 0 ranges, 0 opens, 1 failed$", second)
    assert re.search(r"other replicas +1 file +read from another replica than the first$", others)
    assert metrics.endpoints["root://b:1095"].num_ranges == 3
    assert metrics.served[DY] == {"root://b:1095//a.root", "root://c//a.root"}


def test_the_table_says_nothing_of_local_files() -> None:
    local = PartialMetrics(endpoints={"local": Counters(num_ranges=1)})
    assert "from local" not in str(RunMetrics(local).to_table())
    mixed = local + PartialMetrics(endpoints={"root://a": Counters(num_ranges=1)})
    assert "from local" in str(RunMetrics(mixed).to_table())


def test_the_table_shows_few_of_many_servers() -> None:
    endpoints = {f"root://{i:02}": Counters(num_requested_bytes=10**6) for i in range(20)}
    text = str(RunMetrics(PartialMetrics(endpoints=endpoints)).to_table())
    assert "from root://07" in text
    assert "from root://08" not in text
    assert re.search(r"from 12 other servers +12\.0 MB", text)


def test_one_is_not_written_as_many(metrics: RunMetrics) -> None:
    assert "in 3 ranges, 2 tasks" in str(metrics.to_table())
    partial = PartialMetrics(hosts={"one": Counters(num_ranges=1)})
    text = str(RunMetrics(partial, num_tasks=1).to_table())
    assert re.search(r"in 1 range, 1 task$", text, re.MULTILINE)
    assert text.endswith("largest worker process, 1 host")


def test_unforeseen_branches_are_named() -> None:
    names = frozenset({"MET_pt", "nJet", "Jet_pt", "Jet_eta"})
    metrics = RunMetrics(PartialMetrics(missed=names) + PartialMetrics(missed=frozenset({"run"})))
    assert metrics.missed == names | {"run"}
    assert metrics.to_dict()["missed"] == sorted(metrics.missed)
    assert "Jet_eta, Jet_pt, MET_pt and 2 more" in str(metrics.to_table())
    assert "unforeseen" not in str(RunMetrics(PartialMetrics()).to_table())
