from hypothesis import given
from hypothesis import strategies as st

from workers.runtime.vocabulary import fingerprint

TEXTS = st.lists(st.text(max_size=5).filter(lambda text: "\u2581" not in text), max_size=20)


@given(TEXTS, TEXTS)
def test_fingerprints_are_equal_exactly_for_equal_vocabularies(one, other):
    assert (fingerprint(one) == fingerprint(other)) == (one == other)


def test_moving_a_border_between_tokens_changes_the_fingerprint():
    assert fingerprint(["ab", "c"]) != fingerprint(["a", "bc"])


def test_a_fingerprint_is_32_hex_digits():
    assert len(fingerprint(["a"])) == 32
    assert int(fingerprint(["a"]), 16) >= 0


def test_two_spellings_of_a_space_are_one():
    assert fingerprint(["\u2581the", "\u2581\u2581"]) == fingerprint(["\u2581the", "  "])
