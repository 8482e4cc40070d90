"""Real servers for tests: XRootD, a proxy that counts round trips, a Dask cluster behind TLS.

Each is a context manager, listens on a free port of the loopback interface, writes below a directory that
the caller gives, and is stopped by its process id.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import pytest

from hepdask.opening import forget_connections
from hepdask.readers.handles import close_all
from tests.certificates import make_certificates, tls_flags, tls_security

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Security

__all__ = [
    "FAST_XROOTD",
    "LatencyProxy",
    "TlsCluster",
    "XrdServer",
    "free_port",
    "require_xrootd",
    "run_tls_cluster",
    "stop_process",
]

REPOSITORY = Path(__file__).resolve().parent.parent
START_SECONDS = 20.0
STOP_SECONDS = 5.0

# The XRootD client looks at its time limits every 15 s and waits for minutes by default; these let a test see
# a dead server after a few seconds. They count only if they are set before the client library is loaded.
FAST_XROOTD = {
    "XRD_CONNECTIONRETRY": "2",
    "XRD_CONNECTIONWINDOW": "2",
    "XRD_REQUESTTIMEOUT": "5",
    "XRD_STREAMERRORWINDOW": "0",  # a server that comes back is used at once
    "XRD_STREAMTIMEOUT": "5",
    "XRD_TIMEOUTRESOLUTION": "1",
}


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def require_xrootd() -> None:
    """Skip the test if there is no XRootD server to run; fail it in continuous integration.

    Raises
    ------
    pytest.skip.Exception, pytest.fail.Exception
        With the command that installs the server. It fails where the environment variable ``CI`` is set to
        anything but an empty string, ``0`` or ``false``: there a skipped test would go unseen.
    """
    if shutil.which("xrootd"):
        return
    text = "there is no xrootd server on PATH; install it with: apt-get install xrootd-server"
    if os.environ.get("CI", "").lower() not in {"", "0", "false"}:
        pytest.fail(text)
    pytest.skip(text)


def stop_process(process: subprocess.Popen[bytes]) -> None:
    """End a process and reap it: ask with SIGTERM, then kill it after `STOP_SECONDS`."""
    if process.poll() is None:
        # a paused process would not see the SIGTERM
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def _state_of(thread: Path) -> str:
    """Return the state of a thread, by its directory in /proc; its name, in brackets, may be anything."""
    return (thread / "stat").read_text().rpartition(")")[2].split()[0]


class XrdServer:
    """A read-only XRootD server for the files of one directory.

    Parameters
    ----------
    data_directory : Path
        What is served, as ``/``. As root, the server runs as Debian's user ``xrootd``: then that user must be
        able to go through every directory above, which rules out pytest's own ``tmp_path`` (mode 700); the
        fixture ``served_path`` is a directory that fits.
    work_directory : Path
        For configuration, log and admin files; made if it isn't there. The same holds for it.
    port : int or None
        None takes a free one. It stays the same when the server is started again.
    extra_config : str
        More lines for the configuration file.

    Raises
    ------
    PermissionError
        At the start, if the server's user can't get into one of the directories.
    RuntimeError
        At the start, if the server ends or doesn't listen; the text ends with its log.

    Examples
    --------
    >>> with XrdServer(data, work) as server:  # doctest: +SKIP
    ...     uproot.open(server.url("events.root"))
    """

    def __init__(
        self,
        data_directory: Path,
        work_directory: Path,
        *,
        port: int | None = None,
        extra_config: str = "",
    ) -> None:
        self.data_directory = data_directory.resolve()
        self.work_directory = work_directory.resolve()
        self.port = port or free_port()
        self.extra_config = extra_config
        self.user = "xrootd" if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return self._running().pid

    @property
    def log(self) -> str:
        """What the server wrote until now, over all its starts."""
        return self._log_path.read_text(errors="replace")

    def url(self, path: str, *, port: int | None = None) -> str:
        """Build the URL of a file.

        Parameters
        ----------
        path : str
            Below the data directory, with or without the leading slash.
        port : int or None
            Another port than the server's own: that of a proxy in front.

        Returns
        -------
        str
            ``root://127.0.0.1:PORT//path``; the second slash is part of an XRootD path.
        """
        return f"root://127.0.0.1:{port or self.port}//{path.lstrip('/')}"

    def start(self) -> None:
        """Start the server and wait until it listens."""
        if self._process is not None and self._process.poll() is None:
            raise RuntimeError(f"the server already runs, as process {self._process.pid}")
        self._prepare()
        command = ["xrootd", "-I", "v4", "-c", str(self._config_path)]
        if self.user:
            command += ["-R", self.user]
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.work_directory,
            )
        try:
            _wait_for_port(self.port, self._process)
        except RuntimeError as error:
            self.stop()
            raise RuntimeError(f"xrootd: {error}; its log ends with:\n{self.log[-2000:]}") from None

    def stop(self) -> None:
        """End the server, gently at first, and this process's connections to it."""
        if self._process is not None:
            close_all()
            forget_connections(self.url(""))
            stop_process(self._process)

    def kill(self) -> None:
        """Kill the server at once, as a machine that loses power; `start` brings it back."""
        process = self._running()
        process.kill()
        process.wait()

    def pause(self) -> None:
        """Stop the server's clock: connections stay, nothing is answered."""
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        # each of its threads stops when it is scheduled next; until then it may answer
        states = Path("/proc", str(process.pid), "task")
        while any(_state_of(thread) != "T" for thread in states.iterdir()):
            threading.Event().wait(0.001)

    def resume(self) -> None:
        """Let a paused server go on."""
        self._running().send_signal(signal.SIGCONT)

    @property
    def _config_path(self) -> Path:
        return self.work_directory / "xrootd.cfg"

    @property
    def _log_path(self) -> Path:
        return self.work_directory / "xrootd.log"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError("the server doesn't run; call start() first")
        return self._process

    def _prepare(self) -> None:
        admin_directory = self.work_directory / "admin"
        admin_directory.mkdir(parents=True, exist_ok=True)
        if self.user:
            account = pwd.getpwnam(self.user)
            for directory in (self.work_directory, admin_directory):
                directory.chmod(0o755)
                os.chown(directory, account.pw_uid, account.pw_gid)
            for directory in (self.work_directory, self.data_directory):
                _check_readable_to_others(directory)
        lines = [
            "all.export / r/o",
            f"oss.localroot {self.data_directory}",
            f"xrd.port {self.port}",
            # no reverse look-ups: they take seconds where there is no name server
            "xrd.network nodnr norpipa",
            "xrd.allow host localhost",
            f"all.adminpath {admin_directory}",
            f"all.pidpath {admin_directory}",
            "xrootd.async off",
            "xrootd.chksum adler32",
            self.extra_config,
        ]
        self._config_path.write_text("\n".join(lines) + "\n")


def _check_readable_to_others(directory: Path) -> None:
    for path in (directory, *directory.parents):
        if not path.stat().st_mode & 0o001:
            raise PermissionError(
                f"the XRootD server's user can't get into {path}, which {directory} lies in; "
                "use the fixture served_path instead of tmp_path"
            )


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"process {process.pid} ended with code {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=0.2).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"process {process.pid} doesn't listen on port {port}")


class LatencyProxy:
    """A TCP proxy in a thread, which counts round trips and can add a delay or cut a connection.

    Assert on `num_turns`: it doesn't depend on the speed of the machine, as seconds do.

    Parameters
    ----------
    target_port : int
        Where a server listens on 127.0.0.1.
    round_trip_seconds : float
        Each direction holds every block of bytes for half of it, without limiting the rate.
    drop_after_bytes : int or None
        Cut the connection, once, when the server has sent more than this on it. None never does.
    """

    def __init__(
        self,
        target_port: int,
        *,
        round_trip_seconds: float = 0.0,
        drop_after_bytes: int | None = None,
    ) -> None:
        self.target_port = target_port
        self.round_trip_seconds = round_trip_seconds
        self.drop_after_bytes = drop_after_bytes
        self.num_connections = 0
        self.num_turns = 0
        """Changes of direction, from an answer to the next question: the sequential round trips."""
        self.num_bytes_down = 0
        """Bytes from the server to its clients."""
        self.port = 0
        self._thread = threading.Thread(target=self._run, name="latency-proxy", daemon=True)
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(START_SECONDS):
            raise RuntimeError("the proxy's thread didn't start")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        connections: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._relay(reader, writer))
            connections.add(task)
            task.add_done_callback(connections.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            server_reader, server_writer = await asyncio.open_connection(
                "127.0.0.1", self.target_port
            )
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection()
        pumps = [
            asyncio.create_task(self._pump(reader, server_writer, connection, "up")),
            asyncio.create_task(self._pump(server_reader, writer, connection, "down")),
        ]
        try:
            await asyncio.gather(*pumps)
        except OSError:
            pass  # either side hung up: the other one sees it below
        finally:
            for pump in pumps:
                pump.cancel()
            writer.transport.abort()
            server_writer.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        connection: _Connection,
        direction: Literal["up", "down"],
    ) -> None:
        blocks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        sender = asyncio.create_task(_send_when_due(blocks, writer))
        try:
            while block := await reader.read(65536):
                self._count(len(block), connection, direction)
                blocks.put_nowait((self._due(), block))
            blocks.put_nowait((self._due(), b""))
            await sender
        finally:
            sender.cancel()

    def _due(self) -> float:
        return time.monotonic() + self.round_trip_seconds / 2

    def _count(
        self, num_bytes: int, connection: _Connection, direction: Literal["up", "down"]
    ) -> None:
        if direction == "up":
            self.num_turns += connection.last_direction == "down"
        else:
            self.num_bytes_down += num_bytes
            connection.num_bytes_down += num_bytes
        connection.last_direction = direction
        limit = self.drop_after_bytes
        if limit is not None and connection.num_bytes_down > limit:
            self.drop_after_bytes = None
            raise ConnectionResetError(f"cut after {limit} bytes, as asked for")


@dataclass(slots=True)
class _Connection:
    last_direction: Literal["", "up", "down"] = ""
    num_bytes_down: int = 0


async def _send_when_due(
    blocks: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
) -> None:
    while True:
        due, block = await blocks.get()
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        if not block:
            writer.write_eof()
            return
        writer.write(block)
        await writer.drain()


@dataclass(frozen=True, slots=True)
class TlsCluster:
    """A running Dask cluster that refuses plain TCP."""

    address: str  # the scheduler's, tls://localhost:PORT
    security: Security  # for clients
    certificates_directory: Path  # what make_certificates wrote
    worker_pids: tuple[int, ...]  # the workers' own processes; there is no nanny


@contextmanager
def run_tls_cluster(directory: Path, *, num_workers: int = 2) -> Iterator[TlsCluster]:
    """Run ``dask scheduler`` and workers of one thread as processes that speak TLS only.

    Parameters
    ----------
    directory : Path
        An existing directory for certificates, logs and the workers' scratch files.
    num_workers : int
        All of them are there when the context is entered.

    Yields
    ------
    TlsCluster
        Address and credentials.

    Raises
    ------
    RuntimeError
        If the scheduler doesn't come up; the text ends with its log.
    """
    from distributed import Client

    make_certificates(directory)
    security, flags, port = tls_security(directory), tls_flags(directory), free_port()
    address = f"tls://localhost:{port}"
    with ExitStack() as stack:
        scheduler = _start_dask(
            stack,
            directory / "scheduler.log",
            "distributed.cli.dask_scheduler",
            *("--protocol", "tls", "--host", "localhost", "--port", str(port)),
            *("--dashboard-address", ":0", *flags),
        )
        try:
            _wait_for_port(port, scheduler)
        except RuntimeError as error:
            log = (directory / "scheduler.log").read_text(errors="replace")
            raise RuntimeError(
                f"dask scheduler: {error}; its log ends with:\n{log[-2000:]}"
            ) from None
        workers = [
            _start_dask(
                stack,
                directory / f"worker-{number}.log",
                "distributed.cli.dask_worker",
                *(address, "--nthreads", "1", "--no-nanny", "--no-dashboard"),
                # an orphan ends by itself
                *("--death-timeout", "60", "--local-directory", str(directory / "scratch"), *flags),
            )
            for number in range(num_workers)
        ]
        with Client(address, security=security, set_as_default=False) as client:
            client.wait_for_workers(num_workers, timeout=60)
        pids = tuple(worker.pid for worker in workers)
        yield TlsCluster(address, security, directory, pids)


def _start_dask(
    stack: ExitStack, log_path: Path, module: str, *arguments: str
) -> subprocess.Popen[bytes]:
    with closing(log_path.open("ab")) as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # python -m puts it on sys.path: workers import hepdask and the processors from the checkout
            cwd=REPOSITORY,
        )
    stack.callback(stop_process, process)
    return process
