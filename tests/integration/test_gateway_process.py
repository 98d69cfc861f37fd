"""The gateway as a process of its own, over real HTTP, with a Redis of its own that comes and goes."""

import json
import signal
import threading
from contextlib import ExitStack

import httpx
import pytest

from broker.connection import connect
from broker.request_store import RequestStore
from firstdraft.local.embedded import embedded_server
from schemas.events import DraftText
from schemas.policy import Tier
from tests.integration.conftest import LIFETIMES
from tests.polling import joined, until
from tests.processes import free_port, running
from tests.samples import a_result
from tests.taking import take_one

#: Seconds for which any one request of these tests may take.
TIMEOUT_S = 10.0


def answers(client):
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def gateway(redis_url, tmp_path_factory):
    port, log = free_port(), tmp_path_factory.mktemp("gateway") / "log"
    with running("gateway", log=log, REDIS_URL=redis_url, FIRSTDRAFT_GATEWAY__PORT=str(port)) as process:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
            until(lambda: answers(client), "the gateway answers", within_s=30)
        yield process, url


@pytest.fixture
def client(gateway, redis_connection):  # noqa: ARG001 - flushed before each test
    with httpx.Client(base_url=gateway[1], timeout=TIMEOUT_S) as client:
        yield client


@pytest.fixture
def job(client):
    return client.post("/v1/jobs", json={"prompt": "why is the sky blue"}).raise_for_status().json()["id"]


def test_waiting_over_http_ends_when_the_job_does(client, store, job):
    lease = take_one(store, Tier.EDGE, "w1").lease
    timer = threading.Timer(0.3, store.succeed, [lease, a_result(), []])
    timer.start()
    answer = client.get(f"/v1/jobs/{job}?wait=8")
    joined(timer)
    assert answer.json()["status"] == "succeeded"
    assert answer.elapsed.total_seconds() < 4


def test_a_stream_over_http_tells_events_as_they_happen_and_resumes(client, store, job):
    lease = take_one(store, Tier.EDGE, "w1").lease
    lines = []
    with client.stream("GET", f"/v1/jobs/{job}/events") as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        told = stream.iter_lines()
        lines += [next(told) for _ in range(4)]
        assert lines[1] == "event: queued"
        store.append(lease, [DraftText(position=0, text="because ")])
        lines += [next(told) for _ in range(4)]
        assert json.loads(lines[6].removeprefix("data: "))["text"] == "because "
    position = lines[4].removeprefix("id: ")
    store.succeed(lease, a_result(), [])
    rest = client.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": position})
    assert [line for line in rest.text.split("\n") if line.startswith("event:")] == ["event: done"]


def test_an_error_over_http_is_a_problem_document(client):
    answer = client.post("/v1/jobs", json={"prompt": "x", "max_tokens": 0})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert answer.json()["errors"][0]["field"] == "max_tokens"


def test_no_prompt_answer_or_key_is_in_the_gateways_log(gateway, client, store):
    words = ("xyzzy-prompt", "xyzzy-answer", "fd_xyzzy_key")
    job = client.post("/v1/jobs", json={"prompt": words[0]}).json()["id"]
    store.succeed(take_one(store, Tier.EDGE, "w1").lease, a_result(words[1]), [])
    client.get(f"/v1/jobs/{job}", headers={"Authorization": f"Bearer {words[2]}"})
    client.post("/v1/jobs", json={"prompt": words[0], "max_tokens": words[0]})
    client.post("/v1/chat/completions", json={"model": words[0], "messages": [{"role": "user", "content": words[0]}]})
    said = gateway[0].log.read_text()
    assert "request_accepted" in said
    assert not [word for word in words if word in said]


def test_while_redis_is_away_nothing_is_accepted_and_afterwards_everything_is_as_before(tmp_path):
    port, data = free_port(), tmp_path / "data"
    with ExitStack() as first:
        url = first.enter_context(embedded_server(data))
        with (
            running("gateway", log=tmp_path / "log", REDIS_URL=url, FIRSTDRAFT_GATEWAY__PORT=str(port)) as process,
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT_S) as client,
        ):
            until(lambda: answers(client), "the gateway answers", within_s=30)
            job = client.post("/v1/jobs", json={"prompt": "hello"}).raise_for_status().json()["id"]
            first.close()
            for answer in (client.post("/v1/jobs", json={"prompt": "x"}), client.get(f"/v1/jobs/{job}")):
                assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
                assert answer.headers["content-type"] == "application/problem+json"
            readiness = client.get("/readyz")
            assert (readiness.status_code, readiness.json()["missing"]) == (503, ["redis does not answer"])
            assert client.get("/healthz").status_code == 200
            with embedded_server(data) as again:
                assert again == url
                assert client.get(f"/v1/jobs/{job}").json()["status"] == "queued"
                redis = connect(url)
                assert take_one(RequestStore(redis, LIFETIMES), Tier.EDGE, "w1") is not None
                redis.close()
            process.signal(signal.SIGTERM)
            assert process.wait(5) == 0


def test_bad_settings_stop_the_gateway_and_name_themselves(tmp_path):
    environment = {"REDIS_URL": "unix:///nowhere", "FIRSTDRAFT_EDGE__CONFIDENCE__STRATEGY": "hunch"}
    with running("gateway", log=tmp_path / "log", **environment) as process:
        assert process.wait(TIMEOUT_S) == 1
        assert "edge.confidence.strategy" in process.log.read_text()


@pytest.mark.parametrize("setting", ["FIRSTDRAFT_REDIS__UNSUITABLE=refuse", "FIRSTDRAFT_REQUESTS__DURABILITY=fsync"])
@pytest.mark.parametrize("module", ["gateway", "tests.fakes.worker"])
def test_a_server_that_keeps_nothing_is_refused_where_that_is_configured(
    tmp_path, redis_url, redis_connection, setting, module
):
    name, value = setting.split("=")
    redis_connection.config_set("appendonly", "no")
    try:
        environment = {"REDIS_URL": redis_url, name: value}
        with running(module, "edge", log=tmp_path / "log", **environment) as process:
            assert process.wait(TIMEOUT_S) == 1
            assert "appendonly is no" in process.log.read_text()
    finally:
        redis_connection.config_set("appendonly", "yes")
