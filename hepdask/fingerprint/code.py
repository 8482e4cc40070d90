"""What a code object does, without where it was written: no file name, line number, docstring or formatting.

Instructions are hashed with the constants and names that they use instead of the positions of these in a table, and jumps
with the number of the instruction that they go to: a docstring, or an instruction that only holds a line for the
debugger, then changes nothing.
"""

from __future__ import annotations

import bisect
import dis
import hashlib
import re
import weakref
from dataclasses import dataclass
from types import CodeType
from typing import Any

from hepdask.fingerprint.atoms import encode_atom

__all__ = ["CodeFacts", "ImportedName", "read_code"]

_GLOBAL_OPERATIONS = frozenset(
    {"DELETE_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS", "LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL"}
)
_IGNORED_OPERATIONS = frozenset({"CACHE", "EXTENDED_ARG", "NOP", "NOT_TAKEN"})
#: set in the body of a class; they tell where it was written
_IGNORED_ASSIGNMENTS = frozenset({"__doc__", "__firstlineno__", "__static_attributes__"})
#: with these, a name may stand in a string
_LOOK_UP_BY_STRING = frozenset({"eval", "exec", "globals", "locals", "vars"})
_HAS_DOCSTRING = 0x4000000  # a flag of Python 3.13
_JUMPS = frozenset(dis.hasjrel) | frozenset(dis.hasjabs)
_NAMED = frozenset(dis.hasname) | frozenset(dis.haslocal) | frozenset(dis.hasfree)
_CONSTANTS = frozenset(dis.hasconst)


@dataclass(frozen=True, slots=True)
class ImportedName:
    """One import, as it is written."""

    module: str
    """``a.b`` of ``import a.b`` and of ``from a.b import c``; empty for ``from . import c``."""
    names: tuple[str, ...] = ()
    """``c`` of ``from a.b import c``; none for ``import a.b``."""
    level: int = 0
    """Number of leading dots."""


@dataclass(frozen=True, slots=True)
class CodeFacts:
    """What a code object does and what it refers to, its nested functions and classes included."""

    digest: bytes
    """Of its instructions."""
    global_names: frozenset[str]
    """Names that are looked up in the module or the builtins."""
    attributes: frozenset[str]
    """Names of attributes that are looked up in anything."""
    imports: frozenset[ImportedName]
    """Modules that it imports when it runs."""
    strings: frozenset[str]
    """String constants; one may name a file."""


_READ: dict[int, tuple[weakref.ref[CodeType], CodeFacts]] = {}


def read_code(code: CodeType) -> CodeFacts:
    """Return the facts of a code object, worked out once for each."""
    # not by equality: code that is equal in Python 3.11 may differ in its exception table
    known = _READ.get(id(code))
    if known is not None and known[0]() is code:
        return known[1]
    facts = _Reader(code).facts()
    key = id(code)
    _READ[key] = weakref.ref(code, lambda _: _READ.pop(key, None)), facts
    return facts


class _Reader:
    def __init__(self, code: CodeType) -> None:
        self._code = code
        self._global_names: set[str] = set()
        self._attributes: set[str] = set()
        self._imports: set[ImportedName] = set()
        self._strings: set[str] = set()

    def facts(self) -> CodeFacts:
        digest = self._digest()
        if self._global_names & _LOOK_UP_BY_STRING:
            for text in self._strings:
                self._global_names.update(re.findall(r"[^\W\d]\w*", text))
        return CodeFacts(
            digest,
            frozenset(self._global_names),
            frozenset(self._attributes),
            frozenset(self._imports),
            frozenset(self._strings),
        )

    def _digest(self) -> bytes:
        code = self._code
        kept = self._list_instructions()
        offsets = [one.offset for one in kept]
        num_arguments = (
            code.co_argcount
            + code.co_kwonlyargcount
            + bool(code.co_flags & 0x04)
            + bool(code.co_flags & 0x08)
        )
        head = (
            code.co_name, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount,
            code.co_flags & ~_HAS_DOCSTRING, code.co_varnames[:num_arguments], code.co_freevars, code.co_cellvars,
        )  # fmt: skip
        parts = [repr(head).encode("utf-8", "surrogatepass")]
        for number, instruction in enumerate(kept):
            self._note(kept, number)
            parts.append(instruction.opname.encode())
            parts.append(self._encode_argument(instruction, offsets))
        for entry in _list_exception_entries(code):
            places = [bisect.bisect_left(offsets, place) for place in entry[:3]]
            parts.append(repr((*places, *entry[3:])).encode())
        return _hash(parts)

    def _list_instructions(self) -> list[dis.Instruction]:
        kept: list[dis.Instruction] = []
        for instruction in dis.get_instructions(self._code):
            if instruction.opname in _IGNORED_OPERATIONS:
                continue
            if instruction.opname == "STORE_NAME" and instruction.argval in _IGNORED_ASSIGNMENTS:
                kept.pop()  # the constant that would be stored
                continue
            kept.append(instruction)
        return kept

    def _encode_argument(self, instruction: dis.Instruction, offsets: list[int]) -> bytes:
        if instruction.opcode in _CONSTANTS:
            return self._encode_constant(instruction.argval)
        if instruction.opcode in _JUMPS:
            return b"to %d" % bisect.bisect_left(offsets, instruction.argval)
        if instruction.opcode in _NAMED:
            # its position in the table of names doesn't count; a flag that shares the argument is in argrepr
            text = f"{instruction.argval!r} {instruction.argrepr}"
            return text.encode("utf-8", "surrogatepass")
        return b"%d" % (-1 if instruction.arg is None else instruction.arg)

    def _encode_constant(self, value: Any) -> bytes:
        if isinstance(value, CodeType):
            return b"code" + self._absorb(read_code(value))
        if type(value) is str:
            self._strings.add(value)
        if isinstance(value, tuple):
            return b"tuple" + _hash([self._encode_constant(one) for one in value])
        if isinstance(value, frozenset):
            return b"set" + _hash(sorted(self._encode_constant(one) for one in value))
        if isinstance(value, slice):  # a constant since Python 3.14
            return b"slice" + self._encode_constant((value.start, value.stop, value.step))
        encoded = encode_atom(value)
        return repr(value).encode() if encoded is None else b"atom" + encoded

    def _absorb(self, facts: CodeFacts) -> bytes:
        self._global_names |= facts.global_names
        self._attributes |= facts.attributes
        self._imports |= facts.imports
        self._strings |= facts.strings
        return facts.digest

    def _note(self, kept: list[dis.Instruction], number: int) -> None:
        instruction = kept[number]
        if instruction.opname in _GLOBAL_OPERATIONS:
            self._global_names.add(instruction.argval)
        elif instruction.opname == "IMPORT_NAME":
            level, names = (one.argval for one in kept[number - 2 : number])
            is_level = isinstance(level, int)
            self._imports.add(
                ImportedName(instruction.argval, tuple(names or ()), level if is_level else 0)
            )
        elif instruction.opcode in dis.hasname:
            self._attributes.add(instruction.argval)


def _list_exception_entries(code: CodeType) -> list[tuple[int, int, int, int, bool]]:
    return [
        (entry.start, entry.end, entry.target, entry.depth, entry.lasti)
        for entry in getattr(dis.Bytecode(code), "exception_entries", ())
    ]


def _hash(parts: list[bytes]) -> bytes:
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(b"%d:" % len(part))
        hasher.update(part)
    return hasher.digest()
