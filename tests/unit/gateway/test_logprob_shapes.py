import json

import pytest

from gateway.openai.shapes import Answer, ChatDialect, TextDialect
from schemas.policy import Tier
from schemas.results import FinishReason, Models, Result, RivalLogprob, TokenLogprob, Usage

#: "é🙂!" in tokens, the emoji in two halves.
PIECES = ["é".encode(), b"\xf0\x9f", b"\x99\x82", b"!"]
TEXT = "é🙂!"


def entry(raw: bytes) -> TokenLogprob:
    rivals = (
        RivalLogprob(token="<|im_end|>", bytes=(), token_id=2, logprob=-2.0),
        RivalLogprob(token="\ufffd", bytes=(0xF0,), token_id=3, logprob=-3.0),
        RivalLogprob(token="\ufffd", bytes=(0xE6, 0xBC), token_id=4, logprob=-4.0),
    )
    return TokenLogprob(token=raw.decode(errors="replace"), bytes=tuple(raw), token_id=1, logprob=-0.5, top=rivals)


def answer(text: str, *pieces: bytes) -> Answer:
    result = Result(
        text=text,
        finish_reason=FinishReason.STOP,
        tier=Tier.EDGE,
        policy="edge_only",
        usage=Usage(),
        models=Models(edge="m"),
        logprobs=tuple(map(entry, pieces)),
    )
    return Answer("job", result)


def chat(told: Answer, *, logprobs: bool = True):
    whole = ChatDialect("id", 1, "m", logprobs=logprobs).whole([told])
    return json.loads(whole.model_dump_json())["choices"][0]["logprobs"]


def test_a_chats_tokens_have_their_own_bytes_and_a_control_token_none():
    content = chat(answer(TEXT, *PIECES))["content"]
    assert b"".join(bytes(token["bytes"]) for token in content) == TEXT.encode()
    assert [token["token"] for token in content] == ["é", "\ufffd", "\ufffd\ufffd", "!"]
    rivals = content[0]["top_logprobs"]
    assert [rival["bytes"] for rival in rivals] == [None, [0xF0], [0xE6, 0xBC]]
    assert rivals[0]["token"] == "<|im_end|>"


@pytest.mark.parametrize("echo", ["", "Say 🙂: "])
def test_a_completions_offsets_are_those_of_the_characters_in_which_its_tokens_begin(echo):
    dialect = TextDialect("id", 1, "m", (echo,) if echo else (), logprobs=True)
    for choice in (
        dialect.whole([answer(TEXT, *PIECES)]).choices[0],
        dialect.closing(0, answer(TEXT, *PIECES), TEXT).choices[0],
    ):
        assert choice.logprobs is not None
        assert choice.logprobs.text_offset == tuple(len(echo) + offset for offset in (0, 1, 1, 2))
        assert choice.logprobs.tokens == ("é", "bytes:\\xf0\\x9f", "bytes:\\x99\\x82", "!")
        # No rival hides another that is a part of a character too.
        assert choice.logprobs.top_logprobs[0] == {"<|im_end|>": -2.0, "bytes:\\xf0": -3.0, "bytes:\\xe6\\xbc": -4.0}


def test_offsets_and_tokens_of_whole_characters_cut_the_text():
    told = answer("one two é", b"one", b" two", " é".encode())
    logprobs = TextDialect("id", 1, "m", logprobs=True).whole([told]).choices[0].logprobs
    assert logprobs is not None
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert "one two é"[offset:].startswith(token)


def test_the_log_probabilities_of_an_empty_answer_are_empty_and_those_that_are_missing_are_null():
    assert chat(answer("")) == {"content": [], "refusal": None}
    assert chat(answer(""), logprobs=False) is None
    # A remote cloud's that did not join to its text.
    assert chat(answer("text")) is None
    empty = TextDialect("id", 1, "m", logprobs=True).whole([answer("")]).choices[0].logprobs
    assert empty is not None
    assert (empty.tokens, empty.text_offset) == ((), ())
