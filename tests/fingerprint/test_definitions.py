"""Functions and classes that have no module of their own: what a notebook has."""

from __future__ import annotations

import contextlib
import functools
import linecache
import sys
import threading
import types
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest

from hepdask.errors import OptionError
from hepdask.fingerprint import describe_sources, fingerprint, walk

if TYPE_CHECKING:
    from pathlib import Path


def define(source: str, name: str = "f", **names: Any) -> Any:
    """Run a notebook's cell and return what it defines."""
    namespace: dict[str, Any] = {"__name__": "__main__", **names}
    exec(compile(source, "<cell>", "exec", dont_inherit=True), namespace)  # noqa: S102
    return namespace[name]


SAME = {
    "lines": ("def f(x):\n    return x + 1", "\n\n# comment\ndef f(x):\n\n    return (x\n  + 1)"),
    "docstring": ("def f(x):\n    return None", "def f(x):\n    'Doc.'\n    return None"),
    "pass": (
        "def f(x):\n    if x:\n        pass\n        return 1\n    return 2",
        "def f(x):\n    if x:\n        return 1\n    return 2",
    ),
    "jump": (
        "def f(x):\n    for y in x:\n        if y: continue\n        print(y)",
        "def f(x):\n    'Doc'\n    for y in x:\n        if y:\n\n            continue\n        print(y)",
    ),
    "inner class": (
        "def f():\n    class A:\n        x = 1\n    return A",
        "def f():\n\n    class A:\n        'Doc.'\n        x = 1\n    return A",
    ),
    "unrelated global": ("a = 1\ndef f(x):\n    return x.a", "a = 2\ndef f(x):\n    return x.a"),
    "set": ("def f(x):\n    return x in {'a', 'b'}", "def f(x):\n    return x in {'b', 'a'}"),
}


@pytest.mark.parametrize("name", SAME)
def test_layout_does_not_count(name: str) -> None:
    left, right = SAME[name]
    assert fingerprint(define(left)) == fingerprint(define(right))


DIFFERENT = [
    "def f(x): return x + 1",
    "def f(x): return x + 2",
    "def f(x): return x + 1.0",
    "def f(x): return x - 1",
    "def f(x, y=1): return x + 1",
    "def f(x, y=True): return x + 1",
    "def f(x, *, y=1): return x + 1",
    "def f(x, *, y=2): return x + 1",
    "def f(x, *y): return x + 1",
    "def f(x): return x.pt",
    "def f(x): return x.eta",
    "def f(x): return x.pt()",
    "def f(x): return pt(x)",
    "def f(x): return x in {'a', 'b'}",
    "def f(x): return x in {'a', 'c'}",
    "def f(x): return [y + 1 for y in x]",
    "def f(x): return [y + 2 for y in x]",
    "def f(x): return (y + 2 for y in x)",
    "def f(x):\n  a()\n  try: b()\n  except KeyError: pass",
    "def f(x):\n  try: a(); b()\n  except KeyError: pass",
    "def f(x):\n  try: a(); b()\n  except ValueError: pass",
    "def f(x):\n  while x: x = g(x)",
    "def f(x):\n  if x: x = g(x)",
    "def f(x): return f'{x}'",
    "def f(x): return f'{x!r}'",
    "def f(x): return f'{x:.3f}'",
    "async def f(x): return x + 1",
    "a = 1\ndef f(x): return x + a",
    "a = 2\ndef f(x): return x + a",
    "a = [1]\ndef f(x): return x + a",
    "a = 1\ndef f(x): return eval('x + a')",
    "a = 2\ndef f(x): return eval('x + a')",
    "def g(x): return 1\ndef f(x): return g(x)",
    "def g(x): return 2\ndef f(x): return g(x)",
    "import math\ndef f(x): return math.sin(x)",
    "import cmath as math\ndef f(x): return math.sin(x)",
    "def f(x):\n  import math\n  return math.sin(x)",
    "def f(x):\n  from math import sin\n  return sin(x)",
    "def g(a):\n  def f(x): return x + a\n  return f\nf = g(1)",
    "def g(a):\n  def f(x): return x + a\n  return f\nf = g(2)",
    "def g(a):\n  def f(x): return a and f(x - 1)\n  return f\nf = g(2)",
    "from functools import wraps\ndef d(g):\n  @wraps(g)\n  def h(x): return g(x) * 2\n  return h\n@d\ndef f(x): return x",
    "from functools import wraps\ndef d(g):\n  @wraps(g)\n  def h(x): return g(x) * 3\n  return h\n@d\ndef f(x): return x",
    "from functools import wraps\ndef d(g):\n  @wraps(g)\n  def h(x): return g(x) * 3\n  return h\n@d\ndef f(x): return -x",
    "from functools import lru_cache\n@lru_cache\ndef f(x): return x",
    "from functools import lru_cache\n@lru_cache\ndef f(x): return -x",
    "from functools import lru_cache\n@lru_cache(maxsize=3)\ndef f(x): return -x",
    "from functools import singledispatch\n@singledispatch\ndef f(x): return x",
    "from functools import singledispatch\n@singledispatch\ndef f(x): return x\n@f.register(int)\ndef _(x): return 1",
    "from functools import singledispatch\n@singledispatch\ndef f(x): return x\n@f.register(int)\ndef _(x): return 2",
    "from contextlib import contextmanager\n@contextmanager\ndef f(x): yield 1",
    "from contextlib import contextmanager\n@contextmanager\ndef f(x): yield 2",
    "from collections import namedtuple\nf = namedtuple('f', 'a b')",
    "from collections import namedtuple\nf = namedtuple('f', 'a c')",
    "class f: x = 1",
    "class f: x = 2",
    "class f: x: int = 2",
    "class f:\n  __slots__ = ('x',)",
    "class f:\n  __slots__ = ('y',)",
    "class f:\n  @property\n  def x(self): return 1",
    "class f:\n  @property\n  def x(self): return 2",
    "class f:\n  @staticmethod\n  def x(a): return 2",
    "class f:\n  @classmethod\n  def x(a): return 2",
    "class f:\n  def x(a): return 2",
    "class g: x = 2\nclass f(g): pass",
    "class g: x = 3\nclass f(g): pass",
    "class g(type): x = 3\nclass f(metaclass=g): pass",
    "class g(type): x = 4\nclass f(metaclass=g): pass",
    "from functools import cached_property\nclass f:\n  @cached_property\n  def x(self): return 1",
    "from functools import cached_property\nclass f:\n  @cached_property\n  def x(self): return 2",
    "from abc import ABC, abstractmethod\nclass f(ABC):\n  @abstractmethod\n  def x(self): return 2",
    "from dataclasses import dataclass\n@dataclass\nclass f:\n  x: int = 1",
    "from dataclasses import dataclass\n@dataclass\nclass f:\n  x: int = 2",
    "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass f:\n  x: int = 2",
    "from enum import Enum\nclass f(Enum):\n  A = 1",
    "from enum import Enum\nclass f(Enum):\n  A = 2",
    "from typing import NamedTuple\nclass f(NamedTuple):\n  a: int = 1",
    "from typing import NamedTuple\nclass f(NamedTuple):\n  a: int = 2",
    "from typing import Generic, TypeVar\nT = TypeVar('T')\nclass f(Generic[T]): pass",
]  # fmt: skip


def test_what_code_does_counts() -> None:
    digests = [fingerprint(define(source)) for source in DIFFERENT]
    assert len(set(digests)) == len(DIFFERENT)
    assert [fingerprint(define(f"'Doc.'\n\n{source}")) for source in DIFFERENT] == digests
    assert not [name for name in linecache.cache if name == "<cell>"]


CLASS = """
import functools
class f:
    scale = 2
    def __init__(self, cut): self.cut = cut
    def process(self, events): return [e for e in events if e > self.cut] * self.scale
    def again(self): return super().__repr__() + str(type(self) is __class__)
"""


def test_instances_of_a_notebooks_class() -> None:
    first, second = define(CLASS), define(CLASS)
    assert fingerprint(first(1)) == fingerprint(second(1))
    assert fingerprint(first(1)) != fingerprint(first(2))
    assert fingerprint(first(1).process) == fingerprint(second(1).process)
    assert fingerprint(first(1).process) != fingerprint(first(1).again)
    assert fingerprint(functools.partial(first, 1)) != fingerprint(functools.partial(first, 2))
    second.scale = 3
    assert fingerprint(first(1)) != fingerprint(second(1))


def test_what_cloudpickle_brings_back_is_the_same() -> None:
    for source in (CLASS, "class g: x = 2\nclass f(g):\n    def p(self): return g"):
        kind = define(source)
        loaded = cloudpickle.loads(cloudpickle.dumps(kind))
        assert fingerprint(loaded) == fingerprint(kind)
    function = define("import math\na = [1]\ndef f(x, y=2):\n    return math.sin(x) + a + f(y)")
    loaded = cloudpickle.loads(cloudpickle.dumps(function))
    assert loaded is not function
    assert fingerprint(loaded) == fingerprint(function)


def test_calls_change_nothing() -> None:
    function = define("def f(x):\n    return sum(y * y for y in range(x))")
    before = fingerprint(function)
    for _ in range(100):
        function(100)
    assert fingerprint(function) == before


def test_a_lock_among_the_globals_of_a_notebook_is_an_error() -> None:
    source = "def f(x):\n    with lock: return x"
    with pytest.raises(OptionError, match=r"processor, global lock \(lock\) can't be part"):
        fingerprint(define(source, lock=threading.Lock()))
    with pytest.raises(OptionError, match=r"processor, variable lock"):
        fingerprint(define("def g(lock):\n    def f(): return lock\n    return f", "g")(threading.Lock()))  # fmt: skip


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Import a module of the user's, with a lock and a table among its globals."""
    (tmp_path / "fp_locked.py").write_text(
        "import threading\n"
        "lock = threading.Lock()\n"
        "table = {'lock': threading.Lock(), 'scale': 1}\n"
        "def f(x):\n    with lock: return x + table['scale']\n"
        "class P:\n"
        "    lock = threading.Lock()\n"
        "    def __init__(self, own=None): self.own = own\n"
        "    def process(self, x): return f(x)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import fp_locked

    yield fp_locked
    del sys.modules["fp_locked"]


def test_a_lock_among_the_globals_of_a_module_counts_by_its_source(module: Any) -> None:
    before = fingerprint(module.P())
    assert fingerprint(module.P()) == before
    module.table["scale"] = 2
    assert fingerprint(module.P()) != before
    with pytest.raises(OptionError, match=r"^processor\.own \(lock\)"):
        fingerprint(module.P(module.lock))
    with pytest.raises(OptionError, match=r"^processor\.own\['lock'\] \(lock\)"):
        fingerprint(module.P(module.table))


def test_a_table_that_is_too_large_is_an_error_in_a_module_too(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "MAX_OBJECTS", 1_000)
    assert fingerprint(module.P())
    module.table["large"] = [[n] for n in range(2_000)]
    with pytest.raises(OptionError, match=r"global table\['large'\] .*more than 1,000 parts"):
        fingerprint(module.P())


def test_a_function_that_is_replaced_in_a_module_counts(module: Any) -> None:
    before = fingerprint(module.P())
    module.f = define("def f(x): return 0")
    assert fingerprint(module.P()) != before


def test_a_modules_value_that_a_notebook_looks_up_counts_as_it_is(module: Any) -> None:
    function = define("def f(x):\n    return mod.table", mod=module)
    before = fingerprint(function)
    module.other = 3
    assert fingerprint(function) == before
    module.table["scale"] = 2
    assert fingerprint(function) != before
    lazy = define("def f(x):\n    from fp_locked import table\n    return table")
    now = fingerprint(lazy)
    module.table["scale"] = 3
    assert fingerprint(lazy) != now


def test_a_module_without_a_file_counts_by_what_is_in_it() -> None:
    made = types.ModuleType("fp_made")
    made.__dict__["cut"] = 3
    function = define("def f(x):\n    return mod.cut", mod=made)
    before = fingerprint(function), fingerprint(made)
    made.__dict__["cut"] = 4
    assert fingerprint(function) != before[0]
    assert fingerprint(made) != before[1]


def test_sources_are_described(module: Any) -> None:
    sources = describe_sources(module.P())
    assert sources.modules == {"fp_locked": module.__file__}
    assert sources.distributions == {}
    import awkward as ak

    sources = describe_sources(define("def f(x):\n    return ak.sum(x)", ak=ak))
    assert sources.distributions == {"awkward": ak.__version__}


def test_hepdask_counts_by_its_version() -> None:
    import hepdask
    from hepdask import add

    assert describe_sources(add).modules == {}
    assert describe_sources(add).distributions == {"hepdask": hepdask.__version__}


def test_context_managers_of_the_library_show_their_function() -> None:
    sources = ["yield 1", "yield 2"]
    managers = [contextlib.contextmanager(define(f"def f(): {one}")) for one in sources]
    assert fingerprint(managers[0]) != fingerprint(managers[1])


def test_what_pickling_leaves_in_a_class_does_not_count() -> None:
    source = "class Base:\n    pass\nclass Child(Base):\n    pass\nmake = (Base, Child)"
    base, child = define(source, "make")
    before = fingerprint(child())
    base().__reduce_ex__(2)  # copyreg keeps __slotnames__ in the class
    assert "__slotnames__" in vars(base)
    assert fingerprint(child()) == before
