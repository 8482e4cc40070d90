"""Read a fileset's own file: JSON or YAML, perhaps compressed, no key written twice."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any

from hepdask.errors import FilesetError, suggest

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FILESET_SUFFIXES", "load_document"]

FILESET_SUFFIXES = (".json", ".json.gz", ".yaml", ".yaml.gz", ".yml", ".yml.gz")
"""How the name of a fileset's file ends, in lower case."""


def load_document(path: Path) -> object:
    """Read a JSON or YAML file, perhaps compressed.

    Parameters
    ----------
    path : pathlib.Path
        A local file whose name ends with one of `FILESET_SUFFIXES`.

    Returns
    -------
    object
        What it holds, not yet checked.

    Raises
    ------
    FilesetError
        If there is no such file, it can't be read, isn't valid, or has a key twice in one mapping.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix.lower() == ".gz" else raw).decode("utf-8-sig")
    except FileNotFoundError:
        raise FilesetError(f"no such fileset file: '{path}'{_suggest_beside(path)}") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise FilesetError(f"fileset '{path}' can't be read: {error}") from error
    is_json = ".json" in "".join(path.suffixes[-2:]).lower()
    return _parse_json(text, path) if is_json else _parse_yaml(text, path)


def _suggest_beside(path: Path) -> str:
    """Offer the filesets in the directory in which one was looked for."""
    if not path.parent.is_dir():
        return f"; there is no directory '{path.parent}'"
    names = sorted(
        p.name for p in path.parent.iterdir() if p.name.lower().endswith(FILESET_SUFFIXES)
    )
    return suggest(path.name, names)


def _parse_json(text: str, path: Path) -> object:
    def build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        built = dict(pairs)
        if len(built) < len(pairs):  # json keeps the last one, and the files of the first are lost
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise FilesetError(
                f"fileset '{path}': the key {twice!r} is written twice; merge the two"
            )
        return built

    try:
        return json.loads(text, object_pairs_hook=build_object)
    except json.JSONDecodeError as error:
        raise FilesetError(
            f"fileset '{path}', line {error.lineno}, column {error.colno}: "
            f"no valid JSON: {error.msg}"
        ) from error


def _parse_yaml(text: str, path: Path) -> object:
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is ten times faster

    class Loader(base):  # type: ignore[misc]
        """Refuses a key that is written twice: yaml would keep the last one."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[tuple[str, str]] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    if (key.tag, key.value) in seen:
                        problem = f"the key {key.value!r} is written twice; merge the two"
                        raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                    seen.add((key.tag, key.value))
            return super().construct_mapping(node, deep=deep)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or error
        raise FilesetError(f"fileset '{path}'{where}: no valid YAML: {reason}") from error
