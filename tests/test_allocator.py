from __future__ import annotations

import inspect
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from hepdask import DaskExecutor, Runner
from hepdask.allocator import DASK_TRIM_THRESHOLD

if TYPE_CHECKING:
    from distributed import Client

    from tests.conftest import NanoFiles

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of glibc")

NUM_ARRAYS = 50
NUM_PAGES = 2**20 // os.sysconf("SC_PAGESIZE")


def count_faults() -> int:
    """Count the pages that the system has to give for arrays of 1 MiB, of which one at a time is there."""
    import resource

    def count() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    before = count()
    for _ in range(NUM_ARRAYS):
        bytearray(2**20)
    return count() - before


SCRIPT = f"""
NUM_ARRAYS = {NUM_ARRAYS}
{inspect.getsource(count_faults)}
from hepdask.allocator import freed_memory_kept
with freed_memory_kept():
    count_faults()
    kept = count_faults()
print(kept)
"""

GIVES_BACK = """
import os
from pathlib import Path
from hepdask import allocator
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
with allocator.freed_memory_kept():
    blocks = [bytearray(2**20) for _ in range(100)]
    last = bytearray(100)  # above them: what is below memory in use is given back, too
    full = resident()
    blocks.clear()
print((full - resident()) // 2**20)
"""


def say(script: str, **variables: str) -> int:
    return int(
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **variables},
            capture_output=True,
            check=True,
            text=True,
            timeout=60,
        ).stdout
    )


def test_what_dask_sets_is_undone() -> None:
    assert say(SCRIPT, MALLOC_TRIM_THRESHOLD_=DASK_TRIM_THRESHOLD) < NUM_PAGES
    assert say(SCRIPT) < NUM_PAGES  # glibc itself does so


@pytest.mark.parametrize(
    "chosen",
    [
        {"MALLOC_TRIM_THRESHOLD_": "0"},
        {"MALLOC_TRIM_THRESHOLD_": DASK_TRIM_THRESHOLD, "MALLOC_MMAP_THRESHOLD_": "131072"},
        {
            "MALLOC_TRIM_THRESHOLD_": DASK_TRIM_THRESHOLD,
            "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072",
        },
    ],
)
def test_what_somebody_has_chosen_is_left(chosen: dict[str, str]) -> None:
    # a kernel may give several pages at a time
    assert say(SCRIPT, **chosen) >= NUM_ARRAYS * NUM_PAGES // 10


def test_memory_is_given_back_after_it() -> None:
    assert say(GIVES_BACK, MALLOC_TRIM_THRESHOLD_=DASK_TRIM_THRESHOLD) >= 90
    assert say(GIVES_BACK) >= 90


class CountsFaults:
    """Counts faults where it is processed, after some that let the allocator learn."""

    def process(self, _: Any) -> dict[str, int]:
        count_faults()
        return {"faults": count_faults(), "ranges": 1}

    def postprocess(self, accumulator: Any) -> Any:
        return accumulator


def test_tasks_keep_what_they_free(client: Client, nano_files: NanoFiles) -> None:
    set_by_nanny = client.run(lambda: os.environ.get("MALLOC_TRIM_THRESHOLD_"))
    assert set(set_by_nanny.values()) == {DASK_TRIM_THRESHOLD}
    run = Runner(DaskExecutor(client), chunksize=50, progress=False)
    output = run.run(nano_files.fileset, CountsFaults()).output
    assert output["faults"] < output["ranges"] * NUM_PAGES
