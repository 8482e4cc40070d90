from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hepdask.fingerprint.code import ImportedName
from hepdask.fingerprint.sources import read_source

if TYPE_CHECKING:
    from pathlib import Path


def test_facts_of_a_source(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "'''Doc.'''\n"
        "import a.b, c as d\n"
        "from . import e\n"
        "from ..f.g import h, i as j\n"
        "import importlib\n"
        "CUT = -3\nNAME: str = 'name'\nTABLE = {}\nCOUNT = 0\n"
        "def count():\n"
        "    'Doc.'\n"
        "    global COUNT\n"
        "    import lazy\n"
        "    importlib.import_module('dynamic'); importlib.import_module('.near', 'here')\n"
        "    importlib.import_module(NAME)\n"
    )
    facts = read_source(str(path))
    assert facts.imports == {
        ImportedName("a.b"),
        ImportedName("c"),
        ImportedName("", ("e",), 1),
        ImportedName("f.g", ("h", "i"), 2),
        ImportedName("importlib"),
        ImportedName("lazy"),
        ImportedName("dynamic"),
        ImportedName("near", (), 1),
    }
    assert facts.strings == {"name", "dynamic", ".near", "here"}
    assert dict(facts.constants) == {"CUT": b"i-3", "NAME": b"sname"}
    assert len(facts.codes) == 1


def test_files_that_are_written_are_no_input(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "import pickle\n"
        "def plot(figure, h):\n"
        "    figure.savefig('mass.png', dpi=open('in.txt', 'r').read())\n"
        "    pickle.dump(h, open('out.pkl', 'wb'))\n"
        "    open('log.txt', mode='a').write('line')\n"
        "    return open('sf.json'), open('sf2.json', 'rb')\n"
        "if __name__ == '__main__':\n    print(open('result.json'))\n"
        "else:\n    X = 'both'\n"
    )
    assert read_source(str(path)).strings == {"sf.json", "sf2.json", "rb"}


@pytest.mark.parametrize("content", [b"def f(:", b"\0", b"\xff\xfe", b""])
def test_what_is_no_python_counts_by_its_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "module.py"
    path.write_bytes(content)
    before = read_source(str(path))
    assert before.imports == frozenset()
    path.write_bytes(content + b"x = 1")
    assert read_source(str(path)).digest != before.digest


def test_a_compiled_module_counts_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "module.so"
    path.write_bytes(b"# one")
    before = read_source(str(path)).digest
    path.write_bytes(b"# two")
    assert read_source(str(path)).digest != before
