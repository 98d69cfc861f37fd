"""Whatever a remote server sends, a request ends with an answer or is refused; nothing else is raised."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import wire
from schemas.results import FailureKind
from workers.cloud.answer_order import CloudAnswer
from workers.cloud.remote_protocol import MAX_COUNT, Reply, chunks
from workers.runtime.failures import RequestRefused

TEXT = st.text() | st.just("\ud83d")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
GOOD = {
    "choices": [
        {
            "delta": {"content": "word"},
            "logprobs": {
                "content": [{"token": "word", "logprob": -1.0, "top_logprobs": [{"token": "v", "logprob": -2.0}]}]
            },
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 2}},
}
#: Ways to every part of a chunk.
PARTS = [
    ("choices",),
    ("choices", 0),
    ("choices", 0, "delta"),
    ("choices", 0, "delta", "content"),
    ("choices", 0, "finish_reason"),
    ("choices", 0, "logprobs"),
    ("choices", 0, "logprobs", "content"),
    ("choices", 0, "logprobs", "content", 0),
    ("choices", 0, "logprobs", "content", 0, "token"),
    ("choices", 0, "logprobs", "content", 0, "logprob"),
    ("choices", 0, "logprobs", "content", 0, "bytes"),
    ("choices", 0, "logprobs", "content", 0, "top_logprobs"),
    ("choices", 0, "logprobs", "content", 0, "top_logprobs", 0),
    ("usage",),
    ("usage", "prompt_tokens"),
    ("usage", "completion_tokens"),
    ("usage", "prompt_tokens_details"),
    ("usage", "prompt_tokens_details", "cached_tokens"),
]


def with_part(way: tuple, value: object) -> dict:
    """A good chunk in which one part is something else."""
    chunk = json.loads(json.dumps(GOOD))
    place = chunk
    for step in way[:-1]:
        place = place[step]
    place[way[-1]] = value
    return chunk


def answered(*lines: str) -> CloudAnswer:
    told = []

    async def read() -> CloudAnswer:
        async def sent():
            for line in lines:
                yield line

        reply = Reply(told.append)
        async for chunk in chunks(sent()):
            reply.take(chunk)
        return reply.answer(None)

    answer = asyncio.run(read())
    assert "".join(event.text for event in told) == answer.text
    for event in told:
        wire.encode(event)
    return answer


def data(chunk: object) -> str:
    return f"data: {json.dumps(chunk)}"


def test_a_good_chunk_is_read_whole():
    answer = answered(": a comment", data(GOOD), "", "data: [DONE]")
    assert (answer.text, answer.prompt_tokens, answer.cached_tokens, len(answer.token_ids)) == ("word", 3, 2, 1)
    assert [(entry.token, entry.top[0].token, entry.top[0].logprob) for entry in answer.logprobs] == [
        ("word", "v", -2.0)
    ]


def chunk_of(text: str, *tokens: dict, **choice: object) -> str:
    logprobs = {"content": [{"logprob": -1.0, **token} for token in tokens]}
    return data({"choices": [{"delta": {"content": text}, "logprobs": logprobs, **choice}]})


END = data({"choices": [{"finish_reason": "stop"}]})


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        # vLLM tells the end of the turn as well, and the tokens of a stop string.
        ([chunk_of("Paris", {"token": "Paris"}), chunk_of("", {"token": "<|im_end|>"})], [b"Paris"]),
        ([chunk_of("one", {"token": "one"}, {"token": " tw"}, {"token": "o"})], [b"one"]),
        ([chunk_of("one t", {"token": "one"}, {"token": " two"})], [b"one", b" t"]),
        # A part of a character: by its bytes, and as vLLM tells it, empty before the token that ends it.
        (
            [chunk_of("🙂", {"token": "\\xf0\\x9f", "bytes": [240, 159]}, {"token": "", "bytes": [153, 130]})],
            [b"\xf0\x9f", b"\x99\x82"],
        ),
        ([chunk_of("", {"token": "", "bytes": []}), chunk_of("🙂", {"token": "🙂"})], ["🙂".encode()]),
        # What does not join is left out rather than told of another text.
        ([chunk_of("🙂", {"token": "\ufffd"}, {"token": "\ufffd"})], []),
        ([chunk_of("one", {"token": "two"})], []),
        ([chunk_of("one")], []),
    ],
)
def test_logprobs_join_to_the_text_or_are_left_out(lines, kept):
    answer = answered(*lines, END)
    assert [bytes(entry.bytes) for entry in answer.logprobs] == kept
    if kept:
        assert b"".join(kept).decode() == answer.text


@pytest.mark.parametrize(
    "way", [way for way in PARTS if way[-1] not in {0, "token", "logprob", "finish_reason"}], ids=str
)
def test_what_is_null_is_as_good_as_left_out(way):
    assert answered(data(with_part(way, None)), data({"choices": [{"finish_reason": "stop"}]}))


@pytest.mark.parametrize(
    "line",
    [
        "data: 5",
        "data: null",
        "data: []",
        'data: "error"',
        "data: {",
        "data:",
        "data: " + "[" * 100_000,
        'data: {"choices": [{"delta": {"content": "\\ud83d"}}]}',
        data(with_part(("usage", "completion_tokens"), MAX_COUNT + 1)),
        data(with_part(("usage", "completion_tokens"), -1)),
        data({"error": {"message": "x" * 10_000}}),
        data({"error": "overloaded"}),
    ],
)
def test_what_is_no_chunk_refuses_the_request_in_few_words(line):
    with pytest.raises(RequestRefused) as refused:
        answered(line)
    assert refused.value.kind is FailureKind.ENGINE_ERROR
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("token_id(s) [10000000] in logit_bias contain out-of-vocab token ids", FailureKind.UNSUPPORTED_OPTION),
        ("This model's maximum context length is 1024 tokens", FailureKind.PROMPT_TOO_LONG),
    ],
)
def test_a_refusal_within_the_stream_is_as_good_as_one_by_status(message, kind):
    error = {"message": message, "type": "BadRequestError", "code": 400}
    with pytest.raises(RequestRefused, match="the cloud server refused the") as refused:
        answered(data({"error": error}), "data: [DONE]")
    assert refused.value.kind is kind
    assert message in str(refused.value)


@pytest.mark.parametrize("code", [500, "400", None, [400], {}])
def test_any_other_error_within_the_stream_is_one_of_the_engine(code):
    with pytest.raises(RequestRefused, match="ended the answer") as refused:
        answered(data({"error": {"message": "no", "code": code}}))
    assert refused.value.kind is FailureKind.ENGINE_ERROR


@given(
    lines=st.lists(
        st.text()
        | st.text().map(lambda text: f"data: {text}")
        | JSON.map(data)
        | st.builds(with_part, st.sampled_from(PARTS), JSON).map(data),
        min_size=1,
        max_size=3,
    )
)
def test_whatever_a_server_sends_there_is_an_answer_or_a_refusal(lines):
    try:
        answer = answered(*lines)
    except RequestRefused as refusal:
        assert refusal.kind is FailureKind.ENGINE_ERROR  # noqa: PT017 - an answer is fine as well
    else:
        assert len(answer.token_ids) <= MAX_COUNT
