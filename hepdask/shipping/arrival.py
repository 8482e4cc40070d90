"""What was shipped, where it arrives: in worker processes, and in the child processes that these start.

Files lie in ``hepdask-shipped/<digest>`` below a worker's scratch directory. What arrives is active from then on; and each task
says what it needs: `seal` puts its `Manifest` around what is pickled, and unpickling calls `activate` first. If another version of a
module was in use, all shipped modules are forgotten, and are imported anew. So a process never has old and new together, and
one that was started by a worker finds what the worker has, by ``HEPDASK_SHIPPED``.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import pickle
import shutil
import sys
import tempfile
import threading
import time
import uuid
import zipfile
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepdask.errors import ExecutorError
from hepdask.shipping.credentials import write_credential
from hepdask.shipping.environment import set_environment

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import ModuleType

__all__ = [
    "SHIPPED",
    "Manifest",
    "activate",
    "active_resource",
    "find_shipped",
    "generation",
    "process_token",
    "receive",
    "seal",
    "unpack",
]

#: Names the directories that have shipped files, for child processes.
SHIPPED = "HEPDASK_SHIPPED"
#: How long a task waits for files that its worker was told to write.
ARRIVAL_SECONDS = 10.0

_TOKEN = uuid.uuid4().hex
_lock = threading.RLock()
#: digests of what modules are imported from, and of resources, by name
_modules: dict[str, str] = {}
_resources: dict[str, str] = {}
_generations = [0]


def process_token() -> str:
    """Return what no other process has, be it forked from this one."""
    return f"{_TOKEN}-{os.getpid()}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a task needs to be there.

    Attributes
    ----------
    modules, resources : tuple of (str, str)
        Name and digest of each.
    home : str
        Token of the process that they come from: there, the user's own modules are the right ones.
    """

    modules: tuple[tuple[str, str], ...] = ()
    resources: tuple[tuple[str, str], ...] = ()
    home: str = ""


class _Sealed:
    """Is never there when unpickled: the content is."""

    def __init__(self, manifest: Manifest, packed: bytes) -> None:
        self._content = manifest, packed

    def __reduce__(self) -> tuple[Any, tuple[Manifest, bytes]]:
        return _open, self._content


def seal(manifest: Manifest | None, packed: bytes) -> bytes:
    """Let a pickle see to it that what it needs is active before it is loaded."""
    if manifest is None or not (manifest.modules or manifest.resources):
        return packed
    return pickle.dumps(_Sealed(manifest, packed))


def _open(manifest: Manifest, packed: bytes) -> Any:
    activate(manifest)
    return pickle.loads(packed)


def receive(kind: str, name: str, digest: str, payload: Any, scratch: str, home: str) -> None:
    """Take what has come for a worker.

    Parameters
    ----------
    kind : str
        "module", "resource", "credential" or "environment".
    name : str
        Of the module or resource, or variable of the credential.
    digest : str
        Of the payload.
    payload : object
        An archive, a file's content, or variables.
    scratch : str
        The worker's directory.
    home : str
        Token of the process that it comes from, which has all of its own.
    """
    if kind in ("module", "resource"):
        unpack(digest, payload, scratch)
    if kind == "module":
        # merges may come to a worker before any task that says what it needs: their inputs may be of the user's classes
        activate(Manifest(modules=((name, digest),), home=home))
    elif kind == "credential" and home != process_token():
        write_credential(name, payload, scratch)
    elif kind == "environment" and home != process_token():
        set_environment(payload)


def unpack(digest: str, archive: bytes, scratch: str) -> None:
    """Put shipped files into a worker's scratch directory, if this process hasn't got them.

    Parameters
    ----------
    digest : str
        Of the unit.
    archive : bytes
        As `Unit.pack` made it.
    scratch : str
        The worker's directory.
    """
    root = Path(scratch) / "hepdask-shipped"
    with _lock:
        if find_shipped(digest) is None:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            _extract(archive, root, digest)
        _note_root(str(root))


def _extract(archive: bytes, root: Path, digest: str) -> None:
    # whole or not at all: a worker may be killed meanwhile
    partial = tempfile.mkdtemp(prefix=f"{digest}-", dir=root)
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        opened.extractall(partial)
    try:
        os.rename(partial, root / digest)  # noqa: PTH104
    except OSError:  # another process with the same directory was faster
        shutil.rmtree(partial, ignore_errors=True)


def _note_root(root: str) -> None:
    known = [one for one in os.environ.get(SHIPPED, "").split(os.pathsep) if one]
    if root not in known:
        alive = [one for one in known if Path(one).is_dir()]
        os.environ[SHIPPED] = os.pathsep.join([*alive, root])


def find_shipped(digest: str) -> Path | None:
    """Return the directory of a unit's files; None if it is not here."""
    for root in os.environ.get(SHIPPED, "").split(os.pathsep):
        path = Path(root) / digest
        if root and path.is_dir():
            return path
    return None


def generation() -> int:
    """Return what changes whenever modules were forgotten: what was unpickled before refers to old ones."""
    return _generations[0]


def active_resource(name: str) -> str | None:
    """Return the digest of a resource that a task has brought here."""
    return _resources.get(name)


def activate(manifest: Manifest) -> None:
    """Let imports find the modules of a manifest, and names its resources.

    Raises
    ------
    ExecutorError
        If they are not here.
    """
    if manifest.home == process_token():
        return
    for name, digest in manifest.modules:
        if _modules.get(name) != digest:
            _await(name, digest)
    with _lock:
        if any(_resources.get(name, digest) != digest for name, digest in manifest.resources):
            _generations[0] += 1
        _resources.update(manifest.resources)
        new = {name: one for name, one in manifest.modules if _modules.get(name) != one}
        if not new:
            return
        replaced = [_modules[name] for name in new if name in _modules]
        # a module that has not changed itself may have imported one that has
        names = {*_modules, *new} if replaced else set(new)
        _modules.update(new)
        _forget_modules(names)
        if _FINDER not in sys.meta_path:
            sys.meta_path.insert(0, _FINDER)
        _generations[0] += 1
        for digest in replaced:
            # no run may use it any more, and a package that is edited often would fill the disk
            shutil.rmtree(find_shipped(digest) or "", ignore_errors=True)


def _await(name: str, digest: str) -> None:
    """Wait for files that may be on their way while a worker is starting."""
    end = time.monotonic() + ARRIVAL_SECONDS
    pause = threading.Event()
    while find_shipped(digest) is None:
        if time.monotonic() > end:
            raise ExecutorError(
                f"the version of {name!r} that this run uses is not on this worker: has another session replaced it, or could "
                "it not be written to the worker's scratch directory? The worker's log says so; run again"
            )
        pause.wait(0.05)


def _forget_modules(names: Iterable[str]) -> None:
    tops = set(names)
    for name in list(sys.modules):
        if name.partition(".")[0] in tops:
            del sys.modules[name]
    importlib.invalidate_caches()


class _Finder:
    """Finds the active modules before anything else can."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        digest = _modules.get(name)
        place = None if path is not None or digest is None else find_shipped(digest)
        if place is None:
            return None
        spec = PathFinder.find_spec(name, [str(place)], target)
        if spec is not None and spec.origin is None:
            return _unite_portions(name, spec)
        return spec

    def invalidate_caches(self) -> None:
        """Do nothing: there are none."""


def _unite_portions(name: str, spec: ModuleSpec) -> ModuleSpec:
    """Let a package without ``__init__`` have the portions that are installed here, too."""
    own = list(spec.submodule_search_locations or ())
    installed = None
    with contextlib.suppress(Exception):
        installed = PathFinder.find_spec(name, None)
    if installed is not None and installed.origin is None:
        own += [one for one in installed.submodule_search_locations or () if one not in own]
    united = ModuleSpec(name, None, is_package=True)
    united.submodule_search_locations = own
    return united


_FINDER = _Finder()
