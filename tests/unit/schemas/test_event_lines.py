import asyncio
import itertools
import json

import httpx
import hypothesis.strategies as st
from hypothesis import given

from firstdraft import AsyncClient, Client
from schemas.event_lines import EventLines
from schemas.events import Cancelled, DraftText

#: Characters at which `str.splitlines` ends a line and an event stream does not.
SEPARATORS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


@given(st.lists(st.text().map(lambda line: line.replace("\n", "").rstrip("\r"))), st.lists(st.integers(0, 50)))
def test_lines_are_the_same_wherever_the_stream_is_cut(lines, cuts):
    stream = "".join(f"{line}\r\n" if place % 2 else f"{line}\n" for place, line in enumerate(lines)).encode()
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    collected, told = EventLines(), []
    for start, end in itertools.pairwise(places):
        told += collected.take(stream[start:end])
    assert told == lines
    assert collected.last() == []


def test_what_comes_after_the_last_line_is_told_when_asked_for():
    collected = EventLines()
    assert collected.take(b"a\nb") == ["a"]
    assert collected.last() == ["b"]


def stream_of(text):
    """A gateway that tells of one draft and its end."""
    events = [DraftText(position=0, text=text), Cancelled()]
    told = [f"id: {n}-0\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n" for n, event in enumerate(events, 1)]

    def answer(request: httpx.Request) -> httpx.Response:
        assert "last-event-id" not in request.headers, "the stream was torn"
        return httpx.Response(200, content="".join(told).encode(), headers={"content-type": "text/event-stream"})

    return events, httpx.MockTransport(answer)


def test_a_client_reads_texts_with_every_separator():
    events, gateway = stream_of(f"a{SEPARATORS}b")
    with Client("http://gateway.test", transport=gateway) as client:
        assert list(client.events("j1")) == events


def test_the_asynchronous_client_too():
    events, gateway = stream_of(f"a{SEPARATORS}b")

    async def read():
        async with AsyncClient("http://gateway.test", transport=gateway) as client:
            return [event async for event in client.events("j1")]

    assert asyncio.run(read()) == events


def test_json_keeps_some_of_them_as_they_are():
    kept = [one for one in SEPARATORS if one in json.dumps(one, ensure_ascii=False)]
    assert kept == ["\x85", "\u2028", "\u2029"]
