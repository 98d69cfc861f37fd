"""Statuses, headers and pages that clients compare: as OpenAI's API and HTTP have them, over real connections."""

import gzip
import json
import socket

import httpx
import openai
import pytest

MODEL = {"model": "firstdraft"}
MESSAGES = {"messages": [{"role": "user", "content": "gamma"}]}
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
JSON = {"Content-Type": "application/json"}
HALF = "\ud800"


@pytest.fixture(scope="module")
def client(system):
    with httpx.Client(base_url=system.url, trust_env=False, timeout=20) as one:
        yield one


def error_of(answer):
    """The error, which on OpenAI's routes always has its form."""
    assert answer.headers["Content-Type"] == "application/json"
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, MESSAGES), (COMPLETIONS, {"prompt": "a"}), (RESPONSES, {"input": "a"})]
)
def test_a_model_that_is_missing_or_no_name_is_400_and_one_that_is_unknown_404(client, path, body):
    for model, status, code in ((None, 400, None), (5, 400, None), ("gpt-x", 404, "model_not_found")):
        answer = client.post(path, json=body | ({} if model is None else {"model": model}))
        error = error_of(answer)
        assert (answer.status_code, error["param"], error["code"]) == (status, "model", code)


@pytest.mark.parametrize("path", [CHAT, "/v1/jobs"])
def test_a_body_that_is_too_large_is_413_however_it_is_sent(client, path):
    large = json.dumps(MODEL | {"prompt": "x" * 1_100_000}).encode()
    pieces = (large[start : start + 50_000] for start in range(0, len(large), 50_000))
    for content in (large, pieces):
        assert client.post(path, content=content, headers=JSON).status_code == 413


def test_a_body_as_large_as_may_be_is_read(client):
    body = json.dumps({"prompt": "gamma", "max_tokens": 1}).encode()
    for content in (body.ljust(1048576), iter([body.ljust(1048575), b" "])):
        assert client.post("/v1/jobs", content=content, headers=JSON).status_code == 202


@pytest.mark.parametrize("path", [CHAT, "/v1/jobs", "/v1/files"])
def test_a_compressed_body_is_415(client, path):
    headers = JSON | {"Content-Encoding": "gzip"}
    answer = client.post(path, content=gzip.compress(b"{}"), headers=headers)
    assert (answer.status_code, answer.headers["Accept-Encoding"]) == (415, "identity")


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'{"prompt": "\xff"}', 400),
        (b'{"prompt": "\xed\xa0\x80"}', 400),
        ('{"prompt": "a"}'.encode("utf-16"), 400),
        (b'{"prompt": "a", "temperature": NaN}', 400),
        (b'{"prompt": "a", "seed": 1' + b"0" * 5_000 + b"}", 400),
        (b"[" * 100_000, 400),
        (b'{"prompt": "a"} {}', 400),
        (b"[]", 422),
        (b"null", 422),
        (b'"prompt"', 422),
        (b'\xef\xbb\xbf{"prompt": "gamma", "max_tokens": 1}', 202),
        (b'{"prompt": "a", "prompt": "gamma", "max_tokens": 1}', 202),
        (b'{"prompt": "\\ud83d\\ude00", "max_tokens": 1}', 202),
    ],
)
def test_what_is_no_json_is_400_on_every_route(client, content, status):
    assert client.post("/v1/jobs", content=content, headers=JSON).status_code == status
    for path in (CHAT, COMPLETIONS, RESPONSES, "/v1/batches"):
        answer = client.post(path, content=content, headers=JSON)
        assert answer.status_code == 400
        error_of(answer)


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json; charset=utf-8", 202),
        ("APPLICATION/JSON", 202),
        ("application/problem+json", 202),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        (None, 415),
    ],
)
def test_the_content_type_is_jsons(client, content_type, status):
    headers = {} if content_type is None else {"Content-Type": content_type}
    body = b'{"prompt": "gamma", "max_tokens": 1}'
    assert client.post("/v1/jobs", content=body, headers=headers).status_code == status


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/jobs", {"prompt": HALF}, "prompt"),
        ("/v1/jobs", {"messages": [{"role": "user", "content": HALF}]}, "messages.0.content"),
        ("/v1/jobs", {"prompt": "a", "stop": ["b", HALF]}, "stop.1"),
        ("/v1/jobs", {"prompt": "a", "policy": HALF}, "policy"),
        ("/v1/jobs", {"prompt": "a", HALF: 1}, "body"),
        ("/v1/jobs", {"prompt": "a", "json_schema": {"a": {HALF: 1}}}, "json_schema.a"),
        ("/v1/jobs", {"prompt": "a", "webhook": HALF}, "webhook"),
        ("/v1/cache/holders", {"prompt": HALF}, "prompt"),
        (CHAT, MODEL | MESSAGES | {"metadata": {"a": HALF}}, "metadata.a"),
        (CHAT, MODEL | MESSAGES | {"user": HALF}, "user"),
        (CHAT, {"model": HALF} | MESSAGES, "model"),
        (CHAT, MODEL | {"messages": [{"role": HALF, "content": "a"}]}, "messages.0.role"),
        (CHAT, MODEL | MESSAGES | {"stop": HALF}, "stop"),
        (CHAT, MODEL | MESSAGES | {"firstdraft": {"grammar": HALF}}, "firstdraft.grammar"),
        (COMPLETIONS, MODEL | {"prompt": ["a", HALF]}, "prompt.1"),
        (RESPONSES, MODEL | {"input": "a", "metadata": {"a": HALF}}, "metadata.a"),
        (RESPONSES, MODEL | {"input": "a", "instructions": HALF}, "instructions"),
        (RESPONSES, MODEL | {"input": "a", "previous_response_id": f"resp_{HALF}"}, "previous_response_id"),
        ("/v1/batches", {"input_file_id": HALF, "endpoint": CHAT, "completion_window": "1h"}, "input_file_id"),
        ("/v1/batches", {"input_file_id": "a", "metadata": {HALF: "a"}}, "metadata"),
    ],
)
def test_half_of_a_surrogate_pair_is_400_and_names_its_field(client, path, body, field):
    answer = client.post(path, content=json.dumps(body), headers=JSON)
    assert answer.status_code == 400
    if path in {"/v1/jobs", "/v1/cache/holders"}:
        assert answer.json()["errors"][0] == {
            "field": "" if field == "body" else field,
            "value": answer.json()["errors"][0]["value"],
            "reason": "half of a surrogate pair is no text",
        }
        assert "\\ud800" in answer.json()["errors"][0]["value"]
    else:
        assert error_of(answer)["param"] == field


def test_what_no_encoding_can_write_in_paths_queries_and_headers_is_no_500(system, client):
    for path in (
        "/v1/jobs/%ED%A0%80",
        "/v1/models/%ED%A0%80",
        "/v1/responses/resp_%ED%A0%80",
        "/v1/files/%FF",
        "/v1/batches/%00",
    ):
        assert client.get(path).status_code == 404
    for path in (
        "/v1/files?after=%ED%A0%80",
        "/v1/batches?after=%FF",
        "/v1/files?purpose=%ED%A0%80",
        "/v1/batches?limit=%ED",
    ):
        assert client.get(path).status_code == 400
    host, port = system.url.removeprefix("http://").split(":")
    body = b'{"prompt": "gamma", "max_tokens": 1}'
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nConnection: close\r\n"
    for header in (
        b"Idempotency-Key: \xed\xa0\x80",
        b"Authorization: Bearer \xff",
        b"Last-Event-ID: \xff",
        b"Origin: \xff",
    ):
        with socket.create_connection((host, int(port)), timeout=20) as one:
            one.sendall(head + header + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            assert one.recv(1 << 16).startswith(b"HTTP/1.1 202 ")


def test_no_header_makes_one_path_another(client):
    answer = client.get(
        "/v1/models", headers={"SCRIPT_NAME": "/v1", "PATH_INFO": "/healthz", "X-Forwarded-Prefix": "/v1"}
    )
    assert answer.json()["object"] == "list"


@pytest.mark.parametrize(
    "filename", ["\ud800.jsonl".encode("utf-8", "surrogatepass"), b"\xff.jsonl", b'a"b.jsonl', b"\x00"]
)
def test_a_files_name_may_be_any_bytes(client, filename):
    body = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b\r\n'
    body += b'Content-Disposition: form-data; name="file"; filename="' + filename + b'"\r\n\r\n{}\r\n--b--\r\n'
    answer = client.post("/v1/files", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert answer.status_code in {200, 400}
    if answer.status_code == 200:
        assert client.get(f"/v1/files/{answer.json()['id']}").json() == answer.json()
        client.delete(f"/v1/files/{answer.json()['id']}")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("PUT", "/v1/jobs", "POST"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/v1/batches", "POST"),
        ("PATCH", "/v1/files/x", "GET"),
        ("POST", "/healthz", "GET"),
    ],
)
def test_a_wrong_method_is_405_and_the_right_ones_are_told(client, method, path, allowed):
    answer = client.request(method, path, headers=JSON, content=b"{}" if method == "POST" else None)
    assert answer.status_code == 405
    assert allowed in answer.headers["Allow"]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/audio/speech", "/v1/chat/completions/", "/v1/models/"])
def test_what_of_openais_api_is_not_here_is_404_in_its_form(client, path):
    assert (
        error_of(client.post(path, json={}) if "models" not in path else client.get(path))["type"] == "not_found_error"
    )


def test_a_head_says_what_a_get_does(client):
    for path in ("/healthz", "/v1/models", "/v1/files", "/v1/jobs/none"):
        got, head = client.get(path), client.head(path)
        assert head.status_code == got.status_code
        assert head.headers["Content-Length"] == got.headers["Content-Length"]


@pytest.mark.parametrize(
    "change",
    [
        {"n": 0},
        {"n": -1},
        {"max_tokens": 0},
        {"max_tokens": -5},
        {"top_logprobs": 21},
        {"temperature": 2.1},
        {"top_p": 0},
    ],
)
def test_numbers_out_of_range_are_400_and_name_themselves(client, change):
    answer = client.post(CHAT, json=MODEL | MESSAGES | change)
    assert (answer.status_code, error_of(answer)["param"]) == (400, next(iter(change)))


@pytest.mark.parametrize(
    "change", [{"stream": None}, {"n": None}, {"stop": None}, {"user": None}, {"stream_options": None}]
)
def test_null_is_as_if_it_were_not_there(client, change):
    answer = client.post(CHAT, json=MODEL | MESSAGES | {"max_tokens": 1} | change)
    assert answer.status_code == 200
    assert answer.json()["object"] == "chat.completion"


def test_every_answer_has_a_request_id_of_its_own(client):
    answers = [
        client.get("/v1/models"),
        client.get("/v1/models/x"),
        client.post("/v1/jobs", json={}),
        client.get("/healthz"),
    ]
    ids = {answer.headers["X-Request-Id"] for answer in answers}
    assert len(ids) == 4
    assert all(one.startswith("req_") for one in ids)


@pytest.fixture
def uploaded(client):
    ids = []
    for number in range(3):
        answer = client.post("/v1/files", files={"file": (f"{number}.jsonl", b"{}")}, data={"purpose": "batch"})
        ids.append(answer.json()["id"])
    yield ids
    for file_id in ids:
        client.delete(f"/v1/files/{file_id}")


def listed(client, path, **query):
    answer = client.get(path, params=query).raise_for_status().json()
    return [one["id"] for one in answer["data"]], answer["has_more"]


def test_lists_go_both_ways_and_page_by_page(client, uploaded):
    made = [
        client.post("/v1/batches", json={"input_file_id": one, "endpoint": CHAT, "completion_window": "1h"}).json()[
            "id"
        ]
        for one in uploaded
    ]
    answer = client.post(RESPONSES, json=MODEL | {"input": [{"role": "user", "content": str(one)} for one in range(3)]})
    items = f"/v1/responses/{answer.json()['id']}/input_items"
    for path, ids in (("/v1/files", uploaded), ("/v1/batches", made), (items, None)):
        newest, _ = listed(client, path, limit=100)  # other tests' are among them
        oldest, _ = listed(client, path, order="asc", limit=100)
        assert oldest == newest[::-1]
        assert set(ids or oldest) <= set(oldest)
        paged, more = [], True
        while more:
            page, more = listed(client, path, order="asc", limit=2, **({"after": paged[-1]} if paged else {}))
            paged += page
        assert paged == oldest
    for one in made:
        client.post(f"/v1/batches/{one}/cancel")


@pytest.mark.parametrize("query", ["after=none", "limit=0", "limit=-1", "limit=many", "order=up", "limit=10001"])
def test_a_page_that_cannot_be_is_400(client, query):
    answer = client.post(RESPONSES, json=MODEL | {"input": "gamma", "max_output_tokens": 1})
    for path in ("/v1/files", "/v1/batches", f"/v1/responses/{answer.json()['id']}/input_items"):
        answer = client.get(f"{path}?{query}")
        assert (answer.status_code, error_of(answer)["param"]) == (400, query.partition("=")[0])


def test_how_long_a_file_is_kept_is_taken_from_openais_client(system):
    with openai.OpenAI(base_url=f"{system.url}/v1", api_key="unused", max_retries=0) as client:
        upload = {"file": ("a.jsonl", b"{}"), "purpose": "batch"}
        made = client.files.create(**upload, expires_after={"anchor": "created_at", "seconds": 7200})
        assert made.expires_at == made.created_at + 7200
        unasked = client.files.create(**upload)
        assert unasked.expires_at == unasked.created_at + 30 * 86_400  # gateway.file_ttl_s
        for wrong in ({"anchor": "created_at", "seconds": 60}, {"anchor": "now", "seconds": 7200}):
            with pytest.raises(openai.BadRequestError) as refusal:
                client.files.create(**upload, expires_after=wrong)
            assert refusal.value.param.startswith("expires_after[")
        for one in client.files.list():
            client.files.delete(one.id)
