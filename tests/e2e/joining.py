"""What is asked of both tiers' engines for log-probabilities that join to the text."""

from collections.abc import Sequence

from schemas.results import TokenLogprob

#: Answered with characters of several tokens each.
EMOJI = "Repeat this exactly: 🙂🎉 naïve 東京 👩‍👩‍👧 🏴"
QUESTION = "What is the capital of France?"
#: Prompts and options: an end of text, a limit, stop strings within and at the ends of tokens, and emoji cut by limits.
JOINING = [
    (QUESTION, {"max_tokens": 64}),
    (QUESTION, {"max_tokens": 3}),
    (QUESTION, {"stop": ("apital",), "max_tokens": 64}),
    (QUESTION, {"stop": (" is", "xyz"), "max_tokens": 64}),
    (QUESTION, {"stop": ("T",), "max_tokens": 64}),
    *[(EMOJI, {"max_tokens": limit}) for limit in (1, 2, 3, 4, 5, 6, 7, 24)],
    (EMOJI, {"max_tokens": 24, "temperature": 1.8, "seed": 3}),
    (EMOJI, {"max_tokens": 24, "temperature": 2.0, "seed": 4, "stop": ("a", "é", "\ufffd")}),
]


def check_joining(logprobs: Sequence[TokenLogprob], text: str, token_ids: Sequence[int]) -> None:
    """Each entry is a token's with a part in the text, and their bytes are the text."""
    raw = b"".join(bytes(entry.bytes) for entry in logprobs)
    assert raw.decode(errors="replace") == text
    if "\ufffd" not in text:
        assert raw == text.encode()
    assert all(entry.bytes for entry in logprobs)
    left = iter(token_ids)
    assert all(entry.token_id in left for entry in logprobs), "not in the order of the answer's tokens"
    # Without halves of characters the strings join as well.
    if not any("\ufffd" in entry.token for entry in logprobs):
        assert "".join(entry.token for entry in logprobs) == text
