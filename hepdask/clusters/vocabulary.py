"""The words that describe a cluster: the same for every system, checked before anything is started."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hepdask.errors import OptionError, suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["WORDS", "Word", "check_words", "format_walltime"]


@dataclass(frozen=True, slots=True)
class Word:
    """An option that means the same on every system that has it.

    Attributes
    ----------
    help : str
        What it says, for tables and errors.
    parse : callable
        Takes what the user wrote; returns it in one form, or raises ValueError with what was expected.
    """

    help: str
    parse: Callable[[Any], Any]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\n" in value:
        raise ValueError("a text of one line")
    return value


def _text_or_number(value: Any) -> str:
    # YAML reads a queue that is called 8 as a number
    return _text(str(value) if isinstance(value, int) and not isinstance(value, bool) else value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("a whole number, 1 or more")
    return value


def _count_or_zero(value: Any) -> int:
    return 0 if value == 0 and not isinstance(value, bool) else _count(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("True or False")  # noqa: TRY004  # of an option, not of a call
    return value


def _num_bytes(value: Any) -> int:
    from dask.utils import parse_bytes

    try:
        number = parse_bytes(value)
    except (ValueError, TypeError, AttributeError):
        number = 0
    if isinstance(value, bool) or number <= 0:
        raise ValueError('bytes, like "2 GB" or "1900 MiB"')
    return int(number)


_UNITS = {"": 1, "s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "d": 86_400, "days": 86_400}


def _seconds(value: Any) -> int:
    """Read ``"08:00:00"``, ``"1-12:00:00"``, ``"90 min"``, or a number of seconds."""
    text = "" if isinstance(value, bool) else str(value).strip()
    total = 0.0
    if match := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?", text, re.ASCII):
        days, hours, minutes, seconds = (int(one or 0) for one in match.groups())
        total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    elif match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text, re.ASCII):
        total = float(match[1]) * _UNITS.get(match[2], 0)
    if total < 1:
        raise ValueError('a time, like "08:00:00", "1-12:00:00", "90 min", "8 h", or seconds')
    return math.floor(total)


def _lines(value: Any) -> tuple[str, ...]:
    lines = [value] if isinstance(value, str) else value
    if not isinstance(lines, list | tuple) or not all(isinstance(one, str) for one in lines):
        raise ValueError("a list of lines")
    return tuple(line for one in lines for line in one.splitlines())


def _directives(value: Any) -> Any:
    return {str(k): v for k, v in value.items()} if isinstance(value, Mapping) else _lines(value)


def _variables(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError("names and values of environment variables")  # noqa: TRY004
    wrong = [one for one in value if not re.fullmatch(r"[A-Za-z_]\w*", str(one), re.ASCII)]
    if wrong:
        raise ValueError(f"names and values of environment variables, and {wrong[0]!r} is no name")
    return {str(name): str(content) for name, content in value.items()}


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("names and values")  # noqa: TRY004
    return {str(name): content for name, content in value.items()}


def _ports(value: Any) -> str:
    text = str(value)
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or not 0 < int(match[1]) < int(match[2]) < 65536:
        raise ValueError('a range of ports, like "10000:10100"')
    return text


def _class_path(value: Any) -> str:
    text = str(value)
    if not re.fullmatch(r"[\w.]+:\w+", text):
        raise ValueError('a module and a class, like "dask_lxplus:CernCluster"')
    return text


def _anything(value: Any) -> Any:
    return value


WORDS: dict[str, Word] = {
    "workers": Word("workers to have, all the time", _count_or_zero),
    "minimum": Word("workers to have at least; with maximum, as many as there is work for", _count_or_zero),
    "maximum": Word("workers to have at most, as many as there is work for", _count),
    "cores": Word("CPU cores of a job; each runs a worker with one thread", _count),
    "threads": Word("threads of a worker (1 is best: Python code of threads runs in turns)", _count),
    "memory": Word("memory of a job (of a worker, where there are no jobs)", _num_bytes),
    "disk": Word("disk of a job", _num_bytes),
    "queue": Word("queue or partition", _text_or_number),
    "account": Word("account or project that pays", _text_or_number),
    "walltime": Word("time after which the batch system ends a job", _seconds),
    "lifetime": Word("time after which a worker hands over and ends; by default a little less than walltime", _seconds),
    "image": Word("container image that workers run in", _text),
    "prologue": Word("lines of shell before the worker starts", _lines),
    "environment": Word("environment variables of workers", _variables),
    "directives": Word("more lines (HTCondor: names and values) for the head of a job script", _directives),
    "resource_spec": Word("the batch system's own way to ask for resources", _text),
    "python": Word("Python of the workers", _text),
    "name": Word("name of the jobs", _text),
    "log_directory": Word("where the batch system writes what workers say", _text),
    "scratch": Word("fast local disk of the workers", _text),
    "shared_directory": Word("where temporary certificates are written for workers, mode 600", _text),
    "interface": Word("network interface that scheduler and workers use", _text),
    "scheduler_host": Word("name or address of this machine, as workers see it", _text),
    "scheduler_port": Word("port that the scheduler listens on", _count_or_zero),
    "worker_ports": Word("range of ports that workers listen on", _ports),
    "death_timeout": Word("seconds after which a worker without scheduler ends", _seconds),
    "nanny": Word("whether a second process watches each worker", _flag),
    "security": Word('"temporary", or the files of certificates: {ca, cert, key}', _anything),
    "dashboard_address": Word("where the scheduler serves its dashboard", _text),
    "address": Word("where the service, or the scheduler, is", _text),
    "proxy_address": Word("where Dask Gateway takes connections to schedulers", _text),
    "auth": Word("how to log in at Dask Gateway", _anything),
    "namespace": Word("namespace of Kubernetes", _text),
    "region": Word("region of the cloud", _text),
    "subnets": Word("subnets of the cloud", _lines),
    "security_groups": Word("security groups of the cloud", _lines),
    "cluster_class": Word("class of the cluster, MODULE:CLASS", _class_path),
    "settings": Word("more options of the service, in its own words", _mapping),
}  # fmt: skip


def check_words(owner: str, given: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Check options, and bring each into one form.

    Parameters
    ----------
    owner : str
        Name of the system, for errors.
    given : mapping
        What the user wrote; None stands for nothing.
    known : iterable of str
        The words that this system has.

    Raises
    ------
    OptionError
        For a word that the system does not have (with those that it has), or a wrong value.
    """
    names = sorted(known)
    parsed = {}
    for name, value in given.items():
        if name not in names:
            near = suggest(name, names)
            hint = near if "did you mean" in near else ""
            raise OptionError(
                f"{owner} has no option {name!r}{hint}; its options are {', '.join(names)}"
            )
        if value is None:
            continue
        try:
            parsed[name] = WORDS[name].parse(value)
        except ValueError as error:
            raise OptionError(f"{owner}: {name} is {value!r}: give {error}") from error
    _check_scaling(owner, parsed)
    return parsed


def _check_scaling(owner: str, options: Mapping[str, Any]) -> None:
    adaptive = [name for name in ("minimum", "maximum") if name in options]
    if "workers" in options and adaptive:
        raise OptionError(
            f"{owner}: workers is a fixed number, {adaptive[0]} lets it change: give one of them"
        )
    if options.get("minimum", 0) > options.get("maximum", math.inf):
        raise OptionError(
            f"{owner}: minimum is {options['minimum']}, maximum {options['maximum']}: the other way round"
        )


def format_walltime(seconds: int) -> str:
    """Write seconds as ``HH:MM:SS``, which every batch system reads; hours may be more than 24."""
    hours, rest = divmod(seconds, 3600)
    return f"{hours:02d}:{rest // 60:02d}:{rest % 60:02d}"
