"""What all systems that run workers have in common: one seam, one file for each way."""

from __future__ import annotations

import math
import signal
import threading
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hepdask.errors import MissingDependencyError, OptionError, suggest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "SCALING",
    "Endpoint",
    "System",
    "describe_scaling",
    "lifetime_of",
    "load_class",
    "require",
    "scale",
]

#: Words of every system that can have more or fewer workers.
SCALING = ("workers", "minimum", "maximum")
#: What an idle worker is kept for: a run has pauses, and a new one costs a start, and perhaps a night in the queue.
IDLE_SECONDS = 20
#: How long before the end of its job a worker hands over: a part of the time that it has, within limits.
MARGIN_FRACTION = 0.05
MIN_MARGIN_SECONDS, MAX_MARGIN_SECONDS = 30, 300


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A scheduler that runs already.

    Attributes
    ----------
    address : str
        ``tcp://host:port`` or ``tls://host:port``.
    security : distributed.Security or None
        Certificates for it.
    """

    address: str
    security: Any = None


class System(ABC):
    """One way to get workers."""

    name: str
    """The word that chooses it."""
    help: str
    """What it is, in one line."""
    words: tuple[str, ...]
    """The options that it has."""

    @abstractmethod
    def open(self, options: Mapping[str, Any]) -> Any:
        """Start a cluster, or find one.

        Parameters
        ----------
        options : mapping
            Checked, in the words of `hepdask.clusters.vocabulary`.

        Returns
        -------
        cluster or Endpoint
            A cluster object of the library in charge, scaled as the options say; or a scheduler that runs already.
        """

    @abstractmethod
    def render(self, options: Mapping[str, Any]) -> str:
        """Write what `open` would submit; nothing is submitted."""


def require(module: str, extra: str) -> Any:
    """Import an optional library.

    Raises
    ------
    MissingDependencyError
        With the command that installs it.
    """
    try:
        with _kept_signals():
            return import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{module.partition('.')[0]} can't be imported ({error}): pip install 'hepdask[{extra}]'"
        ) from error


@contextmanager
def _kept_signals() -> Iterator[None]:
    """Keep the handlers of signals: dask-jobqueue lets Ctrl-C and SIGTERM end the process as soon as it is imported."""
    if threading.current_thread() is not threading.main_thread():
        yield  # nobody can set them here: the import fails, or has been done before
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            # None: not set from Python, and so not to be set back
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def load_class(path: str) -> Any:
    """Import a class that is written ``module:Class``.

    Raises
    ------
    MissingDependencyError
        If the module is not installed.
    OptionError
        If it has no such class.
    """
    module_name, _, class_name = path.partition(":")
    try:
        with _kept_signals():
            module = import_module(module_name)
    except ImportError as error:
        package = module_name.partition(".")[0].replace("_", "-")
        raise MissingDependencyError(
            f"{module_name} can't be imported ({error}): pip install {package}"
        ) from error
    if not hasattr(module, class_name):
        raise OptionError(
            f"{module_name} has no class {class_name!r}{suggest(class_name, vars(module))}"
        )
    return getattr(module, class_name)


def scale(
    cluster: Any, options: Mapping[str, Any], *, default: int | None = None, per_job: int = 1
) -> None:
    """Ask a cluster of dask's own kind for workers: a fixed number, or as many as there is work for.

    A fixed number is kept: what the batch system takes away is asked for again.

    Parameters
    ----------
    cluster : distributed.deploy.SpecCluster
        With no workers yet.
    options : mapping
        With some of `SCALING`.
    default : int or None
        The fixed number, where the options say nothing; None: as many as there is work for.
    per_job : int
        Workers that come and go together.
    """
    from hepdask.clusters.adaptive import PatientAdaptive

    least, most = _bounds(options, default, per_job)
    if least:
        cluster.scale(least)  # now, and not when adaptive scaling first looks
    if most:
        bounds = {"minimum": least, "maximum": max(least, most)}
        cluster.adapt(Adaptive=PatientAdaptive, interval="1s", wait_count=IDLE_SECONDS, **bounds)


def describe_scaling(options: Mapping[str, Any], *, per_job: int = 1) -> str:
    """Write what `scale` asks for."""
    least, most = _bounds(options, None, per_job)
    if least == most:
        return f"cluster.scale({least})"
    return f"cluster.adapt(minimum={least}{'' if most == math.inf else f', maximum={most}'})"


def _bounds(
    options: Mapping[str, Any], default: int | None, per_job: int
) -> tuple[int, int | float]:
    is_adaptive = "minimum" in options or "maximum" in options
    fixed = options.get("workers", None if is_adaptive else default)
    least = options.get("minimum", 0) if fixed is None else fixed
    most = options.get("maximum", math.inf) if fixed is None else fixed
    # half a job can't be asked for
    least = math.ceil(least / per_job) * per_job
    return least, most if most == math.inf else math.ceil(most / per_job) * per_job


def lifetime_of(options: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return how long workers live, and by how much they differ, in seconds; None: as long as they can.

    With a walltime alone they end before it, one after the other, so that each can hand over what it has.
    """
    if "lifetime" in options:
        lifetime = int(options["lifetime"])
        return lifetime, min(_margin(lifetime), lifetime // 4)
    if "walltime" not in options:
        return None
    walltime = int(options["walltime"])
    margin = _margin(walltime)
    # shorter jobs end before anything is gained
    return (walltime - 2 * margin, margin) if walltime > 4 * margin else None


def _margin(seconds: int) -> int:
    wanted = math.ceil(seconds * MARGIN_FRACTION)
    return max(MIN_MARGIN_SECONDS, min(MAX_MARGIN_SECONDS, wanted))
