from __future__ import annotations

import pytest

from tests.progress.doubles import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
