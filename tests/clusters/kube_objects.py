"""What a Kubernetes keeps: objects, and the changes to them, in order. No network, no processes."""

from __future__ import annotations

import asyncio
import copy
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["KINDS", "Change", "Key", "Kind", "Objects", "merge_patch", "patch_json", "selects"]

DASK = "kubernetes.dask.org/v1"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of objects: its version, its name, and that of many."""

    version: str
    name: str
    has_namespace: bool = True

    @property
    def plural(self) -> str:
        """As it is in URLs."""
        return f"{self.name.lower()}s"


#: Those that dask's operator and its client use.
KINDS = (
    Kind("v1", "Namespace", has_namespace=False),
    Kind("v1", "Pod"),
    Kind("v1", "Service"),
    Kind("v1", "Event"),
    Kind("apps/v1", "Deployment"),
    Kind("apiextensions.k8s.io/v1", "CustomResourceDefinition", has_namespace=False),
    *(Kind(DASK, f"Dask{one}") for one in ("Cluster", "WorkerGroup", "Job", "Autoscaler")),
)


@dataclass(frozen=True, slots=True)
class Key:
    """Where an object is."""

    kind: Kind
    namespace: str | None
    name: str


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to an object: ``ADDED``, ``MODIFIED`` or ``DELETED``, and how it was then."""

    version: int
    event: str
    key: Key
    value: Any


class Objects:
    """All objects, with what Kubernetes does when they come and go.

    Attributes
    ----------
    changes : list of Change
        All since the start.
    """

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self._objects: dict[Key, Any] = {}
        self._changed = asyncio.Condition()

    @property
    def version(self) -> int:
        """How many changes there were: the version of the last."""
        return len(self.changes)

    def get(self, key: Key) -> Any:
        """Return an object; None if it isn't there."""
        return self._objects.get(key)

    def of(self, plural: str) -> Iterator[tuple[Key, Any]]:
        """Return all objects of a kind, as they are now."""
        return iter([(key, one) for key, one in self._objects.items() if key.kind.plural == plural])

    async def add(self, kind: Kind, namespace: str | None, value: Any) -> Any:
        """Keep a new object; None if there is one of its name."""
        metadata = value.setdefault("metadata", {})
        if "name" not in metadata:
            metadata["name"] = f"{metadata.get('generateName', '')}{uuid.uuid4().hex[:5]}"
        if kind.has_namespace:
            metadata["namespace"] = namespace or metadata.get("namespace", "default")
        key = Key(kind, metadata.get("namespace"), metadata["name"])
        if key in self._objects:
            return None
        value.setdefault("apiVersion", kind.version)
        value.setdefault("kind", kind.name)
        made = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata.update(uid=str(uuid.uuid4()), creationTimestamp=made, generation=1)
        self._objects[key] = value
        await self.note("ADDED", key)
        return value

    async def note(self, event: str, key: Key, gone: Any = None) -> None:
        """Write a change down, and wake those who wait for one."""
        value = gone or self._objects[key]
        value["metadata"]["resourceVersion"] = str(self.version + 1)
        self.changes.append(Change(self.version + 1, event, key, copy.deepcopy(value)))
        async with self._changed:
            self._changed.notify_all()

    async def wait_for_change(self, after: int, seconds: float) -> None:
        """Return when there is a later change than one, or after a time."""
        async with self._changed:
            if self.version <= after:
                try:
                    await asyncio.wait_for(self._changed.wait(), seconds)
                except TimeoutError:
                    return

    async def remove(self, key: Key) -> None:
        """Delete an object and all that it owns; one with finalizers is only marked, until these are gone."""
        value = self._objects.get(key)
        if value is None:
            return
        metadata = value["metadata"]
        if metadata.get("finalizers"):
            if "deletionTimestamp" not in metadata:
                metadata["deletionTimestamp"] = metadata["creationTimestamp"]
                await self.note("MODIFIED", key)
            return
        del self._objects[key]
        await self.note("DELETED", key, value)
        for other in [one for one, owned in self._objects.items() if owns(value, owned)]:
            await self.remove(other)

    async def changed(self, key: Key) -> None:
        """Write down that an object was changed; one that only waited for its finalizers to go goes."""
        await self.note("MODIFIED", key)
        metadata = self._objects[key]["metadata"]
        if "deletionTimestamp" in metadata and not metadata.get("finalizers"):
            await self.remove(key)


def owns(owner: Any, value: Any) -> bool:
    """Return whether an object is to go with another one."""
    owners = value["metadata"].get("ownerReferences", ())
    return any(one["uid"] == owner["metadata"]["uid"] for one in owners)


def selects(query: Any, value: Any) -> bool:
    """Return whether an object has the labels and fields that a query asks for; only ``=`` is known."""
    labels = value["metadata"].get("labels") or {}
    for part in filter(None, query.get("labelSelector", "").split(",")):
        name, wanted = _split_equation(part)
        if labels.get(name) != wanted:
            return False
    for part in filter(None, query.get("fieldSelector", "").split(",")):
        path, wanted = _split_equation(part)
        found = value
        for name in path.split("."):
            found = (found or {}).get(name)
        if found != wanted:
            return False
    return True


def _split_equation(text: str) -> tuple[str, str]:
    name, separator, wanted = text.replace("==", "=").partition("=")
    if not separator or name.endswith("!") or " in " in name:
        raise ValueError(f"{text!r} is no equation")
    return name.strip(), wanted.strip()


def merge_patch(value: Any, patch: Any) -> Any:
    """Change an object as RFC 7386 says; return it."""
    if not isinstance(patch, dict):
        return patch
    merged = value if isinstance(value, dict) else {}
    for name, one in patch.items():
        if one is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), one)
    return merged


def patch_json(value: Any, operations: Any) -> bool:
    """Change an object as RFC 6902 says, but for moves and copies; return False if a test fails."""
    for one in operations:
        *path, last = [
            part.replace("~1", "/").replace("~0", "~") for part in one["path"].split("/")[1:]
        ]
        target = value
        for part in path:
            target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
        if not _apply(target, last, one):
            return False
    return True


def _apply(target: Any, last: str, operation: Any) -> bool:
    at: Any = last
    if isinstance(target, list):
        at = len(target) if last == "-" else int(last)
    name = operation["op"]
    if name == "test":
        present = at in target if isinstance(target, dict) else at < len(target)
        return (target[at] if present else None) == operation["value"]
    if name == "remove":
        del target[at]
    elif name == "add" and isinstance(target, list):
        target.insert(at, operation["value"])
    elif name in ("add", "replace"):
        target[at] = operation["value"]
    else:
        raise ValueError(f"{name!r} is no operation that is known here")
    return True
