"""Runs and luminosity sections that were processed, and those that are missing.

The books of a run are in entries; the luminosity of data is known by section. So after a run, and only if somebody
asks, tasks read the two branches that say which section an event belongs to, and sort the sections by the books.

What can be known, and what can't
---------------------------------
* A section is processed only if *all* its events in the files of the dataset are in the output. A section that is cut, by
  ranges or by files, and of which one piece is lost, is missing.
* Events that nobody asked for (``steps``, ``maxchunks``) count, too: a section that is cut by the end of what was asked for
  is not processed. It is not missing either, as nothing was lost. Files that were never looked at (``max_files``)
  can't be known.
* A section of which no event passed a skim is in no event branch, but its luminosity counts. NanoAOD lists all sections
  that went into a file in its tree ``LuminosityBlocks``, so there such a section is processed if all entries of the
  file were, and missing if any of the requested ones was not. In files without that tree (PHYSLITE) it can't be known.
* A file that can't be read now makes the answer incomplete, even if its events are in the output: its sections are
  nowhere, and sections that it shares with other files may be called processed by mistake. It is listed.

`sections` has the sets, `files` reads those of a file on a worker, `books` puts the files of a run together.
"""

from __future__ import annotations

from hepdask.luminosity.books import DatasetLumi, Luminosity, collect_luminosity
from hepdask.luminosity.files import FileLumi, LumiPiece, find_lumi_sections
from hepdask.luminosity.sections import LumiSections

__all__ = [
    "DatasetLumi",
    "FileLumi",
    "LumiPiece",
    "LumiSections",
    "Luminosity",
    "collect_luminosity",
    "find_lumi_sections",
]
