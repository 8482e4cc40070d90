from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hepdask.errors import DamagedObjectError, StoreError
from hepdask.store import objects
from hepdask.store.objects import (
    BLOCK_BYTES,
    HEAD_BYTES,
    check_object,
    decode_value,
    encode_object,
    read_summary,
)
from tests.store.storing import KEY, OTHER_KEY, make_histograms, run_python


def encode(value: Any, **summary: Any) -> bytes:
    return b"".join(encode_object(KEY, value, summary))


def decode(data: bytes | bytearray) -> Any:
    return decode_value(*check_object(data, KEY, "here"), "here")


class Trap:
    """Writes down that it was unpickled."""

    was_sprung = False

    def __reduce__(self) -> Any:
        return spring, ()


def spring() -> Trap:
    Trap.was_sprung = True
    return Trap()


class TooLarge:
    def __reduce__(self) -> Any:
        raise MemoryError("no room to pickle")


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"num_events": {"dy": 3}, "runs": {1, 2}},
        make_histograms(30),
        make_histograms(),
        make_histograms(random=True),
        b"x" * 100_000,
    ],
)
def test_values_come_back(value: Any) -> None:
    assert decode(encode(value)) == value


@pytest.mark.parametrize(
    "array",
    [
        np.arange(0.0),
        np.arange(10.0),
        np.arange(100_000.0),
        np.arange(100_000.0)[::3],
        np.asfortranarray(np.arange(90_000).reshape(300, 300)),
        np.zeros(2 * BLOCK_BYTES + 5, np.uint8),
        np.random.default_rng(0).bytes(BLOCK_BYTES + 1),
    ],
)
def test_arrays_come_back_as_they_were(array: Any) -> None:
    array = np.asarray(array) if isinstance(array, np.ndarray) else np.frombuffer(array, np.uint8)
    copy = decode(encode([array]))[0]
    np.testing.assert_array_equal(copy, array)
    assert copy.dtype == array.dtype
    assert copy.flags.writeable == array.flags.writeable
    assert copy.flags.aligned
    assert copy.flags.f_contiguous >= array.flags.f_contiguous


def test_large_buffers_are_not_copied_and_random_ones_not_compressed() -> None:
    array = np.random.default_rng(0).random(BLOCK_BYTES // 4)  # two blocks
    _, stream, *blocks = encode_object(KEY, {"a": array}, {})
    assert len(stream) < 1_000
    assert [len(block) for block in blocks] == [BLOCK_BYTES, BLOCK_BYTES]
    assert all(np.shares_memory(np.frombuffer(block, np.uint8), array) for block in blocks)


def test_empty_bins_are_compressed() -> None:
    value = make_histograms(100_000)
    num_bytes = sum(one.view(flow=True).nbytes for one in value.values())
    assert len(encode(value)) < num_bytes / 2
    assert decode(encode(value)) == value


@pytest.mark.parametrize("value", [{"n": 1}, make_histograms(3_000)])
def test_truncated_objects_are_damaged(value: Any) -> None:
    data = encode(value)
    lengths = {*range(min(len(data), 1_500)), *range(0, len(data), 997), len(data) - 1}
    for length in lengths:
        with pytest.raises(DamagedObjectError, match=r"here is damaged: .*computed again"):
            decode(data[:length])
    with pytest.raises(DamagedObjectError, match="checksum"):
        decode(data + b"\0")
    assert decode(data) == value


def test_each_flipped_bit_is_found() -> None:
    data = bytearray(encode(make_histograms(3_000), num_entries=3))
    generator = np.random.default_rng(20)
    anywhere = generator.integers(0, 8 * len(data), 300)
    in_the_head = generator.integers(0, 8 * 400, 200)
    for bit in map(int, [*anywhere, *in_the_head]):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedObjectError, match="here is damaged"):
            decode(data)
        data[bit // 8] ^= 1 << bit % 8
    assert decode(data) == make_histograms(3_000)


def test_nothing_is_unpickled_before_it_is_checked() -> None:
    data = bytearray(encode([Trap()]))
    data[-1] ^= 1
    with pytest.raises(DamagedObjectError, match="checksum"):
        decode(data)
    assert not Trap.was_sprung
    data[-1] ^= 1
    decode(data)
    assert Trap.was_sprung


def test_another_key_is_damage() -> None:
    with pytest.raises(DamagedObjectError, match=f"it was saved as '{KEY}'"):
        check_object(encode(1), OTHER_KEY, "here")


def test_another_version_is_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_MAGIC", b"hepdask-object 9\n")
    data = encode(1)
    monkeypatch.undo()
    with pytest.raises(DamagedObjectError, match="it starts with b'hepdask-object 9"):
        decode(data)


def test_what_cannot_be_unpickled_is_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode([Trap()])
    monkeypatch.delattr(f"{__name__}.spring")
    with pytest.raises(DamagedObjectError, match=r"can't be unpickled \(AttributeError.*python 3"):
        decode(data)


def test_what_cannot_be_pickled_is_named() -> None:
    with pytest.raises(
        StoreError, match=r"type dict can't be stored, as it can't be pickled .*lock"
    ):
        encode({"lock": threading.Lock()})
    with pytest.raises(MemoryError, match="no room to pickle"):
        encode(TooLarge())


def test_functions_without_a_name_are_stored() -> None:
    add = decode(encode(lambda left, right: left + right))
    assert add(1, 2) == 3


def test_classes_of_a_notebook_can_be_loaded_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "object"
    code = (
        "import sys, pathlib\nfrom hepdask.store.objects import encode_object\n"
        "class Counter:\n    number = 5\n"
        f"pathlib.Path(sys.argv[1]).write_bytes(b''.join(encode_object('{KEY}', Counter(), {{}})))"
    )
    run = run_python(code, path)
    assert run.returncode == 0, run.stderr
    value = decode(path.read_bytes())
    assert type(value).__module__ == "__main__"
    assert value.number == 5


def test_summaries_are_read_from_the_head() -> None:
    data = encode(make_histograms(), num_entries=np.int64(3), host=Path("/x"))
    assert read_summary(data[:HEAD_BYTES]) == {"num_entries": 3, "host": "/x"}
    assert read_summary(data[:30]) is None
    assert read_summary(b"") is None


def test_many_buffers_make_a_long_header() -> None:
    value = [np.full(8_200, number, np.uint16) for number in range(1_000)]
    data = encode(value, num_entries=3)
    assert read_summary(data[:HEAD_BYTES]) is None
    assert read_summary(data) == {"num_entries": 3}
    assert np.array_equal(np.stack(decode(data)), np.stack(value))


def test_a_header_that_lies_is_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "shrink", lambda block: block[:-1])
    data = encode("x")
    monkeypatch.undo()
    with pytest.raises(DamagedObjectError, match="can't be unpickled"):
        decode(data)
    assert pickle.loads(pickle.dumps(DamagedObjectError("x"))).args == ("x",)
