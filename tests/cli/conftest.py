from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from tests.cli.calling import PROCESSOR

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import NanoFiles


@pytest.fixture(autouse=True)
def clean_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the modules and directories that a test imports from."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("cli_test", "hist_py")):
            del sys.modules[name]


@pytest.fixture
def processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a processor that imports from a module beside it, in the current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cli_test_helper.py").write_text("DOUBLE = 2\n")
    path = tmp_path / "cli_test_processor.py"
    path.write_text(PROCESSOR)
    return path


@pytest.fixture
def fileset(tmp_path: Path, nano_files: NanoFiles) -> Path:
    path = tmp_path / "fileset.json"
    content = {"nano": {**nano_files.fileset["nano"], "metadata": {"year": 2018}}}
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def truncated(tmp_path: Path, nano_files: NanoFiles) -> Path:
    path = tmp_path / "truncated.root"
    path.write_bytes(nano_files.paths[0].read_bytes()[:2_000])
    return path
