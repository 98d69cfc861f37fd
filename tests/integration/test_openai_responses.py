"""OpenAI's responses through its own client, against a whole running system with stand-in engines."""

import json

import httpx
import openai
import pytest
from openai.types.responses import Response

from tests.polling import until

UNSURE, UNSURE_ANSWER = "unsure beta gamma", "gamma beta UNSURE "


@pytest.fixture(scope="module")
def client(system):
    with openai.OpenAI(base_url=f"{system.url}/v1", api_key="unused", max_retries=0) as one:
        yield one


def respond(client, prompt, **options):
    return client.responses.create(**{"model": "firstdraft", "input": prompt, "max_output_tokens": 3, **options})


def finished(client, response):
    return until(
        lambda: (r := client.responses.retrieve(response.id)).status not in {"queued", "in_progress"} and r,
        "the response ends",
        within_s=20,
    )


def test_a_response_has_openais_shape_and_can_be_fetched_again(client):
    response = respond(client, UNSURE, metadata={"a": "b"}, instructions="be brief")
    strict = Response.model_validate(json.loads(response.to_json()))
    assert (strict.output_text, strict.status) == (UNSURE_ANSWER, "incomplete")
    assert strict.incomplete_details.reason == "max_output_tokens"
    assert (strict.metadata, strict.instructions) == ({"a": "b"}, "be brief")
    assert strict.usage.total_tokens == strict.usage.input_tokens + strict.usage.output_tokens
    assert client.responses.retrieve(response.id) == response
    assert response.model_extra["firstdraft"]["tier"] == "cloud"


def test_a_response_goes_on_in_the_background(client):
    response = respond(client, "slow " + UNSURE, background=True)
    assert response.status == "queued"
    assert finished(client, response).output_text.split()[-1].isupper()


def test_a_response_in_the_background_can_be_cancelled(client):
    response = respond(client, "forever", background=True)
    assert client.responses.cancel(response.id).status == "cancelled"
    assert client.responses.retrieve(response.id).status == "cancelled"


def test_a_stream_can_be_taken_up_after_any_of_its_events(client):
    events = list(respond(client, UNSURE, stream=True, background=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:3]] == ["response.created", "response.queued", "response.in_progress"]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == UNSURE_ANSWER
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == UNSURE_ANSWER
    for cut in range(len(events)):
        rest = list(client.responses.retrieve(events[0].response.id, stream=True, starting_after=cut))
        assert rest == events[cut + 1 :]


def test_a_conversation_goes_on_from_an_earlier_response(client):
    first = respond(client, "one two", instructions="be brief")
    second = respond(client, [{"role": "user", "content": "three four"}], previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert second.output_text == "four three four "
    with pytest.raises(openai.NotFoundError):
        respond(client, "x", previous_response_id="resp_nothing")


def test_the_turns_that_a_response_answers_can_be_listed_from_either_end(client):
    first = respond(client, "one two", instructions="be brief")
    second = respond(client, "three four", previous_response_id=first.id)
    items = client.responses.input_items.list(second.id, order="asc", limit=2)
    assert [(item.role, item.content[0].text) for item in items.data] == [
        ("user", "one two"),
        ("assistant", first.output_text),
    ]
    assert items.has_more
    assert [item.content[0].text for item in items] == ["one two", first.output_text, "three four"]
    backwards = client.responses.input_items.list(second.id)
    assert [item.content[0].text for item in backwards] == ["three four", first.output_text, "one two"]


def test_a_response_that_was_deleted_is_there_no_more_and_its_job_has_ended(client, system):
    done, running = respond(client, "one two"), respond(client, "forever", background=True)
    for response in (done, running):
        client.responses.delete(response.id)
        for look in (client.responses.retrieve, client.responses.cancel, client.responses.delete):
            with pytest.raises(openai.NotFoundError):
                look(response.id)
        job = response.id.removeprefix("resp_")
        assert httpx.get(f"{system.url}/v1/jobs/{job}", trust_env=False).status_code == 410


def test_what_is_not_stored_cannot_be_fetched(client):
    response = respond(client, "one two", store=False)
    for response_id in (response.id, "resp_nothing", "nothing"):
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(response_id)


def test_a_response_that_fails_says_why(client):
    with pytest.raises(openai.InternalServerError):
        respond(client, "break")
    failed = finished(client, respond(client, "break", background=True))
    assert (failed.status, failed.error.code) == ("failed", "server_error")
    with pytest.raises(openai.InternalServerError):
        respond(client, "break", stream=True)
    assert list(respond(client, "break", stream=True, background=True))[-1].type == "response.failed"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "input.0"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_what_cannot_be_done_is_refused(client, options, param):
    with pytest.raises(openai.BadRequestError) as refusal:
        client.responses.create(**{"model": "firstdraft", "input": "x", **options})
    assert refusal.value.param == param


def test_a_schema_is_handed_on(client):
    form = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}
    assert respond(client, "x", text={"format": form}).text.format.name == "x"
