"""Answers beside the examples of OpenAI's API reference: every field of an example is there, and of the same kind.

`tests/recorded/openai.json` has the fields and kinds of the reference's examples, with short values.
"""

import io
import json
from pathlib import Path

import httpx
import pytest

EXAMPLES = json.loads((Path(__file__).parents[1] / "recorded" / "openai.json").read_text(encoding="utf-8"))
CHAT = {"model": "firstdraft", "messages": [{"role": "user", "content": "unsure beta gamma"}], "max_tokens": 3}
RESPONSE = {"model": "firstdraft", "input": "unsure beta gamma", "max_output_tokens": 3}
LINE = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}


@pytest.fixture(scope="module")
def http(system):
    with httpx.Client(base_url=f"{system.url}/v1", trust_env=False, timeout=30) as client:
        yield client


def differences(example, answer, where="") -> list[str]:
    """What the example has and the answer has not, or has of another kind. Where either is null, any kind will do."""
    if example is None or answer is None:
        return []
    if isinstance(example, float) and isinstance(answer, int | float):
        return []
    if type(example) is not type(answer):
        return [f"{where} is {type(answer).__name__}, not {type(example).__name__}"]
    if isinstance(example, list) and example:
        return differences(example[0], answer[0], f"{where}[]") if answer else [f"{where} is empty"]
    if isinstance(example, dict):
        told = []
        for name, value in example.items():
            field = f"{where}.{name}".lstrip(".")
            told += differences(value, answer[name], field) if name in answer else [f"{field} is missing"]
        return told
    return []


def posted(http, path, body):
    answer = http.post(path, json=body)
    assert answer.is_success, answer.text
    return answer.json()


def chunks(http):
    lines = http.post("/chat/completions", json=CHAT | {"stream": True}).text.splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


def uploaded(http):
    upload = {"file": ("in.jsonl", io.BytesIO(json.dumps(LINE).encode()))}
    return http.post("/files", data={"purpose": "batch"}, files=upload).json()


def batch(http):
    body = {"input_file_id": uploaded(http)["id"], "endpoint": LINE["url"], "completion_window": "24h"}
    return posted(http, "/batches", body | {"metadata": {"a": "b"}})


def response_id(http):
    return posted(http, "/responses", RESPONSE)["id"]


ANSWERS = {
    "chat.completion": lambda http: posted(http, "/chat/completions", CHAT),
    "chat.completion, logprobs": lambda http: posted(
        http, "/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 1, "model": "firstdraft:edge_only"}
    ),
    "chat.completion.chunk": lambda http: chunks(http)[0],
    "text_completion": lambda http: posted(http, "/completions", {"model": "firstdraft", "prompt": "one"}),
    "response": lambda http: posted(http, "/responses", RESPONSE),
    "response.input_items": lambda http: http.get(f"/responses/{response_id(http)}/input_items").json(),
    "response.deleted": lambda http: http.delete(f"/responses/{response_id(http)}").json(),
    "models": lambda http: http.get("/models").json(),
    "file": uploaded,
    "batch": batch,
    "error": lambda http: http.post("/chat/completions", json=CHAT | {"model": "none"}).json(),
}


def test_every_example_has_an_answer():
    assert ANSWERS.keys() == EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_answer_has_every_field_of_its_example(http, name):
    assert differences(EXAMPLES[name], ANSWERS[name](http)) == []


def test_what_an_answer_lacks_is_found():
    told = differences({"a": 1, "b": [{"c": "x"}], "d": 0.5}, {"a": "1", "b": [{}], "d": 1})
    assert told == ["a is str, not int", "b[].c is missing"]
