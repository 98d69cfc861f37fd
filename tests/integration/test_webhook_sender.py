"""Webhooks from a finished request to a receiver, on a real Redis and over real HTTP."""

import json
import socket
import threading
import time
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from broker import keys
from broker.outbox import CLAIM_S, Outbox
from gateway.app import create_app
from gateway.webhooks.delivery import RETRY_DELAYS_S, owners_secret, signed_headers
from gateway.webhooks.queue import DEFAULT_BOUNDS, Bounds
from gateway.webhooks.sender import WebhookSender
from schemas.policy import Tier
from tests.polling import joined, until
from tests.samples import a_request, a_result
from tests.taking import take_one

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


def send(sender: WebhookSender) -> int:
    """Have it try what is due; how many that was, when all tries have ended."""
    taken = sender.step()
    assert sender.wait_until_idle(30.0)
    return taken


@pytest.fixture
def make_sender(redis_connection, store, settings):
    def make(bounds: Bounds = DEFAULT_BOUNDS, **changes: object) -> WebhookSender:
        chosen = {"allow_http": True, "allow_private_addresses": True, "timeout_s": 5.0} | changes
        webhooks = settings.webhooks.model_copy(update=chosen)
        return WebhookSender(Outbox(redis_connection), store, webhooks, MASTER, lambda: NOW_S, bounds)

    return make


@pytest.fixture
def finished(store, receiver):
    """A finished request of alice's that wants to be told of."""

    def make(url: str | None = None) -> str:
        url = url or f"http://localhost:{receiver.server_port}/hook"
        request = a_request().model_copy(update={"webhook": url, "owner": "alice"})
        store.create(request)
        store.succeed(take_one(store, Tier.EDGE, "w1").lease, a_result(), [])
        return request.request_id

    return make


@pytest.fixture
def due(redis_connection):
    def make(request_id: str) -> None:
        assert redis_connection.zadd(keys.outbox(), {request_id: 1.0}, xx=True, ch=True) == 1

    return make


def test_a_finished_job_is_told_once_and_signed_with_its_owners_secret(make_sender, finished, receiver, store):
    request_id, sender = finished(), make_sender()
    assert send(sender) == 1
    assert send(sender) == 0
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
    assert send(sender) == 1
    wait_s = redis_connection.zscore(keys.outbox(), request_id) - redis_connection.time()[0]
    assert 0 < wait_s <= RETRY_DELAYS_S[0]
    due(request_id)
    assert send(sender) == 1
    assert [(path, headers["webhook-id"]) for path, headers, _ in receiver.came] == [("/hook", request_id)] * 2
    assert redis_connection.exists(keys.outbox()) == 0


def test_after_the_last_try_it_is_given_up(make_sender, finished, receiver, store, due, redis_connection):
    request_id, sender = finished(), make_sender()
    receiver.answers = [500] * 20
    for place in range(len(RETRY_DELAYS_S) + 1):
        assert send(sender) == 1, place
        if place < len(RETRY_DELAYS_S):
            due(request_id)
    assert redis_connection.exists(keys.outbox()) == 0
    assert store.counters()["webhooks_given_up"] == 1


def test_private_addresses_are_refused_and_not_tried_again(make_sender, finished, receiver, store, redis_connection):
    finished()
    send(make_sender(allow_private_addresses=False))
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
    send(make_sender(allow_private_addresses=False))
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
    send(make_sender(allow_private_addresses=False))
    assert tried == []
    assert store.counters()["webhooks_given_up"] == 1


def test_what_is_connected_to_is_the_address_that_was_checked_though_the_name_has_another_by_then(
    make_sender, finished, names
):
    answers, tried = names
    answers += [["93.184.215.14"], ["127.0.0.1"]]
    finished("https://rebinding.example:8443/hook")
    send(make_sender(allow_private_addresses=False))
    assert tried == [("93.184.215.14", 8443)]
    assert answers == [["127.0.0.1"]], "it was resolved once"


def test_an_address_that_no_resolver_understands_ends_its_own_webhook_and_no_others(
    make_sender, finished, receiver, store
):
    finished(f"http://{'a' * 64}.example/hook")
    finished()
    send(make_sender())
    assert len(receiver.came) == 1
    counted = store.counters()
    assert (counted["webhooks_delivered"], counted["webhooks_given_up"]) == (1, 1)


def test_plain_http_is_refused_unless_it_is_allowed(make_sender, finished, receiver):
    finished()
    send(make_sender(allow_http=False))
    assert receiver.came == []


def test_a_receiver_that_is_not_there_is_tried_again(make_sender, finished, redis_connection):
    with receiving() as gone:
        port = gone.server_port
    request_id = finished(f"http://127.0.0.1:{port}/")
    send(make_sender())
    assert redis_connection.zscore(keys.outbox(), request_id) is not None


def test_a_webhook_whose_result_has_expired_is_counted(make_sender, finished, store, redis_connection):
    redis_connection.delete(keys.request(finished()))
    send(make_sender())
    assert store.counters()["webhooks_expired"] == 1
    assert redis_connection.exists(keys.outbox()) == 0


def test_a_failure_and_a_cancellation_are_told_too(make_sender, receiver, store):
    request = a_request().model_copy(update={"webhook": f"http://127.0.0.1:{receiver.server_port}/"})
    store.create(request)
    store.cancel(request.request_id)
    send(make_sender())
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


@contextmanager
def silent_receivers(num: int):
    """Addresses that take a call and never answer it."""
    with ExitStack() as sockets:
        opened = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(num)]
        yield [f"http://127.0.0.1:{one.getsockname()[1]}/" for one in opened]


def test_receivers_that_never_answer_delay_nobody_elses_webhook(make_sender, finished, receiver):
    with silent_receivers(24) as urls:
        for url in urls:
            finished(url)
        finished()
        sender = make_sender(timeout_s=4.0)
        began = time.monotonic()
        assert sender.step() == 25
        until(lambda: receiver.came, "the one that answers is called", within_s=3.0)
        assert time.monotonic() - began < 3.0
        assert not sender.wait_until_idle(0.0)
        assert sender.wait_until_idle(20.0)


def test_what_finds_no_place_is_put_off_and_not_counted_as_a_try(make_sender, finished, redis_connection):
    bounds = Bounds(receiver_in_flight=1, receiver_held=1)
    with silent_receivers(1) as (url,):
        put_off = [finished(url) for _ in range(6)]
        sender = make_sender(bounds, timeout_s=1.0)
        assert sender.step() == 6
        waits = redis_connection.zmscore(keys.outbox(), put_off)
        now_s = redis_connection.time()[0]
        later = [request_id for request_id, at in zip(put_off, waits, strict=True) if at - now_s < CLAIM_S - 1]
        assert len(later) >= 3, "two are sent or held, and the lots of the others rarely fall on the last second"
        assert not any(redis_connection.hexists(keys.request(one), "webhook_tries") for one in later)
        assert sender.wait_until_idle(20.0)


def test_a_receiver_that_trickles_its_answer_is_left_after_twice_the_time_out(make_sender, finished, redis_connection):
    ended = threading.Event()

    def trickle(server):
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while not ended.wait(0.1):
                try:
                    connection.sendall(b"X-More: yes\r\n")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=trickle, args=(server,))
        thread.start()
        request_id = finished(f"http://127.0.0.1:{server.getsockname()[1]}/")
        sender = make_sender(timeout_s=0.5)
        began = time.monotonic()
        sender.step()
        assert sender.wait_until_idle(20.0)
        took_s = time.monotonic() - began
        ended.set()
        joined(thread)
    assert took_s < 5.0
    assert redis_connection.hget(keys.request(request_id), "webhook_tries") == b"1"


def test_a_result_that_expires_while_its_webhook_is_called_leaves_no_record_behind(
    make_sender, finished, redis_connection, store
):
    with silent_receivers(1) as (url,):
        request_id = finished(url)
        sender = make_sender(timeout_s=1.0)
        sender.step()
        redis_connection.delete(keys.request(request_id))
        assert sender.wait_until_idle(20.0)
    assert redis_connection.exists(keys.request(request_id), keys.outbox()) == 0
    assert store.counters()["webhooks_expired"] == 1
