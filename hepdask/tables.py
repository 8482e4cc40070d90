"""A small table that shows itself in a terminal, in a notebook and in a log."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.table

__all__ = ["Table"]


@dataclass(frozen=True, slots=True)
class Table:
    """Text in rows and columns.

    Attributes
    ----------
    title : str
        Stands above.
    headers : tuple of str
        One for each column.
    rows : tuple of tuple of str
        As many cells as headers in each.
    flagged : frozenset of int
        Rows in which something is missing: shown in red.
    """

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    flagged: frozenset[int] = frozenset()

    def __rich__(self) -> rich.table.Table:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=Text(self.title), title_justify="left", box=SIMPLE_HEAD)
        for column, header in enumerate(self.headers):
            is_numeric = self._is_numeric(column)
            # figures stay whole, and of a path or an error nothing is cut away
            table.add_column(
                Text(header),
                justify="right" if is_numeric else "left",
                no_wrap=is_numeric,
                overflow="fold",
            )
        for number, row in enumerate(self.rows):
            # Text: a file name with brackets is not rich markup
            table.add_row(*map(Text, row), style="red" if number in self.flagged else None)
        return table

    def __str__(self) -> str:
        from rich.console import Console

        stream = StringIO()
        # in a notebook rich would display the text there and write nothing into the stream
        Console(file=stream, width=2_000, color_system=None, force_jupyter=False).print(self)
        return "\n".join(line.rstrip() for line in stream.getvalue().rstrip().splitlines())

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(header)}</th>" for header in self.headers)
        body = "".join(
            f"<tr{' style=color:#b00020' if number in self.flagged else ''}>"
            + "".join(
                f"<td><pre>{escape(cell)}</pre></td>"
                if "\n" in cell
                else f"<td>{escape(cell)}</td>"
                for cell in row
            )
            + "</tr>"
            for number, row in enumerate(self.rows)
        )
        return f"<table><caption>{escape(self.title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _is_numeric(self, column: int) -> bool:
        cells = [row[column] for row in self.rows if row[column]]
        return bool(cells) and all(cell[0].isdigit() or cell[0] in "-+." for cell in cells)
