"""OpenAI's Batch API through its own client, against whole running systems with stand-in engines."""

import json
import signal
from contextlib import contextmanager

import httpx
import openai
import pytest
from openai.types import Batch, FileObject

from tests.polling import until
from tests.processes import free_port, running

ENDPOINT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def client(system):
    with openai.OpenAI(base_url=f"{system.url}/v1", api_key="unused", max_retries=0) as one:
        yield one


def a_line(custom_id, prompt="one two", **body):
    body = {"model": "firstdraft", "max_tokens": 3, "messages": [{"role": "user", "content": prompt}], **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body})


def begin(client, lines, **options):
    content = "\n".join(lines).encode()
    stored = client.files.create(file=("in.jsonl", content), purpose="batch")
    options = {"endpoint": ENDPOINT, "completion_window": "24h", **options}
    return client.batches.create(input_file_id=stored.id, **options)


def ended(client, batch, within_s=60):
    return until(
        lambda: (
            (b := client.batches.retrieve(batch.id)).status in {"completed", "failed", "expired", "cancelled"} and b
        ),
        "the batch ends",
        within_s=within_s,
    )


def entries(client, file_id):
    found = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    return {entry["custom_id"]: entry for entry in found}


def test_files_have_openais_shape(client):
    stored = client.files.create(file=("in.jsonl", b"{}\n"), purpose="batch")
    assert FileObject.model_validate(json.loads(stored.to_json())).bytes == 3
    assert client.files.retrieve(stored.id) == stored
    assert client.files.content(stored.id).content == b"{}\n"
    assert stored.id in [one.id for one in client.files.list(purpose="batch")]
    assert client.files.delete(stored.id).deleted
    for look in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            look(stored.id)


def test_every_line_is_answered_and_a_bad_one_fails_alone(client):
    lines = [a_line(f"c{number}", f"word{number}") for number in range(40)]
    lines += [a_line("choices", n=2), a_line("bad", temperature=9), "{", "", a_line("c1"), a_line("fails", "break")]
    created = begin(client, lines, metadata={"a": "b"})
    Batch.model_validate(json.loads(created.to_json()))
    batch = ended(client, created)
    assert (batch.status, batch.metadata) == ("completed", {"a": "b"})
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (45, 41, 4)
    answers = entries(client, batch.output_file_id)
    assert len(answers) == 41
    body = answers["c7"]["response"]["body"]
    assert body["choices"][0]["message"]["content"] == "word7 word7 WORD7 " or body["firstdraft"]["tier"] == "edge"
    assert len(answers["choices"]["response"]["body"]["choices"]) == 2
    errors = entries(client, batch.error_file_id)
    assert errors["bad"]["error"]["code"] == "invalid_request"
    assert errors[None]["error"]["code"] == "invalid_json_line"
    assert errors["c1"]["error"]["code"] == "duplicate_custom_id"
    assert errors["fails"]["response"]["status_code"] == 500
    assert batch.id in [one.id for one in client.batches.list(limit=5)]


@pytest.mark.parametrize("lines", [[], ["", ""]])
def test_a_file_without_lines_fails_as_a_whole(client, lines):
    batch = ended(client, begin(client, lines))
    assert (batch.status, batch.errors.data[0].code) == ("failed", "empty_file")


def test_a_file_that_is_not_there_is_refused(client):
    with pytest.raises(openai.NotFoundError):
        client.batches.create(input_file_id="file-x", endpoint=ENDPOINT, completion_window="24h")
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_x")


def test_a_batch_is_cancelled_and_keeps_what_was_answered(client):
    created = begin(client, [a_line("quick"), *(a_line(f"c{number}", "forever") for number in range(5))])
    until(lambda: client.batches.retrieve(created.id).request_counts.completed == 1, "one line is answered")
    assert client.batches.cancel(created.id).status == "cancelling"
    batch = ended(client, created)
    assert batch.status == "cancelled"
    assert batch.cancelled_at >= batch.cancelling_at
    assert set(entries(client, batch.output_file_id)) == {"quick"}
    codes = {entry["error"]["code"] for entry in entries(client, batch.error_file_id).values()}
    assert codes == {"batch_cancelled"}
    assert client.batches.cancel(created.id).status == "cancelled"


def test_a_batch_expires_and_keeps_what_was_answered(client):
    lines = [a_line("quick"), *(a_line(f"c{number}", "forever") for number in range(200))]
    batch = ended(client, begin(client, lines, completion_window="2s"))
    assert batch.status == "expired"
    assert batch.request_counts.failed == 200
    codes = {entry["error"]["code"] for entry in entries(client, batch.error_file_id).values()}
    assert codes == {"batch_expired"}


@pytest.fixture
def gateway_environment(redis_url, redis_connection, tmp_path):  # noqa: ARG001 - flushed before each test
    environment = {"REDIS_URL": redis_url, "XDG_STATE_HOME": str(tmp_path / "state")}
    return environment | {"FIRSTDRAFT_GATEWAY__PORT": str(free_port()), "FIRSTDRAFT_GATEWAY__BATCH_IN_FLIGHT": "16"}


@pytest.fixture
def gateway(gateway_environment, tmp_path):
    """Runs a gateway of its own until the block ends. Gives the process."""

    @contextmanager
    def run(name, **more):
        url = f"http://127.0.0.1:{gateway_environment['FIRSTDRAFT_GATEWAY__PORT']}"
        with running("gateway", log=tmp_path / name, **gateway_environment | more) as process:
            until(lambda: answers(url), "the gateway answers", within_s=30)
            yield process

    return run


@pytest.fixture
def own_client(gateway_environment):
    # It tries again: a pooled connection may still be one to a gateway that was killed.
    url = f"http://127.0.0.1:{gateway_environment['FIRSTDRAFT_GATEWAY__PORT']}/v1"
    with openai.OpenAI(base_url=url, api_key="unused", max_retries=3) as one:
        yield one


def answers(url):
    try:
        return httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_a_batch_survives_the_death_of_its_gateway_and_answers_every_line_once(own_client, gateway, start_worker):
    start_worker("edge", delay_s=0.01)
    start_worker("cloud", delay_s=0.01)
    with gateway("first") as first:
        created = begin(own_client, [a_line(f"c{number}") for number in range(300)])
        until(lambda: own_client.batches.retrieve(created.id).request_counts.completed > 20, "some lines are answered")
        first.signal(signal.SIGKILL)
        first.end()
    with gateway("second"):
        batch = ended(own_client, created)
        assert batch.status == "completed"
        found = own_client.files.content(batch.output_file_id).text.splitlines()
    ids = [json.loads(line)["custom_id"] for line in found]
    assert len(ids) == len(set(ids)) == 300


def test_lines_wait_while_the_system_takes_no_more(own_client, gateway, start_worker):
    start_worker("edge", delay_s=0.01)
    start_worker("cloud", delay_s=0.01)
    with gateway("gateway", FIRSTDRAFT_BACKPRESSURE__MAX_REQUESTS="2"):
        batch = ended(own_client, begin(own_client, [a_line(f"c{number}") for number in range(20)]))
        assert batch.status == "completed"
        assert batch.request_counts.completed == 20
