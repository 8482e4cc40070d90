"""What the source of a module says: a digest without comments, docstrings and formatting; its imports; its literals."""

from __future__ import annotations

import ast
import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import SOURCE_SUFFIXES
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING

from hepdask.fingerprint.atoms import encode_atom
from hepdask.fingerprint.code import ImportedName, read_code
from hepdask.fingerprint.files import FileState, state_of

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SourceFacts", "read_source"]

_HAS_DOCSTRING = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_GUARDS = frozenset({"__name__ == '__main__'", "'__main__' == __name__"})
_WRITERS = ("dump", "recreate", "save", "to_", "write")
_WRITING_MODES = frozenset({"a", "ab", "w", "wb", "wt", "x", "xb"})
_IMPORTERS = frozenset({"__import__", "import_module"})


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What the source of a module says."""

    digest: bytes
    """Of its syntax tree; of its bytes if it is compiled, or no valid Python."""
    imports: frozenset[ImportedName] = frozenset()
    """All of them, those in functions too."""
    strings: frozenset[str] = frozenset()
    """String literals that may name a file to be read: no docstrings, nor what is plainly written to."""
    constants: tuple[tuple[str, bytes], ...] = ()
    """Names that are given a number or a string at the top level and are not declared ``global`` in a function."""
    codes: frozenset[bytes] = frozenset()
    """Digests of all functions in it."""


_READ: dict[FileState, SourceFacts] = {}


def read_source(path: str) -> SourceFacts:
    """Return the facts of a module's file, worked out once for each state of it.

    Raises
    ------
    OSError
        If it can't be read.
    """
    state = state_of(path, os.stat(path))  # noqa: PTH116
    if state is not None and state in _READ:
        return _READ[state]
    content = Path(path).read_bytes()
    facts = _parse(content) if path.endswith(tuple(SOURCE_SUFFIXES)) else _opaque(content)
    if state is not None:
        _READ[state] = facts
    return facts


def _opaque(content: bytes) -> SourceFacts:
    return SourceFacts(hashlib.sha256(b"bytes" + content).digest())


def _parse(content: bytes) -> SourceFacts:
    try:
        tree = ast.parse(content)
        codes = frozenset(_list_codes(compile(content, "source", "exec", dont_inherit=True)))
    except (SyntaxError, ValueError):  # half edited, or no text
        return _opaque(content)
    for node in ast.walk(tree):
        if isinstance(node, _HAS_DOCSTRING):
            _remove_docstring(node)
    imports: set[ImportedName] = set()
    strings: set[str] = set()
    mutable: set[str] = set()
    ignored: set[ast.AST] = set()  # children come after their parents
    for node in ast.walk(tree):
        if node in ignored or _is_output(node):
            ignored.update(ast.iter_child_nodes(node))
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str) and node not in ignored:
                strings.add(node.value)
        elif isinstance(node, ast.Global):
            mutable.update(node.names)
        else:
            imports.update(_read_imports(node))
    return SourceFacts(
        hashlib.sha256(ast.dump(tree).encode("utf-8", "surrogatepass")).digest(),
        frozenset(imports),
        frozenset(strings),
        tuple((name, value) for name, value in _list_constants(tree) if name not in mutable),
        codes,
    )


def _remove_docstring(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> None:
    if ast.get_docstring(node, clean=False) is not None:
        del node.body[0]


def _is_output(node: ast.AST) -> bool:
    """Find what is run as a script only, and calls that write: a plot must not change the fingerprint of the next run."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in _GUARDS
    if not isinstance(node, ast.Call):
        return False
    called = str(getattr(node.func, "attr", None) or getattr(node.func, "id", ""))
    if called == "open":
        modes = (*node.args[1:2], *(key.value for key in node.keywords))
        return any(isinstance(one, ast.Constant) and one.value in _WRITING_MODES for one in modes)
    return called.startswith(_WRITERS)


def _read_imports(node: ast.AST) -> Iterator[ImportedName]:
    if isinstance(node, ast.Import):
        yield from (ImportedName(alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield ImportedName(node.module or "", tuple(alias.name for alias in node.names), node.level)
    elif isinstance(node, ast.Call) and node.args:
        function, name = node.func, node.args[0]
        called = getattr(function, "attr", None) or getattr(function, "id", None)
        if called in _IMPORTERS and isinstance(name, ast.Constant) and isinstance(name.value, str):
            module = name.value.lstrip(".")
            yield ImportedName(module, (), len(name.value) - len(module))


def _list_codes(code: CodeType) -> Iterator[bytes]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield read_code(constant).digest
            yield from _list_codes(constant)


def _list_constants(tree: ast.Module) -> Iterator[tuple[str, bytes]]:
    for node in tree.body:
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        value = getattr(node, "value", None)
        if not targets or not isinstance(value, ast.Constant | ast.UnaryOp):
            continue
        with suppress(ValueError):
            encoded = encode_atom(ast.literal_eval(value))
            if encoded is not None:
                yield from ((one.id, encoded) for one in targets if isinstance(one, ast.Name))
