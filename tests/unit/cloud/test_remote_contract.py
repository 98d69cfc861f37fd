"""The remote engine keeps the contract of all engines, with a server that is a function; tests/e2e has a real one."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from config.settings import read_settings
from tests.engine_contract import CloudContract
from workers.cloud.remote import RemoteEngine

#: Characters that the server's context holds, and seconds that it takes for a word.
CONTEXT, WORD_S = 1_000, 0.003


class Answer(httpx.AsyncByteStream):
    """A stream of as many words as the request allows, at most 8 for a short question."""

    def __init__(self, body: dict[str, Any]) -> None:
        asked = body["max_tokens"]
        self._num_words = 0 if "logit_bias" in body else asked if asked > 100 else min(asked, 8)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self._num_words):
            await asyncio.sleep(WORD_S)
            yield line({"choices": [{"delta": {"content": "word "}}]})
        usage = {"prompt_tokens": 9, "completion_tokens": self._num_words or 1}
        yield line({"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": usage})
        yield b"data: [DONE]\n\n"


def line(chunk: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(chunk)}\n\n".encode()


async def serve(request: httpx.Request) -> httpx.Response:
    if request.method == "GET":
        return httpx.Response(200, json={"data": []})
    body = json.loads(request.content)
    if len(body["messages"][-1]["content"]) > CONTEXT:
        return httpx.Response(400, text="This model's maximum context length is 1000 characters")
    if any(int(token) > CONTEXT for token in body.get("logit_bias", ())):
        return httpx.Response(400, text="no such token")
    return httpx.Response(200, stream=Answer(body))


class TestRemoteEngine(CloudContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Iterator[RemoteEngine]:
        remote = {"base_url": "http://cloud.test/v1", "model": "large"}
        settings = read_settings(cloud={"engine": "openai", "openai": remote}).cloud
        engine = RemoteEngine(settings, httpx.MockTransport(serve))
        engine.start()
        yield engine
        engine.close()
