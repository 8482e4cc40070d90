"""What can go wrong while a ROOT file is opened or read, in words: what it means, and what to do next.

The libraries below don't tell causes apart by type: fsspec-xrootd raises `OSError` for everything, uproot's own XRootD
source `FileNotFoundError` for every error that a server reports, and a damaged basket may surface as anything from
`zlib.error` to `AssertionError`. `explain` looks at type and text, and gives the cause a type that can be relied on.
"""

from __future__ import annotations

import lzma
import re
import struct
import sys
import zlib
from typing import TYPE_CHECKING

from hepdask.errors import FileReadError, MissingDependencyError
from hepdask.paths import is_xrootd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hepdask.fileset import InputFile

__all__ = [
    "as_missing_dependency",
    "as_open_error",
    "as_read_error",
    "explain",
    "is_answer",
    "read_errors",
]

_PATH = re.compile(r"\S*/\S*")
_ANSWER = re.compile(r"\[3\d{3}\]")
_MAX_TEXT = 400
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


def is_answer(error: BaseException) -> bool:
    """Tell whether an error is what an XRootD server answered: then the connection to it is alive."""
    return bool(_ANSWER.search(str(error)))


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


def as_open_error(errors: Mapping[str, BaseException], file: InputFile) -> FileReadError:
    """Turn the exceptions of all replicas of a file into a `FileReadError` that names each.

    Parameters
    ----------
    errors : mapping of str to BaseException
        For each replica, one of `read_errors`.
    file : InputFile
        The file that could not be opened.

    Returns
    -------
    FileReadError
        To be raised by the caller. Its ``__cause__`` is a `TimeoutError` or `ConnectionError` if another try may help
        with any of the replicas.
    """
    explained = [
        (replica, errors[replica], *explain(errors[replica]))
        for replica in dict.fromkeys(file.replicas)
    ]
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


def as_missing_dependency(
    error: ImportError, file: InputFile, replica: str
) -> MissingDependencyError:
    """Turn a failed import into a `MissingDependencyError` that says what to install.

    Parameters
    ----------
    error : ImportError
        What was raised while the file was opened.
    file : InputFile
        The file that was being opened.
    replica : str
        The URL that was being opened.

    Returns
    -------
    MissingDependencyError
        To be raised by the caller.
    """
    place = f"dataset {file.dataset!r}, file {replica}"
    if is_xrootd(replica):
        return MissingDependencyError(
            f'{place}: the XRootD client is not installed here; type: pip install "hepdask[xrootd]" ({_named(error)})'
        )
    return MissingDependencyError(
        f"{place}: a library for this file is not installed here ({_named(error)})"
    )


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


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {_text(error)}"


def _text(error: BaseException) -> str:
    """Give an error's text on one line, cut to a length that a log can bear."""
    text = " ".join(str(error).split())
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."
