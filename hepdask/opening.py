"""The one place that opens a ROOT file, and that says in words why a file can't be opened or read.

The libraries below don't tell causes apart by type: fsspec-xrootd raises `OSError` for everything, uproot's own XRootD
source `FileNotFoundError` for every error that a server reports, and a damaged basket may surface as anything from
`zlib.error` to `AssertionError`. `explain` looks at type and text, and gives the cause a type that can be relied on.
"""

from __future__ import annotations

import contextlib
import gc
import lzma
import math
import re
import struct
import sys
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit

from hepdask.endpoints import endpoint_of, open_slot, process_health
from hepdask.errors import (
    FileReadError,
    MissingDependencyError,
    MissingTreeError,
    OptionError,
    suggest,
)
from hepdask.paths import split_authority

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from hepdask.fileset import InputFile

__all__ = [
    "OpenFile",
    "ReadOptions",
    "as_read_error",
    "close_connection",
    "explain",
    "forget_connections",
    "garbage_kept",
    "local_path",
    "local_status",
    "note_failure",
    "open_file",
    "read_errors",
]

_XROOTD = re.compile(r"(?:^|::)x?roots?://")
_PATH = re.compile(r"\S*/\S*")
_SERVER_ANSWER = re.compile(r"\[3\d{3}\]")
_TREE_CLASSES = frozenset(
    {"TTree", "TNtuple", "TNtupleD", "TTreeSQL", "ROOT::RNTuple", "ROOT::Experimental::RNTuple"}
)
# an object cache of uproot's default size would keep the trees of closed directories alive
_OBJECT_CACHE_SIZE = 10
_MAX_TEXT = 400
_REMOTE_BEGIN_BYTES = 65_536
# Every builtin one but MemoryError and ImportError, which say nothing about the file. Damaged bytes are interpreted until
# something gives: a wrong count is an IndexError, a wrong class an AttributeError or NotImplementedError, an object that
# contains itself a RecursionError; and uproot executes code that it makes from a file's description of its classes.
_BUILTIN_READ_ERRORS: tuple[type[BaseException], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)


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
    raise _open_error(file, [(one, errors[one]) for one in dict.fromkeys(file.replicas)])


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


def local_path(url: str) -> Path | None:
    """Give the local path of a URL, or None if it is remote.

    ``/data/a.root``, ``a.root`` and ``file:///data/a.root`` are local; anything else with ``://`` is not.
    """
    if "://" not in url:
        return Path(url)
    if url.startswith("file://"):
        return Path(unquote(urlsplit(url).path))
    return None


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
    if filesystem is not None and _XROOTD.search(opened.replica):
        with contextlib.suppress(OSError, ValueError):
            filesystem.invalidate_cache(source.file_path)


def forget_connections(url: str) -> None:
    """Forget the file-system objects that fsspec keeps for a ``root://`` URL.

    fsspec-xrootd keeps the handle of a file for 30 s, dead or alive: after a lost server, each reopening of the URL
    fails with "I/O operation on closed file", even when the server is back. Files that are open are not disturbed.
    """
    fsspec_xrootd = sys.modules.get("fsspec_xrootd")
    if fsspec_xrootd is None or not _XROOTD.search(url):
        return
    server, _ = split_authority(url)
    for filesystem in list(fsspec_xrootd.XRootDFileSystem._cache.values()):
        # else it tries to close them half a minute later, or at exit, and complains where nobody asked
        handles = filesystem._readonly_filehandle_cache._cache
        for key in [key for key in handles if split_authority(key)[0] == server]:
            handles.pop(key).handle.close(callback=lambda *_: None)
    fsspec_xrootd.XRootDFileSystem.clear_instance_cache()


def read_errors() -> tuple[type[BaseException], ...]:
    """List what can be raised while bytes are read, decompressed and interpreted.

    Damaged bytes may surface as any exception, so nearly all are among them: catch them around the reading alone, never
    around user code. `MemoryError` and `ImportError` are not among them, as they say nothing about the file.

    Returns
    -------
    tuple of exception types
        For an ``except`` clause.
    """
    # what was never imported can't have raised
    optional = (
        getattr(sys.modules.get(module), name, None)
        for module, name in (
            ("uproot", "DeserializationError"),
            ("uproot.interpretation.identify", "UnknownInterpretation"),
            ("cramjam", "DecompressionError"),
            ("aiohttp", "ClientError"),
            ("zstandard", "ZstdError"),
            ("lz4.block", "LZ4BlockError"),
        )
    )
    return (*_BUILTIN_READ_ERRORS, *(one for one in optional if one is not None))


def explain(error: BaseException) -> tuple[BaseException, str]:
    """Find out what an error of uproot, fsspec or XRootD means.

    Parameters
    ----------
    error : BaseException
        What was raised.

    Returns
    -------
    cause : BaseException
        `error` itself, or, where its type is misleading, one of a telling type (`FileNotFoundError`,
        `PermissionError`, `TimeoutError`, `ConnectionError`) with the same text and `error` as ``__cause__``.
    advice : str
        What happened, and what to do next.
    """
    # paths are cut out: a directory called 401 or timeout says nothing
    text = f"{type(error).__name__}: {_PATH.sub('', str(error))}"
    for pattern, telling, advice in _CAUSES:
        if pattern.search(text):
            if telling is None or isinstance(error, telling):
                return error, advice
            cause = telling(_text(error))
            cause.__cause__ = error
            return cause, advice
    return error, "it can't be read; try to open it with uproot, copy it again, or leave it out"


def as_read_error(
    error: BaseException, file: InputFile, where: str, *, replica: str | None = None
) -> FileReadError:
    """Turn an exception raised while reading into a `FileReadError` that names the place.

    Parameters
    ----------
    error : BaseException
        One of `read_errors`. If it is a `FileReadError` already, it comes back unchanged.
    file : InputFile
        The file that was being read.
    where : str
        What was being read, such as ``"entries 0 to 1000, branch 'Jet_pt'"``.
    replica : str, optional
        The URL that was open.

    Returns
    -------
    FileReadError
        To be raised by the caller, ``from read_error.__cause__``, which is set and whose type tells what happened
        (see `explain`). Its class and text are in the message, since a cause does not cross process borders.
    """
    if isinstance(error, FileReadError):
        return error
    cause, advice = explain(error)
    source = f" from {replica}" if replica is not None and replica != file.file_path else ""
    read_error = FileReadError(
        f"dataset {file.dataset!r}, file {file.file_path}, tree {file.treename!r}: reading {where}{source} failed: "
        f"{advice} ({_named(error)})"
    )
    read_error.__cause__ = cause
    return read_error


_DENIED = (
    r"\[3010\]|permission ?(?:denied|error)|not authorized|unauthori[sz]ed|forbidden|auth failed"
)
_CONNECTION_LOST = (
    r"connection ?(?:reset|refused|aborted|error|closed)|cannot connect|\[FATAL\]|closed file|"
    r"socket (?:error|timeout|disconnected)|invalid session|stream (?:error|disconnect)|"
    r"server disconnected|payload is not completed|name resolution"
)
_DAMAGED = (
    r"^(?:DeserializationError|DecompressionError|LZMAError|ZstdError|LZ4BlockError|AssertionError|"
    r"RecursionError|StructError|error): |decompress|checksum|inconsistent|less than size of form|memberwise serialization"
)
# pattern searched in "ClassName: text", the type that tells the cause, what happened and what to do.
# The first that matches wins: a server's [30xx] code says more than the type that was made of it.
_CAUSES: tuple[tuple[re.Pattern[str], type[OSError] | None, str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), telling, advice)
    for pattern, telling, advice in (
        (
            r"\[3005\]",
            None,
            "the file became shorter while it was read; inspect it again",
        ),
        (
            _DENIED,
            PermissionError,
            "access is denied; look at its permissions, or renew X509_USER_PROXY or BEARER_TOKEN_FILE",
        ),
        (
            r"\[3011\]|no such file|^FileNotFoundError: (?!.*\[3\d{3}\])",
            FileNotFoundError,
            "there is no such file; check the path",
        ),
        (
            r"^IsADirectoryError|\[3016\]|is a directory",
            None,
            "it is a directory; write a pattern such as 'directory/*.root'",
        ),
        (
            r"timeout ?error|timed out|operation expired",
            TimeoutError,
            "the server did not answer in time; try again, raise xrootdtimeout, or add a replica",
        ),
        (
            _CONNECTION_LOST,
            ConnectionError,
            "the server can't be reached or the connection was lost; try again, or add a replica",
        ),
        (
            r"not a ROOT file",
            None,
            "it is not a ROOT file; check the path",
        ),
        (
            r"expected chunk of length 403,\s*received 0 bytes",
            None,
            "it is empty; copy it again, or leave it out",
        ),
        (
            r"expected chunk of length|outside expected range|seek points beyond|EOFError",
            None,
            "it ends before its own records do: it is truncated; copy it again, or leave it out",
        ),
        (
            _DAMAGED,
            None,
            "its bytes are damaged; copy it again, or leave it out",
        ),
    )
)


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
        if not kept or _SERVER_ANSWER.search(str(error)):
            raise
    return _open_once(file, replica, options)


def _open_once(file: InputFile, replica: str, options: ReadOptions) -> tuple[Any, Any, int]:
    import uproot

    try:
        directory = uproot.open({replica: None}, **_uproot_options(replica, options))
    except ImportError as error:
        raise _missing_dependency(file, replica, error) from error
    try:
        _check_complete(replica, directory)
        with garbage_kept():
            tree = _find_tree(file, replica, directory)
        return directory, tree, int(tree.num_entries)
    except BaseException:
        directory.close()
        raise


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
        # the header, the names of the trees and their keys in one request: a round trip less
        chosen["begin_chunk_size"] = _REMOTE_BEGIN_BYTES
    return {**chosen, **options.uproot_options}


def _has_kept_connection(replica: str) -> bool:
    fsspec_xrootd = sys.modules.get("fsspec_xrootd")
    if fsspec_xrootd is None or not _XROOTD.search(replica):
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


def _tree_names(directory: Any) -> list[str]:
    """List the paths of the trees in a file, without cycle numbers, each once."""
    classes = directory.classnames(recursive=True, cycle=True)
    return list(
        dict.fromkeys(name.split(";")[0] for name, one in classes.items() if one in _TREE_CLASSES)
    )


def _open_error(file: InputFile, errors: list[tuple[str, BaseException]]) -> FileReadError:
    explained = [(replica, error, *explain(error)) for replica, error in errors]
    place = f"dataset {file.dataset!r}, file {file.file_path}: can't be opened"
    if len(explained) == 1:
        ((_, error, _, advice),) = explained
        text = f"{place}: {advice} ({_named(error)})"
    else:
        lines = [
            f"  {replica}: {advice} ({_named(error)})" for replica, error, _, advice in explained
        ]
        text = "\n".join([f"{place} from any of its {len(lines)} replicas:", *lines])
    # if another try may help with one replica, it may help with the file
    causes = [cause for _, _, cause, _ in explained]
    transient = [cause for cause in causes if isinstance(cause, TimeoutError | ConnectionError)]
    read_error = FileReadError(text)
    read_error.__cause__ = (transient or causes)[-1]
    return read_error


def _missing_dependency(
    file: InputFile, replica: str, error: ImportError
) -> MissingDependencyError:
    place = f"dataset {file.dataset!r}, file {replica}"
    if _XROOTD.search(replica):
        return MissingDependencyError(
            f'{place}: the XRootD client is not installed here; type: pip install "hepdask[xrootd]" ({_named(error)})'
        )
    return MissingDependencyError(
        f"{place}: a library for this file is not installed here ({_named(error)})"
    )


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {_text(error)}"


def _text(error: BaseException) -> str:
    """Give an error's text on one line, cut to a length that a log can bear."""
    text = " ".join(str(error).split())
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."
