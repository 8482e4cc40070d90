from __future__ import annotations

from typing import TYPE_CHECKING

import dask
import pytest

from hepdask import OptionError
from hepdask.clusters.security import build_security, warn_of_plain_text
from tests.certificates import make_certificates

if TYPE_CHECKING:
    from pathlib import Path


def test_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = make_certificates(tmp_path)
    monkeypatch.chdir(tmp_path)
    security = build_security({"ca": "ca.pem", "cert": files.cert_file, "key": files.key_file})
    assert security.require_encryption
    assert security.tls_ca_file == str(files.ca_file)
    assert security.tls_worker_key == security.tls_client_key == str(files.key_file)


def test_from_dasks_configuration(tmp_path: Path) -> None:
    assert build_security(None) is None
    files = make_certificates(tmp_path)
    role = {"cert": str(files.cert_file), "key": str(files.key_file)}
    tls = {
        **dask.config.get("distributed.comm.tls"),
        "ca-file": str(files.ca_file),
        "client": role,
        "scheduler": role,
        "worker": role,
    }
    with dask.config.set({"distributed.comm.tls": tls}):
        assert build_security(None).tls_client_cert == str(files.cert_file)


def test_temporary() -> None:
    assert "BEGIN CERTIFICATE" in build_security("temporary").tls_ca_file


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("temporray", "security is 'temporray': give 'temporary', or"),
        ({"ca": "/nowhere", "cert": "b", "key": "c"}, r"there is no file /nowhere \(ca\)"),
        ({"ca": "a"}, "security lacks 'cert'"),
        ({"cert_file": "a"}, "security has no 'cert_file'; did you mean 'cert'"),
    ],
)
def test_what_is_wrong_is_said(given: object, expected: str, tmp_path: Path) -> None:
    if isinstance(given, dict) and given.get("ca") == "a":
        (tmp_path / "a").touch()
        given = {"ca": tmp_path / "a"}
    with pytest.raises(OptionError, match=expected):
        build_security(given)


@pytest.mark.parametrize("address", ["tcp://10.0.0.1:8786", "tcp://[2001:db8::1]:8786"])
def test_plain_text_for_everybody_is_warned_of(address: str) -> None:
    with pytest.warns(UserWarning, match="whoever can reach it runs code as you"):
        warn_of_plain_text(address)


@pytest.mark.parametrize(
    "address",
    ["tcp://127.0.0.1:8786", "tcp://[::1]:8786", "tcp://localhost:1", "tls://10.0.0.1:8786"],
)
def test_what_is_safe_is_not(address: str) -> None:
    warn_of_plain_text(address)
