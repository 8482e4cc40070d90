"""What a process is and can: asked on the client and on each worker. Imports no dask."""

from __future__ import annotations

import shutil
import socket
import sys
import tempfile
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import cloudpickle

from hepdask.shipping.credentials import Lifetime, find_credentials, read_lifetime
from hepdask.versions import find_versions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hepdask.fileset import InputFile
    from hepdask.opening import ReadOptions

__all__ = ["ClusterFacts", "Facts", "Request", "collect_facts"]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a worker.

    Attributes
    ----------
    packages : tuple of str
        Distributions whose versions are wanted.
    packed : bytes
        The pickled processor, to be unpickled; empty: nothing is tried.
    files : tuple of InputFile
        To be opened, on one worker of each host.
    options : ReadOptions or None
        How they are opened.
    is_short : bool
        True: neither credentials nor scratch space are looked at.
    """

    packages: tuple[str, ...]
    packed: bytes = field(default=b"", repr=False)
    files: tuple[InputFile, ...] = ()
    options: ReadOptions | None = None
    is_short: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What a process is and can.

    Attributes
    ----------
    name : str
        Of the worker; "client" for the user's own process.
    host : str
        Its machine.
    python : str
        ``3.11.7``.
    versions : mapping of str to str
        Of the distributions that were asked for, those that are there.
    num_threads : int
        Tasks that run in it at a time.
    memory_bytes : int or None
        Its limit; None if it has none.
    unpickling : str
        Why the processor can't be unpickled there; empty if it can, or nobody tried.
    scratch : str
        Its directory for temporary files; empty if it wasn't looked at.
    scratch_problem : str
        Why nothing can be written there; empty if something can.
    scratch_bytes : int or None
        What is free there.
    lifetimes : tuple of Lifetime
        Of its proxy and token.
    files : mapping of str to str
        Of each file that was opened there, what is wrong with it; empty if nothing is.
    problem : str
        Why nothing of all this could be known; empty if it could.
    """

    name: str
    host: str = ""
    python: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    num_threads: int = 1
    memory_bytes: int | None = None
    unpickling: str = ""
    scratch: str = ""
    scratch_problem: str = ""
    scratch_bytes: int | None = None
    lifetimes: tuple[Lifetime, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What is known of a client and its cluster.

    Attributes
    ----------
    client : Facts
        Of the user's own process.
    scheduler : Facts or None
        Versions alone; None if there is none.
    workers : tuple of Facts
        Of those that are there now.
    plain_address : str or None
        One to which nothing secret is sent.
    delivery_problem : str
        Why the user's modules could not be brought to the workers; empty if they could.
    """

    client: Facts
    scheduler: Facts | None = None
    workers: tuple[Facts, ...] = ()
    plain_address: str | None = None
    delivery_problem: str = ""


def collect_facts(
    request: Request,
    name: str,
    *,
    num_threads: int = 1,
    memory_bytes: int | None = None,
    scratch: str = "",
) -> Facts:
    """Find out about this process.

    Parameters
    ----------
    request : Request
        What is to be known.
    name, num_threads, memory_bytes, scratch
        What the worker knows of itself.
    """
    directory = "" if request.is_short else scratch
    problem, free = _try_scratch(directory) if directory else ("", None)
    return Facts(
        name=name,
        host=socket.gethostname(),
        python=".".join(map(str, sys.version_info[:3])),
        versions=find_versions(request.packages),
        num_threads=num_threads,
        memory_bytes=memory_bytes,
        unpickling=_try_unpickling(request.packed) if request.packed else "",
        scratch=directory,
        scratch_problem=problem,
        scratch_bytes=free,
        lifetimes=() if request.is_short else tuple(map(read_lifetime, find_credentials())),
        files={file.file_path: _try_opening(file, request.options) for file in request.files},
    )


@lru_cache(maxsize=2)  # workers in one process have the same answer
def _try_unpickling(packed: bytes) -> str:
    try:
        cloudpickle.loads(packed)
    except Exception as error:  # noqa: BLE001  # unpickling runs anybody's code
        return f"{type(error).__name__}: {error}"
    return ""


def _try_scratch(directory: str) -> tuple[str, int | None]:
    try:
        # what is full is only seen when something is written
        with tempfile.NamedTemporaryFile(dir=directory, prefix="hepdask-doctor-") as file:
            file.write(bytes(4096))
            file.flush()
        return "", shutil.disk_usage(directory).free
    except OSError as error:
        return error.strerror or str(error), None


def _try_opening(file: InputFile, options: ReadOptions | None) -> str:
    from hepdask.opening import ReadOptions, open_file

    try:
        with open_file(file, options or ReadOptions(None, {}, None)):
            return ""
    except Exception as error:  # noqa: BLE001  # it is told, and not raised
        return f"{type(error).__name__}: {error}"
