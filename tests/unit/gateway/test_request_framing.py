"""Where a request ends: by table, and byte by byte against gunicorn's own parser."""

import re

import pytest
from gunicorn.config import Config
from gunicorn.http import RequestParser
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.connections.framing import MAX_HEAD_BYTES, Arrived, Framing

MAX_BODY = 1_000
GET = b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n"
POST = b"POST /v1/jobs HTTP/1.1\r\nHost: here\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def come_of(raw: bytes) -> Arrived:
    return Framing(MAX_BODY).look(bytearray(raw))


@pytest.mark.parametrize(
    ("raw", "come"),
    [
        (b"", Arrived.PART),
        (b"GET /healthz HTTP/1.1\r\nHost: he", Arrived.PART),
        (GET, Arrived.WHOLE),
        (GET + b"GET /", Arrived.WHOLE),
        (POST + b"Content-Length: 3\r\n\r\n", Arrived.PART),
        (POST + b"content-LENGTH:3 \r\n\r\n{}", Arrived.PART),
        (POST + b"Content-Length: 3\r\n\r\n{ }", Arrived.WHOLE),
        (POST + b"Content-Length: 0\r\n\r\n", Arrived.WHOLE),
        (POST + b"X-Content-Length: 9\r\n\r\n", Arrived.WHOLE),
        (POST + b"Content-Length: 1000\r\n\r\n", Arrived.PART),
        (POST + b"Content-Length: 1001\r\n\r\n", Arrived.LARGE),
        (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", Arrived.WHOLE),  # refused
        (POST + b"Content-Length: many\r\n\r\n", Arrived.WHOLE),  # refused
        (POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n", Arrived.PART_ON_DEMAND),
        (POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n{ }", Arrived.WHOLE),
        (CHUNKED, Arrived.PART),
        (CHUNKED + b"3\r\nab", Arrived.PART),
        (CHUNKED + b"3\r\nabc\r\n", Arrived.PART),
        (CHUNKED + b"3\r\n0\r\n\r\n", Arrived.PART),  # what looks like an end is text
        (CHUNKED + b"3\r\nabc\r\n0\r\n", Arrived.PART),
        (CHUNKED + b"3;name=value\r\nabc\r\n0\r\n\r\n", Arrived.WHOLE),
        (CHUNKED + b"0\r\nTrailer: 1\r\n", Arrived.PART),
        (CHUNKED + b"0\r\nTrailer: 1\r\n\r\n", Arrived.WHOLE),
        (CHUNKED + b"many\r\n", Arrived.WHOLE),  # refused
        (CHUNKED + b"-1\r\n", Arrived.WHOLE),  # refused
        (CHUNKED + b"FFFFFFF\r\nab", Arrived.PART),  # announced is not sent
        (CHUNKED + b"FFFFFFF\r\n" + b"a" * 1_001, Arrived.LARGE),
        (CHUNKED + b"1\r\na\r\n" * 2_000, Arrived.BODY_TOO_LARGE),
        (CHUNKED + b"1" * 2_000, Arrived.WHOLE),  # refused
        (b"GET / HTTP/1.1\nHost: here\n\n", Arrived.WHOLE),  # refused: no carriage returns
        (b"\n", Arrived.WHOLE),  # refused
        (b"GET / HTTP/1.1\r\nX: " + b"a" * MAX_HEAD_BYTES, Arrived.HEAD_TOO_LARGE),
    ],
)
def test_how_much_has_come(raw, come):
    assert come_of(raw) is come


def test_the_expectation_that_was_answered_is_not_answered_again():
    received, framing = bytearray(POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n"), Framing(MAX_BODY)
    assert framing.look(received) is Arrived.PART_ON_DEMAND
    assert b"Expect" not in received
    received += b"{ "
    assert framing.look(received) is Arrived.PART
    received += b"}"
    assert framing.look(received) is Arrived.WHOLE


bodies = st.binary(max_size=MAX_BODY // 2)


@st.composite
def requests(draw):
    body = draw(bodies)
    if draw(st.booleans()):
        return POST + b"Content-Length: %d\r\n\r\n" % len(body) + body, body
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=4)))
    chunks = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True) if start < end]
    framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return CHUNKED + framed + b"0\r\n" + draw(st.sampled_from([b"", b"X-Trailer: 1\r\n"])) + b"\r\n", body


@given(requests(), st.integers(1, 40))
def test_a_request_is_whole_exactly_when_gunicorns_parser_needs_no_more(request, step):
    raw, body = request
    framing, received = Framing(MAX_BODY), bytearray()
    for start in range(0, len(raw), step):
        assert start == 0 or framing.look(received) is Arrived.PART
        received += raw[start : start + step]
    assert framing.look(received) is Arrived.WHOLE
    assert next(RequestParser(Config(), [bytes(received)], ("127.0.0.1", 1))).body.read() == body


@given(st.binary(max_size=60), st.integers(1, 20))
def test_whatever_comes_is_never_an_error_and_may_come_in_any_pieces(noise, step):
    raw = POST + noise
    framing, received, seen = Framing(MAX_BODY), bytearray(), Arrived.PART
    for start in range(0, len(raw), step):
        received += raw[start : start + step]
        seen = framing.look(received)
        if seen is not Arrived.PART:
            return
    assert seen is come_of(raw)
    assert not re.search(rb"(?<!\r)\n", raw)
