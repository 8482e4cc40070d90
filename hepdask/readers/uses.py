"""What a processor uses of the events of each layout: found in a trace, corrected by every range.

Which branches are read at once, and which fields of the events are built, follows from this. It is never more than a
guess: what was not foreseen is built and read when it is touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Seed", "Use", "Uses"]


@dataclass(frozen=True, slots=True)
class Use:
    """What a processor has touched in the files of one layout.

    Attributes
    ----------
    fields : frozenset of str or None
        Fields of the events (collections, mostly) that it has asked for in any range; None: all of them are to be built, as it
        looks at the events as a whole.
    branches : frozenset of str
        Branches that it needed in the last range.
    """

    fields: frozenset[str] | None
    branches: frozenset[str]


@dataclass(frozen=True, slots=True)
class Seed:
    """What a trace has found out, for the processes that come to know nothing else.

    Attributes
    ----------
    use : Use
        Of the processor.
    form : bytes or None
        Pickled form of the layout's events: making it from 1,500 branches takes 0.1 s, unpickling it 2 ms. None: each process
        makes it once.
    """

    use: Use
    form: bytes | None = None


class Uses:
    """What is known in this process; pickled, it is what was known when it was made.

    Parameters
    ----------
    seeds : mapping of str to Seed
        By the key of the layout.
    """

    def __init__(self, seeds: Mapping[str, Seed] | None = None) -> None:
        self._seeds = dict(seeds or {})
        self._uses = {layout: seed.use for layout, seed in self._seeds.items()}

    def __reduce__(self) -> Any:
        return Uses, (self._seeds,)

    def find(self, layout: str) -> Use | None:
        """Return what is used of a layout; None if nothing is known."""
        return self._uses.get(layout)

    def form(self, layout: str) -> bytes | None:
        """Return the pickled form of a layout; None if it is not known."""
        seed = self._seeds.get(layout)
        return None if seed is None else seed.form

    def note(self, layout: str, use: Use) -> None:
        """Take note of what a range has used."""
        before = self._uses.get(layout)
        fields = use.fields
        if before is not None:
            known = before.fields
            fields = None if fields is None or known is None else fields | known
        # one assignment: other threads see the one or the other
        self._uses[layout] = Use(fields, use.branches)
