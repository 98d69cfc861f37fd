from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.edge.scheduler import MIN_SHARED_TOKENS, ScheduledTokens, Scheduler

STEP_TOKENS = 16
SLOTS = 4
NUM_CELLS = 64


@dataclass(eq=False)
class Request:
    arrival: int
    tokens: list[int]
    to_write: int = 3
    computed: int = 0
    cache_namespace: str | None = None
    written: int = field(default=0)

    @property
    def pending(self):
        return len(self.tokens) - self.computed


def distinct_prompt(arrival, length):
    return [arrival * 1000 + i for i in range(length)]


class World:
    """Runs what the scheduler decides against a number of cells, the way the engine does."""

    def __init__(self, requests):
        self.scheduler = Scheduler(slots=SLOTS, step_tokens=STEP_TOKENS)
        self.requests, self.finished, self.steps = requests, [], 0

    @property
    def free(self):
        return NUM_CELLS - sum(request.computed for request in self.scheduler.running)

    def step(self, prompt_tokens):
        self.scheduler.admit(lambda request: len(request.tokens) <= self.free)
        scheduled = self.scheduler.schedule(prompt_tokens)
        while sum(entry.num_tokens for entry in scheduled) > self.free:
            preempted = self.scheduler.preempt()
            assert preempted is not None
            assert preempted.arrival == max(r.arrival for r in [*self.scheduler.running, preempted])
            preempted.computed = 0
            scheduled = self.scheduler.schedule(prompt_tokens)
        assert 0 < sum(entry.num_tokens for entry in scheduled) <= STEP_TOKENS
        assert len(self.scheduler.running) <= SLOTS
        for entry in scheduled:
            self._advance(entry)
        self.steps += 1

    def _advance(self, entry):
        request = entry.sequence
        assert 0 < entry.num_tokens <= request.pending
        request.computed += entry.num_tokens
        if request.pending == 0:
            request.written += 1
            request.tokens.append(-request.arrival)
        if request.written == request.to_write:
            self.scheduler.remove(request)
            self.finished.append(request)


@given(
    st.lists(st.tuples(st.integers(1, 55), st.integers(1, 8), st.integers(0, 30)), min_size=1, max_size=20),
    st.integers(1, STEP_TOKENS),
)
def test_every_request_ends_within_bounded_steps_and_no_step_exceeds_its_budget(orders, prompt_tokens):
    requests = [
        Request(arrival, distinct_prompt(arrival, length), to_write)
        for arrival, (length, to_write, _) in enumerate(orders)
    ]
    starts = [start for _, _, start in orders]
    world = World(requests)
    bound = 31 + 4 * sum(len(request.tokens) + request.to_write for request in requests) * SLOTS
    for step in range(bound):
        for request, start in zip(requests, starts, strict=True):
            if start == step:
                world.scheduler.add(request)
        if world.scheduler.running or world.scheduler.waiting:
            world.step(prompt_tokens)
        in_system = {*world.scheduler.running, *world.scheduler.waiting, *world.finished}
        assert in_system == {r for r, start in zip(requests, starts, strict=True) if start <= step}
    assert set(world.finished) == set(requests)


def test_waiting_requests_get_slots_in_the_order_of_arrival_even_if_a_later_one_would_fit():
    scheduler = Scheduler(slots=4, step_tokens=16)
    large, small = Request(1, [0] * 50), Request(2, [0])
    scheduler.add(small)
    scheduler.add(large)
    scheduler.admit(lambda request: request is small)
    assert scheduler.running == []
    assert scheduler.waiting == [large, small]


def test_those_who_write_are_in_every_step_beside_a_long_prompt():
    scheduler = Scheduler(slots=4, step_tokens=16)
    writers = [Request(i, [1, 2], computed=1) for i in range(3)]
    prompt = Request(9, distinct_prompt(9, 100))
    for request in [*writers, prompt]:
        scheduler.add(request)
    scheduler.admit(lambda _: True)
    assert scheduler.schedule(8) == [*(ScheduledTokens(writer, 1) for writer in writers), ScheduledTokens(prompt, 8)]


def test_a_short_prompt_does_not_wait_for_a_long_one_and_the_oldest_progresses():
    scheduler = Scheduler(slots=4, step_tokens=64)
    long, short = Request(1, distinct_prompt(1, 500)), Request(2, distinct_prompt(2, 10))
    for request in (long, short):
        scheduler.add(request)
    scheduler.admit(lambda _: True)
    assert scheduler.schedule(40) == [ScheduledTokens(long, 30), ScheduledTokens(short, 10)]


def test_a_prompt_waits_for_an_older_one_that_computes_the_same_tokens():
    scheduler = Scheduler(slots=4, step_tokens=512)
    prefix = list(range(100))
    first, second = (Request(i, [*prefix, 1000 + i, 1, 2], cache_namespace="alice") for i in (1, 2))
    for request in (first, second):
        scheduler.add(request)
    scheduler.admit(lambda _: True)
    assert scheduler.schedule(512) == [ScheduledTokens(first, 103)]
    second.computed = 100 - MIN_SHARED_TOKENS + 1
    assert ScheduledTokens(second, second.pending) in scheduler.schedule(512)


def test_no_prompt_waits_for_anothers_which_it_will_not_share():
    scheduler = Scheduler(slots=4, step_tokens=512)
    prompt = list(range(100))
    hers, his = Request(1, prompt, cache_namespace="alice"), Request(2, [*prompt], cache_namespace="bob")
    for request in (hers, his):
        scheduler.add(request)
    scheduler.admit(lambda _: True)
    assert scheduler.schedule(512) == [ScheduledTokens(hers, 100), ScheduledTokens(his, 100)]


@pytest.mark.parametrize("num_running", [0, 1])
def test_the_only_request_is_never_preempted(num_running):
    scheduler = Scheduler(slots=2, step_tokens=16)
    for arrival in range(num_running):
        scheduler.add(Request(arrival, [1]))
    scheduler.admit(lambda _: True)
    assert scheduler.preempt() is None


def test_it_is_crowded_while_others_wait_here_or_find_every_slot_taken():
    scheduler = Scheduler(slots=2, step_tokens=16)
    scheduler.add(Request(1, [1]))
    scheduler.admit(lambda _: True)
    assert not scheduler.crowded
    second = Request(2, [1])
    scheduler.add(second)
    scheduler.admit(lambda _: False)  # there are no cells for it
    assert scheduler.crowded
    scheduler.admit(lambda _: True)
    assert scheduler.crowded
    scheduler.remove(second)
    assert not scheduler.crowded
