"""Clients that leave before they are answered, and streams whose status tells that there will be no answer."""

import json
import socket
from contextlib import ExitStack

import httpx
import openai
import pytest

from broker.connection import connect
from broker.leases import Lifetimes
from broker.request_store import RequestStore
from tests.polling import until
from tests.processes import free_port, running

#: Within which a client that has left is noticed.
NOTICED_S = 5.0
CHAT = {"model": "firstdraft", "messages": [{"role": "user", "content": "forever {}"}]}
ANSWERED_WHOLE = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", CHAT | {"n": 3}),
    ("/v1/completions", {"model": "firstdraft", "prompt": "forever {}"}),
    ("/v1/responses", {"model": "firstdraft", "input": "forever {}"}),
]


@pytest.fixture
def store(system):
    redis = connect(system.redis_url)
    yield RequestStore(redis, Lifetimes(60, 10.0, 3))
    redis.close()


@pytest.fixture
def client(system):
    with httpx.Client(base_url=system.url, trust_env=False, timeout=20) as one:
        yield one


def ask(url, path, body, **headers):
    """A connection on which the request was sent and nothing read."""
    host, port = url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    head = {"Host": "here", "Content-Type": "application/json", "Content-Length": len(content), **headers}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall("\r\n".join(lines).encode() + content)
    return connection


def counted(store, name):
    return store.counters().get(name, 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), ANSWERED_WHOLE)
def test_the_jobs_of_a_client_that_left_are_cancelled(system, store, path, body, stream):
    before, accepted = counted(store, "cancelled"), counted(store, "accepted")
    num = body.get("n", 1)
    connection = ask(system.url, path, body | {"stream": stream})
    until(lambda: counted(store, "accepted") == accepted + num, "they are accepted")
    connection.close()
    until(lambda: counted(store, "cancelled") == before + num, "they are cancelled", within_s=NOTICED_S)


def test_pipelined_bytes_are_no_leaving(system):
    body = {"model": "firstdraft", "messages": [{"role": "user", "content": "slow gamma"}], "max_tokens": 3}
    with ask(system.url, "/v1/chat/completions", body) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: here\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


@pytest.fixture
def start_gateway(redis_url, redis_connection, tmp_path):  # noqa: ARG001 - flushed before each test
    """A gateway without workers."""
    with ExitStack() as stack:

        def start(**settings):
            url = f"http://127.0.0.1:{free_port()}"
            given = {f"FIRSTDRAFT_GATEWAY__{name.upper()}": str(value) for name, value in settings.items()}
            environment = {"REDIS_URL": redis_url, "XDG_STATE_HOME": str(tmp_path)}
            port = url.rpartition(":")[2]
            stack.enter_context(
                running("gateway", log=tmp_path / "log", FIRSTDRAFT_GATEWAY__PORT=port, **environment, **given)
            )
            until(lambda: _answers(url), "the gateway answers", within_s=30)
            return url

        yield start


def _answers(url):
    try:
        return httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_a_job_goes_on_when_whoever_waits_for_it_leaves_and_its_place_is_free(start_gateway):
    url = start_gateway(max_streams=1)
    waiting = ask(url, "/v1/jobs?wait=50", {"prompt": "nobody takes it"}, **{"Idempotency-Key": "left"})
    with httpx.Client(base_url=url, trust_env=False, timeout=20) as client:

        def again():
            answer = client.post("/v1/jobs", json={"prompt": "nobody takes it"}, headers={"Idempotency-Key": "left"})
            return answer.json()["id"] if "Idempotency-Replayed" in answer.headers else None

        other = client.post("/v1/jobs", json={"prompt": "another"}).json()["id"]
        job = until(again, "it is accepted")
        status = f"/v1/jobs/{other}?wait=0.1"
        until(lambda: client.get(status).status_code == 503, "the one place is taken")
        waiting.close()
        until(lambda: client.get(status).status_code == 200, "the place is free", within_s=NOTICED_S)
        assert client.get(f"/v1/jobs/{job}").json()["status"] == "queued"


STREAMED = [
    ("/v1/chat/completions", {"model": "firstdraft", "messages": [{"role": "user", "content": "refuse this"}]}),
    ("/v1/completions", {"model": "firstdraft", "prompt": "refuse this"}),
    ("/v1/completions", {"model": "firstdraft", "prompt": ["gamma", "refuse this"]}),
    ("/v1/responses", {"model": "firstdraft", "input": "refuse this"}),
]


@pytest.mark.parametrize(("path", "body"), STREAMED)
def test_what_no_worker_can_answer_has_the_same_status_streamed_and_whole(client, path, body):
    whole, streamed = (client.post(path, json=body | {"stream": stream}) for stream in (False, True))
    assert (whole.status_code, streamed.status_code) == (400, 400)
    assert streamed.json() == whole.json()
    assert streamed.json()["error"]["code"] == "context_length_exceeded"


def test_openais_client_raises_for_a_stream_that_cannot_be(system):
    with openai.OpenAI(base_url=f"{system.url}/v1", api_key="unused", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as refusal:
            client.chat.completions.create(**STREAMED[0][1], stream=True)
        assert refusal.value.code == "context_length_exceeded"
        assert refusal.value.request_id.startswith("req_")


def test_a_stream_in_the_background_begins_at_once_and_tells_of_its_failure(client):
    body = STREAMED[-1][1] | {"stream": True, "background": True}
    with client.stream("POST", "/v1/responses", json=body) as answer:
        assert answer.status_code == 200
        events = [line.removeprefix("event: ") for line in answer.iter_lines() if line.startswith("event: ")]
    assert events == ["response.created", "response.queued", "response.in_progress", "response.failed"]


def test_no_queue_holds_a_streams_status_for_long(start_gateway):
    url = start_gateway(status_s=0.5)
    with (
        httpx.Client(base_url=url, trust_env=False, timeout=8) as client,
        client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as answer,
    ):
        assert answer.status_code == 200


@pytest.mark.parametrize(("status_s", "status"), [(0, 200), (60, 504)])
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
def test_an_answer_that_takes_too_long_ends_its_stream_and_its_job(start_gateway, store_here, path, status_s, status):
    url = start_gateway(status_s=status_s, max_answer_s=1)
    body = CHAT if path == "/v1/chat/completions" else {"model": "firstdraft", "input": "x"}
    before = counted(store_here, "cancelled")
    with httpx.Client(base_url=url, trust_env=False, timeout=8) as client:
        answer = client.post(path, json=body | {"stream": True})
    assert answer.status_code == status
    assert "There was no answer within 1 s" in answer.text
    assert '"timeout"' in answer.text
    until(lambda: counted(store_here, "cancelled") == before + 1, "its job is cancelled")


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long_goes_on_where_it_can_be_asked_for_again(start_gateway, store_here, stream):
    url = start_gateway(max_answer_s=1, status_s=60)
    body, key = CHAT | {"stream": stream}, {"Idempotency-Key": "again"}
    with httpx.Client(base_url=url, trust_env=False, timeout=8) as client:
        told = [client.post("/v1/chat/completions", json=body, headers=key) for _ in range(2)]
    assert [answer.status_code for answer in told] == [504, 504]
    assert [answer.headers.get("Idempotency-Replayed") for answer in told] == [None, "true"]
    assert "the request goes on: send it again with the same Idempotency-Key" in told[0].text
    assert (counted(store_here, "accepted"), counted(store_here, "cancelled")) == (1, 0)


@pytest.fixture
def store_here(redis_connection):
    return RequestStore(redis_connection, Lifetimes(60, 10.0, 3))


def test_a_response_in_the_background_takes_its_time(start_gateway):
    url = start_gateway(max_answer_s=1, status_s=60)
    body = {"model": "firstdraft", "input": "x", "background": True, "stream": True}
    with (
        httpx.Client(base_url=url, trust_env=False, timeout=8) as client,
        client.stream("POST", "/v1/responses", json=body) as answer,
    ):
        assert next(line for line in answer.iter_lines() if line.startswith(": "))  # a sign of life after two seconds


def test_asking_for_the_head_of_a_stream_holds_no_place(start_gateway):
    url = start_gateway(max_streams=1)
    with httpx.Client(base_url=url, trust_env=False, timeout=8) as client:
        job = client.post("/v1/jobs", json={"prompt": "nobody takes it"}).json()["id"]
        for _ in range(2):
            head = client.head(f"/v1/jobs/{job}/events")
            assert (head.status_code, head.headers["Content-Type"]) == (200, "text/event-stream")
