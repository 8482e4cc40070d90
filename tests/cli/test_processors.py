from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from hepdask.cli.processors import load_processor
from hepdask.errors import OptionError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("source", ["cli_test_processor.py", "./cli_test_processor.py", None])
def test_processor_is_found_by_file_and_by_module(processor: Path, source: str | None) -> None:
    loaded = load_processor(f"{source or 'cli_test_processor'}:MuonPt", {"scale": 2})
    assert loaded.instance.scale == 2
    assert loaded.plot is None


def test_instances_and_functions_are_used_as_they_are(processor: Path) -> None:
    assert load_processor(f"{processor}:ready").instance.scale == 3.0
    assert load_processor(f"{processor}:count").instance([1, 2]) == {"num_events": 2}


def test_a_module_that_nobody_finds_by_its_name_is_pickled_by_value(
    processor: Path, tmp_path: Path
) -> None:
    import cloudpickle

    path = tmp_path / "uproot.py"
    processor.rename(path)
    instance = load_processor(f"{path}:MuonPt").instance
    assert type(instance).__module__ == "uproot_py"
    (tmp_path / "pickled").write_bytes(cloudpickle.dumps(instance))
    code = (
        "import pickle, pathlib; print(pickle.loads(pathlib.Path('../pickled').read_bytes()).scale)"
    )
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "elsewhere",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "1.0\n"


def test_other_modules_are_shipped_as_they_are(processor: Path) -> None:
    import cloudpickle

    instance = load_processor(f"{processor}:MuonPt").instance
    # by reference: so tracebacks of workers show its lines
    assert b"bad_file" not in cloudpickle.dumps(type(instance))


def test_a_file_named_like_a_library_does_not_hide_it(processor: Path, tmp_path: Path) -> None:
    import hist

    path = tmp_path / "hist.py"
    processor.rename(path)
    assert type(load_processor(f"{path}:MuonPt").instance).__module__ == "hist_py"
    assert sys.modules["hist"] is hist


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cli_test_processor.py:MuonPT", {}, "has no 'MuonPT'; did you mean 'MuonPt'"),
        ("cli_test_processor.py:zzz", {}, "there is 'MuonPt', 'count', 'ready'"),
        ("cli_test_processor.py", {}, "write cli_test_processor.py:MuonPt"),
        ("cli_test_procesor.py:MuonPt", {}, "no file 'cli_test_procesor.py'; did you mean"),
        ("cli_test_procesor:MuonPt", {}, "did you mean 'cli_test_processor'"),
        ("cli_test_processor:MuonPt", {"scal": 1}, "no argument 'scal'; did you mean 'scale'"),
        ("cli_test_processor:count", {"scale": 1}, "--arg is for classes"),
        ("cli_test_broken:x", {}, "can't be imported: NameError: name 'foo' .*py, line 2"),
        ("cli_test_broken.py:x", {}, "can't be imported: NameError: name 'foo' .*py, line 2"),
        ("cli_test_syntax.py:x", {}, "can't be imported: SyntaxError: .*py, line 1"),
        ("cli_test_lacks:x", {}, "can't be imported: ModuleNotFoundError: .*'nowhere_to_be'"),
        ("cli_test_raises:A", {"b": 1}, r"A\(\.\.\.\) raised RuntimeError: 1 is odd"),
        ("cli_test_raises:A", {}, "A: missing a required argument: 'b': give it as --arg"),
    ],
)
def test_wrong_processors_are_explained(
    processor: Path, tmp_path: Path, name: str, arguments: dict[str, Any], message: str
) -> None:
    (tmp_path / "cli_test_broken.py").write_text("a = 1\nfoo\n")
    (tmp_path / "cli_test_syntax.py").write_text("a = = 1\n")
    (tmp_path / "cli_test_lacks.py").write_text("import nowhere_to_be\n")
    raising = "class A:\n    def __init__(self, b): raise RuntimeError(f'{b} is odd')\n"
    (tmp_path / "cli_test_raises.py").write_text(raising)
    with pytest.raises(OptionError, match=message):
        load_processor(name, arguments)
