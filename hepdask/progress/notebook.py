"""Show progress as a table in a Jupyter notebook, without widgets."""

from __future__ import annotations

import html
import math
import sys
import uuid
from typing import TYPE_CHECKING

from hepdask.errors import MissingDependencyError
from hepdask.progress.state import (
    describe_failures,
    describe_line,
    describe_work,
    format_percent,
    format_times,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hepdask.progress.state import StageSnapshot

__all__ = ["NotebookDisplay", "is_jupyter"]


class NotebookDisplay:
    """Show a table with bars in a Jupyter notebook and update it in place.

    It is an output of the cell that started the run, wherever in the cell that stands; it needs no
    widgets.

    Raises
    ------
    MissingDependencyError
        If IPython isn't installed.
    """

    def __init__(self) -> None:
        try:
            import IPython.display  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError(
                "progress='jupyter' needs IPython: pip install 'hepdask[notebook]'"
            ) from error
        self.refresh_seconds = 0.5
        self._display_id: str | None = None
        self._shown: dict[str, str] = {}

    def draw(self, stages: Sequence[StageSnapshot]) -> None:
        """Send the table to the notebook unless it looks as before.

        Raises
        ------
        RuntimeError
            Outside of a Jupyter kernel, where there is nothing to send it to.
        """
        from IPython.display import display, update_display

        if not is_jupyter():
            raise RuntimeError("there is no Jupyter kernel")
        bundle = _build_bundle(stages)
        if bundle == self._shown:
            return
        if self._display_id is None:
            self._display_id = f"hepdask-progress-{uuid.uuid4().hex}"
            display(bundle, raw=True, display_id=self._display_id)
        else:
            update_display(bundle, raw=True, display_id=self._display_id)
        self._shown = bundle

    def end(self) -> None:
        """Leave the table as it is; the next run gets its own."""
        self._display_id = None
        self._shown = {}


def _build_bundle(stages: Sequence[StageSnapshot]) -> dict[str, str]:
    rows = "".join(_render_row(snapshot) for snapshot in stages)
    return {
        "text/html": f'<table style="font-variant-numeric: tabular-nums">{rows}</table>',
        "text/plain": "\n".join(describe_line(snapshot) for snapshot in stages),
    }


def _render_row(snapshot: StageSnapshot) -> str:
    color = {"running": "#1976d2", "finished": "#388e3c", "stopped": "#f57c00"}[snapshot.status]
    # one decimal more than the percentage: the bar of a long stage should move
    width = f"{math.floor(snapshot.fraction * 1000) / 10:g}%"
    bar = (
        '<div style="width: 12em; height: 0.7em; background: rgba(128, 128, 128, 0.3)">'
        f'<div style="width: {width}; height: 100%; background: {color}"></div></div>'
    )
    failures = f'<b style="color: #d32f2f">{html.escape(describe_failures(snapshot))}</b>'
    cells = [
        f"<b>{html.escape(snapshot.stage)}</b>",
        bar,
        format_percent(snapshot),
        html.escape(describe_work(snapshot)),
        failures if snapshot.num_failures else "",
        format_times(snapshot),
    ]
    columns = "".join(f'<td style="text-align: left">{cell}</td>' for cell in cells)
    return f"<tr>{columns}</tr>"


def is_jupyter() -> bool:
    """Tell if this process is a Jupyter kernel, without importing IPython.

    Returns
    -------
    bool
        False in a process that never imported IPython: a kernel has.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None
