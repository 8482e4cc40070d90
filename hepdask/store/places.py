"""What a store needs of the place that it is in: the seam between a store and where its files are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    Bytes = bytes | bytearray | memoryview

__all__ = ["Entry", "Place"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a listing.

    Attributes
    ----------
    name : str
        Without the directory.
    kind : str
        "file", "directory", or "other" for links, pipes and the like.
    num_bytes : int
        Size of a file.
    used_seconds : float or None
        Last use of a local file, or time of writing of a remote one, in seconds since 1970. None if it is not known.
    """

    name: str
    kind: Literal["file", "directory", "other"]
    num_bytes: int
    used_seconds: float | None


class Place(Protocol):
    """Where files are, one level of directories deep.

    A directory is named by its name below the place, ``""`` is the place itself. All methods raise `StoreError` for
    whatever goes wrong, with a text for the user.
    """

    def list_entries(self, directory: str) -> list[Entry]:
        """List a directory, as it is now; nothing if it isn't there."""
        ...

    def read(self, directory: str, name: str) -> Bytes | None:
        """Read a file; None if it isn't there."""
        ...

    def read_start(self, directory: str, name: str, num_bytes: int) -> Bytes | None:
        """Read the first bytes of a file, at most; None if it isn't there."""
        ...

    def write(self, directory: str, name: str, pieces: Sequence[Bytes]) -> None:
        """Write a file in one step: others see the old one or the new one. Makes the directories that it needs."""
        ...

    def touch(self, directory: str, name: str) -> None:
        """Note that a file was used, where that can be noted."""
        ...

    def remove(self, directory: str, name: str) -> None:
        """Remove a file; nothing happens if it isn't there."""
        ...

    def remove_directory(self, directory: str) -> None:
        """Remove a directory if it is empty; nothing happens if it isn't."""
        ...
