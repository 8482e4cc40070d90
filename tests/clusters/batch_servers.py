"""Real batch systems for tests: SLURM with two nodes, Grid Engine.

Each is a context manager, keeps its files below a directory that the caller gives, and is stopped by its process ids.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

import pytest

from tests.local import wait_until
from tests.servers import free_port, stop_process

__all__ = [
    "GridEngineServer",
    "SlurmServer",
    "require_commands",
    "require_slurm",
    "say",
]


_SLURM_CONF = """\
ClusterName=hepdask
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
CredType=cred/munge
SlurmctldPort={ports[0]}
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
# no cgroups: containers don't give their controllers
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0,bf_interval=2
ReturnToService=2
SlurmdParameters=config_overrides
DefMemPerCPU=100
KillWait={kill_wait}
SlurmdTimeout=300
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=8000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=8000 State=UNKNOWN
PartitionName=short Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def require_commands(commands: tuple[str, ...], packages: str) -> None:
    """Skip the test if a program is missing, or this is not root; fail it in continuous integration.

    Parameters
    ----------
    commands : tuple of str
        Programs of the server.
    packages : str
        Debian's packages that bring them.
    """
    missing = [one for one in commands if shutil.which(one) is None]
    if not missing and os.geteuid() == 0:
        return
    text = f"there is no {missing[0]}: apt-get install {packages}" if missing else "needs root"
    if os.environ.get("CI", "").lower() not in {"", "0", "false"}:
        pytest.fail(text)
    pytest.skip(text)


def require_slurm() -> None:
    """Skip the test if there is no SLURM; see `require_commands`."""
    require_commands(
        ("munged", "slurmctld", "slurmd", "sbatch"), "munge slurmctld slurmd slurm-client"
    )


def say(*command: str) -> str:
    """Run a command and return what it prints."""
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if run.returncode:
        raise RuntimeError(f"{command[0]}: {run.stderr or run.stdout}")
    return run.stdout


class SlurmServer:
    """SLURM with the nodes n1 and n2 of four CPUs each, both on this machine; its partition is ``short``.

    Parameters
    ----------
    directory : Path
        An empty directory.
    kill_wait : int
        Seconds between SIGTERM and SIGKILL for a job that is cancelled.
    """

    def __init__(self, directory: Path, *, kill_wait: int = 10) -> None:
        self.directory = directory
        self.config_path = directory / "slurm.conf"
        self._kill_wait = kill_wait
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            self._start_munge()
            self._start_slurm()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._stack, suppress(RuntimeError):
            # its jobs are no children of its daemons
            say("scancel", "--user=root", "--full")
            wait_until(lambda: not self.jobs(), "jobs end")

    def jobs(self, state: str = "all") -> list[str]:
        """List the ids of jobs that have not ended."""
        return say("squeue", "-h", "-o", "%i", "-t", "PD,R,CG" if state == "all" else state).split()

    def set_node(self, name: str, state: str) -> None:
        """Let a node go ``down``, or ``drain``, or ``resume``."""
        if state == "resume" and not say("sinfo", "-h", "-n", name, "-o", "%t").startswith("d"):
            return  # it has come back by itself
        say("scontrol", "update", f"nodename={name}", f"state={state}", "reason=test")

    def _start_munge(self) -> None:
        key = self.directory / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        files = {
            "--socket": "munge.socket",
            "--pid-file": "munge.pid",
            "--log-file": "munge.log",
            "--seed-file": "munge.seed",
        }
        arguments = [f"{flag}={self.directory / name}" for flag, name in files.items()]
        self._start("munged", "--foreground", "--force", f"--key-file={key}", *arguments)
        wait_until((self.directory / "munge.socket").exists, "munged listens")

    def _start_slurm(self) -> None:
        host = socket.gethostname().partition(".")[0]
        ports = [free_port() for _ in range(3)]
        for name in ("state", "spool-n1", "spool-n2"):
            (self.directory / name).mkdir()
        self.config_path.write_text(
            _SLURM_CONF.format(
                host=host, directory=self.directory, ports=ports, kill_wait=self._kill_wait
            )
        )
        environment = pytest.MonkeyPatch()
        environment.setenv("SLURM_CONF", str(self.config_path))
        self._stack.callback(environment.undo)
        self._start("slurmctld", "-D")
        for node in ("n1", "n2"):
            self._start("slurmd", "-D", "-N", node)
        wait_until(self._is_ready, f"two idle nodes; see {self.directory}/*.log")

    def _is_ready(self) -> bool:
        with suppress(RuntimeError):
            return say("sinfo", "-h", "-N", "-o", "%t").split() == ["idle", "idle"]
        return False

    def _start(self, program: str, *arguments: str) -> None:
        with (self.directory / f"{program}.out").open("ab") as log:
            process = subprocess.Popen(
                [shutil.which(program) or program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._stack.callback(stop_process, process)


SGE_ROOT, SGE_CELL = "/var/lib/gridengine", "default"
_SGE_RUN = Path("/var/run/gridengine")
_SGE_HOST = """\
hostname {host}
load_scaling NONE
complex_values NONE
user_lists NONE
xuser_lists NONE
projects NONE
xprojects NONE
usage_scaling NONE
report_variables NONE
"""
_SGE_QUEUE = {
    "qname": "all.q",
    "hostlist": "{host}",
    "slots": "4",
    "load_thresholds": "NONE",
    "shell": "/bin/bash",
    "shell_start_mode": "unix_behavior",
    "pe_list": "NONE",
}
_SGE_GLOBAL = {"min_uid": "0", "min_gid": "0", "load_report_time": "00:00:02"}
_SGE_SCHEDULING = {
    "schedule_interval": "0:0:1",
    "flush_submit_sec": "1",
    "flush_finish_sec": "1",
    "schedd_job_info": "true",
}


class GridEngineServer:
    """Grid Engine with one host of four slots, this machine; its queue is ``all.q``.

    Debian's packages compile in where it keeps its state, so there is one on a machine.

    Parameters
    ----------
    directory : Path
        An empty directory.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._host = socket.gethostname().partition(".")[0]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            environment = pytest.MonkeyPatch()
            environment.setenv("SGE_ROOT", SGE_ROOT)
            environment.setenv("SGE_CELL", SGE_CELL)
            self._stack.callback(environment.undo)
            self._start()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._stack, suppress(RuntimeError):
            if jobs := self.jobs():
                say("qdel", "-f", *jobs)
                wait_until(lambda: not self.jobs(), "jobs end")

    def jobs(self) -> list[str]:
        """List the ids of jobs that have not ended."""
        return [line.split()[0] for line in say("qstat").splitlines()[2:]]

    def disable_queue(self) -> None:
        """Let no job start."""
        say("qmod", "-d", "all.q")

    def enable_queue(self) -> None:
        """Let jobs start again."""
        say("qmod", "-e", "all.q")

    def _start(self) -> None:
        common = Path(SGE_ROOT, SGE_CELL, "common")
        (common / "act_qmaster").write_text(f"{self._host}\n")
        # the name of 127.0.0.1 is localhost: without this line the daemons refuse each other
        (common / "host_aliases").write_text(f"{self._host} localhost\n")
        _SGE_RUN.mkdir(exist_ok=True)
        shutil.chown(_SGE_RUN, "sgeadmin")
        self._start_daemon("sge_qmaster", Path("/var/spool/gridengine/qmaster/qmaster.pid"))
        wait_until(lambda: _succeeds("qconf", "-sh"), "sge_qmaster answers")
        self._configure()
        os.environ["SGE_EXECD_PIDFILE"] = str(_SGE_RUN / "execd.pid")
        self._start_daemon("sge_execd", _SGE_RUN / "execd.pid")
        wait_until(lambda: "-NA-" not in say("qstat", "-f"), "the host reports its load")

    def _configure(self) -> None:
        # the first manager, who makes root another one
        _succeeds(
            *("runuser", "-u", "sgeadmin", "--", "env"), *self._variables(), "qconf", "-am", "root"
        )
        _succeeds("qconf", "-ah", self._host)
        _succeeds("qconf", "-as", self._host)
        if self._host not in _output("qconf", "-sel"):
            say("qconf", "-Ae", self._write("host", _SGE_HOST.format(host=self._host)))
        if "all.q" not in _output("qconf", "-sql").split():
            fields = {name: value.format(host=self._host) for name, value in _SGE_QUEUE.items()}
            say("qconf", "-Aq", self._write("queue", _replace(say("qconf", "-sq"), fields)))
        say("qconf", "-Mconf", self._write("global", _replace(say("qconf", "-sconf"), _SGE_GLOBAL)))
        say(
            "qconf",
            "-Msconf",
            self._write("sched", _replace(say("qconf", "-ssconf"), _SGE_SCHEDULING)),
        )

    def _variables(self) -> list[str]:
        return [f"SGE_ROOT={SGE_ROOT}", f"SGE_CELL={SGE_CELL}"]

    def _write(self, name: str, text: str) -> str:
        path = self.directory / name
        path.write_text(text)
        return str(path)

    def _start_daemon(self, program: str, pid_path: Path) -> None:
        pid_path.unlink(missing_ok=True)
        say(program)
        wait_until(pid_path.exists, f"{program} runs")
        self._stack.callback(_stop_daemon, pid_path)


def _output(*command: str) -> str:
    """Run a command that may have nothing to say, and then fails."""
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return run.stdout


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


def _replace(text: str, fields: dict[str, str]) -> str:
    """Put other values into what ``qconf -s...`` has printed."""
    joined = text.replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    names = [line.split()[0] for line in lines]
    changed = [
        f"{name} {fields[name]}" if name in fields else line
        for name, line in zip(names, lines, strict=True)
    ]
    return "\n".join(changed) + "\n"


def _stop_daemon(pid_path: Path) -> None:
    """End a process that is no child of this one."""
    pid = int(pid_path.read_text())
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    status = Path(f"/proc/{pid}/status")

    def is_gone() -> bool:
        # one that nobody reaps stays a zombie
        return not status.exists() or "\nState:\tZ" in status.read_text()

    wait_until(is_gone, f"process {pid} ends")
    pid_path.unlink(missing_ok=True)
