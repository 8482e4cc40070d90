"""From a value to the graph of all that it refers to.

A `Walk` goes through objects, one after the other, and asks a function what each consists of. What can't be taken apart
(a lock, an open file) is an error if it belongs to the value. It is none if it is a global of a module of the user's: the
source, which counts anyway, says how it is made. So everything that is reached without such a global is walked first.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hepdask.errors import OptionError
from hepdask.fingerprint.atoms import encode_atom
from hepdask.fingerprint.files import digest_file, find_file
from hepdask.fingerprint.graph import Node
from hepdask.fingerprint.origins import Origin, Origins

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

__all__ = ["MAX_OBJECTS", "Walk", "encode_file"]

#: A processor with more parts than this holds data that belongs into a file.
MAX_OBJECTS = 5_000_000

Step = tuple[str, Any]
"""A format, and what to put into it: ``(".{}", "helper")``."""


class _TooManyPartsError(ValueError):
    """Not the fault of one object: it is never ignored."""


@dataclass(slots=True)
class _Visit:
    value: Any  # kept: the identity of an object that is gone may be given to another
    parent: int
    step: Step
    is_weak: bool
    is_done: bool = False


def encode_file(name: str, directory: str = "") -> bytes | None:
    """Return the digest of the file that a string names; None if it names none that can be read."""
    path = find_file(name, directory)
    try:
        return None if path is None else digest_file(path)
    except OSError:
        return None


class Walk:
    """Builds the graph.

    Parameters
    ----------
    expand : callable
        ``expand(walk, index, value)`` gives the node its label and children.

    Attributes
    ----------
    nodes : list of Node
        The graph; the first one is the root.
    origins : Origins
        Whose the modules are that were met.
    modules : dict of str to str
        The user's modules that were met, with their files.
    distributions : dict of str to str
        The libraries that were met, with their versions.
    user_origins : dict of str to Origin
        Where the user's modules lie that were met, packages without a file among them.
    """

    def __init__(self, expand: Callable[[Walk, int, Any], None]) -> None:
        self.nodes: list[Node] = []
        self.origins = Origins()
        self.modules: dict[str, str] = {}
        self.distributions: dict[str, str] = {}
        self.user_origins: dict[str, Origin] = {}
        self._expand = expand
        self._visits: list[_Visit] = []
        self._known: dict[Hashable, int] = {}
        self._waiting: deque[int] = deque()
        self._waiting_weak: deque[int] = deque()

    @property
    def values(self) -> Iterator[Any]:
        """All objects that were met."""
        return (visit.value for visit in self._visits)

    def run(self, value: Any, name: str, *, is_strict: bool = True) -> None:
        """Walk a value and all that it refers to.

        Parameters
        ----------
        value : object
            The root.
        name : str
            What error texts call it.
        is_strict : bool
            False: what can't be taken apart is passed over, in the value itself, too.

        Raises
        ------
        OptionError
            If a part of it can't be taken apart.
        """
        self._visit(id(value), value, (0, ("{}", name)), is_weak=not is_strict)
        while self._waiting:
            index = self._waiting.popleft()
            visit = self._visits[index]
            if not visit.is_done:
                visit.is_done = True
                try:
                    self._expand(self, index, visit.value)
                except Exception as error:
                    raise OptionError(self._explain(index, error)) from error
        while self._waiting_weak or self._waiting:
            # whatever is found from now on is reached through a weak one
            waiting = self._waiting or self._waiting_weak
            self._expand_weak(waiting.popleft())

    def mark(self, index: int, *parts: bytes | str) -> None:
        """Add plain words to a node."""
        for part in parts:
            encoded = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
            self.nodes[index].children.append(b"m" + encoded)

    def append(
        self,
        index: int,
        value: Any,
        step: Step = ("", None),
        *,
        is_weak: bool = False,
        key: Hashable = None,
    ) -> None:
        """Add a value to a node's children.

        Parameters
        ----------
        index : int
            The node.
        value : object
            Small immutable ones are encoded on the spot, the others get a node.
        step : tuple of str and object
            How error texts come from the node to the value.
        is_weak : bool
            True if it may be something that can't be taken apart.
        key : hashable, optional
            What makes the value the same as another one; by default its identity.
        """
        encoded = encode_atom(value) if key is None else None
        if encoded is None:
            place = (index, step)
            child = self._visit(id(value) if key is None else key, value, place, is_weak=is_weak)
            self.nodes[index].children.append(child)
            return
        self.nodes[index].children.append(encoded)
        if type(value) is str:
            self.append_file(index, value)

    def append_file(self, index: int, name: str, directory: str = "") -> None:
        """Add the content of the file that a string names, if it names one."""
        content = encode_file(name, directory)
        if content is not None:
            place = b"@/" if directory else b"@"
            self.nodes[index].children.append(place + content + name.encode())

    def append_items(self, index: int, items: Iterable[tuple[Any, Any]], step: str) -> None:
        """Add keys and values, in their order."""
        pairs = list(items)
        self.mark(index, f"items {len(pairs)}")
        for key, value in pairs:
            self.append(index, key, (" key {!r:.60}", key))
            self.append(index, value, (step, key))

    def note(self, origin: Origin) -> bytes:
        """Remember a module or a library for the record, and return what stands for its version."""
        self.distributions.update(origin.versions)
        if origin.kind == "user":
            self.user_origins[origin.name] = origin
        if origin.kind == "user" and origin.file is not None:
            self.modules[origin.name] = origin.file
        return repr(origin.versions).encode()

    def _visit(self, key: Hashable, value: Any, place: tuple[int, Step], *, is_weak: bool) -> int:
        index = self._known.get(key)
        if index is None:
            index = self._known[key] = len(self.nodes)
            if index >= MAX_OBJECTS:
                raise _TooManyPartsError(f"it has more than {MAX_OBJECTS:,} parts")
            self.nodes.append(Node())
            self._visits.append(_Visit(value, *place, is_weak))
            (self._waiting_weak if is_weak else self._waiting).append(index)
        elif not is_weak and self._visits[index].is_weak and not self._visits[index].is_done:
            self._visits[index] = _Visit(self._visits[index].value, *place, is_weak=False)
            self._waiting.append(index)
        return index

    def _expand_weak(self, index: int) -> None:
        visit = self._visits[index]
        if visit.is_done:
            return
        visit.is_done = True
        try:
            self._expand(self, index, visit.value)
        except _TooManyPartsError as error:
            raise OptionError(self._explain(index, error)) from error
        except Exception:  # noqa: BLE001  # taking objects apart runs anybody's code
            kind = type(visit.value)
            self.nodes[index] = Node(f"opaque {kind.__module__}.{kind.__qualname__}".encode())

    def _explain(self, index: int, error: Exception) -> str:
        visit = self._visits[index]
        steps = []
        while True:
            here = self._visits[index]
            steps.append(here.step[0].format(here.step[1]))
            if index == 0:
                break
            index = here.parent
        path = "".join(reversed(steps))
        kind = type(visit.value).__qualname__
        return (
            f"{path} ({kind}) can't be part of a fingerprint: {error}; leave it out of the processor, or give its owner "
            "a __getstate__ that leaves it out, or run without store="
        )
