from __future__ import annotations

import pickle
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hist
import numpy as np
import pytest

from hepdask import held
from hepdask.held import Held, count_bytes
from hepdask.partial import PartialResult

NUM_LARGE = 3_000_000


def large_histogram() -> hist.Hist:
    h = hist.Hist(hist.axis.Regular(NUM_LARGE, 0, 1, name="x"), storage="weight")
    return h.fill(np.linspace(0, 1, 1_000), weight=0.1)


def test_what_was_put_aside_comes_back_as_it_was(tmp_path: Path) -> None:
    array = np.random.default_rng(1).normal(size=1_000)
    accumulator = {"h": large_histogram(), "x": array, "n": [1, {"text"}]}
    one = Held(PartialResult(accumulator, is_whole=True, key="k"), is_own=False)
    assert one.is_large
    one.put_aside(str(tmp_path))
    assert not one.is_in_memory
    result = one.take()
    assert (result.is_whole, result.key) == (True, "k")
    assert result.accumulator["h"] == accumulator["h"]
    assert result.accumulator["x"].tobytes() == array.tobytes()
    result.accumulator["x"] += 1  # it may be changed
    assert result.accumulator["n"] == [1, {"text"}]


@pytest.mark.parametrize(
    "accumulator", [{"x": np.ones(NUM_LARGE), "f": open}, {"x": np.ones(NUM_LARGE)}]
)
def test_what_can_not_be_put_aside_stays(accumulator: Any, tmp_path: Path) -> None:
    if "f" in accumulator:
        accumulator["f"] = (one for one in "a generator")
        directory = tmp_path
    else:
        directory = tmp_path / "missing"
    one = Held(PartialResult(accumulator), is_own=False)
    one.put_aside(str(directory))
    assert one.is_in_memory
    assert not one.is_large
    assert one.take().accumulator is accumulator


def test_a_full_disk_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the real thing: the system says so at the first write
    full = Path("/dev/full").open("r+b", buffering=0)  # noqa: SIM115  # closed by what is tested
    monkeypatch.setattr(held.tempfile, "TemporaryFile", lambda **_: full)
    one = Held(PartialResult(np.ones(NUM_LARGE)), is_own=False)
    one.put_aside(str(tmp_path))
    assert full.closed
    assert one.is_in_memory
    assert one.take().accumulator.sum() == NUM_LARGE


def test_what_was_taken_is_not_held_any_more() -> None:
    one = Held(PartialResult([1]), is_own=False)
    assert one.take().accumulator == [1]
    assert one.take().accumulator is None


def test_sizes() -> None:
    assert count_bytes(None) < 100
    assert count_bytes(np.ones(1_000)) == 8_000
    assert 16 * NUM_LARGE < count_bytes({"a": [large_histogram()]}) < 16.1 * NUM_LARGE
    assert count_bytes({"a": "text" * 1_000}) > 4_000


def test_what_a_task_hands_on_can_be_sent_and_brought_back_many_times(tmp_path: Path) -> None:
    accumulator = {"x": np.arange(NUM_LARGE, dtype=np.float64)}
    handed = held.hand_on(PartialResult(accumulator, is_whole=True), str(tmp_path))
    assert isinstance(handed.accumulator, held.Aside)
    assert count_bytes(handed.accumulator) >= 8 * NUM_LARGE
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(handed, 5, buffer_callback=buffers.append)
    assert len(stream) < 1_000
    sent = pickle.loads(stream, buffers=[bytes(one.raw()) for one in buffers])
    for one in (handed, sent, pickle.loads(pickle.dumps(handed))):
        for _ in range(2):
            brought = held.bring_back(one)
            assert brought.is_whole
            assert np.array_equal(brought.accumulator["x"], accumulator["x"])
            brought.accumulator["x"] += 1  # of its own


def test_small_results_are_handed_on_as_they_are() -> None:
    result = PartialResult({"x": np.ones(10)})
    assert held.hand_on(result, None) is result
    assert held.bring_back(result) is result


def test_what_has_no_place_where_it_is_sent_stays_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handed = held.hand_on(PartialResult(np.ones(NUM_LARGE)), None)
    stream = pickle.dumps(handed)
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    assert pickle.loads(stream).accumulator.sum() == NUM_LARGE


def test_two_threads_may_load_it_at_once() -> None:
    aside = held.Aside.pack([pickle.dumps(list(range(100_000)))], None)
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: aside.load(), range(20)))
    assert all(one == loaded[0] for one in loaded)
