"""What it costs to plan a run: a million ranges in 60,000 files, split, arranged, cut and packed.

``python -m tests.benchmarks.plan_scale`` runs it at full size. There is no peer: coffea makes no plan, its scheduler gets
one task a range.
"""

from __future__ import annotations

import itertools
import resource
import time
from dataclasses import dataclass

NUM_ENTRIES_PER_RANGE = 100_000


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of each step, and the peak memory of the process."""

    num_ranges: int
    num_tasks: int
    split_seconds: float
    cut_seconds: float
    pack_seconds: float
    num_packed_bytes: int
    peak_memory_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.num_ranges:,} ranges in {self.num_tasks:,} tasks: load and split {self.split_seconds:.2f} s, "
            f"arrange and cut {self.cut_seconds:.2f} s, pack {self.pack_seconds:.2f} s "
            f"({self.num_packed_bytes / 1e6:.1f} MB to send), peak memory {self.peak_memory_bytes / 1e6:.0f} MB"
        )


def measure(*, num_files: int, num_ranges_per_file: int) -> Cost:
    """Plan a run over files whose entries are known, in ten datasets."""
    from hepdask import LocalExecutor, Runner
    from hepdask.attempt import Work
    from hepdask.executors import Job, cut_tree
    from hepdask.executors.dask_tasks import pack_ranges
    from hepdask.opening import ReadOptions
    from hepdask.processor import ProcessorCopies
    from hepdask.readers import build_reader
    from hepdask.tree import arrange

    entry = {"object_path": "Events", "num_entries": num_ranges_per_file * NUM_ENTRIES_PER_RANGE}
    fileset = {
        f"dataset{one}": {
            "files": {
                f"root://host//store/{one}/{number}.root": entry
                for number in range(num_files // 10)
            }
        }
        for one in range(10)
    }
    run = Runner(
        LocalExecutor(), chunksize=NUM_ENTRIES_PER_RANGE, progress=False, metadata_cache=False
    )
    times = [time.perf_counter()]
    plan = run.plan(fileset)
    times.append(time.perf_counter())
    work = Work(ProcessorCopies(len), build_reader(None, ReadOptions()))
    tree = arrange(plan.ranges)
    cut = cut_tree(Job("scale", plan.ranges, tree, work))
    tree.merges(cut)
    times.append(time.perf_counter())
    packed = sum(len(pack_ranges(plan.ranges[node.start : node.stop])) for node in cut)
    times.append(time.perf_counter())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    split, cutting, packing = (after - before for before, after in itertools.pairwise(times))
    return Cost(len(plan.ranges), len(cut), split, cutting, packing, packed, peak)


def main() -> None:
    """Measure at full size."""
    print(measure(num_files=60_000, num_ranges_per_file=17))


if __name__ == "__main__":
    main()
