"""The user's processor: import it, make an instance, say in a line what is wrong with it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepdask.errors import OptionError, suggest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType

__all__ = ["LoadedProcessor", "import_file", "load_processor"]


@dataclass(frozen=True, slots=True)
class LoadedProcessor:
    """What the user's module has."""

    instance: Any
    """Something with ``process(events)``, or a callable."""
    plot: Any
    """The module's ``plot(output)``, or None."""


def load_processor(name: str, arguments: Mapping[str, Any] | None = None) -> LoadedProcessor:
    """Import a processor, and make an instance if it is a class.

    Parameters
    ----------
    name : str
        ``module:Name``, with the current directory on the path; or ``path/to/file.py:Name``.
    arguments : mapping of str to object, optional
        Of the class.

    Returns
    -------
    LoadedProcessor
        Workers need not have its module: it is shipped.

    Raises
    ------
    OptionError
        If the module can't be imported, or has no such name, or the arguments don't fit. The text has the nearest name.
    """
    source, separator, attribute = name.rpartition(":")
    if not separator or attribute.endswith(".py"):
        source, attribute = name, ""
    module = import_file(Path(source)) if source.endswith(".py") else _import_module(source)
    names = _list_processors(module)
    if not attribute:
        example = f"{source}:{names[0] if names else 'Name'}"
        raise OptionError(f"{name!r} does not say which processor: write {example}")
    if not hasattr(module, attribute):
        raise OptionError(f"{source} has no {attribute!r}{suggest(attribute, names)}")
    found = getattr(module, attribute)
    if inspect.isclass(found):
        found = _make_instance(found, arguments or {})
    elif arguments:
        raise OptionError(f"--arg is for classes, and {name} is {type(found).__name__}: remove it")
    return LoadedProcessor(found, getattr(module, "plot", None))


def _list_processors(module: ModuleType) -> list[str]:
    def may_process(value: Any) -> bool:
        if inspect.isfunction(value):
            return value.__module__ == module.__name__
        return callable(getattr(value, "process", None)) and (
            not inspect.isclass(value) or value.__module__ == module.__name__
        )

    return [
        key
        for key, value in vars(module).items()
        if key[0] != "_" and key != "plot" and may_process(value)
    ]


def import_file(path: Path) -> ModuleType:
    if not path.is_file():
        near = [one.name for one in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise OptionError(f"there is no file '{path}'{suggest(path.name, near)}")
    path = path.resolve()
    # a processor in hist.py must not stand in for the library
    module_name = (
        path.stem if path.stem not in sys.modules and not _is_library(path) else f"{path.stem}_py"
    )
    specification = importlib.util.spec_from_file_location(module_name, path)
    if specification is None or specification.loader is None:
        raise OptionError(f"'{path}' can't be imported as Python")
    module = importlib.util.module_from_spec(specification)
    with _explained_import(str(path), path.parent):
        sys.modules[module_name] = module
        try:
            specification.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
    if "numba" in sys.modules:
        from hepdask.compiled import keep_apart

        keep_apart(module)
    if module_name != path.stem:
        import cloudpickle

        # nobody else finds it under this name; all others are shipped as modules, whose lines tracebacks show
        cloudpickle.register_pickle_by_value(module)
    return module


def _is_library(path: Path) -> bool:
    try:
        found = importlib.util.find_spec(path.stem)
    except (ImportError, ValueError):
        return False
    return found is not None and found.origin != str(path)


def _import_module(name: str) -> ModuleType:
    with _explained_import(name, Path.cwd()):
        return importlib.import_module(name)


@contextmanager
def _explained_import(name: str, directory: Path) -> Iterator[None]:
    """Import from a directory, which stays on the path; say in a line what goes wrong in the user's code."""
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            near = [one.stem for one in directory.glob("*.py")]
            hint = suggest(name, near) or "; for a file, write path/to/file.py:Name"
            raise OptionError(
                f"there is no module {name!r} in {directory} or installed{hint}"
            ) from error
        raise OptionError(_explain_import(name, error)) from error
    except Exception as error:
        raise OptionError(_explain_import(name, error)) from error


def _explain_import(name: str, error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError):
        place = f"{error.filename}, line {error.lineno}"
    else:
        place = f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else name
    text = error.msg if isinstance(error, SyntaxError) else error
    return f"{name} can't be imported: {type(error).__name__}: {text} ({place})"


def _make_instance(kind: type, arguments: Mapping[str, Any]) -> Any:
    signature = inspect.signature(kind)
    takes_any = any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values())
    for name in arguments:
        if name not in signature.parameters and not takes_any:
            raise OptionError(
                f"{kind.__name__} has no argument {name!r}{suggest(name, signature.parameters)}"
            )
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise OptionError(f"{kind.__name__}: {error}: give it as --arg name=value") from error
    try:
        return kind(**arguments)
    except Exception as error:
        raise OptionError(f"{kind.__name__}(...) raised {type(error).__name__}: {error}") from error
