from __future__ import annotations

from tests.fileset.loading import fail


def test_ten_problems_are_reported_in_one_error() -> None:
    text = fail({f"d{i}": [] for i in range(12)})
    lines = text.splitlines()
    assert lines[0] == "fileset: 12 things are wrong"
    assert len(lines) == 12
    assert lines[-1].strip() == "... and 2 more"
