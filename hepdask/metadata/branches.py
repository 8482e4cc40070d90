"""The branches of files, packed so that those of a whole campaign fit into memory."""

from __future__ import annotations

import hashlib
import json
import weakref
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Branch", "Branches", "Layout", "pack", "share_layout", "unpack"]


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch of a TTree, or a top-level field of an RNTuple.

    Attributes
    ----------
    name : str
        As uproot names it, with the parents' names where it has any: what a reader is asked for.
    typename : str
        Its C++ type.
    num_compressed_bytes : int
        Bytes in the file, all entries together.
    num_uncompressed_bytes : int
        Bytes after decompression, all entries together.
    """

    name: str
    typename: str
    num_compressed_bytes: int
    num_uncompressed_bytes: int


class Branches(Sequence[Branch]):
    """The branches of a file, packed: they compare, hash and iterate as a tuple of `Branch`.

    60,000 NanoAOD files have 90 million branches: 10 GB as objects. Here files of the same layout share the names and
    types, and the sizes stay compressed (some kB a file) until somebody looks at them.
    """

    __slots__ = ("layout", "packed_sizes")

    layout: Layout
    packed_sizes: bytes

    def __init__(self, branches: Iterable[Branch]) -> None:
        columns = list(branches)
        self.layout = share_layout(
            tuple(one.name for one in columns), tuple(one.typename for one in columns)
        )
        compressed = [one.num_compressed_bytes for one in columns]
        self.packed_sizes = pack([compressed, [one.num_uncompressed_bytes for one in columns]])

    @classmethod
    def from_packed(cls, layout: Layout, packed_sizes: bytes) -> Branches:
        """Build from a shared layout and sizes that are packed already."""
        made = cls.__new__(cls)
        made.layout = layout
        made.packed_sizes = packed_sizes
        return made

    @property
    def names(self) -> tuple[str, ...]:
        """The names alone, which cost nothing."""
        return self.layout.names

    def __len__(self) -> int:
        return len(self.layout.names)

    def __iter__(self) -> Iterator[Branch]:
        layout = self.layout
        columns = zip(layout.names, layout.typenames, *unpack(self.packed_sizes), strict=True)
        return (Branch(*column) for column in columns)

    @overload
    def __getitem__(self, index: int) -> Branch: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Branch, ...]: ...
    def __getitem__(self, index: int | slice) -> Branch | tuple[Branch, ...]:
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Branches | tuple):
            return tuple(self) == tuple(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"<Branches: {len(self)}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # the same two tuples for all files of a layout: in one pickle they are written once
        return _rebuild_branches, (self.layout.names, self.layout.typenames, self.packed_sizes)


def _rebuild_branches(
    names: tuple[str, ...], typenames: tuple[str, ...], packed_sizes: bytes
) -> Branches:
    return Branches.from_packed(share_layout(names, typenames), packed_sizes)


class Layout:
    """Names and types of the branches; equal ones are one object, as long as any is in use.

    Attributes
    ----------
    names, typenames : tuple of str
        Of all branches, in the file's order.
    digest : str
        32 hexadecimal digits, the same for the same names and types.
    """

    __slots__ = ("__weakref__", "digest", "names", "typenames")

    def __init__(self, names: tuple[str, ...], typenames: tuple[str, ...], digest: str) -> None:
        self.names = names
        self.typenames = typenames
        self.digest = digest


_layouts: weakref.WeakValueDictionary[str, Layout] = weakref.WeakValueDictionary()


def share_layout(names: tuple[str, ...], typenames: tuple[str, ...]) -> Layout:
    """Give the one `Layout` of these names and types in this process."""
    digest = hashlib.sha256(json.dumps([names, typenames]).encode()).hexdigest()[:32]
    return _layouts.setdefault(digest, Layout(names, typenames, digest))


def pack(value: Any) -> bytes:
    """Compress what JSON can hold."""
    # level 1: 5 times as fast as level 6 on lists of sizes, and 8 % larger
    return zlib.compress(json.dumps(value, separators=(",", ":")).encode(), level=1)


def unpack(packed: bytes) -> Any:
    """Give back what `pack` was given, with lists for tuples.

    Raises
    ------
    ValueError, zlib.error
        If `packed` is damaged.
    """
    return json.loads(zlib.decompress(packed))
