"""The notebooks run from top to bottom, and are kept without outputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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


def execute(name: str, directory: Path, variables: Mapping[str, str]) -> Any:
    """Run a notebook; an error in a cell is an error here, unless the cell is there to show it."""
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    client = NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        allow_errors=False,
        resources={"metadata": {"path": str(NOTEBOOKS)}},
    )
    with pytest.MonkeyPatch.context() as environment:
        for variable, value in variables.items():
            environment.setenv(variable, value)
        # without it, Jupyter writes connection files and profiles into the user's home
        environment.setenv("JUPYTER_RUNTIME_DIR", str(directory / "runtime"))
        environment.setenv("IPYTHONDIR", str(directory / "ipython"))
        client.execute()
    return notebook


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run the quickstart with a small sample."""
    directory = tmp_path_factory.mktemp("quickstart")
    variables = {
        "HEPDASK_QUICKSTART_DIRECTORY": str(directory / "sample"),
        "HEPDASK_QUICKSTART_EVENTS": str(NUM_EVENTS),
    }
    return execute("quickstart", directory, variables)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run the notebook in which things break; it makes a directory of its own."""
    directory = tmp_path_factory.mktemp("broken")
    return execute("when_things_break", directory, {"TMPDIR": str(directory)})


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run the notebook about fast processors with a small sample."""
    directory = tmp_path_factory.mktemp("fast")
    variables = {
        "HEPDASK_FAST_DIRECTORY": str(directory / "sample"),
        "HEPDASK_FAST_EVENTS": "2000",
    }
    return execute("fast_processors", directory, variables)


def outputs(notebook: Any, source: str, mime_type: str) -> Iterator[str]:
    """Find what the cells that contain some source show, in one form."""
    for cell in notebook.cells:
        if cell.cell_type == "code" and source in cell.source:
            for output in cell.outputs:
                if mime_type in output.get("data", {}):
                    yield output["data"][mime_type]


def cells_with(notebook: Any, source: str) -> list[Any]:
    """List the code cells that contain some source."""
    return [one for one in notebook.cells if one.cell_type == "code" and source in one.source]


def printed(notebook: Any, source: str) -> str:
    """Join what the cells that contain some source print."""
    shown = [one for cell in cells_with(notebook, source) for one in cell.outputs]
    return "".join(one["text"] for one in shown if one["output_type"] == "stream")


def raised(notebook: Any, source: str) -> tuple[str, str]:
    """Return name and text of the exception that the one cell with some source shows."""
    (cell,) = cells_with(notebook, source)
    (error,) = [one for one in cell.outputs if one["output_type"] == "error"]
    return error["ename"], error["evalue"]


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


def test_crash_costs_the_one_event(broken: Any) -> None:
    *_, completeness = outputs(broken, "skipbadfiles=ProcessDiedError", "text/html")
    assert "39,999" in completeness
    (failures,) = [
        one for one in outputs(broken, "result.failures", "text/html") if "SIGSEGV" in one
    ]
    assert "entries 6788 to 6789" in failures
    (event,) = outputs(broken, "event.to_list()", "text/plain")
    assert "'event': 6789" in event


def test_crash_is_replayed_in_a_process_of_its_own(broken: Any) -> None:
    text = printed(broken, "-m hepdask replay")
    assert "Segmentation fault" in text
    assert 'crashing.py", line 11 in process' in text


def test_bug_ends_the_run_and_is_replayed(broken: Any) -> None:
    name, text = raised(broken, "class MuonSums")
    assert name == "RunError"
    assert "KeyError: 193837" in text
    tables = list(outputs(broken, "partial.failures", "text/html"))
    assert len(tables) == 1
    assert "KeyError (user): 193837" in tables[0]
    replays = cells_with(broken, "partial.failures.replay(0, MuonSums())")
    assert [one["output_type"] for cell in replays for one in cell.outputs] == [
        "error",
        "execute_result",
    ]


def test_corrected_code_computes_all(broken: Any) -> None:
    text = printed(broken, "result = runner.run(fileset, MuonSums())\ntotal")
    assert text == "processed 40,000 events, took 0 from the store\n"


def test_damage_is_listed_in_events_and_sections(broken: Any) -> None:
    *_, completeness = outputs(broken, "skipbadfiles=True", "text/html")
    for figure in ("38,000", "10,000 + ?", "1 unread"):
        assert figure in completeness
    (sections,) = outputs(broken, "missing.to_dict()", "text/plain")
    assert "{'193836': [[3, 4]]}" in sections
    (missing,) = outputs(broken, "result.missing_fileset()", "text/plain")
    assert "'steps': [[2000, 4000]]" in missing


def test_repaired_files_complete_the_run(broken: Any) -> None:
    *_, completeness = outputs(broken, "complete = result.resume()", "text/html")
    assert "60,000" in completeness
    assert "99.99%" not in completeness


def test_finished_run_takes_no_task(broken: Any) -> None:
    assert "processed 0 events, in 0 tasks" in printed(broken, "again = runner.run")
    listing = printed(broken, "store ls")
    assert listing.count("MuonSums") == 2
    assert listing.count("Spectra") == 1


def test_each_step_is_measured(fast: Any) -> None:
    for step in ("objects", "columns", "compiled", "processor"):
        lines = printed(fast, f"measure({step})").splitlines()
        names = [line.split()[0] for line in lines if " events: " in line]
        assert names[0] == "objects"
        assert names[-1] == step
    assert "1 compiled, 0 found" in printed(fast, "measure(compiled)")


def test_steps_agree_on_a_cluster(fast: Any) -> None:
    lines = printed(fast, "Client(").splitlines()
    assert [line.split()[0] for line in lines] == ["columns", "compiled", "adl.Q6"]
