"""The user's X.509 proxy and bearer token: where they are, how they get to workers, how long they live.

They are found as the tools of the grid find them (voms-proxy-info; the WLCG's bearer token discovery, version 1.0). On a worker they
are files of mode 600 in a directory of mode 700, named by ``X509_USER_PROXY`` and ``BEARER_TOKEN_FILE``. Their content is in no
task, no log, no text of an error: what is printed of a `Credential` is its name.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "PROXY",
    "TOKEN",
    "TOKEN_FILE",
    "Credential",
    "Lifetime",
    "find_credentials",
    "format_end",
    "read_lifetime",
    "write_credential",
]

PROXY, TOKEN, TOKEN_FILE = "X509_USER_PROXY", "BEARER_TOKEN", "BEARER_TOKEN_FILE"  # names
#: A proxy with all its attributes has some 20 kB; what is larger is something else.
MAX_BYTES = 1_000_000

#: Files that this process has written.
_written: set[str] = set()


@dataclass(frozen=True, slots=True)
class Credential:
    """A proxy or a token.

    Attributes
    ----------
    variable : str
        The environment variable that names its file on workers.
    source : str
        Where it was found here.
    content : bytes
        Itself.
    """

    variable: str
    source: str
    content: bytes = field(repr=False)

    @property
    def digest(self) -> str:
        """What it can be told from another one by, and not be guessed from."""
        return hashlib.sha256(b"hepdask" + self.content).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long a credential lives.

    Attributes
    ----------
    variable : str
        As of the credential.
    source : str
        Where it is.
    ends : float or None
        When, in seconds since 1970; None if that can't be known.
    problem : str
        What is wrong with it, in words; empty if nothing is.
    """

    variable: str
    source: str
    ends: float | None = None
    problem: str = ""


def find_credentials(environment: Mapping[str, str] | None = None) -> list[Credential]:
    """Find the proxy and the token of the user, those that can be read.

    Parameters
    ----------
    environment : mapping or None
        None: that of this process.
    """
    known = os.environ if environment is None else environment
    found = [
        _read(PROXY, known.get(PROXY) or f"/tmp/x509up_u{_user_id()}"),  # by convention
        Credential(TOKEN_FILE, TOKEN, known[TOKEN].encode())
        if known.get(TOKEN)
        else _first(_read(TOKEN_FILE, path) for path in _list_token_files(known)),
    ]
    return [one for one in found if one is not None]


def _first(found: Any) -> Credential | None:
    return next((one for one in found if one is not None), None)


def _list_token_files(known: Mapping[str, str]) -> list[str]:
    if known.get(TOKEN_FILE):
        return [known[TOKEN_FILE]]
    name = f"bt_u{_user_id()}"
    directories = [known.get("XDG_RUNTIME_DIR"), "/tmp"]  # as the discovery has it
    return [f"{one}/{name}" for one in directories if one]


def _user_id() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def _read(variable: str, path: str) -> Credential | None:
    try:
        status = os.stat(path)  # noqa: PTH116
        # a file of somebody else's in /tmp is not ours
        if status.st_size > MAX_BYTES or status.st_uid not in (_user_id(), 0):
            return None
        return Credential(variable, path, Path(path).read_bytes())
    except OSError:
        return None


def write_credential(variable: str, content: bytes, scratch: str) -> str:
    """Write a credential into a private directory, and let its variable name it.

    Parameters
    ----------
    variable : str
        X509_USER_PROXY or BEARER_TOKEN_FILE.
    content : bytes
        Itself.
    scratch : str
        The worker's directory.

    Returns
    -------
    str
        The file. Others with the same content in this process are that file, too; and so is a renewed one.
    """
    before = os.environ.get(variable)
    if before and _holds(before, content):
        return before
    if before and before in _written and Path(before).parent.is_dir():
        path = before  # child processes know it by this name
    else:
        directory = tempfile.mkdtemp(prefix="hepdask-private-", dir=scratch)  # mode 700
        path = os.path.join(directory, variable.lower())  # noqa: PTH118
        _written.add(path)
    # whoever reads it meanwhile finds the old one or the new one; mkstemp makes it of mode 600
    descriptor, new = tempfile.mkstemp(dir=os.path.dirname(path))  # noqa: PTH120
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
    os.replace(new, path)  # noqa: PTH105
    os.environ[variable] = path
    if variable == TOKEN_FILE:
        os.environ.pop(TOKEN, None)  # it would come first
    return path


def _holds(path: str, content: bytes) -> bool:
    with suppress(OSError):
        return Path(path).read_bytes() == content and not Path(path).stat().st_mode & 0o077
    return False


def read_lifetime(credential: Credential) -> Lifetime:
    """Find out until when a credential is valid."""
    read = _read_proxy_end if credential.variable == PROXY else _read_token_end
    ends, problem = read(credential.content)
    return Lifetime(credential.variable, credential.source, ends, problem)


def _read_proxy_end(content: bytes) -> tuple[float | None, str]:
    """Return the end of the first certificate of a chain to end."""
    try:
        from cryptography import x509
    except ImportError:
        return None, ""
    try:
        chain = x509.load_pem_x509_certificates(content)
    except ValueError:
        return None, "it is no certificate in PEM"
    return min(one.not_valid_after_utc.timestamp() for one in chain), ""


def _read_token_end(content: bytes) -> tuple[float | None, str]:
    """Return the claim ``exp`` of a JSON web token (RFC 7519); others don't say when they end."""
    parts = content.strip().split(b".")
    if len(parts) != 3:
        return None, "it is empty" if not content.strip() else ""
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + b"=" * (-len(parts[1]) % 4)))
        return float(claims["exp"]), ""
    except (binascii.Error, ValueError, KeyError, TypeError):
        return None, ""


def format_end(ends: float) -> str:
    """Write a time in the local time zone."""
    return datetime.fromtimestamp(ends, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
