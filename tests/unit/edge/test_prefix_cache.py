from hypothesis import given
from hypothesis import strategies as st
from naive_cells import NaiveCells

from workers.edge.prefix_cache import PrefixCache

NUM_CELLS = 24


def new_cache(cells, *, enabled=True, num_cells=NUM_CELLS, num_sequences=4):
    return PrefixCache(cells, num_cells=num_cells, num_sequences=num_sequences, bytes_per_cell=10, enabled=enabled)


def compute(cache, cells, sequence, tokens):
    done = cache.computed(sequence)
    assert cache.make_room(len(tokens) - done)
    cells.write(sequence, done, tokens[done:])
    cache.grow(sequence, len(tokens) - done)
    cache.attach(sequence, tokens)


def serve(cache, cells, tokens, *, shared=True, keep=True):
    sequence = cache.open(tokens, shared=shared, headroom=0)
    spared = cache.computed(sequence)
    compute(cache, cells, sequence, tokens)
    cache.close(sequence, tokens, keep=keep)
    return spared


actions = st.lists(
    st.tuples(
        st.sampled_from(["open", "compute", "close", "catch_up"]),
        st.integers(0, 3),
        st.lists(st.integers(0, 2), min_size=2, max_size=10),
        st.booleans(),
    ),
    max_size=40,
)


class World:
    """Requests that a cache serves, and the cells that they really hold."""

    def __init__(self, *, enabled):
        self.cells, self.active = NaiveCells(), {}
        self.cache = new_cache(self.cells, enabled=enabled)

    def do(self, action, pick, tokens, flag):
        if action == "open":
            sequence = self.cache.open(tokens, shared=flag, headroom=0)
            if sequence is not None:
                self.active[sequence] = tokens
        elif self.active:
            sequence = sorted(self.active)[pick % len(self.active)]
            getattr(self, action)(sequence, self.active[sequence], flag)

    def compute(self, sequence, own, flag):
        done = self.cache.computed(sequence)
        step = min(2, len(own) - done)
        if not self.cache.make_room(step):
            return
        self.cells.write(sequence, done, own[done : done + step])
        self.cache.grow(sequence, step)
        if flag:
            self.cache.attach(sequence, own)

    def catch_up(self, sequence, own, _flag):
        self.cache.catch_up(sequence, own)

    def close(self, sequence, own, flag):
        self.cache.close(sequence, own, keep=flag)
        del self.active[sequence]


@given(actions, st.booleans())
def test_the_count_of_cells_is_the_true_one_and_every_sequence_holds_its_own_tokens(actions, enabled):
    world = World(enabled=enabled)
    for action in actions:
        world.do(*action)
        assert world.cache.free_cells == NUM_CELLS - len(world.cells.cells) >= 0
        for sequence, own in world.active.items():
            assert world.cells.tokens_of(sequence) == own[: world.cache.computed(sequence)]
        for sequence in world.cache.idle:
            assert tuple(world.cells.tokens_of(sequence)) == world.cache.tokens_of(sequence)


def test_a_prompt_reuses_the_longest_prefix_but_for_its_last_token():
    cells = NaiveCells()
    cache = new_cache(cells)
    assert serve(cache, cells, [1, 2, 3, 4]) == 0
    assert serve(cache, cells, [1, 2, 3, 4]) == 3
    assert serve(cache, cells, [1, 2, 9]) == 2
    statistics = cache.statistics()
    assert (statistics.hits, statistics.misses, statistics.tokens_saved) == (2, 1, 5)
    assert (statistics.tokens, statistics.bytes, statistics.entries) == (5, 50, 2)


def test_a_longer_answer_replaces_the_prefix_that_it_grew_from():
    cells = NaiveCells()
    cache = new_cache(cells)
    serve(cache, cells, [1, 2])
    serve(cache, cells, [1, 2, 3])
    assert [cache.tokens_of(sequence) for sequence in cache.idle] == [(1, 2, 3)]


def test_what_two_requests_computed_at_once_is_kept_once():
    cells = NaiveCells()
    cache = new_cache(cells)
    first, second = (cache.open([1, 2, 3], shared=True, headroom=0) for _ in range(2))
    for sequence in (first, second):
        compute(cache, cells, sequence, [1, 2, 3])
    assert len(cells.cells) == 3


def test_the_least_recently_used_leaf_goes_first():
    cells = NaiveCells()
    cache = new_cache(cells, num_cells=100)
    for start in (1, 2, 3):
        serve(cache, cells, [start] * 30)
    serve(cache, cells, [1] * 30 + [7])
    assert cache.make_room(35)
    assert {cache.tokens_of(sequence)[0] for sequence in cache.idle} == {1, 3}


def test_a_long_idle_prefix_is_cut_from_its_end_and_only_as_far_as_needed():
    cells = NaiveCells()
    cache = new_cache(cells, num_cells=200)
    serve(cache, cells, list(range(150)))
    assert cache.make_room(90)
    assert cache.tokens_of(cache.idle[0]) == tuple(range(110))
    assert cache.statistics().evictions == 1


def test_a_request_that_does_not_share_neither_reads_nor_feeds_the_cache():
    cells = NaiveCells()
    cache = new_cache(cells)
    serve(cache, cells, [1, 2, 3])
    assert serve(cache, cells, [1, 2, 3], shared=False) == 0
    serve(cache, cells, [4, 5], shared=False)
    assert len(cells.cells) == 3


def test_a_cache_that_is_off_holds_nothing_after_a_request():
    cells = NaiveCells()
    cache = new_cache(cells, enabled=False)
    assert serve(cache, cells, [1, 2, 3]) == serve(cache, cells, [1, 2, 3]) == 0
    assert cells.cells == []
    assert cache.statistics().hits == cache.statistics().misses == 0


def test_a_prompt_that_does_not_fit_beside_the_active_ones_is_not_opened():
    cells = NaiveCells()
    cache = new_cache(cells)
    first = cache.open([1] * 20, shared=True, headroom=0)
    compute(cache, cells, first, [1] * 20)
    assert cache.open([2] * 5, shared=True, headroom=0) is None
    assert cache.open([2] * 4, shared=True, headroom=0) is not None


def test_without_an_unused_sequence_the_oldest_idle_prefix_makes_way():
    cells = NaiveCells()
    cache = new_cache(cells, num_sequences=2)
    for start in (1, 2, 3):
        serve(cache, cells, [start] * 2)
    assert [cache.tokens_of(sequence) for sequence in cache.idle] == [(2, 2), (3, 3)]
