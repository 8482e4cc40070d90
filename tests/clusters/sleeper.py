"""A user's script that is put to sleep: ``python -m tests.clusters.sleeper WORD CERTIFICATES DIRECTORY FILE...``.

It prints a hash of the output's bits. Its ranges leave their calls in the directory, and the later ones wait there for ``go``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from hepdask import DaskExecutor, Runner
from tests.clusters.analysis import bits_of, hash_of
from tests.clusters.processors import CountsCalls
from tests.local import wait_until
from tests.servers import REPOSITORY, stop_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["SHORT_TIMES", "run_asleep"]

#: How long dask waits for whoever does not answer, on both sides.
SHORT_TIMES = {
    "DASK_DISTRIBUTED__CLIENT__HEARTBEAT": "200ms",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "2s",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "11s",  # dask takes no less
}


def run_asleep(
    inside: list[str],
    word: str,
    certificates: Path,
    directory: Path,
    files: Iterable[Path],
    *,
    fall_asleep: Callable[[], object],
    wake_up: Callable[[], object],
    scheduler_log: Path,
) -> tuple[str, str]:
    """Run the script, stop its processes in the middle until the scheduler has given it up, and let it go on.

    Parameters
    ----------
    inside : list of str
        Words before its command.
    word : str
        Its cluster; the environment of this process has `SHORT_TIMES`.
    certificates, directory : Path
        Of the cluster; an empty one.
    files : iterable of Path
        Its fileset.
    fall_asleep, wake_up : callable
        What happens to the connection with it.
    scheduler_log : Path
        Says that the client was removed.

    Returns
    -------
    tuple of (str, str)
        What it prints: the hash, and what hepdask has to say.
    """
    script = [sys.executable, "-m", "tests.clusters.sleeper", word, str(certificates)]
    with ExitStack() as stack:
        process = subprocess.Popen(
            [*inside, *script, str(directory), *map(str, files)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
            start_new_session=True,
        )
        stack.callback(stop_process, process)
        wait_until(lambda: list(directory.glob("waits-*")), "a range waits")
        os.killpg(process.pid, signal.SIGSTOP)
        mark = scheduler_log.read_text()
        fall_asleep()
        (directory / "go").touch()
        wait_until(
            lambda: "Remove client" in scheduler_log.read_text()[len(mark) :],
            "the scheduler has given the client up",
        )
        wake_up()
        os.killpg(process.pid, signal.SIGCONT)
        said, warned = process.communicate(timeout=120)
    text = warned.decode()
    assert process.returncode == 0, text[-3000:]
    return said.decode().strip(), text


def main() -> None:
    """Run the processor over the files on the cluster of the word."""
    word, certificates, directory, *paths = sys.argv[1:]
    security = {name: f"{certificates}/{name}.pem" for name in ("ca", "cert", "key")}
    with DaskExecutor(word, security=security, max_ranges_per_task=1) as executor:
        store = Path(directory) / "store"
        run = Runner(executor, chunksize=10, progress=False, metadata_cache=False, store=store)
        processor = CountsCalls(Path(directory), 200)
        output = run({"nano": paths}, "Events", processor_instance=processor)
    print(hash_of(bits_of(output)))


if __name__ == "__main__":
    main()
