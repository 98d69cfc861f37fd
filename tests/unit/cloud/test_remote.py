import asyncio
import json
import threading

import httpx
import pytest

from config.settings import read_settings
from schemas.drafts import Draft, TokenFigures
from schemas.events import WrittenText
from schemas.requests import EVERYBODYS_NAMESPACE, AcceptanceRule, Message, Sampling
from schemas.results import FailureKind, FinishReason
from workers.cloud.answer_order import AnswerOrder
from workers.cloud.remote import NOT_VERIFIED, RemoteEngine
from workers.runtime.failures import EngineDied, RequestCancelled, RequestRefused


class Server:
    """An OpenAI-compatible server that answers with what it was given, in order, and remembers what it was asked."""

    def __init__(self, *responses: httpx.Response) -> None:
        self.responses = list(responses)
        self.bodies: list[dict] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/models"):
            return httpx.Response(200, json={"data": []})
        self.bodies.append(json.loads(request.content))
        return self.responses.pop(0)


def streamed(*texts: str, reason: str = "stop", cached: int = 0) -> httpx.Response:
    chunks = [{"choices": [{"delta": {"content": text}}]} for text in texts]
    chunks.append({"choices": [{"delta": {}, "finish_reason": reason}]})
    details = {"cached_tokens": cached}
    usage = {"prompt_tokens": 9, "completion_tokens": len(texts), "prompt_tokens_details": details}
    chunks.append({"choices": [], "usage": usage})
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return httpx.Response(200, text="".join([*lines, "data: [DONE]\n\n"]))


@pytest.fixture
def engine_of():
    engines = []

    def make(server, max_retries: int = 1, **remote) -> RemoteEngine:
        remote |= {"base_url": "http://cloud.test/v1", "model": "large", "max_retries": max_retries}
        settings = read_settings(cloud={"engine": "openai", "openai": remote}).cloud
        engine = RemoteEngine(settings, httpx.MockTransport(server))
        engines.append(engine)
        engine.start()
        return engine

    yield make
    for engine in engines:
        engine.close()


def order(**changes) -> AnswerOrder:
    sampling = {name: changes.pop(name) for name in list(changes) if name in Sampling.model_fields}
    defaults = {"draft": None, "acceptance": AcceptanceRule(), "use_cache": True, "cache_namespace": "owner:alice"}
    question = (Message(role="user", content="Why?"),)
    return AnswerOrder(request_id="r1", messages=question, sampling=Sampling(**sampling), **(defaults | changes))


def a_draft() -> Draft:
    return Draft(
        text="So",
        token_ids=(1, 2),
        figures=TokenFigures(),
        finish_reason=FinishReason.STOP,
        prompt_tokens=3,
        model="edge",
        vocabulary="v",
    )


def test_the_answer_is_put_together_from_the_stream(engine_of):
    answer = engine_of(Server(streamed("Be", "cause", cached=4))).submit(order()).result()
    assert (answer.text, answer.finish_reason, len(answer.token_ids)) == ("Because", FinishReason.STOP, 2)
    assert (answer.prompt_tokens, answer.cached_tokens) == (9, 4)


def test_a_text_with_a_line_separator_in_it_is_one_text(engine_of):
    chunk = {"choices": [{"delta": {"content": "a\u2028b\x85c"}, "finish_reason": "stop"}]}
    whole = httpx.Response(200, content=f"data: {json.dumps(chunk, ensure_ascii=False)}\r\n\r\ndata: [DONE]".encode())
    assert engine_of(Server(whole)).submit(order()).result().text == "a\u2028b\x85c"


def test_events_tell_each_piece_with_its_position(engine_of):
    told = []
    engine_of(Server(streamed("Be", "cause"))).submit(order(), told.append).result()
    assert told == [WrittenText(position=0, text="Be"), WrittenText(position=2, text="cause")]


def test_a_draft_is_not_verified_and_the_result_says_why(engine_of):
    answer = engine_of(Server(streamed("x"))).submit(order(draft=a_draft())).result()
    assert answer.draft.not_verified_because == NOT_VERIFIED
    assert (answer.draft.verified, answer.draft.acceptance_rate) == (False, None)
    assert (answer.draft.drafted_tokens, answer.draft.rewritten_tokens) == (2, 1)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_tried_again(engine_of, status):
    server = Server(httpx.Response(status, headers={"retry-after": "0"}), streamed("ok"))
    assert engine_of(server).submit(order()).result().text == "ok"
    assert len(server.bodies) == 2


def test_after_all_tries_the_request_fails_with_the_servers_status(engine_of):
    server = Server(*(httpx.Response(503) for _ in range(2)))
    with pytest.raises(RequestRefused, match="2 tries: status 503") as refused:
        engine_of(server).submit(order()).result()
    assert refused.value.kind is FailureKind.ENGINE_ERROR


@pytest.mark.parametrize(
    ("status", "complaint", "kind"),
    [
        (400, "maximum context length is 10 tokens", FailureKind.PROMPT_TOO_LONG),
        (400, "unknown option", FailureKind.UNSUPPORTED_OPTION),
        (401, "no key", FailureKind.ENGINE_ERROR),
    ],
)
def test_a_lasting_failure_is_not_tried_again(engine_of, status, complaint, kind):
    server = Server(httpx.Response(status, text=complaint))
    with pytest.raises(RequestRefused, match=complaint) as refused:
        engine_of(server).submit(order()).result()
    assert refused.value.kind is kind
    assert len(server.bodies) == 1


def test_a_grammar_is_refused_since_the_protocol_has_none(engine_of):
    with pytest.raises(RequestRefused, match="grammar"):
        engine_of(Server()).submit(order(grammar='root ::= "a"')).result()


def test_options_are_sent_only_where_they_are_asked_for(engine_of):
    server = Server(streamed("a"), streamed("b"))
    engine = engine_of(server)
    engine.submit(order()).result()
    engine.submit(
        order(top_k=5, stop=("x",), logit_bias={3: 2.0}, json_schema={"type": "object"}, use_cache=False)
    ).result()
    plain, full = server.bodies
    assert not {"top_k", "stop", "logit_bias", "response_format"} & set(plain)
    assert (full["top_k"], full["stop"], full["logit_bias"]) == (5, ["x"], {"3": 2.0})
    assert full["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_a_namespace_has_one_salt_and_a_request_without_cache_one_of_its_own(engine_of):
    server = Server(*(streamed("x") for _ in range(5)))
    engine = engine_of(server)
    for changes in ({}, {}, {"cache_namespace": "owner:bob"}, {"use_cache": False}, {"use_cache": False}):
        engine.submit(order(**changes)).result()
    alice, again, bob, *uncached = [body["cache_salt"] for body in server.bodies]
    assert alice == again
    assert len({alice, bob, *uncached}) == 4


def test_of_a_server_that_takes_no_salt_nobody_is_told_what_its_cache_spared(engine_of):
    server = Server(*(streamed("x", cached=4) for _ in range(2)))
    engine = engine_of(server, cache_salt=False)
    assert engine.submit(order()).result().cached_tokens == 0
    assert engine.submit(order(cache_namespace=EVERYBODYS_NAMESPACE)).result().cached_tokens == 4
    assert not any("cache_salt" in body for body in server.bodies)
    assert engine.cache_statistics().tokens_saved == 8


def test_a_server_that_refuses_the_salt_names_the_setting(engine_of):
    server = Server(httpx.Response(400, text="Unrecognized request argument supplied: cache_salt"))
    with pytest.raises(RequestRefused, match=r"set cloud\.openai\.cache_salt: false"):
        engine_of(server).submit(order()).result()


def test_a_server_that_is_away_at_the_start_is_named(engine_of):
    def away(request):
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(EngineDied, match=r"http://cloud\.test/v1"):
        engine_of(away, max_retries=0)


def test_a_cancelled_request_ends_though_the_server_is_silent(engine_of):
    asked = threading.Event()

    class Silent(httpx.AsyncByteStream):
        async def __aiter__(self):
            asked.set()
            await asyncio.sleep(60)
            yield b""

    engine = engine_of(Server(httpx.Response(200, stream=Silent())))
    future = engine.submit(order())
    assert asked.wait(5)
    assert engine.in_flight == 1
    engine.cancel("r1")
    with pytest.raises(RequestCancelled):
        future.result(timeout=5)
    assert engine.in_flight == 0


def test_an_engine_that_is_closed_takes_no_orders(engine_of):
    engine = engine_of(Server())
    engine.close()
    with pytest.raises(EngineDied):
        engine.submit(order()).result()
    assert not engine.alive
