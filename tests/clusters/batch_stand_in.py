"""Stand-ins for the commands of HTCondor, PBS, LSF and OAR, in one file: the name that it is called by decides.

What is submitted is run for real, as a process in a session, folder and environment of its own: so what is in the job script is
what starts the worker. Jobs are kept as files in the folder of the commands; there is no queue, they start at once.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["COMMANDS", "install", "list_jobs"]

COMMANDS = {
    "htcondor": ("condor_submit", "condor_rm", "condor_q"),
    "pbs": ("qsub", "qdel", "qstat"),
    "lsf": ("bsub", "bkill", "bjobs"),
    "oar": ("oarsub", "oardel", "oarstat"),
}
KILL_SECONDS = 10.0


def install(system: str, directory: Path) -> None:
    """Write the commands of a batch system into a folder, which is to come first on PATH."""
    for name in COMMANDS[system]:
        path = directory / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} {directory} "$@"\n')
        path.chmod(0o755)


def list_jobs(directory: Path) -> dict[str, int]:
    """Return the jobs whose process has not ended: ids and process ids."""
    jobs = {one.stem: int(one.read_text()) for one in directory.glob("*.job")}
    return {name: pid for name, pid in jobs.items() if _is_alive(pid)}


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def _start(directory: Path, arguments: list[str]) -> str:
    job = str(1 + len(list(directory.glob("*.job"))))
    folder = directory / f"folder-{job}"
    folder.mkdir()
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), "BATCH_JOB": job},
            start_new_session=True,
        )
    (directory / f"{job}.job").write_text(str(process.pid))
    return job


def _run_script(directory: Path, text: str) -> str:
    number = len(list(directory.glob("*.sh")))
    path = directory / f"script-{number}.sh"
    path.write_text(text)
    # as batch systems do: the script's own first line says what runs it
    shell = shlex.split(text.partition("\n")[0][2:]) if text.startswith("#!") else ["/bin/sh"]
    return _start(directory, [*shell, str(path)])


def _submit_condor(directory: Path, words: list[str]) -> None:
    fields = {}
    for line in Path(words[-1]).read_text().splitlines():
        name, separator, value = line.partition(" = ")
        if separator:
            fields[name.strip().lower()] = value.strip()
    # the "new" syntax: the whole in double quotes, parts in single ones, each doubled for itself
    quoted = fields["arguments"][1:-1].replace('""', '"')
    parts = re.findall(r"'((?:[^']|'')*)'|(\S+)", quoted)
    arguments = [(inside.replace("''", "'") if inside else plain) for inside, plain in parts]
    job = _start(directory, [fields["executable"], *arguments])
    print(f"Submitting job(s).\n1 job(s) submitted to cluster {job}.")


def _submit_script(directory: Path, words: list[str]) -> None:
    print(f"{_run_script(directory, Path(words[-1]).read_text())}.server")


def _submit_stdin(directory: Path, words: list[str]) -> None:
    print(
        f"Job <{_run_script(directory, sys.stdin.read())}> is submitted to default queue <normal>."
    )


def _submit_inline(directory: Path, words: list[str]) -> None:
    print(f"OAR_JOB_ID={_run_script(directory, words[-1])}")


def _kill(directory: Path, words: list[str]) -> None:
    for word in words:
        pid = list_jobs(directory).get(word.partition(".")[0])
        if pid is None:
            sys.exit(f"no such job: {word}")
        ends = time.monotonic() + KILL_SECONDS
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(pid, number)
            while _is_alive(pid) and (time.monotonic() < ends or number == signal.SIGKILL):
                time.sleep(0.05)


def _list(directory: Path, system: str) -> None:
    jobs = list_jobs(directory)
    if system == "oar":
        print(json.dumps({job: {"state": "Running", "message": ""} for job in jobs}))
    lines = {
        "htcondor": "2 undefined",
        "pbs": "Job Id: {job}.server\n    job_state = R",
        "lsf": "RUN|-",
    }
    for job in jobs:
        print(lines.get(system, "").format(job=job))


if __name__ == "__main__":
    called, where, *given = sys.argv[1:]
    chosen = next(system for system, names in COMMANDS.items() if called in names)
    submit, kill, _ = COMMANDS[chosen]
    if called == submit:
        submits = {
            "htcondor": _submit_condor,
            "pbs": _submit_script,
            "lsf": _submit_stdin,
            "oar": _submit_inline,
        }
        submits[chosen](Path(where), given)
    elif called == kill:
        _kill(Path(where), given)
    else:
        _list(Path(where), chosen)
