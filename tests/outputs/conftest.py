from __future__ import annotations

from typing import Any

import pytest

from tests.outputs.examples import make_count, make_mass


@pytest.fixture
def output() -> dict[str, Any]:
    return {
        "mass": make_mass(),
        "dy": {"count": make_count(), "num_events": 3, "cuts": {"trigger", "muon"}},
        "list": [make_count(), (1, 2.5)],
    }
