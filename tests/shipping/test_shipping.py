"""The user's code in runs: on workers that have none of it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hepdask import DaskExecutor, LocalExecutor, Runner

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import NanoFiles
    from tests.shipping.sites import Site

PACKAGE = {
    "analysis/__init__.py": "from analysis.cuts import select\n",
    "analysis/cuts.py": """
import json
from pathlib import Path

from analysis.deep.constants import FACTOR
import tools

CUT = json.loads((Path(__file__).parent / "data" / "cuts.json").read_text())["pt"]

def select(events):
    from lazily import identity
    return identity(events["MET_pt"] > CUT * FACTOR * tools.ONE)
""",
    "analysis/deep/constants.py": "FACTOR = 1.0\n",
    "analysis/data/cuts.json": '{"pt": 30.0}',
    "tools.py": "ONE = 1\n",
    "lazily.py": "def identity(x):\n    return x\n",
    "processor.py": """
import analysis

class Processor:
    def process(self, events):
        import os
        return {"passed": int(analysis.select(events).to_numpy().sum()), "files": {os.path.dirname(analysis.__file__)}}
""",
}


def write(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def run(executor: Any, nano_files: NanoFiles, processor: Any, **options: Any) -> Any:
    options = {
        "chunksize": 50,
        "schema": None,
        "metadata_cache": False,
        "progress": False,
        **options,
    }
    return Runner(executor, **options).run(nano_files.fileset, processor).output


def test_package_next_to_the_notebook(site: Site, workspace: Path, nano_files: NanoFiles) -> None:
    write(workspace, PACKAGE)
    processor = importlib.import_module("processor").Processor()
    here = run(LocalExecutor(), nano_files, processor)
    there = run(DaskExecutor(site.client, max_ranges_per_task=1), nano_files, processor)
    assert there["passed"] == here["passed"] > 0
    assert here["files"] == {str(workspace / "analysis")}
    assert all(one.startswith(str(site.directory)) for one in there["files"])
