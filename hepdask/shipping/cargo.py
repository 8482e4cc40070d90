"""All that a run needs on its workers, found on the client."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hepdask.errors import OptionError
from hepdask.fingerprint import Origins, find_user_code, is_edited
from hepdask.shipping.arrival import Manifest, process_token
from hepdask.shipping.credentials import find_credentials
from hepdask.shipping.environment import collect_environment
from hepdask.shipping.options import Shipping
from hepdask.shipping.packing import build_module_units
from hepdask.shipping.resources import Resource, build_resource_units

if TYPE_CHECKING:
    from collections.abc import Container, Mapping
    from types import ModuleType

    from hepdask.fingerprint import Origin
    from hepdask.shipping.credentials import Credential
    from hepdask.shipping.packing import Unit

__all__ = ["Cargo", "load_cargo"]


@dataclass(frozen=True, slots=True)
class Cargo:
    """What goes to the workers with a run.

    Attributes
    ----------
    modules, resources : tuple of Unit
        The user's code and data files.
    manifest : Manifest
        What tasks are told of them.
    variables : mapping of str to str
        Of the environment.
    credentials : tuple of Credential
        Proxy and token.
    options : Shipping
        What the user says.
    value : object
        The processor, and whatever else is pickled with it.
    used : frozenset of str
        Distributions that it uses.
    """

    modules: tuple[Unit, ...]
    resources: tuple[Unit, ...]
    manifest: Manifest
    variables: Mapping[str, str]
    credentials: tuple[Credential, ...] = field(repr=False)
    options: Shipping
    value: Any = field(repr=False)
    used: frozenset[str]

    def describe(self) -> str:
        """Return what of the user's is sent, with its size, for people; empty if nothing is."""
        return ", ".join(one.describe() for one in (*self.modules, *self.resources))


def load_cargo(value: Any, options: Shipping | None, declared: Mapping[str, str]) -> Cargo:
    """Find what a processor needs where it runs.

    Parameters
    ----------
    value : object
        The processor, and whatever else is pickled for tasks.
    options : Shipping or None
        What the user says; None: nothing is sent.
    declared : mapping of str to str
        Paths of resources, by name.

    Raises
    ------
    OptionError
        If something is too large, or can't be read.
    """
    if options is None:
        used = frozenset(find_user_code(value).distributions)
        return Cargo((), (), Manifest(), {}, (), Shipping(credentials=False), value, used)
    code = find_user_code((value, _import_named(options)), Resource)
    modules = build_module_units(code.origins, options)
    _warn_edited(code.origins, {one.name for one in modules})
    resources, digests = build_resource_units(declared, code.instances, options)
    manifest = Manifest(
        tuple((one.name, one.digest) for one in modules), tuple(digests.items()), process_token()
    )
    credentials = find_credentials() if options.credentials else []
    return Cargo(
        tuple(modules),
        tuple(resources),
        manifest,
        collect_environment(options),
        tuple(credentials),
        options,
        value,
        frozenset(code.distributions),
    )


def _warn_edited(origins: Mapping[str, Origin], shipped: Container[str]) -> None:
    edited = [
        name
        for name, origin in origins.items()
        if name.partition(".")[0] in shipped and is_edited(origin)
    ]
    if edited:
        warnings.warn(
            f"the functions of {', '.join(edited)} are not what is in the file, edited since the import: workers run the file; "
            "importlib.reload() it here, or use %autoreload, so that here and there run the same",
            UserWarning,
            stacklevel=2,
        )


def _import_named(options: Shipping) -> list[ModuleType]:
    """Import the modules that the user names."""
    origins = Origins()
    for name in options.modules:
        origin = origins.find_exactly(name)
        if origin is None or origin.kind != "user":
            what = (
                "there is none of this name" if origin is None else f"it is a {origin.kind} module"
            )
            raise OptionError(
                f"Shipping(modules=...) has {name!r}, but {what}: name modules and packages of your own that can be imported here"
            )
    return [import_module(name) for name in options.modules]
