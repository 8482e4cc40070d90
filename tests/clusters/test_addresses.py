from __future__ import annotations

import pytest

from hepdask import OptionError
from hepdask.clusters import choose_cluster
from tests.certificates import make_certificates


def test_tls_needs_certificates(tmp_path: pytest.TempPathFactory) -> None:
    with pytest.raises(OptionError, match="tls://x:1 needs certificates: say security="):
        choose_cluster("tls://x:1").open()
    with pytest.raises(OptionError, match="tls://x:1 has its own certificates"):
        choose_cluster("tls://x:1", {"security": "temporary"}).open()
    files = make_certificates(tmp_path)  # type: ignore[arg-type]
    names = {"ca": files.ca_file, "cert": files.cert_file, "key": files.key_file}
    found = choose_cluster("tls://x:1", {"security": names}).open()
    assert found.address == "tls://x:1"
    assert found.security.tls_client_key == str(files.key_file)


def test_plain_text_is_warned_of() -> None:
    with pytest.warns(
        UserWarning, match="the scheduler at tcp://192.0.2.1:8786 uses no encryption"
    ):
        choose_cluster("tcp://192.0.2.1:8786").open()


def test_nothing_is_submitted(tmp_path: pytest.TempPathFactory) -> None:
    text = choose_cluster("tls://x:1", {"security": {"ca": "a.pem"}}).render()
    assert text == "connects to tls://x:1: nothing is submitted\n  ca: a.pem"
