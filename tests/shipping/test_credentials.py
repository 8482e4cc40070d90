"""Proxies, tokens and the environment: on workers as private files, and nowhere else."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import distributed
import pytest

from hepdask import DaskExecutor, OptionError, Runner, Shipping
from hepdask.executors import dask_shipping, dask_watch
from hepdask.shipping.credentials import Credential, find_credentials, read_lifetime
from hepdask.shipping.environment import collect_environment
from tests.local import wait_until
from tests.proxies import make_proxy, make_token
from tests.sites import run_site

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.conftest import NanoFiles
    from tests.sites import Site

HOUR = 3600.0


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Give this process a proxy and a token."""
    contents = {"X509_USER_PROXY": make_proxy(HOUR), "BEARER_TOKEN_FILE": make_token(HOUR)}
    monkeypatch.delenv("BEARER_TOKEN", raising=False)
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        path.chmod(0o600)
        monkeypatch.setenv(name, str(path))
    return contents


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Pickle all task graphs that clients of this process send out."""
    found: list[bytes] = []
    update = distributed.Client._graph_to_futures

    def record(self: Any, dsk: Any, *arguments: Any, **options: Any) -> Any:
        found.append(cloudpickle.dumps(dsk))
        return update(self, dsk, *arguments, **options)

    monkeypatch.setattr(distributed.Client, "_graph_to_futures", record)
    return found


def check_secret(contents: Iterable[bytes], site: Site, graphs: list[bytes], said: str) -> None:
    """Check that no content is in a graph, a log, an event, or what this process has said."""
    assert graphs
    logs = site.client.get_scheduler_logs(), site.client.get_events(), said
    places = [repr(logs).encode(), *graphs, *(site.log(one).encode() for one in site.processes)]
    for content in contents:
        _, _, private = content.partition(b"PRIVATE KEY-----\n")
        key = private.splitlines()[0] if private else content[-40:]
        assert not any(key in one for one in places)


def look(_: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("X509_USER_PROXY", "BEARER_TOKEN_FILE"):
        path = os.environ.get(name)
        if path:
            modes = [stat.S_IMODE(Path(one).stat().st_mode) for one in (path, Path(path).parent)]
            found[name] = (Path(path).read_bytes(), *modes, path)
    found["environment"] = {
        name: value for name, value in os.environ.items() if name.startswith(("XRD_", "OMP", "MY"))
    }
    found["token"] = os.environ.get("BEARER_TOKEN")
    return found


def process(events: Any) -> Any:
    return {len(events)}


def run(client: Any, nano_files: NanoFiles, shipping: Any = None, processor: Any = process) -> Any:
    runner = Runner(
        DaskExecutor(client, max_ranges_per_task=1),
        chunksize=50,
        schema=None,
        metadata_cache=False,
        progress=False,
        shipping=shipping,
    )
    return runner.run(nano_files.fileset, processor)


def test_they_are_private_files_on_workers(
    site: Site,
    secrets: dict[str, bytes],
    nano_files: NanoFiles,
    graphs: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("XRD_REQUESTTIMEOUT", "77")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MY_YEAR", "2018")
    run(site.client, nano_files, Shipping(environment=("MY_YEAR",)))
    found = site.call(look, None)
    for name, content in secrets.items():
        there, mode, directory_mode, path = found[name]
        assert (there, mode, directory_mode) == (content, 0o600, 0o700)
        assert path.startswith(str(site.directory))
    expected = {"XRD_REQUESTTIMEOUT": "77", "OMP_NUM_THREADS": "1", "MY_YEAR": "2018"}
    assert expected.items() <= found["environment"].items()
    check_secret(secrets.values(), site, graphs, caplog.text)


class Waits:
    """Looks at its worker's proxy and token: the first range at once, all others when both have changed."""

    def __init__(self, directory: Path, old: dict[str, str]) -> None:
        self.directory = directory
        self.old = old

    def process(self, _: Any) -> Any:
        is_late = (self.directory / "began").exists()
        ends = time.monotonic() + 20
        while is_late and time.monotonic() < ends and self.digests().items() & self.old.items():
            threading.Event().wait(0.05)
        paths = [os.environ[name] for name in self.old]
        found = is_late, tuple(sorted(self.digests().items()))
        modes = {stat.S_IMODE(Path(one).stat().st_mode) for one in paths}
        (self.directory / "began").touch()
        return {"digests": {found}, "modes": modes, "paths": {tuple(paths)}}

    def digests(self) -> dict[str, str]:
        return digests({name: Path(os.environ[name]).read_bytes() for name in self.old})


def digests(contents: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def test_a_renewed_one_comes_to_workers_in_the_middle_of_a_run(
    tmp_path: Path,
    secrets: dict[str, bytes],
    nano_files: NanoFiles,
    graphs: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(dask_shipping, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(dask_watch, "LOOK_SECONDS", 0.1)
    old = secrets
    new = {"X509_USER_PROXY": make_proxy(2 * HOUR), "BEARER_TOKEN_FILE": make_token(2 * HOUR)}
    with run_site(tmp_path) as site, ThreadPoolExecutor(1) as pool:
        site.start_worker("first")
        site.wait()
        processor = Waits(tmp_path, digests(old))
        running = pool.submit(run, site.client, nano_files, processor=processor)
        wait_until((tmp_path / "began").exists, "a range has seen the old ones")
        (tmp_path / "new").write_bytes(new["X509_USER_PROXY"])
        (tmp_path / "new").replace(tmp_path / "X509_USER_PROXY")  # as most tools do
        (tmp_path / "BEARER_TOKEN_FILE").write_bytes(new["BEARER_TOKEN_FILE"])
        output = running.result(timeout=120).output
        site.start_worker("late")
        site.wait()
        late = site.client.run(look, None)
        check_secret([*old.values(), *new.values()], site, graphs, caplog.text)
    expected = {
        is_late: tuple(sorted(digests(one).items())) for is_late, one in ((False, old), (True, new))
    }
    assert output["digests"] == set(expected.items())
    assert output["modes"] == {0o600}
    assert len(output["paths"]) == 1  # so that child processes find it, too
    for found in late.values():
        assert {name: found[name][:3] for name in new} == {
            name: (content, 0o600, 0o700) for name, content in new.items()
        }


def test_a_token_in_a_variable_is_a_file_there(
    site: Site, nano_files: NanoFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = make_token(2 * HOUR)
    monkeypatch.setenv("BEARER_TOKEN", token.decode())
    run(site.client, nano_files)
    found = site.call(look, None)
    assert (found["token"], found["BEARER_TOKEN_FILE"][:2]) == (None, (token, 0o600))


def test_nothing_is_sent_over_a_plain_connection(
    tmp_path: Path, secrets: dict[str, bytes], nano_files: NanoFiles
) -> None:
    address = distributed.utils.get_ip()
    if address.startswith("127."):
        pytest.skip("this machine has no address but the loopback")
    with run_site(tmp_path, host=address) as site:
        site.start_worker("plain")
        site.wait()
        text = rf"X509_USER_PROXY .* and BEARER_TOKEN_FILE .* is not sent .*tcp://{address}:\d+ is not encrypted"
        with pytest.warns(UserWarning, match=text):
            run(site.client, nano_files)
        run(site.client, nano_files)  # it is said once
        assert not secrets.keys() & site.call(look, None).keys()
        run(site.client, nano_files, Shipping(allow_plain_credentials=True))
        assert secrets.keys() <= site.call(look, None).keys()


def test_they_are_found_as_the_grid_does(tmp_path: Path) -> None:
    for name, text in (("proxy", "P"), ("token", "T"), (f"bt_u{os.getuid()}", "R")):
        (tmp_path / name).write_text(text)

    def found(**environment: str) -> dict[str, bytes]:
        return {one.variable: one.content for one in find_credentials(environment)}

    proxy = {"X509_USER_PROXY": str(tmp_path / "proxy")}
    token = {"BEARER_TOKEN_FILE": str(tmp_path / "token")}
    assert found(**proxy, **token) == {"X509_USER_PROXY": b"P", "BEARER_TOKEN_FILE": b"T"}
    assert found(**proxy, **token, BEARER_TOKEN="V")["BEARER_TOKEN_FILE"] == b"V"
    assert found(**proxy, XDG_RUNTIME_DIR=str(tmp_path))["BEARER_TOKEN_FILE"] == b"R"
    assert "BEARER_TOKEN_FILE" not in found(BEARER_TOKEN_FILE=str(tmp_path / "absent"))


def test_no_content_is_ever_printed() -> None:
    credential = Credential("BEARER_TOKEN_FILE", "/tmp/token", b"very secret")
    assert "secret" not in f"{credential!r} {credential} {[credential]} {read_lifetime(credential)}"


@pytest.mark.parametrize(
    ("variable", "content", "left"),
    [
        ("X509_USER_PROXY", make_proxy, HOUR),
        ("X509_USER_PROXY", make_proxy, -HOUR),
        ("BEARER_TOKEN_FILE", make_token, HOUR),
        ("BEARER_TOKEN_FILE", make_token, -HOUR),
        ("BEARER_TOKEN_FILE", b"opaque", None),
        ("BEARER_TOKEN_FILE", b"a.b.c", None),
    ],
)
def test_lifetimes_are_read(variable: str, content: Any, left: float | None) -> None:
    made = content(left) if callable(content) else content
    lifetime = read_lifetime(Credential(variable, "", made))
    assert lifetime.problem == ""
    if left is None:
        assert lifetime.ends is None
    else:
        assert lifetime.ends == pytest.approx(time.time() + left, abs=600)


def test_what_is_no_certificate_is_said() -> None:
    lifetime = read_lifetime(Credential("X509_USER_PROXY", "", b"nonsense"))
    assert lifetime.problem == "it is no certificate in PEM"


def test_secrets_are_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XRD_PRIVATE_KEY", "x")
    assert "XRD_PRIVATE_KEY" not in collect_environment(Shipping())
    with pytest.raises(OptionError, match="has MY_TOKEN, which looks like a secret"):
        collect_environment(Shipping(environment=("MY_TOKEN",)))
