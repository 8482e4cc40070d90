"""Ctrl-C, as a terminal or the stop button of a notebook sends it: to the client and to its workers on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from datasets.sample import write_sample

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, sys
from distributed import Client
from hepdask import DaskExecutor, LocalExecutor, RunError, Runner
from tests.example_processors import SlowSum
from pathlib import Path

def main():
    fileset, log, how = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    if how == "local":
        report(LocalExecutor(), fileset, log)
        return
    with Client(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as client:
        report(DaskExecutor(client, max_ranges_per_task=2), fileset, log)

def report(executor, fileset, log):
    run = Runner(executor, chunksize=1_000, progress=False, metadata_cache=False)
    try:
        run.run(fileset, SlowSum(0.4, log_directory=log))
        print("complete")
    except RunError as error:
        result = error.partial_result
        total = result.completeness.total
        print(result.stopped_by, total.num_entries_processed, len(result.output["starts"]) * 1_000, flush=True)

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("how", ["local", "dask"])
@pytest.mark.parametrize("num_interrupts", [1, 2])
def test_what_is_done_is_kept(tmp_path: Path, how: str, num_interrupts: int) -> None:
    fileset = write_sample(
        tmp_path / "sample", num_events=20_000, num_files=1, num_events_per_cluster=1_000
    )
    log = tmp_path / "log"
    log.mkdir()
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, str(script), json.dumps(fileset), str(log), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as process:
        wait_for_calls(log, 5, process)
        for _ in range(num_interrupts):
            os.killpg(process.pid, signal.SIGINT)
            threading.Event().wait(0.15)
        output, errors = process.communicate(timeout=100)
    assert output, errors
    *words, processed, added = output.split()
    # the second one may come when all that had begun is done
    assert " ".join(words) in ("interrupted", "interrupted twice")[:num_interrupts]
    assert processed == added
    # of what was under way when it came a second time, nothing need be there
    assert 2_000 <= int(processed) < 20_000


def wait_for_calls(log: Path, count: int, process: Any) -> None:
    deadline = time.monotonic() + 100
    while len(list(log.iterdir())) < count:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        threading.Event().wait(0.02)
