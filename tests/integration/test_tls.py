"""A Redis URL that says TLS of a server without, or nothing of one that speaks nothing else: said at once, by all."""

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest
from click.testing import CliRunner
from redis.exceptions import ConnectionError as RedisConnectionError

from broker.connection import connect
from broker.tls import check_tls
from config.settings import InvalidSettings, RedisSettings
from firstdraft.cli import main
from firstdraft.local.embedded import server_binary
from tests.polling import until
from tests.processes import free_port, running

#: Seconds within which a process must have said what is wrong; most of it is Python's start on a busy machine.
SOON_S = 12.0
NO_TLS = "redis.url starts with rediss://, but the server at 127.0.0.1 port {port} does not speak TLS"
ONLY_TLS = "redis.url starts with redis://, but the server at 127.0.0.1 port {port} speaks TLS alone: use rediss://"


@pytest.fixture(scope="module")
def plain_port(tmp_path_factory):
    """A real server's, without TLS."""
    folder, port = tmp_path_factory.mktemp("plain"), free_port()
    command = [server_binary(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            until(lambda: answers(port), "the server answers")
            yield port
        finally:
            server.kill()


@pytest.fixture(scope="module")
def tls_port(tmp_path_factory):
    """A listener's that shakes hands and says nothing."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, so there is no certificate")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def shake_hands(connection):
        with context.wrap_socket(connection, server_side=True) as secured:
            secured.recv(1)

    with listening(shake_hands) as port:
        yield port


def hear(connection):
    while connection.recv(1000):
        pass


@contextlib.contextmanager
def listening(serve):
    """A port whose connections are each served by a call, one after the other."""

    def accept():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                with contextlib.suppress(OSError):  # the other side does not speak as expected, which is tested
                    serve(connection)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def answers(port):
    with contextlib.suppress(RedisConnectionError), contextlib.closing(connect(f"redis://127.0.0.1:{port}")) as redis:
        return redis.ping()
    return False


def settings(url, index_url=None):
    return RedisSettings(url=url, index_url=index_url, unsuitable="warn")


def test_what_a_server_does_not_speak_is_said_with_the_field(plain_port, tls_port):
    with pytest.raises(InvalidSettings, match=NO_TLS.format(port=plain_port)):
        check_tls(settings(f"rediss://:secret@127.0.0.1:{plain_port}"))
    with pytest.raises(InvalidSettings, match=ONLY_TLS.format(port=tls_port)):
        check_tls(settings(f"redis://127.0.0.1:{tls_port}/0"))
    with pytest.raises(InvalidSettings, match=r"redis\.index_url starts with rediss://") as told:
        check_tls(settings(f"redis://127.0.0.1:{plain_port}", f"rediss://x:secret@127.0.0.1:{plain_port}"))
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_server_that_is_away_or_says_nothing_is_no_matter_of_tls_and_costs_seconds(scheme):
    began = time.monotonic()
    check_tls(settings(f"{scheme}://127.0.0.1:{free_port()}"))
    with listening(hear) as silent:
        check_tls(settings(f"{scheme}://127.0.0.1:{silent}"))
    assert time.monotonic() - began < 10


def test_a_server_that_wants_a_password_speaks_the_protocol(plain_port):
    redis = connect(f"redis://127.0.0.1:{plain_port}")
    redis.config_set("requirepass", "right")
    try:
        for password in ("", ":wrong@", ":right@"):
            check_tls(settings(f"redis://{password}127.0.0.1:{plain_port}"))
    finally:
        redis.execute_command("AUTH", "right")
        redis.config_set("requirepass", "")
        redis.close()


@pytest.mark.parametrize("command", ["gateway", "workers.edge", "workers.cloud"])
@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_every_process_says_it_within_seconds_and_ends(command, scheme, plain_port, tls_port, tmp_path):
    port, told = (plain_port, NO_TLS) if scheme == "rediss" else (tls_port, ONLY_TLS)
    environment = {"REDIS_URL": f"{scheme}://127.0.0.1:{port}", "FIRSTDRAFT_GATEWAY__PORT": str(free_port())}
    with running(command, log=tmp_path / "log", **environment) as process:
        assert process.wait(SOON_S) == 1
        assert told.format(port=port) in process.log.read_text()


def test_commands_say_it_in_one_line(plain_port):
    environment = {"REDIS_URL": f"rediss://127.0.0.1:{plain_port}", "FIRSTDRAFT_GATEWAY__PORT": str(free_port())}
    for command in (["keys", "list"], ["up"]):
        refused = CliRunner().invoke(main, command, env=environment)
        assert refused.exit_code == 1
        assert refused.output.startswith("Error: " + NO_TLS.format(port=plain_port))
        assert refused.output.count("\n") == 1
    shown = CliRunner().invoke(main, ["doctor", "--json"], env=environment)
    assert NO_TLS.format(port=plain_port) in shown.output
