"""The notebooks run from top to bottom, and are kept without outputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
NUM_EVENTS = 8_000


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_is_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    for cell in code:
        assert cell.outputs == []
        assert cell.execution_count is None


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run the quickstart with a small sample; an error in a cell is an error here."""
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOKS / "quickstart.ipynb", as_version=4)
    client = NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        allow_errors=False,
        resources={"metadata": {"path": str(NOTEBOOKS)}},
    )
    with pytest.MonkeyPatch.context() as environment:
        directory = tmp_path_factory.mktemp("quickstart") / "sample"
        environment.setenv("HEPDASK_QUICKSTART_DIRECTORY", str(directory))
        environment.setenv("HEPDASK_QUICKSTART_EVENTS", str(NUM_EVENTS))
        # without it, Jupyter writes connection files and profiles into the user's home
        environment.setenv("JUPYTER_RUNTIME_DIR", str(directory.parent / "runtime"))
        environment.setenv("IPYTHONDIR", str(directory.parent / "ipython"))
        client.execute()
    return notebook


def outputs(notebook: Any, source: str, mime_type: str) -> Iterator[str]:
    """Find what the cells that contain some source show, in one form."""
    for cell in notebook.cells:
        if cell.cell_type == "code" and source in cell.source:
            for output in cell.outputs:
                if mime_type in output.get("data", {}):
                    yield output["data"][mime_type]


def test_quickstart_shows_the_spectrum(quickstart: Any) -> None:
    (picture,) = outputs(quickstart, "plot(output)", "image/png")
    assert len(picture) > 10_000  # base64 of a picture with lines in it


def test_quickstart_shows_completeness_and_metrics(quickstart: Any) -> None:
    *_, table = outputs(quickstart, "result = run.run(", "text/html")  # the progress comes before
    assert "complete: 8,000 of 8,000 events processed" in table
    for word in ("Completeness", "Metrics", "event rate", "peak memory", "100%"):
        assert word in table


def test_quickstart_shows_the_missing_file(quickstart: Any) -> None:
    *_, completeness = outputs(quickstart, "partial.completeness", "text/html")
    assert "75%" in completeness
    (failures,) = outputs(quickstart, "partial.failures", "text/html")
    assert "SingleMu_3.root" in failures
    assert "there is no such file" in failures


def test_quickstart_resumes(quickstart: Any) -> None:
    *_, completeness = outputs(quickstart, "complete = partial.resume()", "text/html")
    assert "100%" in completeness


def test_quickstart_prints_no_warnings(quickstart: Any) -> None:
    streams = [
        output["text"]
        for cell in quickstart.cells
        for output in cell.get("outputs", [])
        if output["output_type"] == "stream"
    ]
    assert streams == []
