"""Webhooks from a finished request to a receiver, on a real Redis and over real HTTP."""

import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from broker import keys
from broker.outbox import Outbox
from gateway.app import create_app
from gateway.webhook_sender import WebhookSender
from gateway.webhooks import RETRY_DELAYS_S, owners_secret, signed_headers
from schemas.policy import Tier
from tests.polling import joined
from tests.samples import a_request, a_result

MASTER, NOW_S = "the deployment's secret", 1_700_000_000


class Receiver(BaseHTTPRequestHandler):
    """Answers as it is told and remembers what came."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.came.append((self.path, dict(self.headers), body))
        status = self.server.answers.pop(0) if self.server.answers else 204
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments):
        """Say nothing."""


@contextmanager
def receiving():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.came, server.answers = [], []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        joined(thread)


@pytest.fixture
def receiver():
    with receiving() as server:
        yield server


@pytest.fixture
def make_sender(redis_connection, store, settings):
    def make(**changes: object) -> WebhookSender:
        chosen = {"allow_http": True, "allow_private_addresses": True, "timeout_s": 5.0} | changes
        webhooks = settings.webhooks.model_copy(update=chosen)
        return WebhookSender(Outbox(redis_connection), store, webhooks, MASTER, lambda: NOW_S)

    return make


@pytest.fixture
def finished(store, receiver):
    """A finished request of alice's that wants to be told of."""

    def make(url: str | None = None) -> str:
        url = url or f"http://localhost:{receiver.server_port}/hook"
        request = a_request().model_copy(update={"webhook": url, "owner": "alice"})
        store.create(request)
        store.succeed(store.begin(request.request_id, Tier.EDGE, "w1").hold, a_result(), [])
        return request.request_id

    return make


@pytest.fixture
def due(redis_connection):
    def make(request_id: str) -> None:
        assert redis_connection.zadd(keys.outbox(), {request_id: 1.0}, xx=True, ch=True) == 1

    return make


def test_a_finished_job_is_told_once_and_signed_with_its_owners_secret(make_sender, finished, receiver, store):
    request_id, sender = finished(), make_sender()
    assert sender.send_due() == 1
    assert sender.send_due() == 0
    ((path, headers, body),) = receiver.came
    assert path == "/hook"
    assert headers["Host"] == f"localhost:{receiver.server_port}"
    told = json.loads(body)
    assert (told["type"], told["data"]["id"], told["data"]["status"]) == ("job.finished", request_id, "succeeded")
    expected = signed_headers(owners_secret(MASTER, "alice"), request_id, NOW_S, body)
    assert {name: headers[name] for name in expected} == expected
    assert store.counters()["webhooks_delivered"] == 1


@pytest.mark.parametrize("status", [302, 400, 404, 429, 500])
def test_what_is_not_taken_comes_again_later_with_the_same_id_and_no_redirect_is_followed(
    make_sender, finished, receiver, redis_connection, due, status
):
    request_id, sender = finished(), make_sender()
    receiver.answers = [status]
    assert sender.send_due() == 1
    wait_s = redis_connection.zscore(keys.outbox(), request_id) - redis_connection.time()[0]
    assert 0 < wait_s <= RETRY_DELAYS_S[0]
    due(request_id)
    assert sender.send_due() == 1
    assert [(path, headers["webhook-id"]) for path, headers, _ in receiver.came] == [("/hook", request_id)] * 2
    assert redis_connection.exists(keys.outbox()) == 0


def test_after_the_last_try_it_is_given_up(make_sender, finished, receiver, store, due, redis_connection):
    request_id, sender = finished(), make_sender()
    receiver.answers = [500] * 20
    for place in range(len(RETRY_DELAYS_S) + 1):
        assert sender.send_due() == 1, place
        if place < len(RETRY_DELAYS_S):
            due(request_id)
    assert redis_connection.exists(keys.outbox()) == 0
    assert store.counters()["webhooks_given_up"] == 1


def test_private_addresses_are_refused_and_not_tried_again(make_sender, finished, receiver, store, redis_connection):
    finished()
    make_sender(allow_private_addresses=False).send_due()
    assert receiver.came == []
    assert redis_connection.exists(keys.outbox()) == 0
    assert store.counters()["webhooks_given_up"] == 1


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1",
        "127.1",
        "0x7f.1",
        "0177.0.0.1",
        "2130706433",
        "0x7f000001",
        "017700000001",
        "0.0.0.0",
        "0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[::127.0.0.1]",
        "[fe80::1]",
        "100.64.0.1",
        "169.254.169.254",
    ],
)
def test_however_a_private_address_is_written_nothing_is_sent_there(make_sender, finished, receiver, store, host):
    finished(f"http://{host}:{receiver.server_port}/hook")
    make_sender(allow_private_addresses=False).send_due()
    assert receiver.came == []
    counted = store.counters()
    assert "webhooks_delivered" not in counted
    if "[" not in host:  # without IPv6, resolving may fail instead, which is tried again
        assert counted["webhooks_given_up"] == 1


@pytest.fixture
def names(monkeypatch):
    """What a name resolves to, one list after another, and the connections that are tried; none is made."""
    answers, tried = [], []

    def resolve(_host, port, **_options):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers.pop(0)]

    def connect(address, *_arguments, **_options):
        tried.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connect)
    return answers, tried


def test_a_name_with_a_private_address_beside_public_ones_is_refused(make_sender, finished, names, store):
    answers, tried = names
    answers.append(["93.184.215.14", "10.0.0.1"])
    finished("https://mixed.example/hook")
    make_sender(allow_private_addresses=False).send_due()
    assert tried == []
    assert store.counters()["webhooks_given_up"] == 1


def test_what_is_connected_to_is_the_address_that_was_checked_though_the_name_has_another_by_then(
    make_sender, finished, names
):
    answers, tried = names
    answers += [["93.184.215.14"], ["127.0.0.1"]]
    finished("https://rebinding.example:8443/hook")
    make_sender(allow_private_addresses=False).send_due()
    assert tried == [("93.184.215.14", 8443)]
    assert answers == [["127.0.0.1"]], "it was resolved once"


def test_an_address_that_no_resolver_understands_ends_its_own_webhook_and_no_others(
    make_sender, finished, receiver, store
):
    finished(f"http://{'a' * 64}.example/hook")
    finished()
    make_sender().send_due()
    assert len(receiver.came) == 1
    counted = store.counters()
    assert (counted["webhooks_delivered"], counted["webhooks_given_up"]) == (1, 1)


def test_plain_http_is_refused_unless_it_is_allowed(make_sender, finished, receiver):
    finished()
    make_sender(allow_http=False).send_due()
    assert receiver.came == []


def test_a_receiver_that_is_not_there_is_tried_again(make_sender, finished, redis_connection):
    with receiving() as gone:
        port = gone.server_port
    request_id = finished(f"http://127.0.0.1:{port}/")
    make_sender().send_due()
    assert redis_connection.zscore(keys.outbox(), request_id) is not None


def test_a_webhook_whose_result_has_expired_is_counted(make_sender, finished, store, redis_connection):
    redis_connection.delete(keys.request(finished()))
    make_sender().send_due()
    assert store.counters()["webhooks_expired"] == 1
    assert redis_connection.exists(keys.outbox()) == 0


def test_a_failure_and_a_cancellation_are_told_too(make_sender, receiver, store):
    request = a_request().model_copy(update={"webhook": f"http://127.0.0.1:{receiver.server_port}/"})
    store.create(request)
    store.cancel(request.request_id)
    make_sender().send_due()
    assert json.loads(receiver.came[0][2])["data"]["status"] == "cancelled"


def test_jobs_with_webhooks_are_refused_where_there_is_no_secret_or_the_address_is_no_good(make_services, monkeypatch):
    client = create_app(make_services()).test_client()
    body = {"prompt": "x", "webhook": "https://example.org/hook"}
    monkeypatch.delenv("WEBHOOK_SIGNING_SECRET", raising=False)
    assert "WEBHOOK_SIGNING_SECRET" in client.post("/v1/jobs", json=body).json["detail"]
    monkeypatch.setenv("WEBHOOK_SIGNING_SECRET", MASTER)
    assert client.post("/v1/jobs", json=body).status_code == 202
    refused = client.post("/v1/jobs", json=body | {"webhook": "http://example.org/hook"})
    assert refused.json["errors"][0]["field"] == "webhook"
