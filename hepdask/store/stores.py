"""A store: where it is, what is in it, and what of it can go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hepdask.store.locations import make_absolute, open_place
from hepdask.store.names import check_hex, is_hex, key_of
from hepdask.store.sections import Section

if TYPE_CHECKING:
    import os

    from hepdask.store.prune import PruneReport

__all__ = ["SectionInfo", "Store"]


@dataclass(frozen=True, slots=True)
class SectionInfo:
    """What is in one section of a store.

    Attributes
    ----------
    name : str
        The fingerprint of the code that made its results, in hex.
    about : dict
        What `Section.describe` wrote; empty if nothing is known.
    num_objects : int
        Results in it.
    num_bytes : int
        All of them together.
    first_used_seconds, last_used_seconds : float or None
        When the results were last loaded or written: the one that wasn't used for longest, and the last one, in
        seconds since 1970. On a server only the time of writing is known. None if there is none, or it is not known.
    """

    name: str
    about: dict[str, Any]
    num_objects: int
    num_bytes: int
    first_used_seconds: float | None
    last_used_seconds: float | None


@dataclass(frozen=True, slots=True, init=False)
class Store:
    """A place where results are kept between runs.

    It is cheap to make: nothing is opened, and no directory made, before something is saved. Loading a result runs what is in
    it, so a local directory has to belong to the user or to root, and not everybody may write to it; of any other place
    the user has to know who can.

    Parameters
    ----------
    url : path-like
        A directory, or any URL that fsspec can write to (``s3://bucket/x``, ``root://host//x``). Credentials come from
        fsspec's own configuration.

    Attributes
    ----------
    url : str
        The same, absolute.

    Raises
    ------
    OptionError
        If it is no such URL, or a package is missing for it; the text names the package.
    """

    url: str

    def __init__(self, url: str | os.PathLike[str]) -> None:
        import os

        object.__setattr__(self, "url", make_absolute(os.fspath(url)))

    def section(self, name: str) -> Section:
        """Return the results made by some code; it need not be there yet.

        Parameters
        ----------
        name : str
            The code's fingerprint: 8 to 128 lower-case hex digits.

        Raises
        ------
        OptionError
            If it is anything else.
        """
        return Section(self.url, check_hex(name, "section"))

    def section_names(self) -> list[str]:
        """List the names of all sections, sorted.

        Raises
        ------
        StoreError
            If the store can't be listed, or if others can write to it.
        """
        entries = open_place(self.url).list_entries("")
        return sorted(one.name for one in entries if one.kind == "directory" and is_hex(one.name))

    def sections(self) -> list[SectionInfo]:
        """List all sections with their sizes, the one that was used last first.

        Directories in which hepdask never wrote anything are left out.

        Raises
        ------
        StoreError
            If the store can't be listed, or if others can write to it.
        """
        found = [self._inspect(name) for name in self.section_names()]
        known = [one for one in found if one.num_objects or one.about]
        return sorted(known, key=lambda one: (-(one.last_used_seconds or 0.0), one.name))

    def prune(
        self,
        older_than_seconds: float | None = None,
        max_bytes: int | None = None,
        *,
        damaged: bool = False,
        section: str | None = None,
        dry_run: bool = False,
    ) -> PruneReport:
        """Remove results. Files that a process left half-written more than a day ago go in any case.

        Nothing is removed but files with the names and in the places that a store gives them.

        Parameters
        ----------
        older_than_seconds : float or None
            Those that weren't used for so long. None: age doesn't matter. Where the time of use is not known (on servers),
            that of writing counts.
        max_bytes : int or None
            Those that weren't used for longest, until the rest is no larger. None: size doesn't matter.
        damaged : bool
            Those that are not what was written. All of them are read for that, none is unpickled.
        section : str or None
            Look only at this one. None: at all.
        dry_run : bool
            Only say what would be removed.

        Returns
        -------
        PruneReport
            What was removed, what is left, and what couldn't be removed.

        Raises
        ------
        OptionError
            If a number is negative, or `section` can't be the name of one.
        StoreError
            If the store can't be listed, or if others can write to it.
        """
        from hepdask.store.prune import PruneRules, prune_store

        rules = PruneRules(older_than_seconds, max_bytes, damaged)
        names = self.section_names() if section is None else [check_hex(section, "section")]
        return prune_store(open_place(self.url), self.url, names, rules, dry_run=dry_run)

    def _inspect(self, name: str) -> SectionInfo:
        entries = open_place(self.url).list_entries(name)
        objects = [one for one in entries if one.kind == "file" and key_of(one.name) is not None]
        times = [one.used_seconds for one in objects if one.used_seconds is not None]
        return SectionInfo(
            name=name,
            about=self.section(name).read_about(),
            num_objects=len(objects),
            num_bytes=sum(one.num_bytes for one in objects),
            first_used_seconds=min(times, default=None),
            last_used_seconds=max(times, default=None),
        )
