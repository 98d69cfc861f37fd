"""Both clients against a whole running system with stand-in engines."""

import asyncio
import json
import threading

import httpx
import pytest

from firstdraft import (
    AsyncClient,
    Client,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    NotFound,
    NotInTime,
    RetryRule,
    Unreachable,
)
from schemas.events import Decision, Done
from schemas.policy import Tier
from tests.processes import free_port


@pytest.fixture
def client(system):
    with Client(system.url) as one:
        yield one


def test_a_prompt_is_answered_with_its_figures(client):
    sure = client.infer("alpha beta", max_tokens=4)
    assert sure.text == "beta alpha beta alpha "
    assert (sure.tier, sure.acceptance_rate) == (Tier.EDGE, None)
    assert sure.confidence > 0.5
    assert 0 < sure.result.timings.total_ms <= sure.latency_ms + 1
    unsure = client.infer("unsure beta", max_tokens=4)
    assert unsure.tier is Tier.CLOUD
    assert unsure.acceptance_rate == 0.75


def test_modules_can_be_switched_off_for_one_prompt(client):
    assert client.infer("alpha", use_confidence_check=False).result.policy == "no_confidence"
    written = client.infer("unsure", use_draft_verify=False)
    assert (written.result.policy, written.acceptance_rate) == ("no_draft_verify", None)
    assert client.infer("unsure", use_draft_verify=False, use_confidence_check=False).tier is Tier.EDGE


def test_submitting_and_fetching_are_two_steps_where_that_is_wanted(client):
    job = client.submit([{"role": "user", "content": "one two"}], max_tokens=2, policy="edge_only")
    assert client.result(job.id, timeout_s=20).text == "two one "
    assert client.job(job.id).status == "succeeded"


def test_what_was_wrong_is_said_with_its_field(client):
    with pytest.raises(InvalidRequest, match="max_tokens") as refusal:
        client.infer("alpha", max_tokens=-1)
    assert refusal.value.problem.errors[0].field == "max_tokens"
    with pytest.raises(NotFound):
        client.job("nothing")
    with pytest.raises(NotFound):
        list(client.events("nothing"))
    with pytest.raises(JobFailed, match="breaks"):
        client.infer("break")


def test_a_wait_ends_in_time_and_the_job_can_be_cancelled(client):
    job = client.submit("forever")
    with pytest.raises(NotInTime):
        client.result(job.id, timeout_s=0.2)
    assert client.cancel(job.id).status == "cancelled"
    with pytest.raises(JobCancelled):
        client.result(job.id, timeout_s=20)


def test_events_tell_what_became_of_a_prompt(client):
    events = list(client.stream("unsure beta", max_tokens=4))
    assert any(isinstance(event, Decision) and event.escalated for event in events)
    assert isinstance(events[-1], Done)
    assert events[-1].result.text == "beta unsure BETA unsure "


def test_many_prompts_keep_their_order_and_their_bound(client):
    prompts = [f"word{number}" for number in range(30)]
    answers = list(client.infer_many(prompts, concurrency=5, max_tokens=1))
    assert [answer.text for answer in answers] == [f"{prompt} " for prompt in prompts]


def test_one_client_serves_many_threads_and_counts_for_all(system):
    with Client(system.url) as client:
        threads = [threading.Thread(target=client.infer, args=("alpha",)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        with pytest.raises(InvalidRequest):
            client.infer("alpha", temperature=9)
        seen = client.stats()
    assert (seen.requests, seen.errors, seen.retries) == (9, 1, 0)
    assert 0 < seen.p50_latency_ms <= seen.p90_latency_ms <= seen.p99_latency_ms


def test_a_gateway_that_is_not_there_is_named_after_all_tries():
    rule = RetryRule(max_retries=2, first_delay_s=0.01)
    with Client(f"http://127.0.0.1:{free_port()}", retries=rule) as client:
        with pytest.raises(Unreachable, match="tries: 3"):
            client.infer("alpha")
        assert (client.stats().retries, client.stats().errors) == (2, 1)


class CutsEveryAnswer(httpx.BaseTransport):
    """Lets two chunks of each event stream through, then breaks it."""

    def __init__(self):
        self._inner = httpx.HTTPTransport()
        self.num_cut = 0

    def close(self):
        self._inner.close()

    def handle_request(self, request):
        response = self._inner.handle_request(request)
        if request.url.path.endswith("/events") and response.status_code == 200:
            return httpx.Response(200, headers=response.headers, stream=self._Cut(self, response))
        return response

    class _Cut(httpx.SyncByteStream):
        def __init__(self, transport, response):
            self._transport, self._response = transport, response

        def __iter__(self):
            for number, chunk in enumerate(self._response.iter_raw()):
                if number == 2:
                    self._transport.num_cut += 1
                    raise httpx.ReadError("cut by the test")
                yield chunk

        def close(self):
            self._response.close()


def test_a_stream_that_is_cut_again_and_again_goes_on_where_it_was(system, client):
    cutting = CutsEveryAnswer()
    with Client(system.url, transport=cutting, retries=RetryRule(max_retries=10, first_delay_s=0.01)) as cut:
        job = cut.submit("unsure beta slow", max_tokens=6)
        told = list(cut.events(job.id))
    assert cutting.num_cut > 0
    assert told == list(client.events(job.id))


def test_the_asynchronous_client_does_the_same(system, tmp_path):
    async def talk():
        async with AsyncClient(system.url) as client:
            assert (await client.infer("unsure beta", max_tokens=4)).acceptance_rate == 0.75
            job = await client.submit("forever")
            with pytest.raises(NotInTime):
                await client.result(job.id, timeout_s=0.2)
            assert (await client.cancel(job.id)).status == "cancelled"
            with pytest.raises(JobCancelled):
                await client.result(job.id)
            with pytest.raises(NotFound):
                await client.job("nothing")
            events = [event async for event in client.stream("unsure beta", max_tokens=4)]
            assert isinstance(events[-1], Done)
            prompts = [f"word{number}" for number in range(20)]
            answers = [answer.text async for answer in client.infer_many(prompts, concurrency=6, max_tokens=1)]
            assert answers == [f"{prompt} " for prompt in prompts]
            assert (await client.system()).counters["accepted"] >= 23
            lines = tmp_path / "in.jsonl"
            body = {"prompt": "one two", "max_tokens": 1}
            lines.write_text(json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/jobs", "body": body}))
            batch = await client.start_batch(lines)
            batch = await client.wait_for_batch(batch.id)
            assert (await client.cancel_batch(batch.id)).status == "completed"
            await client.download(batch.output_file_id, tmp_path / "out.jsonl")
            assert json.loads((tmp_path / "out.jsonl").read_text())["custom_id"] == "a"
            return client.stats()

    seen = asyncio.run(talk())
    assert (seen.requests, seen.retries) == (23, 0)
