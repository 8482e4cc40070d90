"""How the files of a store are called.

::

    README.txt
    SECTION/about.json
    SECTION/KEY.hepdask
    SECTION/.KEY.RANDOM.hepdask-tmp     being written, or left by a process that was killed

SECTION and KEY are lower-case hex numbers. Nothing that is called otherwise is ever read or removed: a store may be put
where other files are.
"""

from __future__ import annotations

import re
import secrets

from hepdask.errors import OptionError

__all__ = [
    "ABOUT_NAME",
    "README_NAME",
    "check_hex",
    "is_hex",
    "is_temporary",
    "key_of",
    "make_temporary_name",
    "object_name",
]

README_NAME = "README.txt"
ABOUT_NAME = "about.json"

_HEX = re.compile(r"[0-9a-f]{8,128}", re.ASCII)
_OBJECT = re.compile(r"([0-9a-f]{8,128})\.hepdask", re.ASCII)
_TEMPORARY = re.compile(r"\.(?:[0-9a-f]{8,128}|about|README)\.[0-9a-f]{16}\.hepdask-tmp", re.ASCII)


def is_hex(name: str) -> bool:
    """Tell whether a name can be that of a section or a key: 8 to 128 lower-case hex digits."""
    return _HEX.fullmatch(str(name)) is not None


def check_hex(name: str, what: str) -> str:
    """Return a name that can be that of a section or a key.

    Parameters
    ----------
    name : str
        What is to be checked.
    what : str
        What it names, for the error.

    Raises
    ------
    OptionError
        If it is anything but 8 to 128 lower-case hex digits: it becomes a part of a path.
    """
    if not is_hex(name):
        raise OptionError(
            f"the {what} of a store is {name!r}, but has to be 8 to 128 of the digits 0-9 and a-f: take a hash"
        )
    return name


def object_name(key: str) -> str:
    """Return the name of the file of an object."""
    return f"{key}.hepdask"


def key_of(name: str) -> str | None:
    """Return the key of an object from the name of its file; None if the name isn't one."""
    match = _OBJECT.fullmatch(name)
    return match and match[1]


def make_temporary_name(name: str) -> str:
    """Make up the name under which a file is written before it is renamed to `name`."""
    return f".{name.partition('.')[0]}.{secrets.token_hex(8)}.hepdask-tmp"


def is_temporary(name: str) -> bool:
    """Tell whether a name is one of `make_temporary_name`."""
    return _TEMPORARY.fullmatch(name) is not None
