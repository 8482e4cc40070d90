"""Results of parts of a run, kept between runs.

A `Store` is a directory or a place that fsspec knows; a `Section` of it holds what the same code made; in a section each
object is found by a key, a hash of all that determines it. What the values are is nobody's business here: anything that
can be pickled.

Objects are written in one step and carry a checksum; a damaged one is an error, never a wrong value. Loading one runs
what is in it: see `hepdask.store.objects` for the format and `hepdask.store.directories` for who may write.
"""

from __future__ import annotations

from hepdask.store.prune import PruneReport, RemovedFile
from hepdask.store.sections import Section
from hepdask.store.stores import SectionInfo, Store

__all__ = ["PruneReport", "RemovedFile", "Section", "SectionInfo", "Store"]
