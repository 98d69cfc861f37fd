import time

import pytest

from broker import keys, prefix_index
from broker.prefix_index import PrefixIndex

BLOCKS = [f"block{number:03}".encode() for number in range(40)]


@pytest.fixture
def index(redis_connection):
    return PrefixIndex(redis_connection, entry_ttl_s=60)


def test_nobody_holds_what_nobody_published(index):
    assert index.look_up(BLOCKS) == {}
    assert index.look_up([]) == {}


def test_each_member_holds_as_many_blocks_from_the_first_as_it_published(index):
    lengths = {"w1@a": 40, "w2@a": 17, "w3@a": 17, "w4@a": 1, "w5@a": 39}
    for member, length in lengths.items():
        index.update(member, BLOCKS[:length], ())
    assert index.look_up(BLOCKS) == lengths
    assert index.look_up(BLOCKS[:17]) == {member: min(length, 17) for member, length in lengths.items()}


def test_what_is_gone_is_not_held_any_more(index):
    index.update("w1@a", BLOCKS, ())
    index.update("w1@a", (), BLOCKS[10:])
    assert index.look_up(BLOCKS) == {"w1@a": 10}


def test_a_prompt_just_routed_counts_for_a_moment(index, monkeypatch):
    monkeypatch.setattr(prefix_index, "ROUTED_S", 0.2)
    index.expect("w1@a", BLOCKS[:5])
    assert index.look_up(BLOCKS) == {"w1@a": 5}
    time.sleep(0.3)
    assert index.look_up(BLOCKS) == {}


def test_what_a_worker_said_itself_outlives_what_was_expected(index, monkeypatch):
    monkeypatch.setattr(prefix_index, "ROUTED_S", 0.1)
    index.update("w1@a", BLOCKS[:3], ())
    index.expect("w1@a", BLOCKS[:5])
    time.sleep(0.2)
    assert index.look_up(BLOCKS) == {"w1@a": 3}


def test_entries_expire_where_nobody_renews_them(redis_connection):
    index = PrefixIndex(redis_connection, entry_ttl_s=60)
    index.update("w1@a", BLOCKS[:1], ())
    index.expect("w2@a", BLOCKS[1:2])
    lifetimes = [redis_connection.ttl(keys.prefix_block(block.hex())) for block in BLOCKS[:2]]
    assert 0 < lifetimes[1] <= prefix_index.ROUTED_S < lifetimes[0] <= 60


def test_what_dead_members_left_is_swept_away_by_one_process_at_a_time(index, redis_connection):
    index.update("dead@a", BLOCKS, ())
    index.update("alive@a", BLOCKS[:20], ())
    assert index.sweep(lambda: {"alive@a"}) > 0
    assert PrefixIndex(redis_connection, 60).sweep(lambda: {"alive@a"}) == 0
    redis_connection.delete(keys.prefix_sweep())
    while index.look_up(BLOCKS).get("dead@a"):
        index.sweep(lambda: {"alive@a"})
        redis_connection.delete(keys.prefix_sweep())
    assert index.look_up(BLOCKS) == {"alive@a": 20}


def test_a_worker_of_another_life_is_another_member(index):
    index.update("w1@first", BLOCKS, ())
    index.update("w1@second", BLOCKS[:2], ())
    assert index.look_up(BLOCKS)["w1@second"] == 2
