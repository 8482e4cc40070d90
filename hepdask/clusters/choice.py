"""From a word and options to a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask

from hepdask.clusters.addresses import AddressSystem
from hepdask.clusters.batch import BATCH_SYSTEMS
from hepdask.clusters.ecs import EcsSystem
from hepdask.clusters.gateway import GatewaySystem
from hepdask.clusters.kubernetes import KubernetesSystem
from hepdask.clusters.local import LocalSystem
from hepdask.clusters.own_class import ClassSystem
from hepdask.clusters.presets import list_facilities
from hepdask.clusters.vocabulary import WORDS, check_words
from hepdask.clusters.yarn import YarnSystem
from hepdask.errors import OptionError, suggest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hepdask.clusters.presets import Facility
    from hepdask.clusters.systems import System

__all__ = ["Choice", "choose_cluster", "configured_word", "list_systems"]

_SYSTEMS: tuple[System, ...] = (
    LocalSystem(),
    *BATCH_SYSTEMS,
    KubernetesSystem(),
    EcsSystem(),
    YarnSystem(),
    GatewaySystem(),
    ClassSystem(),
)
_ADDRESS = AddressSystem()


@dataclass(frozen=True, slots=True)
class Choice:
    """A cluster that was chosen, and is not there yet.

    Attributes
    ----------
    word : str
        As it was written.
    system : System
        What it stands for.
    options : mapping
        All of them: those of the facility, of dask's configuration, and the user's.
    facility : Facility or None
        Where the word is the name of one.
    """

    word: str
    system: System
    options: Mapping[str, Any]
    facility: Facility | None = None

    def __repr__(self) -> str:
        return repr(self.word)

    def open(self) -> Any:
        """Start the cluster, or find it; see `System.open`."""
        return self.system.open(self.options)

    def render(self) -> str:
        """Write what would be submitted; see `System.render`."""
        return self.system.render(self.options)


def list_systems() -> dict[str, System]:
    """Return all systems, by the words that choose them."""
    return {**{one.name: one for one in _SYSTEMS}, "tcp://..., tls://...": _ADDRESS}


def configured_word() -> str | None:
    """Return the word that dask's configuration has under ``hepdask.cluster``; None if there is none.

    Raises
    ------
    OptionError
        If it is no word.
    """
    word = dask.config.get("hepdask.cluster", None)
    if word is not None and not isinstance(word, str):
        raise OptionError(f"hepdask.cluster in dask's configuration is {word!r}: give a word")
    return word


def choose_cluster(word: str, options: Mapping[str, Any] | None = None) -> Choice:
    """Find what a word stands for, and check the options; nothing is started.

    Parameters
    ----------
    word : str
        A system (``"slurm"``), a facility (``"lxplus"``), or the address of a scheduler (``"tls://host:8786"``).
    options : mapping or None
        The user's. They win over those under ``hepdask.clusters.WORD`` in dask's configuration, and these over the facility's.

    Raises
    ------
    OptionError
        If the word or an option is wrong; the text lists the right ones.
    """
    facility = None if _is_address(word) else list_facilities().get(word)
    target = word if facility is None else facility.system
    layers = (dict(facility.options) if facility else {}, _configured_options(word), options or {})
    merged: dict[str, Any] = {}
    for layer in layers:
        _merge(merged, layer)
    if _is_address(target):
        merged.setdefault("address", target)
        return Choice(word, _ADDRESS, check_words(word, merged, _ADDRESS.words), facility)
    system = {one.name: one for one in _SYSTEMS}.get(target)
    if system is None:
        names = [
            *(one.name for one in _SYSTEMS),
            *list_facilities(),
            "tcp://HOST:PORT",
            "tls://HOST:PORT",
        ]
        near = suggest(target, names)
        hint = near if "did you mean" in near else f"; there is {', '.join(names)}"
        where = f" (of the facility {word!r})" if facility else ""
        raise OptionError(f"there is no cluster {target!r}{where}{hint}")
    return Choice(word, system, check_words(word, merged, system.words), facility)


def _is_address(word: str) -> bool:
    return "://" in word


def _configured_options(word: str) -> dict[str, Any]:
    chosen = dask.config.get("hepdask.clusters", {}) or {}
    options = chosen.get(word, {}) or {}
    if not isinstance(options, dict):
        raise OptionError(
            f"hepdask.clusters.{word} in dask's configuration is no mapping of options"
        )
    # dask's configuration may have hyphens
    return {str(name).replace("-", "_"): value for name, value in options.items()}


def _merge(below: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Let a layer of options win; a fixed number of workers and bounds exclude each other."""
    if "workers" in layer:
        below.pop("minimum", None)
        below.pop("maximum", None)
    elif "minimum" in layer or "maximum" in layer:
        below.pop("workers", None)
    for name, value in layer.items():
        both = (below.get(name), value)
        if name in WORDS and all(isinstance(one, dict) for one in both):
            below[name] = {**below[name], **value}
        else:
            below[name] = value
