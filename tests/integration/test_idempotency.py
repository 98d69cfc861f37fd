"""The same POST twice with one `Idempotency-Key` makes one thing, on every route that makes something."""

import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx
import pytest
from websockets.sync.client import connect as connect_websocket

from broker import keys
from broker.api_keys import ApiKeys
from broker.connection import connect
from broker.idempotency import Idempotency, IdempotencyKeys
from firstdraft.client.retries import RetryRule
from firstdraft.client.sync import Client
from schemas.owners import Owner
from tests.polling import until
from tests.processes import free_port, running

MODEL = {"model": "firstdraft", "max_tokens": 3}
CHAT = {**MODEL, "messages": [{"role": "user", "content": "unsure beta gamma"}]}
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/jobs", "body": {"prompt": "one two", "max_tokens": 1}}
#: Bodies by route, each with another body for the same key.
BODIES = {
    "/v1/jobs": ({"prompt": "one two", "max_tokens": 1}, {"prompt": "one two", "max_tokens": 2}),
    "/v1/chat/completions": ({**CHAT, "n": 2}, {**CHAT, "n": 3}),
    "/v1/completions": ({**MODEL, "prompt": ["one", "two"], "n": 2}, {**MODEL, "prompt": ["one", "two"]}),
    "/v1/responses": (
        {"model": "firstdraft", "input": "one two"},
        {"model": "firstdraft", "input": "one two", "store": False},
    ),
}
NUM_JOBS = {"/v1/jobs": 1, "/v1/chat/completions": 2, "/v1/completions": 4, "/v1/responses": 1}


@pytest.fixture(scope="module")
def redis(system):
    with closing(connect(system.redis_url)) as connection:
        yield connection


@pytest.fixture(scope="module")
def http(system):
    with httpx.Client(base_url=system.url, trust_env=False, timeout=30) as one:
        yield one


@pytest.fixture
def key():
    return {"Idempotency-Key": f"key-{uuid.uuid4()}"}


@pytest.fixture
def num_accepted(redis):
    """How many jobs were accepted since the test began."""

    def count():
        return int(redis.hget(keys.counters(), "accepted") or 0)

    before = count()
    return lambda: count() - before


def an_upload(content=None, name="in.jsonl"):
    content = (json.dumps(LINE) + "\n").encode() if content is None else content
    return {"files": {"file": (name, content)}, "data": {"purpose": "batch"}}


def text_of(stream):
    """The text of an OpenAI-style stream, by choice, and the id that all its chunks have."""
    texts, ids = {}, set()
    for line in stream.text.splitlines():
        if line.startswith("data: {"):
            chunk = json.loads(line.removeprefix("data: "))
            ids.add(chunk["id"])
            for choice in chunk["choices"]:
                texts[choice["index"]] = texts.get(choice["index"], "") + (choice["delta"].get("content") or "")
    return texts, ids


@pytest.mark.parametrize("route", list(BODIES))
def test_a_repetition_answers_what_the_first_made(http, key, num_accepted, route):
    body, _ = BODIES[route]
    first, second = (http.post(route, json=body, headers=key, params={"wait": 30}) for _ in range(2))
    assert first.status_code == second.status_code == 200
    assert second.json() == first.json()
    assert ("Idempotency-Replayed" in first.headers, second.headers["Idempotency-Replayed"]) == (False, "true")
    assert num_accepted() == NUM_JOBS[route]
    spaced, as_json = json.dumps(body, indent=3), {"Content-Type": "application/json"}
    spelt = http.post(route, content=spaced, headers=key | as_json, params={"wait": 30})
    assert spelt.json() == first.json()
    other_key = http.post(route, json=body, headers={"Idempotency-Key": str(uuid.uuid4())})
    assert other_key.json()["id"] != first.json()["id"]


@pytest.mark.parametrize("route", list(BODIES))
def test_repetitions_at_one_moment_make_one_thing(http, key, num_accepted, route):
    body, _ = BODIES[route]
    start = threading.Barrier(6)

    def post(_):
        start.wait(30)
        return http.post(route, json=body, headers=key, params={"wait": 30})

    with ThreadPoolExecutor(6) as pool:
        told = list(pool.map(post, range(6)))
    assert {answer.status_code for answer in told} == {200}
    assert len({json.dumps(answer.json(), sort_keys=True) for answer in told}) == 1
    assert num_accepted() == NUM_JOBS[route]


@pytest.mark.parametrize("route", list(BODIES))
def test_another_body_with_the_same_key_is_refused(http, key, num_accepted, route):
    body, other = BODIES[route]
    assert http.post(route, json=body, headers=key).status_code in {200, 202}
    refused = http.post(route, json=other, headers=key)
    assert refused.status_code == 422
    if route == "/v1/jobs":
        assert refused.json()["title"] == "The Idempotency-Key stands for another body"
    else:
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "idempotency_key_in_use")
    elsewhere = http.post("/v1/jobs", json={"prompt": "x"}, headers=key)
    assert elsewhere.status_code == 422, "on another route as well"
    assert num_accepted() == NUM_JOBS[route]


@pytest.mark.parametrize("route", [*BODIES, "/v1/files", "/v1/batches"])
def test_a_key_that_is_too_long_is_refused_where_a_body_would_be(http, route):
    sent = an_upload() if route == "/v1/files" else {"json": BODIES.get(route, ({},))[0]}
    refused = http.post(route, headers={"Idempotency-Key": "x" * 256}, **sent)
    assert refused.status_code == (422 if route == "/v1/jobs" else 400)
    assert "Idempotency-Key" in refused.text


def test_a_stream_is_told_again_from_its_beginning(http, key, num_accepted):
    body = {**CHAT, "n": 2, "stream": True}
    first, second = (http.post("/v1/chat/completions", json=body, headers=key) for _ in range(2))
    assert text_of(first) == text_of(second) == ({0: "gamma beta UNSURE ", 1: "gamma beta UNSURE "}, text_of(first)[1])
    assert second.headers["Idempotency-Replayed"] == "true"
    assert num_accepted() == 2
    assert http.post("/v1/chat/completions", json={**body, "stream": False}, headers=key).status_code == 422


def test_a_repetition_follows_what_is_under_way_and_leaving_does_not_cancel_it(http, key, num_accepted):
    body = {**CHAT, "max_tokens": 12, "messages": [{"role": "user", "content": "slow unsure beta"}]}
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/chat/completions", json=body, headers=key, timeout=0.2)
    with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as left:
        next(left.iter_lines())
    answer = http.post("/v1/chat/completions", json=body, headers=key)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"].endswith(" ")
    assert num_accepted() == 2, "the one that came without a key, and was left, is another"


def test_a_response_in_the_background_is_one_and_is_told_as_it_is(http, key, num_accepted):
    body = {"model": "firstdraft", "input": "one two", "background": True}
    made = http.post("/v1/responses", json=body, headers=key).json()
    under_way = {"queued", "in_progress"}
    address = f"/v1/responses/{made['id']}"
    ended = until(lambda: (now := http.get(address).json())["status"] not in under_way and now, "it ends")
    assert http.post("/v1/responses", json=body, headers=key).json() == ended
    assert num_accepted() == 1


def test_a_response_is_found_again_though_what_it_continued_has_expired(http, key, redis):
    earlier = http.post("/v1/responses", json={"model": "firstdraft", "input": "one"}).json()["id"]
    body = {"model": "firstdraft", "input": "two", "previous_response_id": earlier}
    first = http.post("/v1/responses", json=body, headers=key)
    redis.delete(keys.request(earlier.removeprefix("resp_")))
    assert http.post("/v1/responses", json=body, headers=key).json() == first.json()
    assert http.post("/v1/responses", json=body).status_code == 404


@pytest.mark.parametrize("route", list(BODIES))
def test_a_result_that_has_expired_is_not_made_again(http, key, redis, num_accepted, route):
    body, _ = BODIES[route]
    first = http.post(route, json=body, headers=key, params={"wait": 30}).json()
    job_id = first["firstdraft"]["job_id"] if "firstdraft" in first else first["id"]
    redis.delete(keys.request(job_id), keys.events(job_id))
    gone = http.post(route, json=body, headers=key, params={"wait": 30})
    assert gone.status_code == 410
    assert job_id in gone.text
    assert num_accepted() == NUM_JOBS[route]


def test_a_websocket_reads_a_key_and_it_is_the_same_as_over_http(system, http, num_accepted):
    key, body = str(uuid.uuid4()), {"prompt": "one two", "max_tokens": 1}
    with connect_websocket(system.url.replace("http", "ws") + "/v1/ws", proxy=None) as socket:

        def submit(body):
            socket.send(json.dumps({"type": "submit", "ref": 1, "body": body, "idempotency_key": key}))
            while "ref" not in (told := json.loads(socket.recv(timeout=20))):
                pass
            return told

        first, second = submit(body), submit(body)
        assert first["job"]["id"] == second["job"]["id"]
        assert submit(body | {"max_tokens": 2})["problem"]["status"] == 422
    assert http.post("/v1/jobs", json=body, headers={"Idempotency-Key": key}).json()["id"] == first["job"]["id"]
    assert num_accepted() == 1


def test_an_upload_is_one_file_and_another_content_is_refused(http, key):
    first, second = (http.post("/v1/files", headers=key, **an_upload()) for _ in range(2))
    assert first.status_code == 200
    assert second.json() == first.json()
    assert second.headers["Idempotency-Replayed"] == "true"
    for other in (an_upload(b"{}\n"), an_upload(name="other.jsonl")):
        refused = http.post("/v1/files", headers=key, **other)
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "idempotency_key_in_use")


def test_an_upload_whose_gateway_was_killed_after_it_took_the_key_is_made_under_the_same_id(http, key):
    made = http.post("/v1/files", headers=key, **an_upload()).json()
    assert http.delete(f"/v1/files/{made['id']}").status_code == 200  # as if it had never come to be
    again = http.post("/v1/files", headers=key, **an_upload()).json()
    assert again["id"] == made["id"]
    assert http.get(f"/v1/files/{made['id']}").status_code == 200


def test_a_batch_is_made_once(http, key, num_accepted):
    file_id = http.post("/v1/files", **an_upload()).json()["id"]
    body = {"input_file_id": file_id, "endpoint": "/v1/jobs", "completion_window": "24h"}
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda _: http.post("/v1/batches", json=body, headers=key).json()["id"], range(4)))
    assert len(set(told)) == 1
    until(lambda: http.get(f"/v1/batches/{told[0]}").json()["status"] == "completed", "it ends", within_s=30)
    http.delete(f"/v1/files/{file_id}")
    again = http.post("/v1/batches", json=body, headers=key)
    assert (again.json()["id"], again.json()["status"]) == (told[0], "completed")
    assert http.post("/v1/batches", json=body | {"metadata": {"a": "b"}}, headers=key).status_code == 422
    assert num_accepted() == 1


def test_two_owners_keys_are_two_keys(http, redis, key):
    api_keys = ApiKeys(redis)
    bearers = [{"Authorization": f"Bearer {api_keys.create(Owner(name=name))}"} for name in ("alice", "bob")]
    ids = {http.post("/v1/jobs", json={"prompt": "x"}, headers=key | bearer).json()["id"] for bearer in bearers}
    assert len(ids) == 2


class LosesAnswers(httpx.HTTPTransport):
    """A network that loses the first answer of each POST, after the gateway has given it."""

    def __init__(self):
        super().__init__()
        self.lost = []

    def handle_request(self, request):
        response = super().handle_request(request)
        if request.method == "POST" and request.url.path not in self.lost:
            self.lost.append(request.url.path)
            response.read()
            response.close()
            raise httpx.ReadTimeout("lost", request=request)
        return response


def test_the_client_starts_one_batch_though_the_answers_are_lost(system, http, tmp_path, num_accepted):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(LINE) + "\n")
    before = {batch["id"] for batch in http.get("/v1/batches", params={"limit": 1000}).json()["data"]}
    network = LosesAnswers()
    with Client(system.url, transport=network, retries=RetryRule(first_delay_s=0.01)) as client:
        batch = client.start_batch(source)
        assert client.wait_for_batch(batch.id).status == "completed"
        assert client.infer("one two", max_tokens=1).text == "two "
    assert network.lost == ["/v1/files", "/v1/batches", "/v1/jobs"]
    after = {made["id"] for made in http.get("/v1/batches", params={"limit": 1000}).json()["data"]}
    assert after - before == {batch.id}
    assert num_accepted() == 2


def test_a_key_makes_start_batch_the_same_in_another_process(system, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(LINE) + "\n")
    key = str(uuid.uuid4())
    made = set()
    for _ in range(2):
        with Client(system.url) as client:
            made.add(client.start_batch(source, idempotency_key=key).id)
    assert len(made) == 1


@pytest.fixture
def own_gateway(redis_url, redis_connection, tmp_path):  # noqa: ARG001 - flushed before each test
    """Runs a gateway of its own; gives its process and its address."""
    environment = {"REDIS_URL": redis_url, "XDG_STATE_HOME": str(tmp_path / "state")}
    port = str(free_port())

    def run(name):
        return running("gateway", log=tmp_path / name, FIRSTDRAFT_GATEWAY__PORT=port, **environment)

    return run, f"http://127.0.0.1:{port}"


def answers(url):
    try:
        return httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/responses", "/v1/jobs"])
def test_after_a_gateway_was_killed_before_it_answered_a_repetition_finds_what_it_stored(
    own_gateway, start_worker, redis_connection, key, route
):
    run, url = own_gateway
    body, _ = BODIES[route]
    query = {"wait": 30}

    def accepted():
        return int(redis_connection.hget(keys.counters(), "accepted") or 0)

    with run("first.log") as first, ThreadPoolExecutor(1) as pool:
        until(lambda: answers(url), "the gateway answers", within_s=60)
        asking = pool.submit(
            lambda: httpx.post(url + route, json=body, headers=key, params=query, timeout=60, trust_env=False)
        )
        until(accepted, "it is stored", within_s=30)
        first.end()  # kills the process that serves as well, which would go on for a while without its parent
        with pytest.raises(httpx.TransportError):
            asking.result(30)
    start_worker("edge")
    start_worker("cloud")
    with run("second.log"):
        until(lambda: answers(url), "the next gateway answers", within_s=60)
        told = httpx.post(url + route, json=body, headers=key, params=query, timeout=60, trust_env=False)
    assert told.status_code == 200
    assert told.headers["Idempotency-Replayed"] == "true"
    assert accepted() == NUM_JOBS[route]


def test_of_a_key_that_two_claim_one_has_it(redis_connection):
    claims = IdempotencyKeys(redis_connection)
    key = Idempotency("alice", "key", "digest")
    assert claims.read(key) is None
    assert [claims.claim(key, made_id) for made_id in ("file-1", "file-2")] == ["file-1", "file-1"]
    assert claims.read(key) == "file-1"
    assert 86_000 < redis_connection.ttl(key.redis_key) <= 86_400
