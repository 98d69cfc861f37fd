"""Hosts whose clocks are wrong: nobody is removed, failed or expired because of another's clock."""

import time

import httpx
import pytest
from rq.registry import FailedJobRegistry

from broker.api_keys import ApiKeys
from broker.presence import Presence
from broker.rq_transport import queue
from broker.states import State
from schemas.owners import Owner
from schemas.policy import Tier
from tests.clocks import shifted_clock
from tests.polling import until
from tests.processes import free_port, running
from tests.samples import a_request

#: Seconds by which a wrong clock is wrong: more than any lease, heartbeat or completion window here.
HOUR_S = 3600
#: Seconds by which times told by one clock may differ in these tests.
CLOSE_S = 30


def server_time_s(redis):
    return redis.time()[0]


def live(redis):
    return Presence(redis, 2.0).live()


@pytest.mark.parametrize("ahead_s", [20, HOUR_S, -HOUR_S])
def test_a_worker_whose_clock_is_wrong_removes_no_other_and_stays_itself(
    ahead_s, start_worker, redis_connection, tmp_path
):
    start_worker("edge")
    until(lambda: len(live(redis_connection)) == 1, "the worker with the right clock is there")
    start_worker("edge", **shifted_clock(tmp_path, ahead_s))
    until(lambda: len(live(redis_connection)) == 2, "both are there")
    first = {report.worker_id: report.reported_at_s for report in live(redis_connection)}

    def both_renewed_three_times():
        found = {report.worker_id: report.reported_at_s for report in live(redis_connection)}
        assert found.keys() == first.keys()
        return all(found[one] > first[one] + 3 for one in first)

    until(both_renewed_three_times, "both have renewed their reports", within_s=20)
    for report in live(redis_connection):
        assert abs(report.reported_at_s - server_time_s(redis_connection)) < CLOSE_S


@pytest.mark.parametrize(("first_ahead_s", "second_ahead_s"), [(0, HOUR_S), (-HOUR_S, 0)])
def test_the_upkeep_of_a_worker_whose_clock_is_ahead_takes_no_others_job_for_abandoned(
    first_ahead_s, second_ahead_s, start_worker, worker_store, redis_connection, tmp_path
):
    start_worker("edge", capacity=1, **shifted_clock(tmp_path, first_ahead_s))
    request, another = a_request("forever"), a_request("why is the sky blue")
    worker_store.create(request)
    until(lambda: worker_store.state(request.request_id) == State.DRAFTING, "the draft is begun")
    start_worker("edge", capacity=1, **shifted_clock(tmp_path, second_ahead_s))
    worker_store.create(another)
    # The second worker looks after RQ's registries before it takes up its first job.
    until(lambda: worker_store.state(another.request_id) == State.SUCCEEDED, "the second worker answers")
    edge = queue(redis_connection, Tier.EDGE)
    job_id = f"{request.request_id}-edge"
    assert redis_connection.zrange(FailedJobRegistry(queue=edge).key, 0, -1) == []
    (started,) = redis_connection.zrange(edge.started_job_registry.key, 0, -1)
    assert started.decode().startswith(job_id)
    assert worker_store.state(request.request_id) == State.DRAFTING
    assert worker_store.cancel(request.request_id)


def test_a_gateway_whose_clock_is_wrong_tells_the_servers_time(redis_url, redis_connection, tmp_path):
    port = free_port()
    environment = {
        "REDIS_URL": redis_url,
        "FIRSTDRAFT_GATEWAY__PORT": str(port),
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }
    wrong = shifted_clock(tmp_path, 2 * HOUR_S)
    with (
        running("gateway", log=tmp_path / "gateway.log", **environment, **wrong) as gateway,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as client,
    ):
        until(lambda: gateway.said("gateway_starting"), "the gateway starts", within_s=20)
        until(lambda: answers(client), "the gateway answers", within_s=20)
        now = server_time_s(redis_connection)
        job = client.post("/v1/jobs", json={"prompt": "x"}).raise_for_status().json()
        content = b'{"custom_id": "1", "method": "POST", "url": "/v1/jobs", "body": {"prompt": "x"}}\n'
        uploaded = client.post("/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"})
        stored = uploaded.raise_for_status().json()
        body = {"input_file_id": stored["id"], "endpoint": "/v1/jobs", "completion_window": "30m"}
        batch = client.post("/v1/batches", json=body).raise_for_status().json()
        cancelled = client.post(f"/v1/batches/{batch['id']}/cancel").raise_for_status().json()
    told = [job["created_at"], stored["created_at"], batch["created_at"], batch["expires_at"] - HOUR_S // 2]
    assert all(abs(one - now) < CLOSE_S for one in [*told, cancelled["cancelling_at"]])


@pytest.mark.usefixtures("redis_connection")
def test_a_batch_that_a_gateway_took_in_does_not_expire_by_anothers_clock(redis_url, tmp_path):
    """The one that runs it is two hours ahead, and half an hour is what the batch may take."""
    ports = [free_port(), free_port()]
    environment = {"REDIS_URL": redis_url, "FIRSTDRAFT_GATEWAY__FILES_PATH": str(tmp_path / "files")}
    content = b'{"custom_id": "1", "method": "POST", "url": "/v1/jobs", "body": {"prompt": "forever"}}\n'

    def one(number, **clock):
        log = tmp_path / f"gateway-{number}.log"
        return running("gateway", log=log, FIRSTDRAFT_GATEWAY__PORT=str(ports[number]), **environment, **clock)

    def client(number):
        return httpx.Client(base_url=f"http://127.0.0.1:{ports[number]}", trust_env=False, timeout=20)

    with one(0), client(0) as right:
        until(lambda: answers(right), "the gateway answers", within_s=20)
        uploaded = right.post("/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"})
        body = {"input_file_id": uploaded.json()["id"], "endpoint": "/v1/jobs", "completion_window": "30m"}
        batch_id = right.post("/v1/batches", json=body).raise_for_status().json()["id"]
    with one(1, **shifted_clock(tmp_path, 2 * HOUR_S)) as gateway, client(1) as wrong:
        until(lambda: answers(wrong), "the gateway answers", within_s=20)
        until(lambda: gateway.said(f"batch_taken_up batch_id={batch_id}"), "the batch is taken up", within_s=20)
        began_s = time.monotonic()

        def looked_at_for_a_while():
            assert wrong.get(f"/v1/batches/{batch_id}").json()["status"] in {"validating", "in_progress"}
            return time.monotonic() - began_s > 3

        until(looked_at_for_a_while, "it has been looked at several times")
        wrong.post(f"/v1/batches/{batch_id}/cancel").raise_for_status()
        until(lambda: wrong.get(f"/v1/batches/{batch_id}").json()["status"] == "cancelled", "it is cancelled")


def test_an_api_key_says_when_it_was_made_by_the_servers_clock(redis_connection):
    keys = ApiKeys(redis_connection)
    before = server_time_s(redis_connection)
    keys.create(Owner(name="alice"))
    assert before <= keys.listed()[0].created_at_s <= before + CLOSE_S


def answers(client):
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False
