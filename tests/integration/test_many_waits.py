"""Far more waits at once than the gateway has threads: all are accepted, and nobody is told that Redis is away."""

import asyncio
from collections import Counter

import httpx
import pytest

#: Waits at once.
MANY = 600


async def statuses(url: str, ask) -> Counter[int]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120, trust_env=False) as client:
        answers = await asyncio.gather(*(ask(client, number) for number in range(MANY)))
    for answer in answers:
        assert "Redis" not in answer.text
    return Counter(answer.status_code for answer in answers)


def submit(client, number):
    return client.post("/v1/jobs?wait=30", json={"prompt": f"gamma {number}", "max_tokens": 2})


def chat(client, number):
    messages = [{"role": "user", "content": f"gamma {number}"}]
    return client.post("/v1/chat/completions", json={"model": "firstdraft", "messages": messages, "max_tokens": 2})


@pytest.mark.parametrize(("ask", "expected"), [(submit, {200, 202}), (chat, {200, 503})])
def test_six_hundred_waits_at_once(system, ask, expected):
    """503 only where a wait is all that there is to answer with, and then with the stated limit of streams."""
    counts = asyncio.run(statuses(system.url, ask))
    assert counts.keys() <= expected
    assert counts[200] >= 224
    said = system.gateway.log.read_text()
    assert "redis_away" not in said
    assert "connections_used_up" not in said
