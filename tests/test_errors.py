from __future__ import annotations

import inspect
import pickle
import re
from typing import TYPE_CHECKING

import pytest

from hepdask import errors
from hepdask.errors import HepdaskError, RunError, suggest

if TYPE_CHECKING:
    from collections.abc import Iterable

ERRORS = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, HepdaskError)
]


@pytest.mark.parametrize("error", ERRORS)
def test_errors_survive_pickling(error: type[HepdaskError]) -> None:
    original = error("what, where, what to do")
    copy = pickle.loads(pickle.dumps(original))
    assert type(copy) is error
    assert str(copy) == str(original)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.FilesetError, ValueError),
        (errors.OptionError, ValueError),
        (errors.MissingDependencyError, ImportError),
        (errors.FileReadError, OSError),
        (errors.MissingTreeError, errors.FileReadError),
        (errors.FileChangedError, errors.FileReadError),
        (errors.ProcessorError, RuntimeError),
        (errors.AccumulatorError, TypeError),
        (errors.ExecutorError, RuntimeError),
        (errors.StoreError, OSError),
        (errors.DamagedObjectError, errors.StoreError),
        (errors.RunError, RuntimeError),
        (errors.AccountingError, RuntimeError),
    ],
)
def test_errors_are_what_python_calls_them(error: type, builtin: type) -> None:
    assert issubclass(error, builtin)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = set(re.findall(r"(\w+Error)\b", errors.__doc__ or ""))
    assert {error.__name__ for error in ERRORS} <= drawn
    assert {error.__name__ for error in ERRORS} < set(errors.__all__)
    assert errors.__all__ == sorted(errors.__all__)


def test_the_partial_result_stays_in_its_process() -> None:
    error = RunError("stopped", partial_result=object())
    assert error.partial_result is not None
    copy = pickle.loads(pickle.dumps(error))
    assert copy.partial_result is None
    assert str(copy) == "stopped"


@pytest.mark.parametrize(
    ("wrong", "right", "text"),
    [
        ("file", ["files", "metadata"], "; did you mean 'files'?"),
        ("x", ["files", "metadata"], "; there is 'files', 'metadata'"),
        ("x", [], ""),
        ("x", iter(["files"]), "; there is 'files'"),
        ("x", [f"name{i}" for i in range(10)], None),
        ("x", [f"name{i}" for i in range(11)], None),
    ],
)
def test_suggest(wrong: str, right: Iterable[str], text: str | None) -> None:
    names = list(right)
    suggestion = suggest(wrong, iter(names))
    if text is not None:
        assert suggestion == text
    else:
        assert suggestion.count("'name") == 10
        assert suggestion.endswith(", ...") == (len(names) > 10)
