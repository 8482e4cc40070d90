from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hepdask.errors import MissingDependencyError
from hepdask.progress import NotebookDisplay, StageState, choose_progress
from hepdask.progress.notebook import _build_bundle

if TYPE_CHECKING:
    from tests.progress.doubles import FakeClock

REPOSITORY = Path(__file__).parents[2]


def test_html_is_escaped(clock: FakeClock) -> None:
    state = StageState("<script>", 10, "<b>", clock)
    state.advance(1, num_failures=3)
    bundle = _build_bundle([state.snapshot()])
    assert set(bundle) == {"text/html", "text/plain"}
    assert "<script>" not in bundle["text/html"]
    assert "&lt;script&gt;" in bundle["text/html"]
    assert "1/10 &lt;b&gt;" in bundle["text/html"]
    assert "3 failures" in bundle["text/html"]


def test_no_kernel_is_a_display_that_gives_up(caplog: pytest.LogCaptureFixture) -> None:
    progress = choose_progress("jupyter")
    progress.start("processing", 10, "events")
    progress.close()
    assert len([r for r in caplog.records if "no Jupyter kernel" in r.getMessage()]) == 1


def test_missing_ipython_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hepdask\[notebook\]'"):
        NotebookDisplay()


CELLS = [
    """
import sys
sys.modules["ipywidgets"] = None
import threading
from hepdask.progress import LiveProgress, NotebookDisplay, choose_progress
progress = choose_progress()
progress.start("processing", 1000, "events")
progress.advance("processing", 400)
progress.refresh()
progress.advance("processing", 600, num_failures=1)
progress.finish("processing")
progress.close()
answer = 42
""",
    """
class SeenDisplay(NotebookDisplay):
    def draw(self, stages):
        super().draw(stages)
        if stages[0].done:
            seen.set()

seen = threading.Event()
progress = LiveProgress(SeenDisplay())
progress.start("merging", 8, "merges")
progress.advance("merging", 4)
assert seen.wait(60)
answer = 43
""",
    """
progress.advance("merging", 2)
progress.close()
answer
""",
]


def test_notebook_cell_is_updated_in_place() -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    nbclient.NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(REPOSITORY)}},
    ).execute()
    (first,), (second,), (third,) = (cell.outputs for cell in notebook.cells)
    assert first.output_type == second.output_type == "display_data"
    assert first.data["text/plain"].startswith("processing: 100%, 1,000/1,000 events, ")
    assert "1 failure, done in" in first.data["text/plain"]
    assert "<b>processing</b>" in first.data["text/html"]
    # drawn by the thread in the second cell, and brought up to date from the third
    assert second.data["text/plain"].startswith("merging: 75%, 6/8 merges, ")
    assert third.data["text/plain"] == "43"
