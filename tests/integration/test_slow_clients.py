"""Clients that send or read slowly, or not at all: whatever they do costs no thread, and so nobody else."""

import contextlib
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest

from tests.polling import until
from tests.processes import free_port, running

#: More of them than the gateway has threads.
MANY = 300
HOST = b"Host: here\r\n"
BODY = b'{"prompt": "why is the sky blue", "max_tokens": 2}'
POST = b"POST /v1/jobs HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(BODY)
GET = b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n"
#: A file of more than a megabyte that needs no key.
LARGE_FILE = b"GET /openapi/static/swagger-ui-bundle.js HTTP/1.1\r\n" + HOST + b"\r\n"


@pytest.fixture
def address(system):
    host, port = system.url.removeprefix("http://").split(":")
    return host, int(port)


@pytest.fixture
def connected(address):
    """Opens so many connections and says the same on each; all are closed in the end."""
    with ExitStack() as stack:

        def connect(say: bytes = b"", count: int = 1, receive_buffer: int | None = None) -> list[socket.socket]:
            made = []
            for _ in range(count):
                one = stack.enter_context(socket.socket())
                if receive_buffer is not None:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
                one.settimeout(20)
                one.connect(address)
                one.sendall(say)
                made.append(one)
            return made

        yield connect


def heard(one: socket.socket, end: bytes) -> bytes:
    """What came until the bytes that end it."""
    received = b""
    while end not in received:
        data = one.recv(1 << 16)
        assert data, received
        received += data
    return received


def heard_to_the_end(one: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := one.recv(1 << 16):
            received += data
    return received


def all_is_well(url: str) -> None:
    """Health, a submission, a wait and a stream, each in good time."""
    with httpx.Client(base_url=url, trust_env=False, timeout=5) as client:
        assert client.get("/healthz").status_code == 200
        job = client.post("/v1/jobs?wait=5", content=BODY, headers={"Content-Type": "application/json"})
        assert job.json()["status"] == "succeeded"
        with client.stream("GET", f"/v1/jobs/{job.json()['id']}/events") as stream:
            assert any("event: done" in line for line in stream.iter_lines())


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"P",
        POST,
        POST + b"\r\n",
        POST + b"\r\n" + BODY[:-1],
        POST.replace(b"Content-Length: 50", b"Transfer-Encoding: chunked") + b"\r\n32\r\n" + BODY[:-1],
        POST.replace(b"Content-Length: 50", b"Transfer-Encoding: chunked") + b"\r\n32\r\n" + BODY + b"\r\n0\r\n",
        POST + b"Expect: 100-continue\r\n\r\n",
        b"POST /v1/files HTTP/1.1\r\n" + HOST + b"Content-Type: multipart/form-data; boundary=b\r\n"
        b"Content-Length: 900\r\n\r\n--b\r\n",
        # Nothing of it is kept in memory: its route reads it, on one of few threads for such files.
        b"POST /v1/files HTTP/1.1\r\n" + HOST + b"Content-Type: multipart/form-data; boundary=b\r\n"
        b"Content-Length: 90000000\r\n\r\n--b\r\n",
        # Larger than a body may be: refused at once.
        b"POST /v1/jobs HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\nContent-Length: 90000000\r\n\r\n{",
        GET,
        GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        GET * 3 + GET[:-1],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=[
        "nothing",
        "one byte",
        "half a head",
        "no body",
        "half a body",
        "half a chunk",
        "no last chunk",
        "waits to go on",
        "half an upload",
        "a little of a large upload",
        "too large",
        "idle after an answer",
        "does not close",
        "pipelined and a half",
        "tls",
    ],
)
def test_many_who_have_not_sent_all_stop_nobody(system, connected, said):
    assert b"Content-Length: 50" in POST
    connected(said, count=MANY)
    all_is_well(system.url)


def test_many_who_do_not_read_their_answers_stop_nobody(system, connected):
    connected(LARGE_FILE, count=MANY, receive_buffer=1)
    all_is_well(system.url)


def test_many_who_do_not_read_their_files_stop_nobody(system, connected):
    with httpx.Client(base_url=system.url, trust_env=False) as client:
        upload = {"file": ("big.jsonl", b"x" * 20_000_000)}
        file_id = client.post("/v1/files", files=upload, data={"purpose": "batch"}).json()["id"]
        request = f"GET /v1/files/{file_id}/content HTTP/1.1\r\nHost: here\r\n\r\n".encode()
        connected(request, count=MANY, receive_buffer=1)
        all_is_well(system.url)
        refused = until(lambda: refusal(client, file_id), "no more than so many files are sent at once")
        assert refused.headers["Retry-After"]
        client.delete(f"/v1/files/{file_id}")


def refusal(client, file_id):
    answer = client.get(f"/v1/files/{file_id}/content")
    return answer if answer.status_code == 503 else None


def test_an_answer_that_is_read_slowly_arrives_whole(system, connected):
    whole = httpx.get(f"{system.url}/openapi/static/swagger-ui-bundle.js", trust_env=False).content
    (slow,) = connected(LARGE_FILE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), receive_buffer=1)
    received = b""
    while data := slow.recv(30_000):
        received += data
    assert received.partition(b"\r\n\r\n")[2] == whole


def test_an_answer_that_is_read_slowly_leaves_the_connection_open(connected):
    (slow,) = connected(LARGE_FILE, receive_buffer=1)
    head = heard(slow, b"\r\n\r\n").split(b"\r\n\r\n")
    length = next(int(line.split()[1]) for line in head[0].split(b"\r\n") if line.startswith(b"Content-Length"))
    missing = length - len(head[1])
    while missing:
        missing -= len(slow.recv(missing))
    slow.sendall(GET)
    assert b"200 OK" in heard(slow, b"}")


def test_a_request_may_come_byte_by_byte(connected):
    (slow,) = connected()
    for byte in POST + b"\r\n" + BODY:
        slow.sendall(bytes([byte]))
    assert heard(slow, b"}").startswith(b"HTTP/1.1 202 ")


def test_requests_that_come_together_are_answered_in_turn(connected):
    (one,) = connected(GET + POST + b"\r\n" + BODY + GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    statuses = [part[:3] for part in heard_to_the_end(one).split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"202", b"200"]


def test_who_waits_to_be_told_is_told_once(connected):
    (one,) = connected(POST + b"Expect: 100-continue\r\n\r\n")
    assert heard(one, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    one.sendall(BODY)
    assert heard(one, b"}").startswith(b"HTTP/1.1 202 ")


def test_a_body_in_chunks_is_read(connected):
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"
    (one,) = connected(POST.replace(b"Content-Length: 50", b"Transfer-Encoding: chunked") + b"\r\n" + chunks)
    assert heard(one, b"}").startswith(b"HTTP/1.1 202 ")


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"GET /healthz HTTP/1.1\nHost: here\n\n", b"400"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 70_000, b"431"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"400"),
        (POST.replace(b"Content-Length: 50", b"Transfer-Encoding: chunked") + b"\r\nzz\r\n", b"400"),
    ],
)
def test_what_is_no_request_is_refused_at_once(connected, said, status):
    (one,) = connected(said)
    began = time.monotonic()
    assert heard_to_the_end(one).startswith(b"HTTP/1.1 " + status)
    assert time.monotonic() - began < 5


def test_connections_that_their_clients_do_not_close_hold_nobody_up(system, connected):
    connected(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), count=30)
    began = time.monotonic()
    all_is_well(system.url)
    assert time.monotonic() - began < 5


@pytest.fixture
def start_gateway(redis_url, redis_connection, tmp_path):  # noqa: ARG001 - flushed before each test
    with ExitStack() as stack:

        def start(**settings: str) -> tuple[str, int]:
            port = free_port()
            environment = {"REDIS_URL": redis_url, "XDG_STATE_HOME": str(tmp_path)}
            given = {f"FIRSTDRAFT_GATEWAY__{name.upper()}": value for name, value in settings.items()}
            log = tmp_path / "gateway.log"
            stack.enter_context(running("gateway", log=log, **environment, FIRSTDRAFT_GATEWAY__PORT=str(port), **given))
            until(lambda: _answers(port), "the gateway answers", within_s=30)
            return "127.0.0.1", port

        yield start


def _answers(port: int) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).status_code == 200
    return False


def test_a_request_that_does_not_come_in_time_is_given_up(start_gateway):
    with socket.create_connection(start_gateway(request_s="1"), timeout=10) as one:
        one.sendall(POST)
        assert heard_to_the_end(one).startswith(b"HTTP/1.1 408 ")


def test_an_idle_connection_is_kept_for_as_long_as_is_set(start_gateway):
    address = start_gateway(keep_alive_s="3")
    with socket.create_connection(address, timeout=10) as one:
        for _ in range(2):
            one.sendall(GET)
            heard(one, b"}")
        began = time.monotonic()
        assert one.recv(1) == b""
        assert 2 < time.monotonic() - began < 6


def test_where_there_are_too_many_connections_the_idlest_goes(start_gateway):
    address = start_gateway(max_connections="20", threads="10", max_streams="4", max_transfers="2")
    with ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(address, timeout=10)) for _ in range(60)]
        for one in idle[-5:]:
            one.sendall(GET)
            assert b"200 OK" in heard(one, b"}")
        assert idle[0].recv(1) == b""


def test_pooled_connections_break_for_nobody(system):
    """Idle for longer than gunicorn's two seconds, at many moments around them."""
    with httpx.Client(base_url=system.url, trust_env=False, timeout=10) as client, ThreadPoolExecutor(8) as pool:
        for pause_s in (0.0, 2.0, 2.5):
            deadline = time.monotonic() + pause_s
            until(lambda deadline=deadline: time.monotonic() >= deadline, "the connections are idle")
            assert {answer.status_code for answer in pool.map(lambda _: client.get("/healthz"), range(40))} == {200}
