"""Files of the user's: which belong together, a hash of their contents, and one archive of them.

A unit is a top-level module, a top-level package, or a resource. It counts by the names and bytes of its files, not by where
they are. A regular package is taken as it lies on disk, with its data files; of a directory without ``__init__.py``, which may be
the user's home, only the modules that are used.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from hepdask.errors import OptionError
from hepdask.fingerprint.files import MAX_READ_BYTES, digest_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from hepdask.fingerprint import Origin
    from hepdask.shipping.options import Shipping

__all__ = ["Unit", "build_file_unit", "build_module_units", "format_bytes"]

#: More files than this are an installation, or a directory of data.
MAX_FILES = 5_000
NUM_LISTED = 5
_SKIPPED_DIRECTORIES = frozenset({"__pycache__", "node_modules"})
_SKIPPED_SUFFIXES = (".pyc", ".pyo")
#: Software that every site has under the same path, and would not work elsewhere.
_EVERYWHERE = ("/cvmfs/",)
#: Compiled parts of ROOT's Python lie elsewhere than its modules.
_NEVER_SHIPPED = frozenset({"ROOT", "cppyy", "cppyy_backend", "libcppyy"})
#: The archive must not depend on when it was made.
_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Unit:
    """Files that are shipped together.

    Attributes
    ----------
    name : str
        Of the top-level module, or of the resource.
    digest : str
        Of the names and bytes of all files, 32 hexadecimal digits.
    files : tuple of (str, str)
        Name in the archive and path on this machine, sorted.
    num_bytes : int
        Of all files.
    """

    name: str
    digest: str
    files: tuple[tuple[str, str], ...]
    num_bytes: int

    def pack(self) -> bytes:
        """Return the files in a ZIP archive; the same files give the same bytes.

        Raises
        ------
        OptionError
            If one of them can't be read, or has changed since the unit was built.
        """
        stream = io.BytesIO()
        digest = hashlib.sha256()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            for name, path in self.files:
                content = _read(self.name, path)
                _add_file(digest, name, _digest(path, content))
                entry = zipfile.ZipInfo(name, _DATE)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o600 << 16
                archive.writestr(entry, content)
        if _finish(digest) != self.digest:
            raise OptionError(f"{self.name!r} was edited meanwhile: run again")
        return stream.getvalue()

    def describe(self) -> str:
        """Return name, number of files and size, for people."""
        number = f"{len(self.files)} files, " if len(self.files) > 1 else ""
        return f"{self.name} ({number}{format_bytes(self.num_bytes)})"


def build_module_units(origins: Mapping[str, Origin], options: Shipping) -> list[Unit]:
    """Find the files of the user's modules, together by top-level name.

    Parameters
    ----------
    origins : mapping of str to Origin
        Those that are used, with their packages.
    options : Shipping
        What is left out, and how large a unit may be.

    Raises
    ------
    OptionError
        If a unit is too large.
    """
    files: dict[str, dict[str, str]] = {}
    done: set[str] = set()
    # a package comes before its modules
    for name, origin in sorted(origins.items()):
        top = name.partition(".")[0]
        if _is_left_out(name, origin, options) or any(name.startswith(f"{one}.") for one in done):
            continue
        found = dict(_list_module(origin))
        if origin.locations is not None and origin.file is not None:
            done.add(name)
        files.setdefault(top, {}).update(found)
    return [_build(top, found, options) for top, found in files.items() if found]


def build_file_unit(name: str, path: str, options: Shipping) -> Unit:
    """Make a unit of a file, or of a directory with all that is in it.

    Raises
    ------
    OptionError
        If it isn't there, or is too large.
    """
    if os.path.isdir(path):  # noqa: PTH112
        return _build(name, dict(_list_tree(path, name)), options)
    if not os.path.isfile(path):  # noqa: PTH113
        raise OptionError(f"the resource {name!r} is not there: no file {path}")
    return _build(name, {name: path}, options)


def _is_left_out(name: str, origin: Origin, options: Shipping) -> bool:
    parts = name.split(".")
    above = {".".join(parts[: end + 1]) for end in range(len(parts))}
    places = (origin.file, *(origin.locations or ()))
    return (
        parts[0] in _NEVER_SHIPPED
        or not above.isdisjoint(options.exclude)
        or any(place is not None and place.startswith(_EVERYWHERE) for place in places)
    )


def _list_module(origin: Origin) -> Iterator[tuple[str, str]]:
    place = origin.name.replace(".", "/")
    if origin.file is None:
        return
    if origin.locations is None:
        # whatever the file is called: the name of the module counts, and all that may follow it in a compiled one
        suffix = Path(origin.file).name.partition(".")[2]
        if os.path.isfile(origin.file):  # noqa: PTH113
            yield f"{place}.{suffix}", origin.file
        return
    for location in reversed(origin.locations):  # the first one wins
        yield from _list_tree(location, place)


def _list_tree(directory: str, place: str) -> Iterator[tuple[str, str]]:
    for path, names, files in os.walk(directory):
        names[:] = [
            one for one in names if one not in _SKIPPED_DIRECTORIES and not one.startswith(".")
        ]
        relative = os.path.relpath(path, directory).replace(os.sep, "/")
        above = place if relative == "." else f"{place}/{relative}"
        for one in files:
            if not one.startswith(".") and not one.endswith(_SKIPPED_SUFFIXES):
                yield f"{above}/{one}", os.path.join(path, one)  # noqa: PTH118


def _build(name: str, found: Mapping[str, str], options: Shipping) -> Unit:
    kept = {
        place: path
        for place, path in sorted(found.items())
        if not any(fnmatch(place, one) or fnmatch(Path(place).name, one) for one in options.exclude)
    }
    sizes = {place: _size_of(path) for place, path in kept.items()}
    _check_size(name, sizes, options.max_bytes)
    digest = hashlib.sha256()
    for place, path in kept.items():
        try:
            _add_file(digest, place, digest_file(path))
        except OSError as error:
            raise OptionError(_unreadable(name, path, error)) from error
    return Unit(name, _finish(digest), tuple(kept.items()), sum(sizes.values()))


def format_bytes(number: int) -> str:
    """Write a number of bytes, ``1.2 MB``."""
    return f"{number / 1e6:.1f} MB" if number >= 100_000 else f"{number / 1e3:.1f} kB"


def _size_of(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:  # a broken link is an error when it is read
        return 0


def _check_size(name: str, sizes: Mapping[str, int], max_bytes: int) -> None:
    total = sum(sizes.values())
    if total <= max_bytes and len(sizes) <= MAX_FILES:
        return
    raise OptionError(
        f"{name!r} would be sent to all workers with {len(sizes):,} files, {format_bytes(total)}: more than "
        f"{MAX_FILES:,} files or {format_bytes(max_bytes)}; the largest: {_list_largest(sizes)}; move them elsewhere, or leave "
        f'them out, or allow more: Runner(..., shipping=Shipping(exclude=["*.root"], max_bytes=...)); where all '
        f"workers have it, exclude={[name]!r}"
    )


def _list_largest(sizes: Mapping[str, int]) -> str:
    largest: Sequence[tuple[str, int]] = sorted(sizes.items(), key=lambda one: -one[1])[:NUM_LISTED]
    return ", ".join(f"{place} ({format_bytes(size)})" for place, size in largest)


def _add_file(digest: hashlib._Hash, place: str, content: bytes) -> None:
    encoded = place.encode("utf-8", "surrogateescape")
    digest.update(len(encoded).to_bytes(8, "little") + encoded + content)


def _digest(path: str, content: bytes) -> bytes:
    # above this size `digest_file` looks at other things
    return digest_file(path) if len(content) > MAX_READ_BYTES else hashlib.sha256(content).digest()


def _finish(digest: hashlib._Hash) -> str:
    return digest.hexdigest()[:32]


def _read(name: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise OptionError(_unreadable(name, path, error)) from error


def _unreadable(name: str, path: str, error: OSError) -> str:
    return f"{name!r} can't be sent to the workers: {path} can't be read: {error.strerror or error}; remove or repair it"
