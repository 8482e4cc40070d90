"""What a ROOT file says of itself, read once and remembered.

`read_file_metadata` runs on workers; `MetadataCache` keeps what it read for the later runs of the same user.
`branches` packs what takes most of the space, `facts` reads a file, `cache` keeps the facts on disk.
"""

from __future__ import annotations

from hepdask.metadata.branches import Branch, Branches
from hepdask.metadata.cache import MetadataCache, default_cache_path
from hepdask.metadata.facts import FileMetadata, check_unchanged, read_file_metadata

__all__ = [
    "Branch",
    "Branches",
    "FileMetadata",
    "MetadataCache",
    "check_unchanged",
    "default_cache_path",
    "read_file_metadata",
]
