"""The results of one processor in a store."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hepdask.errors import StoreError
from hepdask.store.locations import open_place
from hepdask.store.names import ABOUT_NAME, check_hex, key_of, object_name
from hepdask.store.objects import (
    HEAD_BYTES,
    check_object,
    decode_value,
    encode_object,
    read_summary,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Section"]


@dataclass(frozen=True, slots=True)
class Section:
    """All results in a store that were made by the same code: small, and sent to workers inside tasks.

    Get one from `Store.section`. Several processes and machines may write the same key at once: the last one wins,
    and as the key stands for all that determines the value, both are equal.

    Attributes
    ----------
    url : str
        Of the store, as `Store.url`.
    name : str
        The fingerprint of the code, in hex.
    """

    url: str
    name: str

    def __post_init__(self) -> None:
        check_hex(self.name, "section")

    def keys(self) -> dict[str, int]:
        """List what is there, in one request.

        Returns
        -------
        dict of str to int
            The bytes of each object, by its key. None of them has been looked into.

        Raises
        ------
        StoreError
            If it can't be listed, or if others can write to it.
        """
        entries = open_place(self.url).list_entries(self.name)
        return {
            key: entry.num_bytes
            for entry in entries
            if entry.kind == "file" and (key := key_of(entry.name)) is not None
        }

    def save(self, key: str, value: Any, *, summary: Mapping[str, Any]) -> int:
        """Store a value, in place of what there is under the same key.

        Parameters
        ----------
        key : str
            A hash of all that determines the value, in hex.
        value : object
            Anything that can be pickled.
        summary : mapping
            What to know of it without loading it, as JSON. ``hepdask store ls`` shows "num_entries".

        Returns
        -------
        int
            Bytes written.

        Raises
        ------
        StoreError
            If it can't be pickled or written; then nothing of it is left behind.
        """
        pieces = encode_object(check_hex(key, "key"), value, summary)
        open_place(self.url).write(self.name, object_name(key), pieces)
        return sum(len(piece) for piece in pieces)

    def load(self, key: str) -> Any:
        """Load a value, after checking all that can be checked.

        Parameters
        ----------
        key : str
            What it was saved under.

        Raises
        ------
        DamagedObjectError
            If it isn't whole, was saved under another key or by another version of the format, or can't be unpickled.
        StoreError
            If it isn't there or can't be read, or if others could have written it.
        """
        name = object_name(check_hex(key, "key"))
        place = open_place(self.url)
        data = place.read(self.name, name)
        if data is None:
            raise StoreError(
                f"the store {self.url} has no {self.name}/{name}: it was removed, or never saved; compute it again"
            )
        where = f"the store's {self.url}/{self.name}/{name}"
        header, payload = check_object(data, key, where)
        place.touch(self.name, name)
        return decode_value(header, payload, where)

    def summaries(self) -> dict[str, dict[str, Any]]:
        """Read the summaries of all objects, without checking these.

        Returns
        -------
        dict of str to dict
            By key; objects whose header can't be read are left out.
        """
        found = {key: self._read_summary(key) for key in self.keys()}
        return {key: summary for key, summary in found.items() if summary is not None}

    def describe(self, about: Mapping[str, Any]) -> None:
        """Write down what the section holds, unless that was done before.

        Parameters
        ----------
        about : mapping
            For people: name of the processor, versions, modules, date. As JSON; what it doesn't know is written as text.

        Raises
        ------
        StoreError
            If it can't be written.
        """
        if self.read_about():
            return
        text = json.dumps({"hepdask_store": 1, "about": dict(about)}, indent=2, default=str)
        open_place(self.url).write(self.name, ABOUT_NAME, [text.encode() + b"\n"])

    def _read_summary(self, key: str) -> dict[str, Any] | None:
        try:
            head = open_place(self.url).read_start(self.name, object_name(key), HEAD_BYTES)
        except StoreError:
            return None
        return None if head is None else read_summary(head)

    def read_about(self) -> dict[str, Any]:
        """Return what `describe` wrote; nothing if it is not there or not readable."""
        text = open_place(self.url).read(self.name, ABOUT_NAME)
        try:
            about = json.loads(bytes(text or b""))["about"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return {}
        return about if isinstance(about, dict) else {}
