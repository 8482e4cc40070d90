from __future__ import annotations

from typing import TYPE_CHECKING

from hepdask.tables import Table

if TYPE_CHECKING:
    import pytest

TABLE = Table(
    "Failures",
    ("dataset", "events", "note"),
    (("dy[1]", "1,000", "a < b"), ("[red]tt", "20", "two\nlines")),
    frozenset({1}),
)


def test_text_holds_every_cell_as_written() -> None:
    text = str(TABLE)
    lines = text.splitlines()
    assert lines[0].strip() == "Failures"
    for cell in ("dy[1]", "1,000", "a < b", "[red]tt", "two", "lines"):
        assert cell in text
    assert all(line == line.rstrip() for line in lines)
    assert "\x1b" not in text


def test_text_has_no_colors_even_where_they_are_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    assert "\x1b" not in str(TABLE)
    assert "1,000   a < b" in str(TABLE)


def test_text_in_a_notebook_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    import rich.console

    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    assert "dy[1]" in str(TABLE)


def test_figures_are_aligned_to_the_right() -> None:
    first, second = (line for line in str(TABLE).splitlines() if "1,000" in line or " 20 " in line)
    assert first.index("1,000") + len("1,000") == second.index(" 20 ") + len(" 20")


def test_html_is_escaped_and_flags_rows() -> None:
    html = TABLE._repr_html_()
    assert "<td>a &lt; b</td>" in html
    assert "<td><pre>two\nlines</pre></td>" in html
    assert html.count("color:#b00020") == 1
    assert html.index("color:#b00020") > html.index("dy[1]")
    assert "<caption>Failures</caption>" in html


def test_a_table_without_rows() -> None:
    empty = Table("Plan", ("dataset", "files"), ())
    assert "dataset" in str(empty)
    assert "<tbody></tbody>" in empty._repr_html_()


def test_empty_cells_do_not_decide_about_the_alignment() -> None:
    table = Table("", ("a", "b"), (("", "x"), ("", "")))
    assert "x" in str(table)
