"""Environment variables that every worker has, whatever starts it."""

from __future__ import annotations

import os
import shlex
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["export_lines", "warn_of_threads", "worker_environment"]

#: Libraries that start a thread for each core of the machine, on cores that belong to other jobs.
_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
#: Of this session, for workers: XRootD's, and what the user has chosen of the allocator (`hepdask.allocator` chooses otherwise).
_OF_SESSION = ("XRD_", "MALLOC_")


def worker_environment(options: Mapping[str, Any]) -> dict[str, str]:
    """Make the environment variables of workers: thread counts, this session's ``XRD_*`` and ``MALLOC_*``, the user's own.

    Parameters
    ----------
    options : mapping
        With ``threads`` and ``environment``. Proxies and tokens are no part of it: job scripts can be read by others.
    """
    threads = dict.fromkeys(_THREADS, "1")
    own = {name: value for name, value in os.environ.items() if name.startswith(_OF_SESSION)}
    return {**threads, **own, **options.get("environment", {})}


def export_lines(variables: Mapping[str, str]) -> list[str]:
    """Write lines of shell that set variables."""
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]


def warn_of_threads(threads: int) -> None:
    """Say what several threads in a worker cost."""
    if threads > 1:
        warnings.warn(
            f"workers with {threads} threads: Python code of a processor runs in turns in them, memory is shared, and what "
            "kills one range kills its neighbours; threads=1 with more workers is faster",
            UserWarning,
            stacklevel=2,
        )
