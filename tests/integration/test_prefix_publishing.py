"""What whole worker processes tell the prefix index, and what the gateway answers from it."""

import signal

import httpx
import pytest

from broker.prefix_blocks import block_hashes
from broker.prefix_index import PrefixIndex
from broker.presence import Presence
from broker.states import State
from config.settings import read_settings
from schemas.requests import ANONYMOUS, Message, owners_namespace
from tests.polling import until
from tests.samples import a_request

#: As the stand-in edge's model is called.
MODEL = "fake-small"
PROMPT = "Tell me about the tides, and why there are two of them a day. " * 10


@pytest.fixture
def index(redis_connection):
    return PrefixIndex(redis_connection, entry_ttl_s=60)


@pytest.fixture
def answer(worker_store):
    def ask(prompt: str):
        request = a_request(prompt)
        worker_store.create(request)
        until(lambda: worker_store.state(request.request_id) == State.SUCCEEDED, "an answer")
        return request.messages

    return ask


def blocks_of(messages, namespace=owners_namespace(ANONYMOUS)):  # noqa: B008 - a constant
    return block_hashes(
        messages, model=MODEL, namespace=namespace, block_bytes=read_settings().prefix_index.block_bytes
    )


def test_a_worker_says_what_it_read_in_its_present_life(start_worker, answer, index, redis_connection):
    start_worker("edge")
    blocks = blocks_of(answer(PROMPT))
    held = until(lambda: index.look_up(blocks), "an entry")
    assert held == dict.fromkeys(Presence(redis_connection, 2.0).members(), len(blocks))


def test_the_answer_is_held_for_the_conversations_next_turn(start_worker, index, worker_store):
    start_worker("edge")
    request = a_request(PROMPT)
    worker_store.create(request)
    until(lambda: worker_store.state(request.request_id) == State.SUCCEEDED, "an answer")
    text = worker_store.read(request.request_id).result.text
    next_turn = [*request.messages, Message(role="assistant", content=text), Message(role="user", content="And?")]
    blocks = blocks_of(next_turn)
    held = until(lambda: index.look_up(blocks), "an entry")
    assert list(held.values()) == [len(blocks_of(next_turn[:2]))]
    assert len(blocks_of(next_turn[:2])) > len(blocks_of(request.messages))


def test_what_the_cache_gave_up_is_withdrawn(start_worker, answer, index):
    start_worker("edge")
    blocks = blocks_of(answer(PROMPT))
    until(lambda: index.look_up(blocks), "an entry")
    answer("forget")
    until(lambda: not index.look_up(blocks), "no entry any more")


def test_a_worker_that_stops_withdraws_everything(start_worker, answer, index):
    worker = start_worker("edge")
    blocks = blocks_of(answer(PROMPT))
    until(lambda: index.look_up(blocks), "an entry")
    worker.signal(signal.SIGTERM)
    worker.wait(10)
    assert index.look_up(blocks) == {}


def test_what_a_killed_worker_published_is_swept_away_by_another(start_worker, answer, index):
    worker = start_worker("edge")
    blocks = blocks_of(answer(PROMPT))
    until(lambda: index.look_up(blocks), "an entry")
    worker.signal(signal.SIGKILL)
    start_worker("edge")
    until(lambda: not index.look_up(blocks), "a swept index", within_s=20.0)


def test_the_gateway_tells_who_holds_a_prompt(system):
    with httpx.Client(base_url=system.url, trust_env=False, timeout=20.0) as client:
        job = client.post("/v1/jobs", json={"prompt": PROMPT}).json()
        until(lambda: client.get(f"/v1/jobs/{job['id']}").json()["status"] == "succeeded", "an answer")

        def holders():
            return client.post("/v1/cache/holders", json={"prompt": PROMPT}).json()["holders"]

        (holder,) = until(holders, "a holder")
        assert (holder["tier"], holder["model"]) == ("edge", MODEL)
        assert 0 < holder["held_bytes"] <= len(PROMPT) + 16
        assert client.post("/v1/cache/holders", json={"prompt": "Never asked. " * 50}).json()["holders"] == []
        assert client.post("/v1/cache/holders", json={}).status_code == 422
