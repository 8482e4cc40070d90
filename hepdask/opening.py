"""The one place that opens a ROOT file: options, replicas, connections."""

from __future__ import annotations

import contextlib
import gc
import math
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from hepdask.endpoints import endpoint_of, open_slot, process_health
from hepdask.errors import (
    FileReadError,
    MissingTreeError,
    OptionError,
    suggest,
)
from hepdask.paths import is_xrootd, local_path, split_authority
from hepdask.read_errors import (
    as_missing_dependency,
    as_open_error,
    explain,
    is_answer,
    read_errors,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from hepdask.fileset import InputFile
    from hepdask.remote import RemoteSource

__all__ = [
    "OpenFile",
    "ReadOptions",
    "close_connection",
    "forget_connections",
    "garbage_kept",
    "local_status",
    "note_failure",
    "open_file",
]

_TREE_CLASSES = frozenset(
    {"TTree", "TNtuple", "TNtupleD", "TTreeSQL", "ROOT::RNTuple", "ROOT::Experimental::RNTuple"}
)
# an object cache of uproot's default size would keep the trees of closed directories alive
_OBJECT_CACHE_SIZE = 10


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How files are opened.

    Attributes
    ----------
    timeout_seconds : float or None
        Limit for a request to a remote server; XRootD takes whole seconds, so it is rounded up. None: the server
        library's own limit, which for XRootD can be far beyond five minutes.
    uproot_options : mapping
        Anything that `uproot.open` takes; it wins over what hepdask sets.
    max_opens_per_endpoint : int or None
        Files that are opened on one server at the same time, not those that are read; see `hepdask.endpoints.open_slot`.
        None: any number. Local files are not counted.

    Raises
    ------
    OptionError
        If `max_opens_per_endpoint` is less than 1.
    """

    timeout_seconds: float | None = 60.0
    uproot_options: Mapping[str, Any] = field(default_factory=dict)
    max_opens_per_endpoint: int | None = None

    def __post_init__(self) -> None:
        if self.max_opens_per_endpoint is not None and self.max_opens_per_endpoint < 1:
            raise OptionError(
                f"max_opens_per_endpoint is {self.max_opens_per_endpoint!r}: give 1 or more, or None for no limit"
            )


@dataclass(frozen=True, slots=True)
class OpenFile:
    """An open file with its tree; a context manager that closes it.

    Attributes
    ----------
    replica : str
        The URL that was opened, one of the file's replicas.
    directory : uproot.ReadOnlyDirectory
        The file's root directory.
    tree : uproot.TTree or uproot.behaviors.RNTuple.RNTuple
        The tree.
    uuid : str
        The file's UUID, lower case, with hyphens.
    num_entries : int
        Number of entries in the tree.
    open_seconds : float
        Wall time of opening the file and reading the tree's description; replicas that failed, and waiting for a slot,
        included.
    notes : dict
        What readers found out about the file, for the next range; it goes with the file.
    failed_replicas : tuple of str
        URLs that could not be opened before this one.
    """

    replica: str
    directory: Any
    tree: Any
    uuid: str
    num_entries: int
    open_seconds: float
    notes: dict[str, Any] = field(default_factory=dict, compare=False)
    failed_replicas: tuple[str, ...] = ()

    @property
    def num_requested_bytes(self) -> int:
        """Bytes requested from the file since it was opened, as uproot counts them."""
        return int(self.directory.file.source.num_requested_bytes)

    @property
    def remote(self) -> RemoteSource | None:
        """What gives the bytes of a remote file; None for a local one, and where an option of uproot has chosen something else."""
        return _find_remote(self.directory)

    def close(self) -> None:
        """Close the file; arrays that were read from it stay valid. A second call does nothing."""
        if not self.directory.file.closed:
            self.directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_file(file: InputFile, options: ReadOptions) -> OpenFile:
    """Open a file and its tree, from the first replica that works.

    Replicas are tried in the order of what this process knows of their health (`hepdask.endpoints.Health`), those of
    equal health in the file's order; each outcome is noted there.

    Parameters
    ----------
    file : InputFile
        What to open.
    options : ReadOptions
        Time limit, limit of concurrent opens, and options of `uproot.open`.

    Returns
    -------
    OpenFile
        To be closed by the caller.

    Raises
    ------
    MissingTreeError
        No replica has the tree, and at least one could be opened.
    FileReadError
        No replica could be opened. Its ``__cause__`` is a `TimeoutError` or `ConnectionError` if another try may
        help with any of the replicas.
    MissingDependencyError
        The library for this kind of URL is not installed here.
    """
    start = time.perf_counter()
    errors: dict[str, BaseException] = {}
    while untried := [replica for replica in file.replicas if replica not in errors]:
        replica = process_health().order(untried)[0]
        with open_slot(endpoint_of(replica), options.max_opens_per_endpoint):
            # others may have found out that the server is dead, while this one waited for its turn
            if process_health().order(untried)[0] != replica:
                continue
            try:
                directory, tree, num_entries = _open_and_note(file, replica, options)
            except read_errors() as error:
                errors[replica] = error
                continue
        return OpenFile(
            replica=replica,
            directory=directory,
            tree=tree,
            uuid=str(directory.file.uuid),
            num_entries=num_entries,
            open_seconds=time.perf_counter() - start,
            failed_replicas=tuple(errors),
        )
    missing = next((one for one in errors.values() if isinstance(one, MissingTreeError)), None)
    if missing is not None:
        raise missing
    raise as_open_error(errors, file)


@contextlib.contextmanager
def garbage_kept() -> Iterator[None]:
    """Keep Python from looking for garbage in the ``with`` block, which makes 100,000 objects and no garbage.

    The tree of 1,500 branches is made in two thirds of the time then.
    """
    if not gc.isenabled():  # somebody else, or another thread here, has the same wish
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def note_failure(replica: str, error: BaseException) -> None:
    """Take note of what an error says about the health of a replica: of its server, or of itself.

    Parameters
    ----------
    replica : str
        The URL that was opened or read.
    error : BaseException
        One of `read_errors`. A `FileReadError` speaks by its ``__cause__``; a time limit or a lost connection is held
        against the server, anything else against this replica alone.
    """
    cause = error.__cause__ if isinstance(error, FileReadError) else explain(error)[0]
    if isinstance(cause, TimeoutError | ConnectionError):
        process_health().note_failure(endpoint_of(replica))
    else:
        process_health().note_damage(replica)


def local_status(url: str) -> os.stat_result | None:
    """Give the status of a local file; None for a remote one, or one that can't be seen from here."""
    path = local_path(url)
    try:
        return None if path is None else path.stat()
    except OSError:
        return None


def close_connection(opened: OpenFile) -> None:
    """Close a file so that the next opening sees what the server has by then.

    An XRootD server shares one descriptor among all that have a path open: as long as the handle that fsspec-xrootd
    keeps is open, a file that was replaced is served in its old state. Not for a server that may be dead: closing
    then waits for the time limit (see `forget_connections`).
    """
    source = opened.directory.file.source
    # uproot has no public name for it; other sources have none and close their handle themselves
    filesystem = getattr(source, "_fs", None)
    opened.close()
    if filesystem is not None and is_xrootd(opened.replica):
        with contextlib.suppress(OSError, ValueError):
            filesystem.invalidate_cache(source.file_path)


def forget_connections(url: str) -> None:
    """Forget the file-system objects that fsspec keeps for a ``root://`` URL.

    fsspec-xrootd keeps the handle of a file for 30 s, dead or alive: after a lost server, each reopening of the URL
    fails with "I/O operation on closed file", even when the server is back. Files that are open are not disturbed.
    """
    fsspec_xrootd = sys.modules.get("fsspec_xrootd")
    if fsspec_xrootd is None or not is_xrootd(url):
        return
    server, _ = split_authority(url)
    for filesystem in list(fsspec_xrootd.XRootDFileSystem._cache.values()):
        # else it tries to close them half a minute later, or at exit, and complains where nobody asked
        handles = filesystem._readonly_filehandle_cache._cache
        for key in [key for key in handles if split_authority(key)[0] == server]:
            handles.pop(key).handle.close(callback=lambda *_: None)
    fsspec_xrootd.XRootDFileSystem.clear_instance_cache()


def _open_and_note(file: InputFile, replica: str, options: ReadOptions) -> tuple[Any, Any, int]:
    start = time.perf_counter()
    try:
        opened = _open_replica(file, replica, options)
    except read_errors() as error:
        note_failure(replica, error)
        raise
    process_health().note_success(endpoint_of(replica), time.perf_counter() - start)
    return opened


def _open_replica(file: InputFile, replica: str, options: ReadOptions) -> tuple[Any, Any, int]:
    """Open one replica; once more with a fresh connection where a kept one may be dead."""
    kept = _has_kept_connection(replica)
    try:
        return _open_once(file, replica, options)
    except MissingTreeError:
        raise
    except read_errors() as error:
        forget_connections(replica)
        # a server's own answer came over a connection that is alive: asking again changes nothing
        if not kept or is_answer(error):
            raise
    return _open_once(file, replica, options)


def _open_once(file: InputFile, replica: str, options: ReadOptions) -> tuple[Any, Any, int]:
    import uproot

    try:
        directory = uproot.open({replica: None}, **_uproot_options(replica, options))
    except ImportError as error:
        raise as_missing_dependency(error, file, replica) from error
    try:
        _check_complete(replica, directory)
        with garbage_kept():
            tree = _find_tree(file, replica, directory)
            if hasattr(tree, "ntuple"):
                _tell_members(tree.ntuple)
        remote = _find_remote(directory)
        if remote is not None:
            remote.end_opening()
        return directory, tree, int(tree.num_entries)
    except BaseException:
        directory.close()
        raise


def _find_remote(directory: Any) -> RemoteSource | None:
    from hepdask.remote import RemoteSource

    source = directory.file.source
    return source if isinstance(source, RemoteSource) else None


def _check_complete(replica: str, directory: Any) -> None:
    """Find a truncated file whose tree can still be read, before its events can't."""
    path = local_path(replica)
    # a remote file's size is one more round trip; there, reading past the end fails soon enough
    if path is None:
        return
    num_bytes, expected = path.stat().st_size, int(directory.file.fEND)
    if num_bytes < expected:
        raise EOFError(f"the header promises {expected} bytes, the file has {num_bytes}")


def _uproot_options(replica: str, options: ReadOptions) -> dict[str, Any]:
    # arrays are kept by nobody: each range is read once, and uproot's default would hold 100 MB for each open file
    chosen: dict[str, Any] = {"array_cache": None, "object_cache": _OBJECT_CACHE_SIZE}
    if options.timeout_seconds is not None and local_path(replica) is None:
        chosen["timeout"] = max(1, math.ceil(options.timeout_seconds))
    path = local_path(replica)
    if path is not None and str(path) == replica:
        import uproot

        # in this thread: by default (uproot 5.7) an event loop in another one reads local files, 1 ms a branch more than that takes
        chosen |= {"handler": uproot.MultithreadedFileSource, "use_threads": False}
    if path is None:
        from hepdask.remote import BEGIN_BYTES, RemoteSource

        chosen |= {"handler": RemoteSource, "begin_chunk_size": BEGIN_BYTES}
    return {**chosen, **options.uproot_options}


def _has_kept_connection(replica: str) -> bool:
    fsspec_xrootd = sys.modules.get("fsspec_xrootd")
    if fsspec_xrootd is None or not is_xrootd(replica):
        return False
    # fsspec has no public question for this
    return bool(getattr(fsspec_xrootd.XRootDFileSystem, "_cache", True))


def _find_tree(file: InputFile, replica: str, directory: Any) -> Any:
    place = f"dataset {file.dataset!r}, file {replica}"
    # KeyInFileError is a KeyError; "dir/tree" with an object "dir" that is no directory is another one
    try:
        class_name = directory.classname_of(file.treename)
    except KeyError:
        trees = _tree_names(directory)
        hint = suggest(file.treename, trees) or "; it has no trees at all"
        raise MissingTreeError(f"{place}: there is no tree {file.treename!r} in it{hint}") from None
    if class_name not in _TREE_CLASSES:
        hint = suggest(file.treename, _tree_names(directory)) or "; it has no trees at all"
        raise MissingTreeError(
            f"{place}: {file.treename!r} is a {class_name}, not a TTree or RNTuple{hint}"
        )
    return directory[file.treename]


def _tell_members(ntuple: Any) -> None:
    """Tell each field of an RNTuple its members: uproot looks through all fields for those of each (5.7), 4 s for 1,500."""
    fields = ntuple.all_fields
    below: dict[int, list[int]] = {}
    for number, record in enumerate(ntuple.field_records):
        if record.parent_field_id != number:
            below.setdefault(record.parent_field_id, []).append(number)

    def find(number: int) -> list[Any]:
        found = []
        for member in below.get(number, ()):
            # in the place of one that uproot hides are its own
            found += find(member) if fields[member].is_anonymous else [fields[member]]
        return found

    for number, one in enumerate(fields):
        one._fields = find(number)


def _tree_names(directory: Any) -> list[str]:
    """List the paths of the trees in a file, without cycle numbers, each once."""
    classes = directory.classnames(recursive=True, cycle=True)
    return list(
        dict.fromkeys(name.split(";")[0] for name, one in classes.items() if one in _TREE_CLASSES)
    )
