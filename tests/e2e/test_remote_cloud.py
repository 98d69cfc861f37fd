"""The cloud as a remote OpenAI-compatible server, against a real one of vLLM."""

from collections.abc import Iterator

import pytest

from config.settings import read_settings
from schemas.events import WrittenText
from schemas.results import FailureKind, FinishReason
from tests.e2e.cloud_orders import a_draft, order
from tests.e2e.joining import JOINING, check_joining
from tests.e2e.vllm_server import MODEL, vllm_server
from tests.polling import until
from workers.cloud.remote import NOT_VERIFIED, RemoteEngine
from workers.runtime.failures import RequestCancelled, RequestRefused

pytestmark = pytest.mark.e2e

QUESTION = "Explain quantum computing in two sentences."
#: Seconds for an answer on a busy machine.
ANSWER_S = 60.0


@pytest.fixture(scope="module")
def base_url(tmp_path_factory, cloud_model_path) -> Iterator[str]:
    with vllm_server(cloud_model_path, tmp_path_factory.mktemp("vllm") / "server.log") as url:
        yield url


@pytest.fixture(scope="module")
def engine(base_url) -> Iterator[RemoteEngine]:
    built = engine_of(base_url)
    yield built
    built.close()


def engine_of(base_url: str, model: str = MODEL) -> RemoteEngine:
    remote = {"base_url": base_url, "model": model, "max_retries": 1}
    built = RemoteEngine(read_settings(cloud={"engine": "openai", "openai": remote}).cloud)
    built.start()
    return built


def test_a_real_server_answers_and_tells_its_usage_and_its_cache(engine):
    question = "Remember: " + "alpha beta gamma delta. " * 20
    first, second = (engine.submit(order(question, max_tokens=8)).result(ANSWER_S) for _ in range(2))
    assert first.text
    assert first.text == second.text
    assert len(first.token_ids) == 8
    assert (first.finish_reason, first.prompt_tokens > 80) == (FinishReason.LENGTH, True)
    assert second.cached_tokens >= 64
    stranger = engine.submit(order(question, max_tokens=8, namespace="owner:bob")).result(ANSWER_S)
    assert (stranger.text, stranger.cached_tokens) == (first.text, 0)
    assert engine.cache_statistics().tokens_saved >= second.cached_tokens


def test_the_text_comes_in_pieces_that_make_up_the_answer(engine):
    told: list[WrittenText] = []
    answer = engine.submit(order(QUESTION), told.append).result(ANSWER_S)
    assert len(told) > 3
    assert "".join(piece.text for piece in told) == answer.text


def test_such_a_server_takes_no_draft_and_the_result_says_so(engine):
    plain = engine.submit(order(QUESTION)).result(ANSWER_S)
    answer = engine.submit(order(QUESTION, draft=a_draft([5, 6, 7], "edge", text="no"))).result(ANSWER_S)
    assert answer.text == plain.text
    assert answer.draft is not None
    assert (answer.draft.not_verified_because, answer.draft.verified) == (NOT_VERIFIED, False)


def test_stop_strings_and_logprobs_reach_the_server(engine):
    plain = engine.submit(order(QUESTION)).result(ANSWER_S)
    stop = plain.text.split()[3]
    answer = engine.submit(order(QUESTION, stop=(stop,), logprobs=True, top_logprobs=2)).result(ANSWER_S)
    assert answer.text == plain.text[: plain.text.index(stop)]
    assert answer.finish_reason is FinishReason.STOP
    assert all(entry.logprob <= 0 and len(entry.top) == 2 for entry in answer.logprobs)


@pytest.mark.parametrize(("prompt", "options"), JOINING, ids=str)
def test_logprobs_join_to_the_text(engine, prompt, options):
    answer = engine.submit(order(prompt, logprobs=True, top_logprobs=2, **options)).result(ANSWER_S)
    check_joining(answer.logprobs, answer.text, answer.token_ids)
    assert bool(answer.logprobs) == bool(answer.text)


def test_many_requests_are_answered_over_one_pool_of_connections(engine):
    futures = [engine.submit(order(f"Name {number} metals.", max_tokens=12)) for number in range(12)]
    assert all(future.result(ANSWER_S).token_ids for future in futures)


def test_cancelling_closes_the_request(engine):
    wanted = order("Tell me a very long story.", max_tokens=900)
    future = engine.submit(wanted)
    until(lambda: engine.progress(wanted.request_id) > 2, "some text", within_s=ANSWER_S)
    engine.cancel(wanted.request_id)
    with pytest.raises(RequestCancelled):
        future.result(ANSWER_S)


def test_the_servers_refusals_are_told(engine, base_url):
    with pytest.raises(RequestRefused) as refused:
        engine.submit(order("much too long " * 800)).result(ANSWER_S)
    assert refused.value.kind is FailureKind.PROMPT_TOO_LONG
    other = engine_of(base_url, model="absent")
    try:
        with pytest.raises(RequestRefused, match="absent"):
            other.submit(order(QUESTION)).result(ANSWER_S)
    finally:
        other.close()
