import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from broker.connection import connect
from firstdraft.local.embedded import MAX_SOCKET_PATH, EmbeddedServerError, embedded_server
from tests.polling import until

OWNER = """
import sys, time
from pathlib import Path
from firstdraft.local.embedded import embedded_server
with embedded_server(Path(sys.argv[1])) as url:
    print(url, flush=True)
    time.sleep(60)
"""


def server_process(url: str) -> psutil.Process:
    client = connect(url)
    try:
        return psutil.Process(client.info("server")["process_id"])
    finally:
        client.close()


def test_it_keeps_what_it_was_given_over_a_restart_and_evicts_nothing(tmp_path: Path) -> None:
    with embedded_server(tmp_path) as url:
        client = connect(url)
        client.set("kept", "yes")
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("port") == {"port": "0"}
        client.close()
    with embedded_server(tmp_path) as url:
        client = connect(url)
        assert client.get("kept") == b"yes"
        client.close()


def test_a_server_that_is_killed_has_lost_no_acknowledged_write(tmp_path: Path) -> None:
    with embedded_server(tmp_path) as url:
        client = connect(url, retries=0)
        for number in range(500):
            assert client.set(f"key-{number}", number)
        server_process(url).kill()
        client.close()
    with embedded_server(tmp_path) as url:
        client = connect(url)
        assert client.dbsize() == 500
        client.close()


def test_a_second_server_on_the_same_data_is_refused(tmp_path: Path) -> None:
    with (
        embedded_server(tmp_path),
        pytest.raises(EmbeddedServerError, match="another embedded server"),
        embedded_server(tmp_path),
    ):
        pass


def test_a_folder_whose_path_is_too_long_for_a_socket_still_serves(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 25)
    with embedded_server(folder) as url:
        assert len(url.removeprefix("unix://")) <= MAX_SOCKET_PATH
        client = connect(url)
        assert client.ping()
        client.close()


def test_only_its_user_may_enter_the_folder_of_its_socket(tmp_path: Path) -> None:
    with embedded_server(tmp_path / "private") as url:
        socket = Path(url.removeprefix("unix://"))
        assert socket.stat().st_mode & 0o077 == 0
        assert socket.parent.stat().st_mode & 0o077 == 0


def test_it_ends_with_its_owner_even_if_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        server = server_process(owner.stdout.readline().strip())
        os.kill(owner.pid, signal.SIGKILL)
    until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, "the server's end")
