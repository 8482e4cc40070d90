"""What glibc's allocator does with freed memory: it is kept while a task runs, and given back after it.

Columnar code makes and drops an array in each step. dask's nannies set ``MALLOC_TRIM_THRESHOLD_=65536``, so that workers give
memory back and don't seem to be full; but glibc then asks the system for each array of 128 KiB or more anew, and all its pages
are faulted in again, as setting any threshold ends that it adapts them to what a program does (mallopt(3), M_MMAP_THRESHOLD).
By ``python -m tests.benchmarks.allocator``, code on arrays of 20,000 numbers then takes 3 to 5 times as long, on arrays of 500,000
twice as long, and opening a generated file of 1,499 branches 6 to 7 times as long (a real one the same).

So in workers the thresholds are what glibc itself would come to, and ``malloc_trim`` gives the memory back after each task, which
is more than the threshold does: also what lies below memory in use. Who has chosen another value gets it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["freed_memory_kept", "give_back", "keep_freed_memory", "set_trim_threshold"]

# parameters of mallopt(3)
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
#: What glibc arrives at by itself once an array of this size was freed: DEFAULT_MMAP_THRESHOLD_MAX on 64 bits, and twice of it.
MMAP_THRESHOLD_BYTES = 32 * 2**20
TRIM_THRESHOLD_BYTES = 2 * MMAP_THRESHOLD_BYTES
#: Of dask's distributed.yaml (distributed.nanny.pre-spawn-environ): nobody's choice for this program.
DASK_TRIM_THRESHOLD = "65536"
#: Least time between two times that memory is given back: 100 MB take 2 ms, and pages that are needed again a multiple.
GIVE_BACK_SECONDS = 1.0

_THRESHOLD = "MALLOC_TRIM_THRESHOLD_"
_OTHERS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")
_lock = threading.Lock()
_last_given_back = [0.0]


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed memory in the ``with`` block, for the next arrays, and give it back after it."""
    keep_freed_memory()
    try:
        yield
    finally:
        if time.monotonic() - _last_given_back[0] > GIVE_BACK_SECONDS:
            give_back()
            _last_given_back[0] = time.monotonic()


def keep_freed_memory() -> None:
    """Undo, in this process, what dask's nanny has set; nothing if somebody else has set something, or without glibc."""
    if os.environ.get(_THRESHOLD) != DASK_TRIM_THRESHOLD or _is_chosen():
        return
    with _lock:
        _mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
        _mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)


def give_back() -> None:
    """Give freed memory back to the system, unless the user has chosen when that is done."""
    if sys.platform == "linux" and not _is_chosen():
        with contextlib.suppress(AttributeError):  # musl has none
            ctypes.CDLL(None).malloc_trim(0)


def set_trim_threshold(text: str) -> None:
    """Set what ``MALLOC_TRIM_THRESHOLD_`` says: glibc reads it when a process starts, and this one has."""
    if text.isdigit():
        _mallopt(_M_TRIM_THRESHOLD, int(text))


def _is_chosen() -> bool:
    return (
        os.environ.get(_THRESHOLD, DASK_TRIM_THRESHOLD) != DASK_TRIM_THRESHOLD
        or any(name in os.environ for name in _OTHERS)
        or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    )


def _mallopt(parameter: int, value: int) -> None:
    # another allocator may have taken glibc's place, or this is not Linux
    with contextlib.suppress(OSError, AttributeError, ctypes.ArgumentError):
        ctypes.CDLL(None).mallopt(parameter, value)
