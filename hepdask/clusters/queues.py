"""What a batch system says of jobs that have not started: how many, and why."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["describe_jobs", "explain"]

#: A batch system that is busy, or away, is asked again later.
ASK_SECONDS = 20.0
MAX_JOBS = 200

#: A state in words, and why, if anything is said.
_Job = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Queue:
    """How to ask one batch system.

    Attributes
    ----------
    name : str
        Of the system.
    question : callable
        From job ids to a command, as a list of arguments.
    parse : callable
        From what it prints to jobs.
    """

    name: str
    question: Callable[[Sequence[str]], list[str]]
    parse: Callable[[str], list[_Job]]


def _parse_slurm(text: str) -> list[_Job]:
    rows = [line.split("|", 1) for line in text.splitlines() if "|" in line]
    return [(state.lower(), "" if reason == "None" else reason) for state, reason in rows]


_CONDOR_STATES = {"1": "pending", "2": "running", "3": "removed", "4": "completed", "5": "held"}


def _parse_condor(text: str) -> list[_Job]:
    rows = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [
        (_CONDOR_STATES.get(row[0], row[0]), "" if row[-1] in (row[0], "undefined") else row[-1])
        for row in rows
    ]


_PBS_STATES = {"Q": "pending", "R": "running", "H": "held", "W": "pending", "E": "ending"}


def _parse_pbs(text: str) -> list[_Job]:
    jobs = []
    for block in re.split(r"^Job Id:", text, flags=re.MULTILINE)[1:]:
        # long values go on in the next line, after a tab
        fields = dict(re.findall(r"^\s+(\w+) = (.*)$", block.replace("\n\t", ""), re.MULTILINE))
        state = fields.get("job_state", "?").strip()
        jobs.append((_PBS_STATES.get(state, state), fields.get("comment", "").strip()))
    return jobs


_LSF_STATES = {"PEND": "pending", "RUN": "running", "PSUSP": "held", "EXIT": "failed"}


def _parse_lsf(text: str) -> list[_Job]:
    rows = [line.split("|", 1) for line in text.splitlines() if "|" in line]
    return [
        (_LSF_STATES.get(state.strip(), state.strip()), reason.strip(" -\n"))
        for state, reason in rows
    ]


_SGE_STATES = {"qw": "pending", "hqw": "held", "r": "running", "t": "starting", "Eqw": "failed"}


def _parse_sge(text: str) -> list[_Job]:
    rows = [line.split() for line in text.splitlines()[2:]]
    return [(_SGE_STATES.get(row[4], row[4]), "") for row in rows if len(row) > 4]


def _parse_oar(text: str) -> list[_Job]:
    states = {"Waiting": "pending", "Running": "running", "Launching": "starting"}
    jobs = json.loads(text).values()
    return [(states.get(one["state"], one["state"]), str(one.get("message") or "")) for one in jobs]


_QUEUES = {
    "sbatch": _Queue(
        "SLURM", lambda ids: ["squeue", "-h", "-o", "%T|%r", "-j", ",".join(ids)], _parse_slurm
    ),
    "condor_submit": _Queue(
        "HTCondor", lambda ids: ["condor_q", *ids, "-af", "JobStatus", "HoldReason"], _parse_condor
    ),
    "qsub": _Queue("PBS", lambda ids: ["qstat", "-f", *ids], _parse_pbs),
    "bsub": _Queue(
        "LSF",
        lambda ids: ["bjobs", "-noheader", "-o", "stat pend_reason delimiter='|'", *ids],
        _parse_lsf,
    ),
    # Grid Engine can't be asked for some jobs in this form: all of the user's are counted
    "sge": _Queue("Grid Engine", lambda _: ["qstat"], _parse_sge),
    "oarsub": _Queue(
        "OAR",
        lambda ids: ["oarstat", "-J", *(word for one in ids for word in ("-j", one))],
        _parse_oar,
    ),
}


def describe_jobs(name: str, jobs: Sequence[_Job]) -> str:
    """Write what a batch system says, ``"SLURM: 2 jobs pending (Resources)"``."""
    if not jobs:
        return f"{name}: no jobs"
    parts = []
    for state, count in Counter(state for state, _ in jobs).most_common():
        reasons = sorted({why for one, why in jobs if one == state and why})
        text = f"{count} job{'s' if count > 1 else ''} {state}"
        parts.append(f"{text} ({'; '.join(reasons[:3])})" if reasons else text)
    return f"{name}: {', '.join(parts)}"


def explain(cluster: Any) -> str:
    """Ask the batch system of a cluster of dask-jobqueue's kind what its jobs wait for.

    Parameters
    ----------
    cluster : cluster object or None
        Any: of one that isn't of this kind, nothing is known.

    Returns
    -------
    str
        Empty if nothing is known.
    """
    job_class = getattr(cluster, "job_cls", None)
    command = str(getattr(job_class, "submit_command", None) or "").partition(" ")[0]
    is_sge = command == "qsub" and getattr(job_class, "config_name", "") == "sge"
    queue = _QUEUES.get("sge" if is_sge else command)
    if queue is None:
        return ""
    ids = [
        str(job.job_id) for job in list(cluster.workers.values()) if getattr(job, "job_id", None)
    ]
    if not ids:
        return f"{queue.name}: no job has been submitted yet"
    question = queue.question(ids[:MAX_JOBS])
    try:
        answer = subprocess.run(
            question, capture_output=True, text=True, timeout=ASK_SECONDS, check=False
        )
        if answer.returncode:
            text = " ".join((answer.stderr or answer.stdout).split())
            return f"{queue.name}: {question[0]} says: {text[:200]}"
        return describe_jobs(queue.name, queue.parse(answer.stdout))
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{queue.name}: {question[0]}: {error}"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return f"{queue.name}: {question[0]} says something that hepdask does not understand"
