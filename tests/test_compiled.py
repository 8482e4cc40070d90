from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import numba
import pytest

from hepdask.compiled import pickle_compiled

REPOSITORY = Path(__file__).parents[1]

# loads pickled functions, calls them, and says what they returned, how many were compiled, how many were found
CALL = """
import pathlib, pickle, sys
functions = [pickle.loads(pathlib.Path(path).read_bytes()) for path in sys.argv[1:]]
print(
    sum(function(2.0) for function in functions),
    sum(sum(function.stats.cache_misses.values()) for function in functions),
    sum(sum(function.stats.cache_hits.values()) for function in functions),
)
"""


def call_elsewhere(tmp_path: Path, *pickled: bytes, **environment: str) -> tuple[float, int, int]:
    paths = [tmp_path / f"pickled-{number}" for number in range(len(pickled))]
    for path, content in zip(paths, pickled, strict=True):
        path.write_bytes(content)
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", CALL, *map(str, paths)],
        check=True,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")} | environment,
        timeout=60,
    )
    value, misses, hits = run.stdout.split()
    return float(value), int(misses), int(hits)


def define(factor: float, directory: Path) -> Any:
    """Define compiled functions, one of which calls the other, in a module that is nowhere else: they go by value."""
    names: dict[str, Any] = {"numba": numba, "__name__": "gone"}
    path = directory / "gone.py"
    path.write_text(
        "@numba.njit\n"
        f"def scale(x):\n    return {factor} * x\n"
        "@numba.njit(cache=True)\n"
        "def scale_twice(x):\n    return scale(scale(x))\n"
    )
    exec(compile(path.read_text(), str(path), "exec"), names)  # noqa: S102
    return names["scale_twice"]


def test_machine_code_is_found_in_the_next_process(tmp_path: Path) -> None:
    pickled = pickle_compiled(define(3.0, tmp_path))
    (tmp_path / "gone.py").unlink()  # a worker on another host
    assert call_elsewhere(tmp_path, pickled) == (18.0, 1, 0)
    assert call_elsewhere(tmp_path, pickled) == (18.0, 0, 1)
    (kept,) = (tmp_path / "cache").rglob("*.nbc")
    kept.write_bytes(kept.read_bytes()[:100])
    assert call_elsewhere(tmp_path, pickled) == (18.0, 1, 0)


def test_functions_of_the_same_name_are_kept_apart(tmp_path: Path) -> None:
    """Only a constant of a function that they call differs; numba has numbered them alike in their processes."""
    three, five = (pickle_compiled(define(factor, tmp_path)) for factor in (3.0, 5.0))
    assert call_elsewhere(tmp_path, three) == (18.0, 1, 0)
    assert call_elsewhere(tmp_path, five) == (50.0, 1, 0)
    assert call_elsewhere(tmp_path, three, five) == (18.0 + 50.0, 0, 2)


def test_without_a_place_to_keep_it_is_compiled(tmp_path: Path) -> None:
    pickled = pickle_compiled(define(3.0, tmp_path))
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file" / "below")
    assert call_elsewhere(tmp_path, pickled, NUMBA_CACHE_DIR=nowhere)[0] == 18.0


@pytest.mark.parametrize("value", [len, {"a": [1, 2]}, None])
def test_everything_else_is_as_cloudpickle_has_it(value: Any) -> None:
    assert pickle_compiled(value) == cloudpickle.dumps(value)


# imports the module with the name that a command line or a notebook gives it, and calls its function
CALL_AS = """
import sys
from pathlib import Path
from hepdask.cli.processors import import_file
import importlib
kind, name = sys.argv[1:]
module = import_file(Path(name)) if kind == "file" else importlib.import_module(name)
print(module.scale_twice(2.0), sum(module.scale_twice.stats.cache_hits.values()))
"""


def test_one_file_under_two_names_is_kept_apart(tmp_path: Path) -> None:
    """Numba keeps machine code under the name of the file, and to load it, it imports the module that made it."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "factor.py").write_text(
        "import numba\n"
        "@numba.njit\n"
        "def scale(x):\n    return 3.0 * x\n"
        "@numba.njit(cache=True)\n"
        "def scale_twice(x):\n    return scale(scale(x))\n"
    )

    def call_as(*arguments: str) -> tuple[str, str]:
        run = subprocess.run(
            [sys.executable, "-W", "error", "-c", CALL_AS, *arguments],
            check=True,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ
            | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(REPOSITORY)},
            timeout=60,
        )
        value, hits = run.stdout.split()
        return value, hits

    as_file, as_module = ("file", "package/factor.py"), ("module", "package.factor")
    assert call_as(*as_file) == ("18.0", "0")
    assert call_as(*as_module) == ("18.0", "0")
    assert call_as(*as_file) == ("18.0", "1")
    assert call_as(*as_module) == ("18.0", "1")
