"""Processors that tests send to workers of a cluster: importable there."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import awkward as ak

from tests.example_processors import Weighted, wait_for

__all__ = ["CountsCalls"]


class CountsCalls(Weighted):
    """Leaves a file for each call, and waits in those from some event on until the file ``go`` is there."""

    def __init__(self, directory: Path, wait_from: int) -> None:
        self.directory = directory
        self.wait_from = wait_from

    def process(self, events: Any) -> dict[str, Any]:
        name = f"{Path(events.metadata['filename']).stem}-{events.metadata['entrystart']}"
        (self.directory / f"call-{name}.{uuid.uuid4().hex}").touch()
        if ak.any(events.event >= self.wait_from):
            (self.directory / f"waits-{name}").touch()
            wait_for(self.directory / "go")
        return super().process(events)
