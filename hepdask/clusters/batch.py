"""Batch systems, through dask-jobqueue: each job is a worker, or some of them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask

from hepdask.clusters.environment import export_lines, warn_of_threads, worker_environment
from hepdask.clusters.security import build_security, warn_of_plain_text
from hepdask.clusters.systems import SCALING, System, lifetime_of, require, scale
from hepdask.clusters.vocabulary import WORDS, format_walltime
from hepdask.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BATCH_SYSTEMS", "BatchSystem"]

#: Of a job for which nobody says how much it needs.
DEFAULT_BYTES_PER_CORE = 2_000_000_000
_COMMON = (
    *SCALING,
    "cores",
    "dashboard_address",
    "death_timeout",
    "directives",
    "environment",
    "image",
    "interface",
    "lifetime",
    "log_directory",
    "memory",
    "name",
    "nanny",
    "prologue",
    "python",
    "scheduler_host",
    "scheduler_port",
    "scratch",
    "security",
    "shared_directory",
    "threads",
    "walltime",
    "worker_ports",
)
#: Words that dask-jobqueue has, too, under these names.
_SAME = {
    "death_timeout": "death_timeout",
    "interface": "interface",
    "log_directory": "log_directory",
    "name": "job_name",
    "nanny": "nanny",
    "queue": "queue",
    "resource_spec": "resource_spec",
    "scratch": "local_directory",
}


class _ClosesFiles:
    """Lets a cluster of dask-jobqueue remove the temporary certificates that it wrote for its workers, when it is closed."""

    async def _close(self) -> None:
        await super()._close()  # type: ignore[misc]
        for name in [one for one in vars(self) if one.startswith("_job_")]:
            written = getattr(self, name)
            if hasattr(written, "close"):
                written.close()


@dataclass(frozen=True)
class BatchSystem(System):
    """One batch system.

    Attributes
    ----------
    name, help : str
        As of every `System`.
    cluster_class : str
        Of dask-jobqueue.
    own_words : tuple of str
        What it has besides what all have.
    account : str
        How dask-jobqueue calls the account here.
    """

    name: str
    help: str
    cluster_class: str
    own_words: tuple[str, ...] = ("queue", "account")
    account: str = "account"

    @property
    def words(self) -> tuple[str, ...]:  # type: ignore[override]
        """The options that it has."""
        return (*_COMMON, *self.own_words)

    def open(self, options: Mapping[str, Any]) -> Any:
        """Start a scheduler in this process and submit jobs for workers; see `System.open`."""
        security = build_security(options.get("security"))
        arguments = self._job_arguments(options)
        warn_of_threads(arguments["cores"] // arguments["processes"])
        cluster_class = self._class()
        tidy: Any = type(cluster_class.__name__, (_ClosesFiles, cluster_class), {})
        cluster = tidy(
            security=security,
            shared_temp_directory=_shared_directory(options) if security is not None else None,
            scheduler_options=self._scheduler_options(options),
            **arguments,
        )
        warn_of_plain_text(str(cluster.scheduler_address))
        scale(cluster, options, per_job=arguments["processes"])
        return cluster

    def render(self, options: Mapping[str, Any]) -> str:
        """Write the job script; see `System.render`."""
        from distributed import Security

        security = options.get("security")
        if security in ("temporary", True):
            names = ("tls_ca_file", "tls_worker_cert", "tls_worker_key")
            security = Security(**dict.fromkeys(names, "<made for this session>"))
        else:
            security = build_security(security)
        scheme = "tcp" if security is None else "tls"
        host = options.get("scheduler_host", "<this machine>")
        job = self._class().job_cls(
            f"{scheme}://{host}:{options.get('scheduler_port', '<port>')}",
            name="<name>",
            security=security,
            protocol=None if security is None else "tls://",
            **self._job_arguments(options),
        )
        return str(job.job_script()).rstrip("\n")

    def _class(self) -> Any:
        return getattr(require("dask_jobqueue", "jobqueue"), self.cluster_class)

    def _configured(self, name: str, default: Any) -> Any:
        """Look into dask-jobqueue's own configuration: what hepdask is not told, that says."""
        value = dask.config.get(f"jobqueue.{self.name}.{name}", None)
        return default if value is None else value

    def _job_arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        require("dask_jobqueue", "jobqueue")  # its configuration comes with it
        cores = options.get("cores") or self._configured("cores", 1)
        threads = options.get("threads") or cores // (self._configured("processes", cores))
        if cores % threads:
            raise OptionError(f"{self.name}: {cores} cores can't be {threads} for each worker")
        memory = options.get("memory") or self._configured("memory", DEFAULT_BYTES_PER_CORE * cores)
        arguments: dict[str, Any] = {
            "cores": cores,
            "processes": cores // threads,
            "memory": f"{memory}B" if isinstance(memory, int) else memory,
            "job_script_prologue": self._prologue(options),
            "worker_extra_args": self._worker_arguments(options),
        }
        arguments |= {name: options[word] for word, name in _SAME.items() if word in options}
        if "account" in options:
            arguments[self.account] = options["account"]
        if "walltime" in options:
            arguments["walltime"] = self._walltime(options["walltime"])
        self._add_python(options, arguments)
        self._add_directives(options, arguments)
        return arguments

    def _walltime(self, seconds: int) -> str:
        return format_walltime(seconds)

    def _add_python(self, options: Mapping[str, Any], arguments: dict[str, Any]) -> None:
        if "image" in options:
            inside = options.get("python", "python3")
            command = ["apptainer", "exec", options["image"], inside]
            arguments["python"] = shlex.join(command)
        elif "python" in options:
            arguments["python"] = shlex.quote(options["python"])

    def _add_directives(self, options: Mapping[str, Any], arguments: dict[str, Any]) -> None:
        if "directives" not in options:
            return
        if not isinstance(options["directives"], tuple):
            raise OptionError(f"{self.name}: directives are a list of lines, as in a job script")
        arguments["job_extra_directives"] = list(options["directives"])

    def _prologue(self, options: Mapping[str, Any]) -> list[str]:
        own = options.get("prologue", self._configured("job-script-prologue", []))
        return [*export_lines(worker_environment(options)), *own]

    def _worker_arguments(self, options: Mapping[str, Any]) -> list[str]:
        # nothing listens that needn't
        arguments = [*self._configured("worker-extra-args", []), "--no-dashboard"]
        if "worker_ports" in options:
            first, last = map(int, options["worker_ports"].split(":"))
            middle = (first + last) // 2
            # each nanny listens, too
            arguments += [
                "--worker-port",
                f"{first}:{middle}",
                "--nanny-port",
                f"{middle + 1}:{last}",
            ]
        configured = self._configured("walltime", None)
        parsed = {} if configured is None else {"walltime": WORDS["walltime"].parse(configured)}
        lives = lifetime_of({**parsed, **options})
        if lives is not None:
            arguments += ["--lifetime", f"{lives[0]}s", "--lifetime-stagger", f"{lives[1]}s"]
        return arguments

    def _scheduler_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        chosen: dict[str, Any] = {
            # a tunnel or the proxy of a notebook server reaches it; other users of this machine's network don't
            "dashboard_address": options.get("dashboard_address", "127.0.0.1:0"),
            **self._configured("scheduler-options", {}),
        }
        if "scheduler_host" in options:
            chosen["host"] = options["scheduler_host"]
        if "scheduler_port" in options:
            chosen["port"] = options["scheduler_port"]
        return chosen


class HTCondorSystem(BatchSystem):
    """HTCondor: its submit description has names and values, and knows containers."""

    def _job_arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        arguments = super()._job_arguments(options)
        disk = options.get("disk") or self._configured("disk", DEFAULT_BYTES_PER_CORE)
        arguments["disk"] = f"{disk}B" if isinstance(disk, int) else disk
        # HTCondor has no wall time that every pool understands: facilities say theirs in `directives`
        arguments.pop("walltime", None)
        return arguments

    def _add_python(self, options: Mapping[str, Any], arguments: dict[str, Any]) -> None:
        if "image" in options:
            # the pool starts the container, around the whole job
            arguments["python"] = shlex.quote(options.get("python", "python3"))
        elif "python" in options:
            arguments["python"] = shlex.quote(options["python"])

    def _add_directives(self, options: Mapping[str, Any], arguments: dict[str, Any]) -> None:
        directives = options.get("directives", {})
        if isinstance(directives, tuple):
            raise OptionError(
                f"{self.name}: directives are names and values of a submit description, like {{'MY.JobFlavour': '\"longlunch\"'}}"
            )
        chosen = {}
        if "image" in options:
            chosen["MY.SingularityImage"] = f'"{options["image"]}"'
        if "walltime" in options:
            # as a limit of our own: the job goes, and is not held
            chosen["periodic_remove"] = (
                f"JobStatus == 2 && time() - EnteredCurrentStatus > {options['walltime']}"
            )
        if chosen or directives:
            arguments["job_extra_directives"] = {**chosen, **directives}


class LSFSystem(BatchSystem):
    """LSF: times have no seconds."""

    def _walltime(self, seconds: int) -> str:
        return format_walltime(max(60, seconds))[:-3]


def _shared_directory(options: Mapping[str, Any]) -> str:
    """Return where temporary certificates lie for the workers: a folder of this user alone."""
    from pathlib import Path

    import platformdirs

    given = options.get("shared_directory")
    directory = Path(given) if given else platformdirs.user_cache_path("hepdask") / "certificates"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return str(directory)


_QUEUE = ("queue", "account")
BATCH_SYSTEMS: tuple[BatchSystem, ...] = (
    BatchSystem("slurm", "SLURM", "SLURMCluster"),
    HTCondorSystem("htcondor", "HTCondor", "HTCondorCluster", ("disk",)),
    BatchSystem("pbs", "PBS, OpenPBS, Torque", "PBSCluster", (*_QUEUE, "resource_spec")),
    LSFSystem("lsf", "LSF", "LSFCluster", _QUEUE, "project"),
    BatchSystem("sge", "Grid Engine", "SGECluster", (*_QUEUE, "resource_spec"), "project"),
    BatchSystem("oar", "OAR", "OARCluster", (*_QUEUE, "resource_spec"), "project"),
)
