"""Let functions compiled by numba find their machine code in the next process, and nobody else's.

``@numba.njit(cache=True)`` keeps machine code on disk; but numba pickles a function as what it was compiled from, and
forgets that. What is pickled by value (all from a notebook, or from a file that a command line names) would be compiled
anew in each worker. So such a function takes the hash of all that it consists of along, and machine code is kept under
this hash, in ``NUMBA_CACHE_DIR`` or the user's cache. Not under the name of its file, as numba does: there may be none at
the worker, or another version of it, or the same file under the name of another module.
"""

from __future__ import annotations

import io
import sys
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from hepdask.errors import OptionError
from hepdask.fingerprint import fingerprint

__all__ = ["keep_apart", "pickle_compiled"]


def pickle_compiled(value: Any) -> bytes:
    """Pickle as cloudpickle does; numba's functions with ``cache=True`` have a cache where they are unpickled.

    Parameters
    ----------
    value : object
        Anything that cloudpickle can pickle.

    Returns
    -------
    bytes
        Any pickle can load it, where hepdask is.
    """
    buffer = io.BytesIO()
    _Pickler(buffer).dump(value)
    return buffer.getvalue()


def keep_apart(module: ModuleType) -> None:
    """Keep machine code of a module that was imported from a file where only this module finds it.

    Numba keeps it beside the file, under the file's name, and what it keeps imports the module. The same file has two
    names when ``hepdask run processors/dimuon.py:Name`` has it as ``dimuon``, and a notebook as ``processors.dimuon``:
    who comes second would end with "No module named 'dimuon'".

    Parameters
    ----------
    module : module
        Its own functions with ``cache=True`` get another cache; in this process only.
    """
    for value in list(vars(module).values()):
        if _is_compiled(value) and _has_cache(value) and value.__module__ == module.__name__:
            with suppress(OptionError):
                digest = fingerprint(value, name="compiled function")
                value._cache = _build_cache(value.py_func, f"{digest}-{module.__name__}")


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    def reducer_override(self, value: Any) -> Any:
        if _is_compiled(value):
            # without one, something in it can't be told from another: it is compiled where it is used
            with suppress(OptionError):
                digest = fingerprint(value, name="compiled function")
                # not its __reduce__, in which numba's own pickler has pickled the functions that it calls, too
                states = value._reduce_states()
                return _rebuild, (type(value), states, digest, _has_cache(value))
        return super().reducer_override(value)


def _is_compiled(value: Any) -> bool:
    kind = type(value)
    return kind.__module__.partition(".")[0] == "numba" and hasattr(kind, "enable_caching")


def _has_cache(function: Any) -> bool:
    return type(getattr(function, "_cache", None)).__name__ not in {"NoneType", "NullCache"}


def _rebuild(kind: Any, states: dict[str, Any], digest: str, has_cache: bool) -> Any:
    function = kind._rebuild(**states)
    # numba looks for a module, and has one name for all functions without: symbols of different functions would be
    # the same in machine code from different processes, and the wrong one might be called
    name = f"hepdask_compiled_{digest}"
    sys.modules.setdefault(name, ModuleType(name))
    function.py_func.__module__ = name
    if has_cache and not _has_cache(function):
        # numba may change how it keeps machine code, and there may be no place for it: then it is compiled here
        with suppress(Exception):
            function._cache = _build_cache(function.py_func, digest)
    return function


def _build_cache(py_func: Any, key: str) -> Any:
    from numba.core import caching

    digest = sha256(key.encode()).hexdigest()

    class Locator(caching._CacheLocator):  # type: ignore[misc]  # numba has no types
        """Says where machine code is kept, and what it is of."""

        def __init__(self, py_file: str) -> None:
            self._py_file = py_file  # for numba's warnings

        def get_cache_path(self) -> str:
            return str(_find_directory() / digest[:2])

        def get_source_stamp(self) -> str:
            return digest

        def get_disambiguator(self) -> str:
            return digest[:16]

        @classmethod
        def from_function(cls, _: Any, py_file: str) -> Any:
            locator = cls(py_file)
            locator.ensure_cache_path()
            return locator

    class Implementation(caching.CompileResultCacheImpl):  # type: ignore[misc]
        _locator_classes = [Locator]  # noqa: RUF012

    class Cache(caching.FunctionCache):  # type: ignore[misc]
        _impl_class = Implementation

        def load_overload(self, *arguments: Any) -> Any:
            with suppress(Exception):  # a file that was cut off, say
                return super().load_overload(*arguments)
            return None

    return Cache(py_func)


def _find_directory() -> Path:
    import platformdirs
    from numba.core import config

    return Path(
        config.CACHE_DIR or platformdirs.user_cache_dir("hepdask", appauthor=False), "numba"
    )
