from hypothesis import given
from hypothesis import strategies as st
from naive_cells import NaiveCells

from workers.edge.prefix_cache import PrefixCache
from workers.edge.prefix_offload import OffloadedPrefixes

NUM_CELLS = 24


def new_cache(cells, *, enabled=True, num_cells=NUM_CELLS, num_sequences=5, num_offloaded=100):
    offloaded = OffloadedPrefixes(num_offloaded)
    return PrefixCache(cells, offloaded, num_cells=num_cells, num_sequences=num_sequences, enabled=enabled)


def compute(cache, cells, sequence, tokens):
    done = sequence.num_computed
    assert cache.free_cells >= len(tokens) - done
    cells.write(sequence.id, done, tokens[done:])
    cache.advance(sequence, len(tokens) - done)
    cache.index(sequence, tokens)


def allocate(cache, tokens, *, shared=True, namespace="alice"):
    return cache.allocate(tokens, namespace=namespace if shared else None, headroom=0)


def serve(cache, cells, tokens, *, shared=True, namespace="alice"):
    sequence = allocate(cache, tokens, shared=shared, namespace=namespace)
    spared = sequence.num_computed
    assert cells.tokens_of(sequence.id) == tokens[:spared]
    compute(cache, cells, sequence, tokens)
    cache.free(sequence, tokens)
    assert cells.cells == []
    return spared


actions = st.lists(
    st.tuples(
        st.sampled_from(["allocate", "compute", "free", "extend"]),
        st.integers(0, 3),
        st.lists(st.integers(0, 2), min_size=2, max_size=10),
        st.booleans(),
        st.sampled_from(["alice", "bob"]),
    ),
    max_size=40,
)


class World:
    """Requests that a cache serves, and the cells that they really use."""

    def __init__(self, *, enabled, num_offloaded):
        self.cells, self.active, self.namespaces = NaiveCells(), {}, {}
        self.cache = new_cache(self.cells, enabled=enabled, num_offloaded=num_offloaded)

    def do(self, action, pick, tokens, flag, namespace):
        if action == "allocate":
            sequence = allocate(self.cache, tokens, shared=flag, namespace=namespace)
            if sequence is not None:
                self.active[sequence], self.namespaces[sequence.id] = tokens, namespace
        elif self.active:
            sequence = sorted(self.active, key=lambda active: active.id)[pick % len(self.active)]
            getattr(self, action)(sequence, self.active[sequence], flag)

    def compute(self, sequence, own, flag):
        done = sequence.num_computed
        step = min(2, len(own) - done)
        if self.cache.free_cells < step:
            return
        self.cells.write(sequence.id, done, own[done : done + step])
        self.cache.advance(sequence, step)
        if flag:
            self.cache.index(sequence, own)

    def extend(self, sequence, own, _flag):
        self.cache.extend(sequence, own)

    def free(self, sequence, own, _flag):
        self.cache.free(sequence, own)
        del self.active[sequence]


@given(actions, st.booleans(), st.sampled_from([5, 12, 100]))
def test_the_count_of_cells_is_the_true_one_and_every_sequence_holds_its_own_tokens(actions, enabled, num_offloaded):
    world = World(enabled=enabled, num_offloaded=num_offloaded)
    for action in actions:
        world.do(*action)
        assert world.cache.free_cells == NUM_CELLS - len(world.cells.cells) >= 0
        for sequence, own in world.active.items():
            assert world.cells.tokens_of(sequence.id) == own[: sequence.num_computed]
        for _, _, sequences in world.cells.cells:
            assert len({world.namespaces[sequence_id] for sequence_id in sequences}) == 1
        assert world.cache.statistics().tokens <= num_offloaded


def test_a_prompt_reuses_the_longest_prefix_but_for_its_last_token():
    cells = NaiveCells()
    cache = new_cache(cells)
    assert serve(cache, cells, [1, 2, 3, 4]) == 0
    assert serve(cache, cells, [1, 2, 3, 4]) == 3
    assert serve(cache, cells, [1, 2, 9]) == 2
    assert serve(cache, cells, [1, 2, 9, 7]) == 3
    statistics = cache.statistics()
    assert (statistics.hits, statistics.misses, statistics.tokens_saved) == (3, 1, 8)
    assert (statistics.tokens, statistics.entries) == (6, 3)
    assert cache.cached_tokens("alice", [1, 2, 9, 8]) == 3
    assert cache.cached_tokens("bob", [1, 2, 9, 8]) == 0


def test_anothers_prompt_is_never_a_hit_whether_it_waits_or_is_in_flight():
    cells = NaiveCells()
    cache = new_cache(cells)
    serve(cache, cells, [1, 2, 3, 4])
    assert serve(cache, cells, [1, 2, 3, 4], namespace="bob") == 0
    first = allocate(cache, [1, 2, 3, 4])
    compute(cache, cells, first, [1, 2, 3, 4])
    other = allocate(cache, [1, 2, 3, 4, 5], namespace="carol")
    assert (other.num_computed, cache.extend(other, [1, 2, 3, 4, 5])) == (0, 0)
    compute(cache, cells, other, [1, 2, 3, 4, 5])
    assert len(cells.cells) == 9  # nothing is shared
    assert (cache.statistics().hits, cache.statistics().tokens_saved) == (1, 3)


@given(actions)
def test_what_others_do_changes_nothing_of_what_a_namespace_is_spared(actions):
    """With room enough for all: what is left to tell by is how full the cache is."""
    spared = []
    for others in (True, False):
        cells = NaiveCells()
        cache = new_cache(cells, num_cells=1_000, num_offloaded=10_000)
        seen = []
        for action, _, tokens, _, namespace in actions:
            if action == "allocate" and (others or namespace == "alice"):
                saved = serve(cache, cells, tokens, namespace=namespace)
                seen += [(saved, cache.cached_tokens("alice", tokens))] if namespace == "alice" else []
        spared.append(seen)
    assert spared[0] == spared[1]


def test_what_two_requests_computed_at_once_is_kept_once():
    cells = NaiveCells()
    cache = new_cache(cells)
    first, second = (allocate(cache, [1, 2, 3]) for _ in range(2))
    for sequence in (first, second):
        compute(cache, cells, sequence, [1, 2, 3])
    assert len(cells.cells) == 3


def test_a_request_in_flight_and_what_is_offloaded_are_joined():
    cells = NaiveCells()
    cache = new_cache(cells)
    serve(cache, cells, [1, 2, 3, 4, 5])
    first = allocate(cache, [1, 2, 9])
    second = allocate(cache, [1, 2, 3, 4, 8])
    assert (first.num_computed, second.num_computed) == (2, 4)
    assert len(cells.cells) == 4


def test_what_is_offloaded_and_does_not_fit_now_is_read_again():
    cells = NaiveCells()
    cache = new_cache(cells)
    serve(cache, cells, [1] * 20)
    other = allocate(cache, [2] * 10)
    compute(cache, cells, other, [2] * 10)
    assert allocate(cache, [1] * 12).num_computed == 0


def test_a_request_that_does_not_share_neither_reads_nor_feeds_the_cache():
    cells = NaiveCells()
    cache = new_cache(cells)
    serve(cache, cells, [1, 2, 3])
    assert serve(cache, cells, [1, 2, 3], shared=False) == 0
    serve(cache, cells, [4, 5], shared=False)
    assert cache.statistics().tokens == 3


def test_a_cache_that_is_off_holds_nothing_after_a_request():
    cells = NaiveCells()
    cache = new_cache(cells, enabled=False)
    assert serve(cache, cells, [1, 2, 3]) == serve(cache, cells, [1, 2, 3]) == 0
    statistics = cache.statistics()
    assert (statistics.tokens, statistics.hits, statistics.misses) == (0, 0, 0)


def test_a_prompt_that_does_not_fit_beside_the_active_ones_gets_no_cells():
    cells = NaiveCells()
    cache = new_cache(cells)
    first = allocate(cache, [1] * 20)
    compute(cache, cells, first, [1] * 20)
    assert allocate(cache, [2] * 5) is None
    assert allocate(cache, [2] * 4) is not None


def test_no_more_requests_get_cells_than_there_are_sequences():
    cache = new_cache(NaiveCells(), num_sequences=3)
    assert [allocate(cache, [1]) is None for _ in range(3)] == [False, False, True]
