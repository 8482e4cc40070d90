"""Histograms that several tests write."""

from __future__ import annotations

from typing import Any

import hist
from hist import Hist


def make_mass() -> Hist[Any]:
    histogram = (
        Hist.new.StrCat([], growth=True, name="dataset")
        .Reg(4, 1, 10_000, transform=hist.axis.transform.log, name="mass", label="m [GeV]")
        .Weight()
    )
    histogram.fill(dataset="dy 50/x", mass=[0.5, 2, 200, 1e6], weight=2.0)
    histogram.fill(dataset="tt", mass=[20.0, 3000.0], weight=0.5)
    return histogram


def make_count() -> Hist[Any]:
    return Hist.new.Reg(3, 0, 3, name="count", label="Count").Double().fill([-1, 0.5, 1.5, 1.5, 9])
