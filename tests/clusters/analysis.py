"""A user's script: ``python -m tests.clusters.analysis WORD END FILE...`` prints a hash of the output's bits.

Only the word says which cluster it is; dask's configuration has the rest. At the end it closes what it has opened, or, as many
scripts do, doesn't: END is ``close`` or ``leave``.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Literal

import yaml

from hepdask import DaskExecutor, Runner
from tests.example_processors import Weighted
from tests.servers import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from hepdask.executors import Executor
    from tests.conftest import NanoFiles

__all__ = ["bits_of", "hash_of", "run_inside", "script"]


def script(executor: Executor, fileset: Any) -> bytes:
    """Do what a user's script does; only the executor's word differs."""
    run = Runner(executor, chunksize=20, progress=False, metadata_cache=False)
    return bits_of(run(fileset, processor_instance=Weighted()))


def bits_of(output: Mapping[str, Any]) -> bytes:
    """Return all bits of what `Weighted` makes."""
    # a pickle also says which of its strings are one object
    return repr({**output, "pt": output["pt"].view(flow=True).tobytes()}).encode()


def hash_of(bits: bytes) -> str:
    """Write bits short."""
    return hashlib.sha256(bits).hexdigest()


def run_inside(
    inside: Sequence[str],
    word: str,
    configuration: Mapping[str, Any],
    nano_files: NanoFiles,
    directory: Path,
    *,
    environment: Mapping[str, str] | None = None,
    end: Literal["close", "leave"] = "close",
) -> str:
    """Run the script in a network; return what it prints.

    Parameters
    ----------
    inside : sequence of str
        The words before a command that let it run there.
    word : str
        Of the cluster.
    configuration : mapping
        What a site's configuration says of the word.
    nano_files : NanoFiles
        What is analysed.
    directory : Path
        For the configuration.
    environment : mapping or None
        More variables for the script.
    end : {"close", "leave"}
        Whether it closes the cluster.

    Raises
    ------
    RuntimeError
        If it fails, or complains; the text ends with what it printed.
    """
    path = directory / "dask.yaml"
    path.write_text(yaml.safe_dump({"hepdask": {"clusters": {word: dict(configuration)}}}))
    variables = {"PYTHONPATH": str(REPOSITORY), "DASK_CONFIG": str(path), **(environment or {})}
    # warnings are errors there, too
    command = [sys.executable, "-W", "error::UserWarning", "-m", "tests.clusters.analysis"]
    done = subprocess.run(
        [*inside, *command, word, end, *map(str, nano_files.paths)],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
        cwd=REPOSITORY,
        env={**os.environ, **variables},
    )
    if done.returncode or "Traceback" in done.stderr:
        raise RuntimeError(
            f"the script on {word} ends with {done.returncode}: {done.stderr[-4000:]}"
        )
    return done.stdout.strip()


def main() -> None:
    """Run the processor over the files on the cluster of the word."""
    word, end, *paths = sys.argv[1:]
    executor = DaskExecutor(word)
    print(hash_of(script(executor, {"nano": {"files": dict.fromkeys(paths, "Events")}})))
    if end == "close":
        executor.close()


if __name__ == "__main__":
    main()
