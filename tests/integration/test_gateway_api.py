"""The HTTP API on a real Redis, through the application itself; workers are played by the test."""

import json
import threading

import pytest

from broker.background import Loop
from config.settings import InvalidSettings, read_settings
from gateway.__main__ import build
from gateway.app import create_app
from gateway.batches.sweeper import FileSweeper
from gateway.services import Services
from schemas.events import Decision, DraftText
from schemas.policy import Tier
from schemas.results import Failure, FailureKind
from schemas.workers import CacheStatistics, VerificationStatistics
from tests.polling import joined, until
from tests.samples import a_draft, a_result, a_worker_report
from tests.taking import take_one

PROMPT = {"prompt": "why is the sky blue"}
MAX_BODY = 4096


@pytest.fixture
def services(make_services) -> Services:
    return make_services(max_body_bytes=MAX_BODY, max_streams=2, max_wait_s=0.5)


@pytest.fixture
def client(services):
    return create_app(services).test_client()


@pytest.fixture
def submitted(client):
    def submit(**body):
        answer = client.post("/v1/jobs", json=PROMPT | body)
        assert answer.status_code == 202, answer.text
        return answer.json["id"]

    return submit


def problem_of(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.content_type == "application/problem+json"
    body = json.loads(answer.text)
    assert body["status"] == status
    assert body["type"] == "about:blank"
    assert body["title"]
    assert body["detail"]
    return body


def told(answer):
    """The server-sent events of an answer, read to its end and closed: id, event and data of each."""
    with answer:
        text = answer.text
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]


# Submitting


def test_a_job_is_accepted_with_its_address_and_when_to_look(client, store):
    answer = client.post("/v1/jobs", json=PROMPT)
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/v1/jobs/{answer.json['id']}"
    assert answer.headers["Retry-After"] == "1"
    assert answer.content_type == "application/json"
    assert (answer.json["status"], answer.json["policy"], answer.json["created_at"]) == ("queued", "baseline", 12.5)
    assert store.read(answer.json["id"]).request.messages[0].content == PROMPT["prompt"]


def test_a_job_for_the_cloud_alone_waits_there(client):
    answer = client.post("/v1/jobs", json=PROMPT | {"policy": "cloud_only"})
    assert (answer.json["status"], answer.json["policy"]) == ("escalated", "cloud_only")
    assert client.get(answer.headers["Location"]).json["status"] == "escalated"


def test_everything_a_job_may_say_reaches_its_record(client, store):
    body = {
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "seed": 11,
        "stop": "END",
        "logit_bias": {"5": -1},
        "policy": "no_kv_cache",
        "confidence": {"strategy": "margin", "threshold": 0.9},
        "acceptance": {"mode": "threshold", "threshold": 0.7},
    }
    request = store.read(client.post("/v1/jobs", json=body).json["id"]).request
    assert [message.role for message in request.messages] == ["system", "user"]
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.seed, sampling.stop, sampling.logit_bias) == (7, 11, ("END",), {5: -1.0})
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 40)
    assert (request.policy.name, request.policy.kv_caches) == ("no_kv_cache", False)
    assert (request.confidence.strategy, request.confidence.threshold) == ("margin", 0.9)
    assert (request.acceptance.mode, request.acceptance.threshold) == ("threshold", 0.7)


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        (PROMPT | {"max_tokens": 0}, "max_tokens", 0),
        (PROMPT | {"temperature": "hot"}, "temperature", "hot"),
        (PROMPT | {"confidence": {"threshold": 2}}, "confidence.threshold", 2),
        (PROMPT | {"messages": [{"role": "user", "content": "x"}]}, "messages", [{"role": "user", "content": "x"}]),
        ({}, "messages", None),
        (PROMPT | {"colour": "blue"}, "colour", "blue"),
        (PROMPT | {"top_logprobs": 2}, "top_logprobs", 2),
        (PROMPT | {"json_schema": {"maximum": 2**70}}, "json_schema", {"maximum": 2**70}),
        (PROMPT | {"grammar": "root ::= ("}, "grammar", "root ::= ("),
        (PROMPT | {"logit_bias": {"-1": 5}}, "logit_bias.-1.[key]", "-1"),
        (PROMPT | {"policy": "bold"}, "policy", "bold"),
        (PROMPT | {"confidence": {"strategy": "hunch"}}, "confidence.strategy", "hunch"),
        (PROMPT | {"confidence": {"weights": {"hunch": 1}}}, "confidence.weights", "hunch"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_field_is_named_with_its_value(client, store, body, field, value):
    answer = problem_of(client.post("/v1/jobs", json=body), 422)
    (error,) = answer["errors"]
    assert (error["field"], error["value"]) == (field, value)
    assert error["reason"]
    assert field in answer["detail"]
    assert store.counters() == {}


@pytest.mark.parametrize("body", ["[]", '"hello"', "5", "null", "true"])
def test_json_that_is_no_object_is_refused(client, body):
    problem_of(client.post("/v1/jobs", data=body, content_type="application/json"), 422)


@pytest.mark.parametrize("body", [b"", b"{", b"{'prompt': 1}", b"\xff\xfe", b"[" * 4000], ids=repr)
def test_a_body_that_is_not_json_is_refused(client, body):
    problem_of(client.post("/v1/jobs", data=body, content_type="application/json"), 400)


@pytest.mark.parametrize("levels", [500, 950, 980, 1000])
def test_a_body_that_is_nested_deeply_is_refused_and_never_an_error_of_ours(client, levels):
    raw = '{"prompt": "x", "json_schema": {"a": ' + "[" * levels + "]" * levels + "}}"
    answer = client.post("/v1/jobs", data=raw, content_type="application/json")
    assert answer.status_code in {400, 422}
    problem_of(answer, answer.status_code)


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_does_not_say_that_it_is_json_is_refused(client, content_type):
    problem_of(client.post("/v1/jobs", data=json.dumps(PROMPT), content_type=content_type), 415)


def test_a_body_that_is_too_large_is_refused(client):
    problem_of(client.post("/v1/jobs", json={"prompt": "x" * MAX_BODY}), 413)


def test_a_long_bad_value_is_not_repeated_whole(client):
    answer = client.post("/v1/jobs", json={"prompt": ["secret " * 400]})
    assert len(answer.text) < 1000


@pytest.mark.parametrize(("method", "path"), [("get", "/v2/jobs"), ("get", "/"), ("get", "/v1/jobs/a/b/c")])
def test_an_unknown_address_is_a_problem_too(client, method, path):
    problem_of(getattr(client, method)(path), 404)


@pytest.mark.parametrize(("method", "path"), [("get", "/v1/jobs"), ("put", "/v1/jobs/x"), ("delete", "/healthz")])
def test_a_wrong_method_is_a_problem_too(client, method, path):
    problem_of(getattr(client, method)(path), 405)


@pytest.mark.parametrize("address", ["/v1/jobs/nobody", "/v1/jobs/nobody?wait=1", "/v1/jobs/nobody/events"])
def test_an_unknown_job_is_not_found_and_named(client, address):
    assert "nobody" in problem_of(client.get(address), 404)["detail"]


def test_an_unknown_job_cannot_be_cancelled(client):
    problem_of(client.delete("/v1/jobs/nobody"), 404)


# Reading


def test_an_answer_is_told_with_everything_that_was_measured(client, store, submitted):
    job = submitted()
    lease = take_one(store, Tier.EDGE, "w1").lease
    assert client.get(f"/v1/jobs/{job}").json["status"] == "drafting"
    store.succeed(lease, a_result("an answer"), [])
    answer = client.get(f"/v1/jobs/{job}")
    assert answer.status_code == 200
    assert "Retry-After" not in answer.headers
    assert answer.json["status"] == "succeeded"
    assert answer.json["failure"] is None
    assert answer.json["result"]["text"] == "an answer"
    parts = {"finish_reason", "tier", "confidence", "draft", "usage", "timings", "models", "policy"}
    assert parts <= set(answer.json["result"])


def test_a_failure_is_told_with_its_kind(client, store, submitted):
    job = submitted()
    lease = take_one(store, Tier.EDGE, "w1").lease
    store.fail(lease, Failure(kind=FailureKind.PROMPT_TOO_LONG, tier=Tier.EDGE, message="9 tokens are too many"))
    answer = client.get(f"/v1/jobs/{job}").json
    assert (answer["status"], answer["result"]) == ("failed", None)
    told = {"kind": "prompt_too_long", "tier": "edge", "message": "9 tokens are too many", "attempts": []}
    assert answer["failure"] == told


def test_an_unfinished_job_says_when_to_look_again(client, submitted):
    assert client.get(f"/v1/jobs/{submitted()}").headers["Retry-After"] == "1"


def test_waiting_ends_at_the_longest_wait_that_is_allowed(client, submitted):
    assert client.get(f"/v1/jobs/{submitted()}?wait=600").json["status"] == "queued"


def test_waiting_ends_when_the_job_does(client, store, submitted):
    job = submitted()
    lease = take_one(store, Tier.EDGE, "w1").lease
    timer = threading.Timer(0.1, store.succeed, [lease, a_result(), []])
    timer.start()
    assert client.get(f"/v1/jobs/{job}?wait=0.5").json["status"] == "succeeded"
    joined(timer)


def test_a_submission_may_wait_for_its_answer(client, store):
    once = {"Idempotency-Key": "once"}
    job = client.post("/v1/jobs", json=PROMPT, headers=once).json["id"]
    lease = take_one(store, Tier.EDGE, "w1").lease
    timer = threading.Timer(0.1, store.succeed, [lease, a_result(), []])
    timer.start()
    answer = client.post("/v1/jobs?wait=0.5", json=PROMPT, headers=once)
    joined(timer)
    assert (answer.status_code, answer.json["id"], answer.json["status"]) == (200, job, "succeeded")
    assert answer.headers["Location"] == f"/v1/jobs/{job}"
    assert "Retry-After" not in answer.headers


def test_a_submission_that_waits_in_vain_or_finds_no_place_to_wait_is_accepted(client, services):
    assert client.post("/v1/jobs?wait=0.1", json=PROMPT).status_code == 202
    with services.streams.permit(), services.streams.permit():
        answer = client.post("/v1/jobs?wait=600", json=PROMPT)
    assert (answer.status_code, answer.json["status"], answer.headers["Retry-After"]) == (202, "queued", "1")


@pytest.mark.parametrize("wait", ["-1", "soon", "nan"])
def test_a_bad_wait_is_named(client, submitted, wait):
    (error,) = problem_of(client.get(f"/v1/jobs/{submitted()}?wait={wait}"), 422)["errors"]
    assert error["field"] == "wait"


# Cancelling


def test_a_waiting_job_is_cancelled(client, submitted):
    job = submitted()
    assert client.delete(f"/v1/jobs/{job}").json["status"] == "cancelled"
    assert client.get(f"/v1/jobs/{job}").json["status"] == "cancelled"


def states(store):
    """Brings the one job into each state that it can be cancelled in."""
    yield "queued"
    lease = take_one(store, Tier.EDGE, "w1").lease
    yield "drafting"
    store.escalate(lease, a_draft(), [])
    yield "escalated"
    take_one(store, Tier.CLOUD, "c1")
    yield "verifying"


@pytest.mark.parametrize("state", ["queued", "drafting", "escalated", "verifying"])
def test_a_job_is_cancelled_in_every_unfinished_state(client, store, submitted, state):
    job = submitted()
    assert state in iter(states(store))
    assert client.get(f"/v1/jobs/{job}").json["status"] == state
    answer = client.delete(f"/v1/jobs/{job}")
    assert (answer.status_code, answer.json["status"]) == (200, "cancelled")
    assert told(client.get(f"/v1/jobs/{job}/events", buffered=True))[-1]["event"] == "cancelled"


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
def test_a_finished_job_stays_as_it_is(client, store, submitted, end):
    job = submitted()
    lease = take_one(store, Tier.EDGE, "w1").lease
    failure = Failure(kind=FailureKind.ENGINE_ERROR, message="broke")
    ends = {
        "succeeded": lambda: store.succeed(lease, a_result(), []),
        "failed": lambda: store.fail(lease, failure),
        "cancelled": lambda: store.cancel(job),
    }
    assert ends[end]()
    before = client.get(f"/v1/jobs/{job}").json
    assert before["status"] == end
    assert client.delete(f"/v1/jobs/{job}").json == before


# Events


@pytest.fixture
def finished(store, submitted):
    job = submitted()
    lease = take_one(store, Tier.EDGE, "w1").lease
    store.append(lease, [DraftText(position=0, text="line\nbreak ")])
    store.succeed(lease, a_result(), [Decision(escalated=False, reason="sure")])
    return job


def test_events_come_in_order_and_end_with_the_outcome(client, finished):
    answer = client.get(f"/v1/jobs/{finished}/events", buffered=True)
    assert answer.content_type == "text/event-stream"
    assert answer.headers["Cache-Control"] == "no-store"
    events = told(answer)
    assert [event["event"] for event in events] == ["queued", "draft", "decision", "done"]
    assert [event["id"] for event in events] == sorted(event["id"] for event in events)
    data = [json.loads(event["data"]) for event in events]
    assert data[1] == {"type": "draft", "position": 0, "text": "line\nbreak "}
    assert data[3]["result"]["text"] == a_result().text


def test_a_stream_goes_on_after_the_last_event_that_was_received(client, finished):
    events = told(client.get(f"/v1/jobs/{finished}/events", buffered=True))
    for place, event in enumerate(events[:-1]):
        rest = client.get(f"/v1/jobs/{finished}/events", headers={"Last-Event-ID": event["id"]}, buffered=True)
        assert told(rest) == events[place + 1 :]


def test_after_the_outcome_there_is_nothing_to_connect_to_again(client, finished):
    last = told(client.get(f"/v1/jobs/{finished}/events", buffered=True))[-1]["id"]
    assert client.get(f"/v1/jobs/{finished}/events", headers={"Last-Event-ID": last}).status_code == 204


@pytest.mark.parametrize("position", ["last", "-1", "5", "1-1-1", "9" * 30 + "-1"])
def test_a_last_event_id_that_is_none_is_refused(client, finished, position):
    answer = client.get(f"/v1/jobs/{finished}/events", headers={"Last-Event-ID": position})
    (error,) = problem_of(answer, 422)["errors"]
    assert error["value"] == position


def test_more_streams_than_allowed_are_refused_and_a_stream_that_ended_makes_room(client, submitted):
    job = submitted()
    open_streams = [client.get(f"/v1/jobs/{job}/events", buffered=False) for _ in range(2)]
    answer = client.get(f"/v1/jobs/{job}/events")
    assert answer.headers["Retry-After"] == "1"
    problem_of(answer, 503)
    problem_of(client.get(f"/v1/jobs/{job}?wait=1"), 503)
    for stream in open_streams:
        stream.close()
    assert client.get(f"/v1/jobs/{job}?wait=0.01").status_code == 200


# Health and statistics


@pytest.fixture
def live(services):
    def report(worker_id, tier, **changes):
        cache = CacheStatistics(enabled=True, hits=3)
        services.presence.renew(a_worker_report(worker_id, **({"tier": tier, "cache": cache} | changes)))

    return report


def test_the_process_is_healthy(client):
    assert client.get("/healthz").json == {"status": "ok", "broken": []}


def test_a_process_is_not_healthy_where_what_goes_on_beside_requests_keeps_failing(client, services, tmp_path):
    (tmp_path / "files" / "locks").rmdir()
    sweeper = FileSweeper(services)
    with pytest.raises(FileNotFoundError):
        sweeper.step()
    loop = Loop("file-sweeper", sweeper.step, every_s=0.0, broken_after_s=0.0)
    services.loops.append(loop)
    loop.start()
    try:
        until(lambda: client.get("/healthz").status_code == 503, "the process says that it is broken")
        assert client.get("/healthz").json == {"status": "failing", "broken": ["file-sweeper"]}
    finally:
        loop.close(timeout_s=5)


def test_readiness_names_what_is_missing_and_who_is_there(client, live):
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json["missing"] == ["no live edge worker", "no live cloud worker"]
    live("edge-1", Tier.EDGE)
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json["missing"] == ["no live cloud worker"]
    live("cloud-1", Tier.CLOUD)
    answer = client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json["tiers"] == {"edge": ["edge-1"], "cloud": ["cloud-1"]}


def test_cache_statistics_are_those_of_the_live_workers(client, live):
    assert client.get("/v1/cache/stats").json["workers"] == []
    live("edge-1", Tier.EDGE)
    live("edge-2", Tier.EDGE)
    answer = client.get("/v1/cache/stats").json
    assert answer["tiers"]["edge"]["hits"] == 6
    assert [worker["worker"] for worker in answer["workers"]] == ["edge-1", "edge-2"]


def test_statistics_count_requests_queues_and_workers(client, live, store, submitted):
    for _ in range(2):
        submitted()
    lease = take_one(store, Tier.EDGE, "w1").lease
    store.succeed(lease, a_result(), [])
    live("cloud-1", Tier.CLOUD, verification=VerificationStatistics(drafted_tokens=10, accepted_tokens=9))
    answer = client.get("/v1/stats").json
    assert answer["counters"] == {"accepted": 2, "answered_edge": 1}
    assert answer["waiting"] == {"edge": 1, "cloud": 0}
    assert (answer["edge_share"], answer["acceptance_rate"]) == (1.0, 0.9)
    assert [worker["worker"] for worker in answer["workers"]] == ["cloud-1"]


def test_the_page_for_machines_lists_every_route(client):
    paths = set(client.get("/openapi/openapi.json").json["paths"])
    assert {"/v1/jobs", "/v1/jobs/{job_id}", "/v1/jobs/{job_id}/events", "/healthz", "/readyz", "/v1/stats"} <= paths


def test_the_page_for_machines_says_what_errors_look_like(client):
    document = client.get("/openapi/openapi.json").json
    submit = document["paths"]["/v1/jobs"]["post"]["responses"]
    assert {"202", "400", "413", "415", "422", "503"} <= set(submit)
    described = submit["422"]["content"]["application/problem+json"]["schema"]["$ref"]
    assert described == "#/components/schemas/Problem"
    assert set(document["components"]["schemas"]["Problem"]["required"]) == {"title", "status", "detail"}
    resume = document["paths"]["/v1/jobs/{job_id}/events"]["get"]["parameters"]
    assert "Last-Event-ID" in {parameter["name"] for parameter in resume}


def test_the_page_for_machines_says_which_names_there_are_and_which_answers_are_streams(client):
    document = client.get("/openapi/openapi.json").json
    schemas, paths = document["components"]["schemas"], document["paths"]
    listed = [model["id"] for model in client.get("/v1/models").json["data"]]
    assert schemas["ChatCompletionRequest"]["properties"]["model"]["enum"] == listed
    assert "edge_only" in schemas["JobRequest"]["properties"]["policy"]["anyOf"][0]["enum"]
    answers = paths["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert set(answers) == {"application/json", "text/event-stream"}


def test_the_examples_to_try_are_taken(client):
    paths = client.get("/openapi/openapi.json").json["paths"]
    example = paths["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert client.post("/v1/jobs", json=example).status_code == 202


def test_a_method_that_a_route_does_not_have_is_told_whatever_the_body_is(client):
    problem_of(client.post("/healthz", data="x", content_type="text/plain"), 405)


def test_there_is_a_page_to_try_the_api_out_and_it_needs_no_other_host(client):
    page = client.get("/openapi/swagger")
    assert page.status_code == 200
    assert "swagger-ui" in page.text
    assert 'src="http' not in page.text


def test_a_full_redis_is_told_as_away_and_stores_nothing(client, redis_connection):
    redis_connection.config_set("maxmemory", 1)
    try:
        answer = client.post("/v1/jobs", json=PROMPT)
    finally:
        redis_connection.config_set("maxmemory", 0)
    assert answer.headers["Retry-After"] == "1"
    problem_of(answer, 503)
    assert client.get("/v1/stats").json["counters"] == {}


def test_a_gateway_without_redis_in_its_settings_does_not_start():
    with pytest.raises(InvalidSettings, match=r"redis\.url"):
        build(read_settings(redis={"url": None}))
