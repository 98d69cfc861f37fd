"""Who takes part in the next step, and with how many tokens.

Pure: decides from counts of tokens and the order of arrival; runs nothing, shares no cells, knows no llama.cpp.
Promises: no request starves (admission is in order of arrival, and the oldest prompt always progresses), none is lost
(each is waiting or running until it is removed), and a step never exceeds its budget of tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

#: A prompt waits for another that is being read if they agree in at least this many tokens to come: it can then
#: share them instead of computing them too.
MIN_SHARED_TOKENS = 32


class Runnable(Protocol):
    """What the scheduler sees of a request."""

    @property
    def arrival(self) -> int:
        """Place in the order of arrival; kept over a preemption."""

    @property
    def tokens(self) -> Sequence[int]:
        """Prompt and what was written."""

    @property
    def computed(self) -> int:
        """How many of the tokens have cells; fewer than there are."""

    @property
    def shares(self) -> bool:
        """Whether it may use what others of its namespace compute."""

    @property
    def namespace(self) -> str:
        """The cache namespace: only requests of the same one share what they compute."""


RunnableT = TypeVar("RunnableT", bound=Runnable)


@dataclass(frozen=True, slots=True)
class Share(Generic[RunnableT]):
    """The next `num_tokens` tokens of a request take part in the step."""

    request: RunnableT
    num_tokens: int


class Scheduler(Generic[RunnableT]):
    """Requests waiting and running. Not for two threads at once."""

    def __init__(self, *, slots: int, step_tokens: int) -> None:
        self._slots, self._step_tokens = slots, step_tokens
        self._waiting: list[RunnableT] = []
        self._running: list[RunnableT] = []

    @property
    def running(self) -> tuple[RunnableT, ...]:
        """Requests with a slot, in no particular order."""
        return tuple(self._running)

    @property
    def waiting(self) -> tuple[RunnableT, ...]:
        """Requests without a slot, in the order of arrival."""
        return tuple(self._waiting)

    @property
    def crowded(self) -> bool:
        """Whether others wait, or every slot is taken, so that they wait where requests come from."""
        return bool(self._waiting) or len(self._running) >= self._slots

    def add(self, request: RunnableT) -> None:
        """Let the request wait at its place in the order of arrival."""
        self._waiting.append(request)
        self._waiting.sort(key=_arrival)

    def remove(self, request: RunnableT) -> None:
        """Forget the request, wherever it is."""
        self._waiting = [other for other in self._waiting if other is not request]
        self._running = [other for other in self._running if other is not request]

    def admit(self, enter: Callable[[RunnableT], bool]) -> None:
        """Give free slots to the longest waiting; `enter` says whether there is room and takes it.

        Nobody overtakes one that does not fit yet, so that a long prompt is not put off for ever by short ones.
        """
        while self._waiting and len(self._running) < self._slots and enter(self._waiting[0]):
            self._running.append(self._waiting.pop(0))

    def plan(self, prompt_tokens: int) -> list[Share[RunnableT]]:
        """The next step: every request that writes, and at most `prompt_tokens` (at least one) tokens of prompts.

        Half of those go to the oldest prompt, so that it ends; the rest to the prompts that are nearest to their end,
        so that a short one need not wait for a long one.
        """
        writing = [Share(request, 1) for request in self._running if _pending(request) == 1]
        reading = _not_held_back(sorted((r for r in self._running if _pending(r) > 1), key=_arrival))
        budget = min(self._step_tokens - len(writing), max(1, prompt_tokens))
        if not reading or budget <= 0:
            return writing
        shares = dict.fromkeys(range(len(reading)), 0)
        shares[0] = min(_pending(reading[0]), (budget + 1) // 2)
        left = budget - shares[0]
        for place in sorted(shares, key=lambda place: _pending(reading[place])):
            more = min(left, _pending(reading[place]) - shares[place])
            shares[place] += more
            left -= more
        return writing + [Share(reading[place], count) for place, count in shares.items() if count]

    def preempt(self) -> RunnableT | None:
        """Send the newest of at least two running requests back to wait; None if it is the only one."""
        if len(self._running) < 2:
            return None
        newest = max(self._running, key=_arrival)
        self.remove(newest)
        self.add(newest)
        return newest


def _arrival(request: Runnable) -> int:
    return request.arrival


def _pending(request: Runnable) -> int:
    return len(request.tokens) - request.computed


def _not_held_back(reading: list[RunnableT]) -> list[RunnableT]:
    """Without those whose next tokens an older one is about to compute. The oldest is never held back."""
    free: list[RunnableT] = []
    for request in reading:
        end = request.computed + MIN_SHARED_TOKENS
        ahead = (older for older in free if _may_share(older, request) and older.computed <= request.computed)
        if len(request.tokens) <= end or not any(older.tokens[:end] == request.tokens[:end] for older in ahead):
            free.append(request)
    return free


def _may_share(one: Runnable, other: Runnable) -> bool:
    """Also a wait would tell of another namespace's prompt: it lasts as long as what the two have in common."""
    return one.shares and other.shares and one.namespace == other.namespace
