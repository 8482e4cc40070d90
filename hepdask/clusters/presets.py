"""Facilities: names for a system with options, in YAML; those of this package and those of the user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
import yaml

from hepdask.errors import OptionError

__all__ = ["Facility", "list_facilities", "user_file"]

_PACKAGED = Path(__file__).parent / "facilities"
_KEYS = {"system", "help", "source", "date", "options", "notes"}


@dataclass(frozen=True, slots=True)
class Facility:
    """A place with its own cluster.

    Attributes
    ----------
    name : str
        The word that chooses it.
    system : str
        What it has: a name of a system, or the address of a scheduler.
    help : str
        What it is.
    source, date : str
        Where its options are documented, and when that was read.
    options : mapping
        What its users would have to say otherwise.
    notes : str
        What users have to do themselves.
    path : Path
        The file that it comes from.
    """

    name: str
    system: str
    path: Path
    help: str = ""
    source: str = ""
    date: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: str = ""


def user_file() -> Path:
    """Return the file of the user's own facilities: ``hepdask.facilities-file`` of dask's configuration, or the default."""
    import platformdirs

    configured = dask.config.get("hepdask.facilities-file", None)
    if configured:
        return Path(str(configured)).expanduser()
    return platformdirs.user_config_path("hepdask") / "facilities.yaml"


def list_facilities() -> dict[str, Facility]:
    """Read all facilities; the user's own come last, and win.

    Raises
    ------
    OptionError
        If a file is not what it should be; the text names file and key.
    """
    found = {}
    for path in sorted(_PACKAGED.glob("*.yaml")):
        found.update(_read(path))
    own = user_file()
    if own.exists():
        found.update(_read(own))
    elif dask.config.get("hepdask.facilities-file", None):
        raise OptionError(f"there is no file {own}, which hepdask.facilities-file names")
    return found


def _read(path: Path) -> dict[str, Facility]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise OptionError(f"{path} can't be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping):
        raise OptionError(f"{path} is no mapping of names to facilities")
    return {str(name): _build(str(name), entry, path) for name, entry in content.items()}


def _build(name: str, entry: Any, path: Path) -> Facility:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("system"), str):
        raise OptionError(f"{path}: {name!r} needs a system: slurm, htcondor, tls://..., ...")
    wrong = sorted(map(str, set(entry) - _KEYS))
    if wrong:
        raise OptionError(
            f"{path}: {name!r} has {wrong[0]!r}; a facility has {', '.join(sorted(_KEYS))}"
        )
    options = entry.get("options") or {}
    if not isinstance(options, Mapping):
        raise OptionError(f"{path}: the options of {name!r} are no mapping")
    texts = {key: str(entry.get(key) or "").strip() for key in ("help", "source", "date", "notes")}
    return Facility(name, entry["system"], path, options=dict(options), **texts)
