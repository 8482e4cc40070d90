from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.cli.calling import assert_one_line_error, run_locally

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import NanoFiles


def test_root_files_and_patterns(processor: Path, nano_files: NanoFiles, tmp_path: Path) -> None:
    directory = nano_files.paths[0].parent
    for sources, dataset in [
        ([f"{directory}/nano_*.root"], "nano"),
        (nano_files.paths, "nano"),
        ([nano_files.paths[0], nano_files.empty_path], directory.name),
    ]:
        result = run_locally(f"{processor}:count", *sources, "-t", "Events", "--metrics", "m.json")
        assert result.exit_code == 0, result.output
        assert list(json.loads((tmp_path / "m.json").read_text())["datasets"]) == [dataset]


def test_mixed_sources_are_refused(processor: Path, fileset: Path, nano_files: NanoFiles) -> None:
    result = run_locally(f"{processor}:count", fileset, nano_files.paths[0])
    assert_one_line_error(result, "give one fileset, or ROOT files")


def test_missing_treename_names_the_option(processor: Path, nano_files: NanoFiles) -> None:
    result = run_locally(f"{processor}:count", nano_files.paths[0])
    assert_one_line_error(result, "or give --treename")
