"""The WebSocket, with the `websockets` package as the client."""

import json
from contextlib import closing

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from broker.api_keys import ApiKeys
from broker.connection import connect as connect_to_redis
from schemas.owners import Owner, Scope
from tests.polling import until


@pytest.fixture
def socket(system):
    with connect(system.url.replace("http", "ws") + "/v1/ws", proxy=None) as one:
        yield one


def say(socket, **message):
    socket.send(json.dumps(message))


def hear(socket):
    return json.loads(socket.recv(timeout=20))


def heard_until(socket, last):
    """All messages up to the first for which `last` is true."""
    messages = []
    while not messages or not last(messages[-1]):
        messages.append(hear(socket))
    return messages


def is_end(message):
    return message["type"] == "event" and message["event"]["type"] in {"done", "failed", "cancelled"}


def test_a_job_is_submitted_and_its_events_follow(socket):
    say(socket, type="submit", ref="a", body={"prompt": "unsure two", "max_tokens": 3})
    messages = heard_until(socket, is_end)
    (job,) = [message for message in messages if message["type"] == "job"]
    assert job["ref"] == "a"
    events = [message for message in messages if message["type"] == "event"]
    assert {event["job_id"] for event in events} == {job["job"]["id"]}
    assert events[0]["event"]["type"] == "queued"
    assert events[-1]["event"]["result"]["tier"] == "cloud"
    say(socket, type="follow", job_id=job["job"]["id"], after=events[-2]["position"])
    (again,) = [message for message in heard_until(socket, is_end) if message["type"] == "event"]
    assert again == events[-1]


def test_many_jobs_share_one_connection(socket):
    for number in range(20):
        say(socket, type="submit", ref=number, body={"prompt": f"word{number}", "max_tokens": 1})
    ended, refs = {}, {}
    while len(ended) < 20 or len(refs) < 20:
        message = hear(socket)
        if message["type"] == "job":
            refs[message["job"]["id"]] = message["ref"]
        elif is_end(message):
            ended[message["job_id"]] = message["event"]["result"]["text"]
    assert {refs[job_id]: text for job_id, text in ended.items()} == {n: f"word{n} " for n in range(20)}


def test_a_job_is_cancelled(socket):
    say(socket, type="submit", body={"prompt": "forever"})
    job_id = heard_until(socket, lambda message: message["type"] == "job")[-1]["job"]["id"]
    say(socket, type="cancel", ref=1, job_id=job_id)
    messages = heard_until(socket, is_end)
    assert messages[-1]["event"]["type"] == "cancelled"


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ("{", 422),
        (json.dumps({"type": "dance", "ref": 7}), 422),
        (json.dumps({"type": "submit", "ref": 7, "body": {"prompt": "x", "max_tokens": 0}}), 422),
        (json.dumps({"type": "submit", "ref": 7, "body": {"prompt": "x", "policy": "bold"}}), 422),
        (json.dumps({"type": "cancel", "ref": 7, "job_id": "nothing"}), 404),
        (json.dumps({"type": "follow", "ref": 7, "job_id": "nothing"}), 404),
    ],
)
def test_what_cannot_be_done_is_said_and_the_conversation_goes_on(socket, message, status):
    socket.send(message)
    told = hear(socket)
    assert (told["type"], told["problem"]["status"]) == ("problem", status)
    assert told["ref"] == (7 if "ref" in message else None)
    say(socket, type="submit", body={"prompt": "x", "max_tokens": 1})
    heard_until(socket, is_end)


def test_a_message_that_is_too_long_ends_the_conversation(socket):
    socket.send("x" * (1 << 21))
    with pytest.raises(ConnectionClosed):
        hear(socket)


def test_who_speaks_plain_http_is_told(system):
    answer = httpx.get(f"{system.url}/v1/ws", trust_env=False)
    assert (answer.status_code, answer.headers["Upgrade"]) == (426, "websocket")


def test_a_connection_that_ends_leaves_its_place(system):
    for _ in range(3):
        with connect(system.url.replace("http", "ws") + "/v1/ws", proxy=None):
            pass
    until(lambda: httpx.get(f"{system.url}/healthz", trust_env=False).status_code == 200, "the gateway answers")


def test_a_socket_keeps_to_its_keys_scopes_and_its_owners_jobs(system):
    with closing(connect_to_redis(system.redis_url)) as redis:
        api_keys = ApiKeys(redis)
        alice, bob, carol = (
            {"Authorization": f"Bearer {api_keys.create(Owner(name=name, scopes=scopes))}"}
            for name, scopes in (
                ("alice", (Scope.SUBMIT, Scope.READ)),
                ("bob", (Scope.READ,)),
                ("carol", (Scope.SUBMIT, Scope.READ)),
            )
        )
    body = {"prompt": "forever not for bob"}
    job = httpx.post(f"{system.url}/v1/jobs", json=body, headers=alice, trust_env=False).json()["id"]
    address = system.url.replace("http", "ws") + "/v1/ws"
    with connect(address, proxy=None, additional_headers=bob) as socket:
        for message in ({"type": "follow", "job_id": job}, {"type": "cancel", "job_id": job}):
            say(socket, **message)
        say(socket, type="submit", body=body)
        told = [hear(socket) for _ in range(3)]
    assert [message["type"] for message in told] == ["problem"] * 3
    assert [message["problem"]["status"] for message in told] == [404, 403, 403]
    with connect(address, proxy=None, additional_headers=carol) as socket:
        for message in ({"type": "follow", "job_id": job}, {"type": "cancel", "job_id": job}):
            say(socket, **message)
        assert [hear(socket)["problem"]["status"] for _ in range(2)] == [404, 404]
    with connect(address, proxy=None, additional_headers=alice) as socket:
        say(socket, type="cancel", job_id=job)
        assert hear(socket)["job"]["status"] == "cancelled"


def test_a_page_of_another_site_is_refused(system):
    address = system.url.replace("http", "ws") + "/v1/ws"
    with pytest.raises(InvalidStatus, match="403"), connect(address, proxy=None, origin="https://evil.example"):
        pass
    with connect(address, proxy=None, origin=system.url) as socket:
        say(socket, type="follow", job_id="nobody")
        assert hear(socket)["problem"]["status"] == 404
