"""The clients that people have already, against a whole running system with stand-in engines."""

import asyncio
import json
import subprocess

import openai
import pytest
from langchain_openai import ChatOpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from firstdraft import Client
from tests.polling import until

SURE, UNSURE = "alpha beta gamma", "unsure beta gamma"
SURE_ANSWER, UNSURE_ANSWER = "gamma beta alpha ", "gamma beta UNSURE "


@pytest.fixture(scope="module")
def client(system):
    with openai.OpenAI(base_url=f"{system.url}/v1", api_key="unused", max_retries=0) as one:
        yield one


@pytest.fixture(scope="module")
def ours(system):
    with Client(system.url) as one:
        yield one


def chat(client, prompt, **options):
    options = {"model": "firstdraft", "max_tokens": 3, **options}
    return client.chat.completions.create(messages=[{"role": "user", "content": prompt}], **options)


def test_a_conversation_is_answered_in_openais_shape(client):
    answer = chat(client, UNSURE)
    strict = ChatCompletion.model_validate(json.loads(answer.to_json()))
    assert strict.choices[0].message.content == UNSURE_ANSWER
    assert strict.choices[0].finish_reason == "length"
    assert strict.usage.total_tokens == strict.usage.prompt_tokens + strict.usage.completion_tokens
    assert strict.usage.completion_tokens_details.accepted_prediction_tokens == 2
    assert strict.usage.completion_tokens_details.rejected_prediction_tokens == 1
    report = answer.model_extra["firstdraft"]
    assert (report["tier"], report["policy"], report["acceptance_rate"]) == ("cloud", "baseline", 2 / 3)
    assert report["confidence"] < 0.5


def test_the_models_name_picks_the_policy(client):
    assert chat(client, UNSURE, model="firstdraft:edge_only").model_extra["firstdraft"]["tier"] == "edge"
    names = [model.id for model in client.models.list()]
    assert {"firstdraft", "firstdraft:baseline", "firstdraft:cloud_only"} <= set(names)
    assert client.models.retrieve("firstdraft:edge_only").id == "firstdraft:edge_only"
    with pytest.raises(openai.NotFoundError) as refusal:
        chat(client, SURE, model="gpt-x")
    assert (refusal.value.code, refusal.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-x")


def test_several_choices_come_in_one_answer_and_in_one_stream(client):
    answer = chat(client, UNSURE, n=3, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {UNSURE_ANSWER}
    assert answer.usage.completion_tokens == 9
    texts = ["", "", ""]
    for chunk in chat(client, UNSURE, n=3, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [UNSURE_ANSWER] * 3


@pytest.mark.parametrize(("prompt", "answer"), [(SURE, SURE_ANSWER), (UNSURE, UNSURE_ANSWER)])
def test_a_stream_sends_only_text_that_stands(client, prompt, answer):
    chunks = list(chat(client, prompt, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks:
        ChatCompletionChunk.model_validate(json.loads(chunk.to_json()))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == answer
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]].count("length") == 1
    assert chunks[-2].model_extra["firstdraft"]["tier"] == ("edge" if prompt == SURE else "cloud")
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 3
    assert len({chunk.id for chunk in chunks}) == 1


def test_leaving_a_stream_cancels_its_job(client, ours):
    before = ours.system().counters.get("cancelled", 0)
    stream = chat(client, "forever", stream=True)
    next(iter(stream))
    stream.close()
    until(lambda: ours.system().counters.get("cancelled", 0) == before + 1, "the job is cancelled", within_s=20)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"extra_body": {"colour": "blue"}}, "colour"),
    ],
)
def test_what_is_wrong_is_told_in_openais_form(client, options, param):
    with pytest.raises(openai.BadRequestError) as refusal:
        chat(client, SURE, **options)
    assert refusal.value.param == param
    assert refusal.value.type == "invalid_request_error"


def test_a_job_that_fails_is_an_error_whole_and_in_a_stream(client):
    with pytest.raises(openai.BadRequestError) as refusal:
        chat(client, "refuse")
    assert refusal.value.code == "context_length_exceeded"
    with pytest.raises(openai.InternalServerError):
        chat(client, "break")
    with pytest.raises(openai.APIError, match="breaks"):
        list(chat(client, "break", stream=True))


def test_options_of_ours_go_along(client):
    report = chat(client, SURE, extra_body={"firstdraft": {"confidence": {"threshold": 0.99}}}).firstdraft
    assert (report["tier"], report["confidence_report"]["threshold"]) == ("cloud", 0.99)


def test_text_completions_take_several_prompts_and_echo(client):
    answer = client.completions.create(model="firstdraft", prompt=[SURE, UNSURE], max_tokens=3, n=2, echo=True)
    Completion.model_validate(json.loads(answer.to_json()))
    assert [choice.text for choice in answer.choices] == [SURE + SURE_ANSWER] * 2 + [UNSURE + UNSURE_ANSWER] * 2
    pieces = list(client.completions.create(model="firstdraft", prompt=UNSURE, max_tokens=3, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == UNSURE_ANSWER


def test_the_asynchronous_client_works_too(system):
    async def talk():
        async with openai.AsyncOpenAI(base_url=f"{system.url}/v1", api_key="unused", max_retries=0) as client:
            answers = await asyncio.gather(*(chat(client, UNSURE) for _ in range(8)))
            assert {answer.choices[0].message.content for answer in answers} == {UNSURE_ANSWER}
            text = ""
            async for chunk in await chat(client, UNSURE, stream=True):
                text += chunk.choices[0].delta.content or ""
            assert text == UNSURE_ANSWER

    asyncio.run(talk())


def test_langchain_works_whole_in_a_stream_and_in_a_batch(system):
    model = ChatOpenAI(model="firstdraft", base_url=f"{system.url}/v1", api_key="unused", max_completion_tokens=3)
    answer = model.invoke(UNSURE)
    assert answer.content == UNSURE_ANSWER
    assert answer.usage_metadata["output_tokens"] == 3
    assert "".join(str(chunk.content) for chunk in model.stream(UNSURE)) == UNSURE_ANSWER
    assert [one.content for one in model.batch([SURE, UNSURE])] == [SURE_ANSWER, UNSURE_ANSWER]
    model.root_client.close()


def test_curl_works(system):
    body = json.dumps({"model": "firstdraft", "max_tokens": 3, "messages": [{"role": "user", "content": SURE}]})
    command = ["curl", "-sS", "--noproxy", "*", f"{system.url}/v1/chat/completions"]
    told = subprocess.run(
        [*command, "-H", "Content-Type: application/json", "-d", body], check=True, capture_output=True, timeout=30
    )
    assert json.loads(told.stdout)["choices"][0]["message"]["content"] == SURE_ANSWER
