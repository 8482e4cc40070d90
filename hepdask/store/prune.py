"""What of a store can go: chosen by age, size and damage, and removed."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hepdask.errors import DamagedObjectError, OptionError, StoreError
from hepdask.store.names import ABOUT_NAME, is_temporary, key_of
from hepdask.store.objects import check_object

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hepdask.store.places import Entry, Place

__all__ = ["PruneReport", "PruneRules", "RemovedFile", "choose_removals", "prune_store"]

#: No process takes so long to write a file: what it wrote to is left over.
LEFTOVER_SECONDS = 86_400.0

Reason = Literal["old", "damaged", "too much", "leftover"]


@dataclass(frozen=True, slots=True)
class PruneRules:
    """What to remove.

    Attributes
    ----------
    older_than_seconds : float or None
        Objects that weren't used for so long. None: age doesn't matter.
    max_bytes : int or None
        Those that weren't used for longest, until the rest is no larger. None: size doesn't matter.
    damaged : bool
        Objects that are not what was written.
    """

    older_than_seconds: float | None
    max_bytes: int | None
    damaged: bool

    def __post_init__(self) -> None:
        for name in ("older_than_seconds", "max_bytes"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise OptionError(f"{name} is {value!r}, but has to be 0 or more")


@dataclass(frozen=True, slots=True)
class RemovedFile:
    """A file that was removed, or would be.

    Attributes
    ----------
    section : str
        Where it was.
    name : str
        How it was called.
    num_bytes : int
        Its size.
    reason : str
        "old", "damaged", "too much" (see `PruneRules`), or "leftover": half-written by a process that is gone.
    """

    section: str
    name: str
    num_bytes: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What `Store.prune` did.

    Attributes
    ----------
    removed : tuple of RemovedFile
        What was removed, or would be.
    num_objects_kept : int
        Objects that are left, in the sections that were looked at.
    num_bytes_kept : int
        All of them together.
    problems : tuple of str
        What couldn't be read or removed, and why.
    is_dry_run : bool
        True if nothing was removed.
    """

    removed: tuple[RemovedFile, ...]
    num_objects_kept: int
    num_bytes_kept: int
    problems: tuple[str, ...]
    is_dry_run: bool

    @property
    def num_objects(self) -> int:
        """Objects that were removed."""
        return sum(one.reason != "leftover" for one in self.removed)

    @property
    def num_leftovers(self) -> int:
        """Half-written files that were removed."""
        return sum(one.reason == "leftover" for one in self.removed)

    @property
    def num_bytes(self) -> int:
        """Bytes of all that was removed."""
        return sum(one.num_bytes for one in self.removed)

    def count_reasons(self) -> dict[str, int]:
        """Count the removed files by reason."""
        return dict(Counter(one.reason for one in self.removed))


@dataclass(frozen=True, slots=True)
class _Found:
    section: str
    entry: Entry


def prune_store(
    place: Place, url: str, sections: Sequence[str], rules: PruneRules, *, dry_run: bool
) -> PruneReport:
    """Remove from sections of a store what `rules` say; see `Store.prune`."""
    listings = {section: place.list_entries(section) for section in sections}
    files = [
        _Found(section, entry)
        for section, entries in listings.items()
        for entry in entries
        if entry.kind == "file"
    ]
    objects = [one for one in files if key_of(one.entry.name) is not None]
    problems: list[str] = []
    damaged = (
        {one for one in objects if _is_damaged(place, url, one, problems)}
        if rules.damaged
        else set()
    )
    now = time.time()
    chosen: dict[_Found, Reason] = choose_removals(objects, damaged, rules, now)
    chosen |= dict.fromkeys(_find_leftovers(files, now), "leftover")
    removed = [
        RemovedFile(one.section, one.entry.name, one.entry.num_bytes, reason)
        for one, reason in chosen.items()
        if dry_run or _is_removed(place, one, problems)
    ]
    if not dry_run:
        touched = {one.section for one in removed}
        for section, entries in listings.items():
            try:
                _remove_empty(place, section, entries, is_touched=section in touched, now=now)
            except StoreError as error:
                problems.append(str(error))
    gone = {(one.section, one.name) for one in removed}
    kept = [one for one in objects if (one.section, one.entry.name) not in gone]
    num_bytes_kept = sum(one.entry.num_bytes for one in kept)
    return PruneReport(tuple(removed), len(kept), num_bytes_kept, tuple(problems), dry_run)


def choose_removals(
    objects: Sequence[_Found], damaged: set[_Found], rules: PruneRules, now: float
) -> dict[_Found, Reason]:
    """Choose which objects go, and why.

    Parameters
    ----------
    objects : sequence
        All that there are.
    damaged : set
        Those that are damaged.
    rules : PruneRules
        What to remove.
    now : float
        Seconds since 1970.

    Returns
    -------
    dict
        The reason for each that goes.
    """
    chosen: dict[_Found, Reason] = dict.fromkeys(damaged, "damaged")
    if rules.older_than_seconds is not None:
        for one in objects:
            if one not in chosen and _age(one, now) >= rules.older_than_seconds:
                chosen[one] = "old"
    if rules.max_bytes is not None:
        rest = [one for one in objects if one not in chosen]
        num_bytes = sum(one.entry.num_bytes for one in rest)
        for one in sorted(rest, key=lambda one: one.entry.used_seconds or -math.inf):
            if num_bytes <= rules.max_bytes:
                break
            chosen[one] = "too much"
            num_bytes -= one.entry.num_bytes
    return chosen


def _age(one: _Found, now: float) -> float:
    """Return the seconds since the last use; 0 if that is not known."""
    used = one.entry.used_seconds
    return 0.0 if used is None else now - used


def _is_damaged(place: Place, url: str, one: _Found, problems: list[str]) -> bool:
    name = one.entry.name
    try:
        data = place.read(one.section, name)
        if data is not None:
            check_object(data, key_of(name) or "", f"{url}/{one.section}/{name}")
    except DamagedObjectError:
        return True
    except StoreError as error:
        problems.append(str(error))
    return False


def _find_leftovers(files: Sequence[_Found], now: float) -> Iterator[_Found]:
    for one in files:
        if is_temporary(one.entry.name) and _age(one, now) > LEFTOVER_SECONDS:
            yield one


def _is_removed(place: Place, one: _Found, problems: list[str]) -> bool:
    try:
        place.remove(one.section, one.entry.name)
    except StoreError as error:
        problems.append(str(error))
        return False
    return True


def _remove_empty(
    place: Place, section: str, entries: Sequence[Entry], *, is_touched: bool, now: float
) -> None:
    """Remove a section without objects, but not one that a run has just begun."""
    about = next((one for one in entries if (one.name, one.kind) == (ABOUT_NAME, "file")), None)
    is_old = about is not None and _age(_Found(section, about), now) > LEFTOVER_SECONDS
    if not is_touched and not is_old:
        return
    names = {one.name for one in place.list_entries(section)}
    if about is not None and names == {ABOUT_NAME}:
        place.remove(section, ABOUT_NAME)
    # else there is something that is not ours, or new
    if names <= {ABOUT_NAME}:
        place.remove_directory(section)
