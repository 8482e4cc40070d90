"""What the user says of shipping."""

from __future__ import annotations

from dataclasses import dataclass

from hepdask.errors import OptionError

__all__ = ["MAX_BYTES", "Shipping"]

#: Larger than any code, smaller than what would fill a scheduler's memory.
MAX_BYTES = 50_000_000


@dataclass(frozen=True, slots=True)
class Shipping:
    """What is sent to the workers of a cluster, apart from the processor itself.

    Parameters
    ----------
    modules : tuple of str
        Modules and packages to send in addition to those that the processor is seen to use: names that are put together at
        run time, say.
    exclude : tuple of str
        Modules that are left out, as all workers have them; and patterns of files in packages, ``"*.root"`` or
        ``"analysis/plots/*"``.
    max_bytes : int
        Of all files of a package, and of each resource.
    environment : tuple of str
        Environment variables to send in addition to those of XRootD (``XRD_*``), threads (``OMP_NUM_THREADS`` ...) and
        ``MALLOC_TRIM_THRESHOLD_``. Not for secrets.
    credentials : bool
        False: the user's X.509 proxy and bearer token are not sent.
    allow_plain_credentials : bool
        True: they are sent although the connection is not encrypted, and everyone on the network can read them.
    """

    modules: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_bytes: int = MAX_BYTES
    environment: tuple[str, ...] = ()
    credentials: bool = True
    allow_plain_credentials: bool = False

    def __post_init__(self) -> None:
        for name in ("modules", "exclude", "environment"):
            value = getattr(self, name)
            # a single string would be taken apart into letters
            if isinstance(value, str) or not all(isinstance(one, str) for one in value):
                raise OptionError(f"Shipping({name}={value!r}): give a sequence of strings")
            object.__setattr__(self, name, tuple(value))
        if isinstance(self.max_bytes, bool) or self.max_bytes < 1:
            raise OptionError(f"Shipping(max_bytes={self.max_bytes!r}): give a number of bytes")
