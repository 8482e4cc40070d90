from __future__ import annotations

import json
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import awkward as ak
import numpy as np
import pytest
from coffea.processor import column_accumulator, set_accumulator, value_accumulator

from hepdask.errors import OptionError
from hepdask.outputs import write_output

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, None),
        ("µ", "µ"),
        (np.float32(0.5), 0.5),
        (np.longdouble(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (np.array([1, "a"], dtype=object), [1, "a"]),
        (ak.Array([[1], [2, 3]]), [[1], [2, 3]]),
        (OrderedDict({1: 2, np.int64(3): 4}), {"1": 2, "3": 4}),
        ({1, "a"}, ["a", 1]),
        (frozenset({3, 1, 2}), [1, 2, 3]),
        (set_accumulator({2, 1}), [1, 2]),
        (column_accumulator(np.array([1.0])), [1.0]),
        (value_accumulator(int, 3), 3),
    ],
    ids=repr,
)
def test_json_values(tmp_path: Path, value: Any, written: Any) -> None:
    write_output({"v": value}, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == {"v": written}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"dy": [1, {"x": 1j}]}, r'^output\["dy"\]\[1\]\["x"\] is builtins\.complex, which'),
        ({"dy": np.datetime64("2020-01-01")}, r'^output\["dy"\] is datetime\.date, which'),
        ({"dy": {("a", 1): 2}}, r'^output\["dy"\] has the key \(\'a\', 1\) \(tuple\)'),
        ({"dy": {1: 2, "1": 3}}, r'^output\["dy"\] has two keys that are \'1\' in JSON'),
        ({"dy": {b"x"}}, r'^output\["dy"\] \(an element\) is builtins\.bytes'),
        (lambda: 1, r"^output is builtins\.function"),
    ],
)
def test_what_json_cannot_hold_is_named(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        write_output(value, tmp_path / "out.json")
