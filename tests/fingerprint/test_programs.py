"""Fingerprints across processes: programs in files that are edited, and run in fresh interpreters."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

MODULES = {
    "script.py": """
from hepdask.fingerprint import fingerprint
from processor import Processor
print(fingerprint(Processor(30)))
""",
    "processor.py": """
from base import Base
import helpers

class Processor(Base):
    def __init__(self, cut):
        self.cut = cut
        self.years = {"2016", "2017", "2018"}

    def process(self, events):
        '''Select.'''
        from lazy import weigh
        return weigh(helpers.select(events, self.cut))
""",
    "base.py": """
import importlib

class Base:
    def postprocess(self, accumulator):
        return importlib.import_module("named").scale(accumulator)
""",
    "helpers.py": """
from package.cuts import CUT

def select(events, cut):
    return events[events > max(cut, CUT)]
""",
    "package/__init__.py": "VERSION = 3\n",
    "package/cuts.py": "from .deep import twice\nfrom . import other as another\nCUT = twice(20)\n",
    "package/deep.py": "def twice(x):\n    return 2 * x\n",
    "package/other.py": "X = 1\n",
    "package/unused.py": "X = 1\n",
    "lazy.py": "def weigh(events):\n    return events * 1.5\n",
    "named.py": "def scale(accumulator):\n    return open('scale.json').read()\n",
    "scale.json": "1.0",
    "unrelated.py": "X = 1\n",
}

SCRIPT = {
    "script.py": """
import math
import tools
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from hepdask.fingerprint import fingerprint

CUTS = {"pt": 30.0}
OTHER = 5
UNUSED = object()

class Flavour(Enum):
    MUON = 13

def is_good(events, factor=2):
    return events > CUTS["pt"] * factor

def is_even(n):
    return n == 0 or is_odd(n - 1)

def is_odd(n):
    return n != 0 and is_even(n - 1)

class Base:
    limit = 3

@dataclass
class Processor(Base):
    year: int = 2018
    flavours: list = field(default_factory=lambda: [Flavour.MUON])

    def process(self, events):
        '''Select.'''
        try:
            return [tools.weigh(one) for one in events if is_good(one) and is_even(one)]
        except ValueError:
            return None

    @property
    def label(self):
        return "label"

    @staticmethod
    def helper(x):
        return math.sqrt(x)

print(fingerprint(Processor()), fingerprint(partial(is_even, n=lambda x: x + 1)))
""",
    "tools.py": "SCALE = [1]\ndef weigh(event):\n    return event * SCALE[0]\n",
}


def write(directory: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def run(directory: Path, script: str = "script.py", seed: int = 0) -> str:
    return run_all([directory], script, seed)[0]


def run_all(directories: list[Path], script: str = "script.py", seed: int = 0) -> list[str]:
    """Run a script in each directory, all at the same time."""
    environment = os.environ | {
        "PYTHONHASHSEED": str(seed),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPYCACHEPREFIX": "",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKS, script, *map(str, directories)],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    outputs = [(one / "output").read_text().strip() for one in directories]
    assert all(len(one.split()[0]) == 64 for one in outputs)
    return outputs


#: hepdask is imported once, and the interpreter copied for each directory: that takes a fifth of the time
FORKS = """
import os, sys
import hepdask.fingerprint
script, directories = sys.argv[1], sys.argv[2:]
for directory in directories:
    process = os.fork()
    if process == 0:
        os.chdir(directory)
        os.dup2(os.open("output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        sys.argv, sys.path[0] = [script], directory
        del directory, directories, process
        main = vars(sys.modules["__main__"])
        main["__file__"] = script
        exec(compile(open(script).read(), script, "exec", dont_inherit=True), main)
        sys.stdout.flush()
        os._exit(0)
    if os.waitpid(process, 0)[1]:
        sys.exit(f"{directory} failed")
"""


def edit(directory: Path, name: str, old: str, new: str) -> None:
    path = directory / name
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} in {name}"
    path.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    directory = write(tmp_path_factory.mktemp("modules"), MODULES)
    return directory, run(directory)


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    directory = write(tmp_path_factory.mktemp("script"), SCRIPT)
    return directory, run(directory)


EDITS_OF_MODULES = [
    ("script.py", "30", "31"),
    ("processor.py", "self.cut))", "self.cut)) ** 2"),
    ("processor.py", "2017", "2015"),
    ("base.py", "scale(accumulator)", "scale(accumulator) * 2"),
    ("helpers.py", "max", "min"),
    ("package/__init__.py", "3", "4"),
    ("package/cuts.py", "20", "21"),
    ("package/deep.py", "2 *", "3 *"),
    ("package/other.py", "1", "2"),
    ("lazy.py", "1.5", "1.6"),
    ("named.py", "read()", "read(1)"),
    ("scale.json", "1.0", "1.1"),
]


def test_an_edit_of_what_is_used_changes_it(modules: tuple[Path, str], tmp_path: Path) -> None:
    directory, before = modules
    copies = []
    for number, (name, old, new) in enumerate(EDITS_OF_MODULES):
        copies.append(shutil.copytree(directory, tmp_path / str(number)))
        edit(copies[-1], name, old, new)
    outputs = run_all(copies)
    assert [one for one, now in zip(EDITS_OF_MODULES, outputs, strict=True) if now == before] == []
    assert len(set(outputs)) == len(outputs)


def test_what_cannot_change_the_output_does_not_change_it(
    modules: tuple[Path, str], tmp_path: Path
) -> None:
    directory, before = modules
    copy = shutil.copytree(directory, tmp_path / "elsewhere")
    edit(copy, "processor.py", "'''Select.'''", "'''Select events.'''\n\n        # by pt")
    edit(copy, "helpers.py", "max(cut, CUT)", "max(\n        cut,\n        CUT\n    )")
    edit(copy, "package/deep.py", "def", "\n\n# a comment\ndef")
    edit(copy, "package/unused.py", "1", "2")
    edit(copy, "unrelated.py", "1", "2")
    edit(copy, "script.py", "\nprint", "\nimport unrelated\nprint")
    assert run(copy, seed=7) == before


def test_a_module_that_is_loaded_early_or_from_a_cache_is_the_same(
    modules: tuple[Path, str], tmp_path: Path
) -> None:
    directory, before = modules
    copy = shutil.copytree(directory, tmp_path / "copy")
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", "."],
        check=True,
        cwd=copy,
        env=os.environ | {"PYTHONPYCACHEPREFIX": ""},
    )
    assert list(copy.rglob("*.pyc"))
    edit(copy, "script.py", "\nprint", "\nimport named, package.other\nprint")
    assert run(copy) == before


EDITS_OF_SCRIPTS = [
    ("script.py", '{"pt": 30.0}', '{"pt": 31.0}'),
    ("script.py", '{"pt": 30.0}', '{"pt": 30}'),
    ("script.py", "MUON = 13", "MUON = 11"),
    ("script.py", "factor=2", "factor=3"),
    ("script.py", "n != 0", "n > 0"),
    ("script.py", "limit = 3", "limit = 4"),
    ("script.py", "year: int = 2018", "year: int = 2017"),
    ("script.py", "year: int", "year: float"),
    ("script.py", "lambda: [Flavour.MUON]", "lambda: [Flavour.MUON] * 2"),
    ("script.py", "except ValueError", "except TypeError"),
    ("script.py", '"label"', '"LABEL"'),
    ("script.py", "math.sqrt", "math.cbrt"),
    ("script.py", "x + 1", "x + 2"),
    ("tools.py", "event *", "event +"),
    ("tools.py", "[1]", "[2]"),
    ("script.py", "\nprint", "\ntools.SCALE.append(3)\nprint"),
    ("script.py", "\nprint", "\nBase.limit = 5\nprint"),
    ("script.py", "\nprint", "\nProcessor.process = is_odd\nprint"),
]


def test_an_edit_of_a_script_changes_it(script: tuple[Path, str], tmp_path: Path) -> None:
    directory, before = script
    copies = []
    for number, (name, old, new) in enumerate(EDITS_OF_SCRIPTS):
        copies.append(shutil.copytree(directory, tmp_path / str(number)))
        edit(copies[-1], name, old, new)
    outputs = run_all(copies)
    assert [one for one, now in zip(EDITS_OF_SCRIPTS, outputs, strict=True) if now == before] == []
    assert len(set(outputs)) == len(outputs)


def test_what_a_script_has_besides_does_not_change_it(
    script: tuple[Path, str], tmp_path: Path
) -> None:
    directory, before = script
    copy = shutil.copytree(directory, tmp_path / "elsewhere")
    (copy / "script.py").rename(copy / "renamed.py")
    edit(copy, "renamed.py", "OTHER = 5\n", "")
    edit(copy, "renamed.py", "UNUSED = object()\n", "\n\nUNUSED = open(__file__)\n")
    edit(copy, "renamed.py", "'''Select.'''", "# by pt\n\n        pass")
    edit(copy, "renamed.py", "is_good(one) and is_even(one)]", "is_good(one)\n  and is_even(one)]")
    edit(copy, "renamed.py", "\nprint", "\nCUTS = dict(CUTS)\nUNUSED.close()\nprint")
    assert run(copy, "renamed.py", seed=11) == before


def test_a_script_that_is_run_by_itself_is_the_same(script: tuple[Path, str]) -> None:
    directory, before = script
    command = [sys.executable, "script.py"]
    assert subprocess.check_output(command, cwd=directory, text=True).strip() == before


def test_each_function_of_a_script_counts_alone(script: tuple[Path, str], tmp_path: Path) -> None:
    directory, before = script
    copy = shutil.copytree(directory, tmp_path / "copy")
    edit(copy, "script.py", "CUTS[", "2 * CUTS[")
    after = run(copy)
    assert after.split()[0] != before.split()[0]
    assert after.split()[1] == before.split()[1]


EDITED = {
    "script.py": """
import importlib, pathlib, sys
import helper
from hepdask.fingerprint import fingerprint

class Processor:
    def process(self, events):
        return helper.run(events)

if "edit" in sys.argv[0]:
    path = pathlib.Path("helper.py")
    path.write_text(path.read_text().replace("%s", "%s"))
stale = fingerprint(Processor())
importlib.reload(helper)
print(stale, fingerprint(Processor()))
""",
    "helper.py": """
TABLE = {}
LIMIT = 3

def register(function):
    TABLE["it"] = function
    return function

class Hidden:
    def hide(self, x):
        return x + 1

def run(events):
    return eval("Hid" + "den")().hide(events) + eval("LIM" + "IT")
""",
}


@pytest.mark.parametrize(("old", "new"), [("x + 1", "x + 2"), ("LIMIT = 3", "LIMIT = 4")])
def test_a_file_that_was_edited_after_the_import_is_nobody_elses(
    tmp_path: Path, old: str, new: str
) -> None:
    write(tmp_path, EDITED)
    text = EDITED["script.py"] % (old, new)
    (tmp_path / "edit.py").write_text(text)
    (tmp_path / "script.py").write_text(text)
    old_fresh = run(tmp_path).split()
    stale, reloaded = run(tmp_path, "edit.py").split()
    new_fresh = run(tmp_path).split()
    assert old_fresh[0] == old_fresh[1]
    assert new_fresh[0] == new_fresh[1]
    assert reloaded == new_fresh[0]
    assert len({old_fresh[0], stale, new_fresh[0]}) == 3


def test_a_module_given_by_its_file_counts_with_its_neighbours(tmp_path: Path) -> None:
    script = """
from pathlib import Path
from hepdask.cli.processors import import_file
from hepdask.fingerprint import describe_sources, fingerprint
module = import_file(Path("code/{}.py"))
instance = module.Processor(30)
print(fingerprint(instance))
assert "unrelated" not in describe_sources(instance).modules
assert {{"base", "helpers", "lazy", "named"}} < describe_sources(instance).modules.keys()
"""
    write(tmp_path / "code", MODULES)
    write(tmp_path, {"script.py": script.format("processor"), "scale.json": "1.0"})
    before = run(tmp_path)
    edit(tmp_path, "code/processor.py", "class", "# a comment\nclass")
    assert run(tmp_path) == before
    edit(tmp_path, "code/helpers.py", "max", "min")
    assert run(tmp_path) != before


def test_a_library_counts_by_its_version(tmp_path: Path) -> None:
    files = {
        "script.py": """
import sys
sys.path.append("lib/site-packages")
import demo_library, yaml
from hepdask.fingerprint import describe_sources, fingerprint

def process(events):
    return demo_library.count(yaml.safe_load(events))

print(fingerprint(process))
print(dict(describe_sources(process).distributions))
""",
        "lib/site-packages/demo_library/__init__.py": "def count(events):\n    return 1\n",
        "lib/site-packages/demo-1.0.dist-info/METADATA": "Name: demo\nVersion: 1.0\n",
        "lib/site-packages/demo-1.0.dist-info/RECORD": "demo_library/__init__.py,,\n",
    }
    write(tmp_path, files)
    before = run(tmp_path)
    assert "'demo': '1.0'" in before
    assert "'PyYAML'" in before
    edit(tmp_path, "lib/site-packages/demo_library/__init__.py", "1", "2")
    assert run(tmp_path) == before
    edit(tmp_path, "lib/site-packages/demo-1.0.dist-info/METADATA", "1.0", "1.1")
    assert run(tmp_path) != before


@pytest.mark.parametrize("has_record", [True, False])
def test_what_is_installed_without_a_version_of_its_own_is_the_users(
    tmp_path: Path, has_record: bool
) -> None:
    files = {
        "script.py": """
import sys
sys.path.append("lib/site-packages")
import demo_library
from hepdask.fingerprint import describe_sources, fingerprint
print(fingerprint(demo_library.count))
assert "demo_library" in describe_sources(demo_library.count).modules
""",
        "lib/site-packages/demo_library.py": "def count(events):\n    return 1\n",
    }
    if has_record:
        information = "lib/site-packages/demo-1.0.dist-info"
        files |= {
            f"{information}/METADATA": "Name: demo\nVersion: 1.0\n",
            f"{information}/RECORD": "demo_library.py,,\n",
            f"{information}/direct_url.json": '{"url": "file:///home/me/demo", "dir_info": {}}',
        }
    write(tmp_path, files)
    before = run(tmp_path)
    edit(tmp_path, "lib/site-packages/demo_library.py", "1", "2")
    assert run(tmp_path) != before


def test_behaviors_of_the_users_count_though_nothing_names_them(tmp_path: Path) -> None:
    files = {
        "script.py": """
import awkward, muons
from hepdask.fingerprint import fingerprint

def process(events):
    return events.charge_sum

print(fingerprint(process))
""",
        "muons.py": """
import awkward
class Muons(awkward.Array):
    @property
    def charge_sum(self):
        return sum(self.charge)
awkward.behavior["*", "muons"] = Muons
""",
    }
    write(tmp_path, files)
    before = run(tmp_path)
    edit(tmp_path, "muons.py", "sum(self.charge)", "-sum(self.charge)")
    assert run(tmp_path) != before
