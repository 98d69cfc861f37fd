"""Log-probabilities join to the text on every route, whole and in pieces, from either tier and verified."""

import json

import httpx
import pytest

from tests.polling import until

PROMPT = "unsure 漢字 🙂 naïve"
POLICIES = ["baseline", "cloud_only", "edge_only"]
MAX_TOKENS = 4


@pytest.fixture(scope="module")
def http(system):
    with httpx.Client(base_url=f"{system.url}/v1", trust_env=False, timeout=30) as client:
        yield client


def posted(http, path, **body):
    answer = http.post(path, json=body)
    assert answer.is_success, answer.text
    return answer


def chunks(http, path, **body):
    lines = posted(http, path, stream=True, **body).text.splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


def by_bytes(entries) -> str:
    assert entries
    return b"".join(bytes(entry["bytes"]) for entry in entries).decode()


def chat_body(policy):
    return {
        "model": f"firstdraft:{policy}",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": MAX_TOKENS,
        "logprobs": True,
        "top_logprobs": 1,
    }


def text_body(policy):
    return {"model": f"firstdraft:{policy}", "prompt": PROMPT, "max_tokens": MAX_TOKENS, "logprobs": 1}


def response_body(policy):
    return {"model": f"firstdraft:{policy}", "input": PROMPT, "max_output_tokens": MAX_TOKENS, "top_logprobs": 1}


def job_body(policy):
    return {"prompt": PROMPT, "max_tokens": MAX_TOKENS, "logprobs": True, "top_logprobs": 1, "policy": policy}


def check_chat(choice, text):
    assert by_bytes(choice["logprobs"]["content"]) == text
    assert choice["logprobs"]["content"][0]["top_logprobs"] == [{"token": "<|end|>", "logprob": -9.0, "bytes": None}]


def check_text(choice, text):
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == text
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert text[offset:].startswith(token)


def check_response(response):
    part = response["output"][0]["content"][0]
    assert by_bytes(part["logprobs"]) == part["text"] != ""


def check_job(job):
    assert by_bytes(job["result"]["logprobs"]) == job["result"]["text"] != ""
    assert job["result"]["logprobs"][0]["top"][0]["bytes"] == []


@pytest.mark.parametrize("policy", POLICIES)
def test_they_join_where_the_answer_comes_whole(http, policy):
    choice = posted(http, "/chat/completions", **chat_body(policy)).json()["choices"][0]
    check_chat(choice, choice["message"]["content"])
    choice = posted(http, "/completions", **text_body(policy)).json()["choices"][0]
    check_text(choice, choice["text"])
    check_response(posted(http, "/responses", **response_body(policy)).json())
    check_job(posted(http, "/jobs?wait=10", **job_body(policy)).json())


@pytest.mark.parametrize("policy", POLICIES)
def test_they_join_where_it_comes_in_pieces(http, policy):
    told = chunks(http, "/chat/completions", **chat_body(policy))
    with_logprobs = [c for chunk in told for c in chunk["choices"] if c["logprobs"]]
    # They come with the text that they are of, in the last piece.
    assert [choice["delta"].get("content") for choice in with_logprobs] == [
        "".join(c["delta"].get("content") or "" for chunk in told for c in chunk["choices"])
    ]
    check_chat(with_logprobs[0], with_logprobs[0]["delta"]["content"])
    told = chunks(http, "/completions", echo=True, **text_body(policy))
    text = "".join(choice["text"] for chunk in told for choice in chunk["choices"])
    logprobs = next(c["logprobs"] for chunk in told for c in chunk["choices"] if c["logprobs"])
    assert PROMPT + "".join(logprobs["tokens"]) == text
    assert logprobs["text_offset"][0] == len(PROMPT)
    told = chunks(http, "/responses", **response_body(policy))
    deltas = [event for event in told if event["type"] == "response.output_text.delta"]
    assert [by_bytes(event["logprobs"]) for event in deltas] == [event["delta"] for event in deltas]
    done = next(event for event in told if event["type"] == "response.output_text.done")
    assert by_bytes(done["logprobs"]) == done["text"]


@pytest.mark.parametrize(
    ("endpoint", "body", "check"),
    [
        (
            "/v1/chat/completions",
            chat_body,
            lambda b: check_chat(b["choices"][0], b["choices"][0]["message"]["content"]),
        ),
        ("/v1/completions", text_body, lambda b: check_text(b["choices"][0], b["choices"][0]["text"])),
        ("/v1/responses", response_body, check_response),
        ("/v1/jobs", job_body, check_job),
    ],
)
def test_they_join_in_a_batch(http, endpoint, body, check):
    lines = [
        json.dumps({"custom_id": policy, "method": "POST", "url": endpoint, "body": body(policy)})
        for policy in POLICIES
    ]
    upload = {"file": ("in.jsonl", "\n".join(lines).encode())}
    stored = http.post("/files", data={"purpose": "batch"}, files=upload).json()
    batch = posted(http, "/batches", input_file_id=stored["id"], endpoint=endpoint, completion_window="24h").json()
    ended = until(
        lambda: (b := http.get(f"/batches/{batch['id']}").json())["status"] == "completed" and b,
        "the batch ends",
        within_s=60,
    )
    answered = http.get(f"/files/{ended['output_file_id']}/content").text.splitlines()
    assert len(answered) == len(POLICIES)
    for line in answered:
        check(json.loads(line)["response"]["body"])


def test_where_none_are_asked_for_there_are_none(http):
    plain = {"model": "firstdraft", "max_tokens": MAX_TOKENS}
    said = {"messages": [{"role": "user", "content": PROMPT}]}
    assert posted(http, "/chat/completions", **plain, **said).json()["choices"][0]["logprobs"] is None
    assert posted(http, "/completions", prompt=PROMPT, **plain).json()["choices"][0]["logprobs"] is None
