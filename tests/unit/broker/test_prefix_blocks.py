from hypothesis import given
from hypothesis import strategies as st

from broker.prefix_blocks import HASH_BYTES, block_hashes, canonical_bytes
from schemas.requests import Message

MESSAGES = st.lists(
    st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=st.text(min_size=1, max_size=80)),
    min_size=1,
    max_size=6,
)


def said(*contents: str) -> list[Message]:
    return [Message(role="user", content=content) for content in contents]


def hashes(messages, model="m", namespace="owner:alice", block_bytes=16):
    return block_hashes(messages, model=model, namespace=namespace, block_bytes=block_bytes)


@given(MESSAGES, MESSAGES)
def test_a_longer_conversation_begins_with_the_hashes_of_the_shorter(begun, more):
    shorter = hashes(begun)
    assert hashes([*begun, *more])[: len(shorter)] == shorter


@given(MESSAGES)
def test_each_full_block_has_a_hash_of_its_own(messages):
    found = hashes(messages)
    assert len(found) == len(canonical_bytes(messages)) // 16
    assert len(set(found)) == len(found)
    assert all(len(one) == HASH_BYTES for one in found)


@given(MESSAGES, MESSAGES)
def test_only_equal_conversations_have_equal_bytes(one, other):
    assert (canonical_bytes(one) == canonical_bytes(other)) == (one == other)


def test_what_differs_in_one_block_differs_in_all_that_follow():
    one, other = hashes(said("a" * 40, "b" * 40)), hashes(said("a" * 20 + "x" + "a" * 19, "b" * 40))
    assert [a == b for a, b in zip(one, other, strict=True)] == [True] + [False] * (len(one) - 1)


@given(MESSAGES, st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_another_model_and_namespace_share_no_hash_however_they_are_spelled(messages, one, other):
    found = [set(hashes(messages, model=model, namespace=namespace)) for model, namespace in (one, other)]
    assert found[0] == found[1] if one == other else not found[0] & found[1]


def test_another_model_namespace_or_block_size_shares_nothing():
    messages = said("why is the sky blue" * 20)
    own = set(hashes(messages))
    assert not own & set(hashes(messages, model="another"))
    assert not own & set(hashes(messages, namespace="owner:bob"))
    assert not own & set(hashes(messages, block_bytes=32))
