"""Turn an output into what JSON holds: texts, numbers, lists and mappings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from hepdask.errors import OptionError

__all__ = ["dump_json"]


def dump_json(output: Any) -> str:
    return json.dumps(_to_plain(output, "output"), ensure_ascii=False) + "\n"


def _to_plain(value: Any, where: str) -> Any:
    """Turn a value into what `json` writes; `where` is its place, ``output["dy"]["mass"]``."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return _plain_mapping(value, where)
    if isinstance(value, list | tuple):
        return [_to_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, AbstractSet):
        return [_to_plain(item, f"{where} (an element)") for item in _sorted(value)]
    if hasattr(value, "_to_uhi_"):
        from uhi.io.json import default

        return _to_plain(default(value), where)
    return _plain_array(value, where)


def _plain_mapping(mapping: Mapping[Any, Any], where: str) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, item in mapping.items():
        name = key if isinstance(key, str) else _key_name(key, where)
        if name in plain:
            raise OptionError(
                f"{where} has two keys that are {name!r} in JSON: rename one, or write .coffea or .pkl"
            )
        plain[name] = _to_plain(item, f"{where}[{key!r}]".replace("'", '"'))
    return plain


def _key_name(key: Any, where: str) -> str:
    import numpy as np

    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        return str(int(key))
    raise OptionError(
        f"{where} has the key {key!r} ({type(key).__name__}): JSON has keys of text alone; "
        "use a str or an int, or write .coffea or .pkl"
    )


def _sorted(values: AbstractSet[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=repr)


def _plain_array(value: Any, where: str) -> Any:
    import numpy as np

    if isinstance(value, np.ndarray):
        listed = value.tolist()
        return listed if value.dtype.kind in "biufU" else _to_plain(listed, where)
    if isinstance(value, np.floating):
        return float(value)  # item() of a long double is a long double
    if isinstance(value, np.generic):
        return _to_plain(value.item(), where)
    package = type(value).__module__.partition(".")[0]
    if package in ("awkward", "coffea") and hasattr(value, "to_list"):
        return _to_plain(value.to_list(), where)
    if package == "coffea" and hasattr(value, "value"):  # its column_accumulator, value_accumulator
        return _to_plain(value.value, where)
    raise OptionError(
        f"{where} is {type(value).__module__}.{type(value).__qualname__}, which can't be written as JSON: "
        "write .coffea or .pkl"
    )
