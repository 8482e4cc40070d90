"""What runs containers in tests: each is a process in a session, folder and environment of its own.

The command is run as it was sent, with the programs of this Python's environment; there is no image. What was asked for, and how
it ended, is kept in files, for tests to read.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Container", "Containers", "list_containers"]

STOP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Container:
    """A container that was started.

    Attributes
    ----------
    name : str
        Of the pod or task.
    image : str
        What it was to run in.
    command : list of str
        What was run.
    environment : dict
        Variables that were sent.
    has_ended : bool
        Whether its process is no more.
    output : str
        What it printed.
    """

    name: str
    image: str
    command: list[str]
    environment: dict[str, str]
    has_ended: bool
    output: str


class Containers:
    """Containers that run, by name, and a folder for each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self, name: str, image: str, command: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        """Run a command as a container."""
        folder = self._directory / name
        folder.mkdir(parents=True)
        sent: dict[str, Any] = {"name": name, "image": image, "command": list(command)}
        _write(folder / "sent.json", {**sent, "environment": dict(environment)})
        programs = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        with (folder / "output").open("wb") as output:
            self._running[name] = subprocess.Popen(
                # a shell of its own that becomes the command: what can't be found is a container that ends
                ["/bin/sh", "-c", 'exec "$@"', "sh", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=folder,
                env={"PATH": programs, "HOME": str(folder), **environment},
                start_new_session=True,
            )

    def reap(self) -> dict[str, int]:
        """Return the exit codes of those that have ended since, by name."""
        codes = {name: one.poll() for name, one in self._running.items()}
        ended = {name: code for name, code in codes.items() if code is not None}
        for name, code in ended.items():
            self._forget(name, code)
        return ended

    def stop(self, name: str) -> None:
        """End a container as those in charge of real ones do: first ask, then kill; nothing if there is none."""
        process = self._running.get(name)
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
        self._forget(name, process.wait())

    def stop_all(self) -> None:
        """Kill what is left, at once."""
        for name, process in list(self._running.items()):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            self._forget(name, process.wait())

    def _forget(self, name: str, code: int) -> None:
        self._running.pop(name, None)
        _write(self._directory / name / "ended.json", code)


def _write(path: Path, value: Any) -> None:
    # whoever reads it sees all of it, or nothing
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(value))
    draft.rename(path)


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def list_containers(directory: Path) -> list[Container]:
    """Return all containers that were ever started, in order of their names."""
    return [
        Container(
            **json.loads(path.read_text()),
            has_ended=path.with_name("ended.json").exists(),
            output=_read(path.with_name("output")),
        )
        for path in sorted(directory.glob("*/sent.json"))
    ]
