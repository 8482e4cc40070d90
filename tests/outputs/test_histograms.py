from __future__ import annotations

from typing import Any

import boost_histogram as bh
import hist
from hist import Hist

from hepdask.outputs import list_histograms


def test_histograms_are_found_in_nested_outputs(output: dict[str, Any]) -> None:
    assert [path for path, _ in list_histograms(output)] == [
        ("mass",),
        ("dy", "count"),
        ("list", "0"),
    ]
    assert list_histograms(output)[0][1] is output["mass"]


def test_a_histogram_alone_is_found() -> None:
    plain = bh.Histogram(bh.axis.Regular(2, 0, 1))
    assert list_histograms(plain) == [(("histogram",), plain)]
    named = Hist(hist.axis.Regular(2, 0, 1), name="pt")
    assert [path for path, _ in list_histograms(named)] == [("pt",)]
    assert list_histograms({"a": 1, "b": [1, 2]}) == []
