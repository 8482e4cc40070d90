"""Environment variables that go to workers."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from hepdask.allocator import set_trim_threshold
from hepdask.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hepdask.shipping.options import Shipping

__all__ = ["collect_environment", "set_environment"]

_PREFIXES = ("XRD_",)
_NAMES = (
    "MALLOC_TRIM_THRESHOLD_",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_SECRET = re.compile(
    r"TOKEN|SECRET|PASSW|PRIVATE|CREDENTIAL|X509|API_?KEY|ACCESS_?KEY", re.IGNORECASE
)


def collect_environment(options: Shipping) -> dict[str, str]:
    """Return the variables of this process that workers are to have.

    Raises
    ------
    OptionError
        If the user names one that looks like a secret, as they are not treated like secrets.
    """
    secret = [name for name in options.environment if _SECRET.search(name)]
    if secret:
        raise OptionError(
            f"Shipping(environment=...) has {secret[0]}, which looks like a secret, and variables are not kept secret: proxies and "
            "bearer tokens are sent by themselves, others belong into a file that workers can read"
        )
    names = [
        *(name for name in os.environ if name.startswith(_PREFIXES) and not _SECRET.search(name)),
        *_NAMES,
        *options.environment,
    ]
    return {name: os.environ[name] for name in sorted(set(names)) if name in os.environ}


def set_environment(variables: Mapping[str, str]) -> None:
    """Set variables in this process; what has been loaded before may have read its own already."""
    os.environ.update(variables)
    set_trim_threshold(variables.get("MALLOC_TRIM_THRESHOLD_", ""))
