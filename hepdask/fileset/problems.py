"""Collect what is wrong in a fileset, so that the user sees all of it in one error."""

from __future__ import annotations

from hepdask.errors import FilesetError

__all__ = ["Problems"]


class Problems:
    """What is wrong in a fileset, collected so that the user sees it at once."""

    __slots__ = ("_lines", "_num_problems")

    max_lines = 10

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._num_problems = 0

    def add(
        self, problem: str, dataset: object = None, file: object = None, key: object = None
    ) -> None:
        """Note one problem.

        Parameters
        ----------
        problem : str
            What is wrong and what to write instead.
        dataset, file, key : object
            Where it is; None: does not apply.
        """
        self._num_problems += 1
        if len(self._lines) >= self.max_lines:
            return
        named = (("dataset", dataset), ("file", file), ("key", key))
        where = ", ".join(f"{word} {name!r}" for word, name in named if name is not None)
        self._lines.append(f"{where}: {problem}" if where else problem)

    def check(self, source: str) -> None:
        """Raise if there is any problem.

        Parameters
        ----------
        source : str
            What was read: ``"fileset 'my.json'"``.

        Raises
        ------
        FilesetError
            With one line for each of the first ten problems.
        """
        if not self._num_problems:
            return
        if self._num_problems == 1:
            raise FilesetError(f"{source}: {self._lines[0]}")
        lines = [f"{source}: {self._num_problems} things are wrong", *self._lines]
        if self._num_problems > len(self._lines):
            lines.append(f"... and {self._num_problems - len(self._lines)} more")
        raise FilesetError("\n  ".join(lines))
