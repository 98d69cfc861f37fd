"""What an owner can find out of another's prompts by what is cached: nothing, by whatever way they ask.

Through a whole system: the real gateway, router, queues, workers and index around engines that remember what they read
(tests/fakes/engine.py).
"""

import io
import json
from contextlib import closing
from itertools import count

import httpx
import pytest
from redis import Redis
from websockets.sync.client import connect

from broker.api_keys import ApiKeys
from broker.leases import Lifetimes
from broker.request_store import RequestStore
from schemas.owners import Owner, Scope
from tests.polling import until
from tests.processes import free_port, running

_numbers = count(1)
MODEL = "firstdraft:edge_only"


@pytest.fixture
def redis(system):
    with closing(Redis.from_url(system.redis_url)) as connection:
        yield connection


@pytest.fixture
def asking(system, redis):
    """Makes a client with a new key of the owner's."""
    clients = []

    def make(name: str, url: str = system.url, **owner: object) -> httpx.Client:
        scopes = owner.pop("scopes", (Scope.SUBMIT, Scope.READ))
        key = ApiKeys(redis).create(Owner(name=name, scopes=scopes, **owner))
        headers = {"Authorization": f"Bearer {key}"}
        clients.append(httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=30.0))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def prompt():
    """A long one whose first word already nobody has sent yet."""
    return f"{next(_numbers)} is the number of this secret. " + "Nobody else may know what it says of the tides. " * 10


def a_job(client: httpx.Client, prompt: str, policy: str) -> int:
    body = {"prompt": prompt, "policy": policy, "max_tokens": 2}
    usage = client.post("/v1/jobs?wait=20", json=body).json()["result"]["usage"]
    return usage["edge_cached_tokens"] + usage["cloud_cached_tokens"]


def a_streamed_job(client: httpx.Client, prompt: str) -> int:
    job = client.post("/v1/jobs", json={"prompt": prompt, "policy": "edge_only", "max_tokens": 2}).json()
    lines = client.get(f"/v1/jobs/{job['id']}/events").text.splitlines()
    (done,) = (told for line in lines if line.startswith("data:") and (told := json.loads(line[5:]))["type"] == "done")
    return done["result"]["usage"]["edge_cached_tokens"]


def a_chat(client: httpx.Client, prompt: str, **options: object) -> int:
    body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": 2, **options}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


def a_streamed_chat(client: httpx.Client, prompt: str) -> int:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": 2, **options}
    lines = client.post("/v1/chat/completions", json=body).text.splitlines()
    chunks = [json.loads(line[5:]) for line in lines if line.startswith("data:") and "[DONE]" not in line]
    (usage,) = (chunk["usage"] for chunk in chunks if chunk.get("usage"))
    return usage["prompt_tokens_details"]["cached_tokens"]


def a_response(client: httpx.Client, prompt: str) -> int:
    body = {"model": MODEL, "input": prompt, "max_output_tokens": 2}
    return client.post("/v1/responses", json=body).json()["usage"]["input_tokens_details"]["cached_tokens"]


def a_batch(client: httpx.Client, prompt: str) -> int:
    body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": 2}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    upload = {"file": ("in.jsonl", io.BytesIO(json.dumps(line).encode()))}
    file_id = client.post("/v1/files", data={"purpose": "batch"}, files=upload).json()["id"]
    asked = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch_id = client.post("/v1/batches", json=asked).json()["id"]
    output = until(lambda: client.get(f"/v1/batches/{batch_id}").json()["output_file_id"], "an output", within_s=30)
    answer = json.loads(client.get(f"/v1/files/{output}/content").text)["response"]["body"]
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def a_websocket(client: httpx.Client, prompt: str) -> int:
    url = str(client.base_url).replace("http", "ws", 1).rstrip("/") + "/v1/ws"
    key = {"Authorization": client.headers["Authorization"]}
    with connect(url, additional_headers=key, proxy=None) as socket:
        body = {"prompt": prompt, "policy": "edge_only", "max_tokens": 2}
        socket.send(json.dumps({"type": "submit", "body": body}))
        while True:
            told = json.loads(socket.recv(timeout=20))
            if told["type"] == "event" and told["event"]["type"] == "done":
                return told["event"]["result"]["usage"]["edge_cached_tokens"]


#: Every way to ask that tells what was cached.
WAYS = {
    "edge": lambda client, prompt: a_job(client, prompt, "edge_only"),
    "cloud": lambda client, prompt: a_job(client, prompt, "cloud_only"),
    "both": lambda client, prompt: a_job(client, prompt, "no_confidence"),
    "events": a_streamed_job,
    "chat": a_chat,
    "streamed chat": a_streamed_chat,
    "response": a_response,
    "batch": a_batch,
    "websocket": a_websocket,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_strangers_prompt_is_never_a_hit_and_ones_own_is(asking, prompt, way):
    ask = WAYS[way]
    alice, bob = asking("alice"), asking("bob")
    assert ask(alice, prompt) == 0
    assert ask(bob, prompt) == 0
    assert ask(alice, prompt) > 20
    assert ask(asking("alice"), prompt) > 20  # another key of hers
    assert ask(bob, prompt) > 20  # by now his own


def test_who_comes_without_a_key_shares_with_others_who_do_and_with_nobody_else(system, asking, prompt):
    with httpx.Client(base_url=system.url, trust_env=False, timeout=30.0) as nobody:
        assert a_chat(asking("alice"), prompt) == 0
        assert a_chat(nobody, prompt) == 0
        assert a_chat(nobody, prompt) > 20
        assert a_chat(asking("bob"), prompt) == 0


def test_those_of_a_cache_group_share_and_a_group_is_not_the_owner_of_its_name(asking, prompt):
    alice, bob = (asking(name, cache_group="team") for name in ("alice", "bob"))
    assert a_chat(alice, prompt) == 0
    assert a_chat(bob, prompt) > 20
    assert a_chat(asking("alice"), prompt) == 0  # a key that is not in the group
    assert a_chat(asking("team"), prompt) == 0
    assert a_chat(asking("carol", cache_group="alice"), prompt) == 0


def test_where_the_settings_say_so_everybody_shares(system, asking, prompt, tmp_path):
    port = str(free_port())
    environment = {
        "REDIS_URL": system.redis_url,
        "FIRSTDRAFT_GATEWAY__PORT": port,
        "FIRSTDRAFT_GATEWAY__FILES_PATH": str(tmp_path / "files"),
        "FIRSTDRAFT_REQUESTS__CACHE_SHARING": "all",
    }
    url = f"http://127.0.0.1:{port}"
    with running("gateway", log=tmp_path / "gateway.log", **environment):
        until(lambda: _answers(url), "the gateway answers", within_s=30)
        assert a_chat(asking("alice", url), prompt) == 0
        assert a_chat(asking("bob", url), prompt) > 20


@pytest.mark.parametrize("field", ["cache_namespace", "cache_salt", "cache_group", "owner"])
def test_nobody_names_anothers_namespace_in_a_request(asking, prompt, field):
    bob = asking("bob")
    a_chat(asking("alice"), prompt)
    named = {field: "owner:alice"}
    job = {"prompt": prompt, "policy": "edge_only", "max_tokens": 2}
    assert bob.post("/v1/jobs", json=job | named).status_code == 422
    assert bob.post("/v1/cache/holders", json={"prompt": prompt} | named).status_code in {403, 422}
    chat = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": 2}
    assert bob.post("/v1/chat/completions", json=chat | named).status_code == 400
    assert a_chat(bob, prompt, user="alice", prompt_cache_key="owner:alice", metadata=named) == 0


def test_the_index_and_its_routes_tell_of_ones_own_prompts_alone(asking, prompt, redis):
    """Admins as well ask for their own: an admin's key is no way to guess at prompts whose jobs have expired."""
    alice, bob = (asking(name, scopes=(Scope.SUBMIT, Scope.READ, Scope.ADMIN)) for name in ("alice", "bob"))
    a_chat(alice, prompt)

    def holders(client):
        return client.post("/v1/cache/holders", json={"prompt": prompt}).json()["holders"]

    (holder,) = until(lambda: holders(alice), "alice's prompt is in the index")
    assert holder["held_bytes"] > len(prompt) / 2
    assert holders(bob) == []
    store = RequestStore(redis, Lifetimes(60, 10.0, 3))

    def route_of(client):
        body = {"prompt": prompt, "policy": "edge_only", "max_tokens": 2}
        return store.read(client.post("/v1/jobs?wait=20", json=body).json()["id"]).routes["edge"]

    his, hers = route_of(bob), route_of(alice)
    assert (his.cached_tokens, his.most_cached_tokens) == (0, 0)
    assert hers.cached_tokens > 20


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
