"""Which sequences take part in the next step, and with how many tokens.

Pure: decides from counts of tokens and the order of arrival; runs nothing, shares no cells, knows no llama.cpp.
Guarantees: no sequence starves (admission is in order of arrival, and the oldest prompt always progresses), none is
lost (each is waiting or running until it is removed), and a step never exceeds its token budget.
"""

from collections.abc import Callable
from typing import NamedTuple

from workers.edge.edge_sequence import EdgeSequence

#: A prompt waits for an older one in prefill if at least this many of its next tokens are the same: it can then share
#: their cells instead of computing them too.
MIN_SHARED_TOKENS = 32


class ScheduledTokens(NamedTuple):
    """The next `num_tokens` tokens of a sequence take part in the step."""

    sequence: EdgeSequence
    num_tokens: int


class Scheduler:
    """Sequences waiting and running. Not thread-safe."""

    def __init__(self, *, slots: int, step_tokens: int) -> None:
        self._slots, self._step_tokens = slots, step_tokens
        #: In the order of arrival.
        self.waiting: list[EdgeSequence] = []
        #: Those with a slot, in no particular order.
        self.running: list[EdgeSequence] = []

    @property
    def crowded(self) -> bool:
        """Whether sequences wait here, or every slot is taken, so that requests wait at the router instead."""
        return bool(self.waiting) or len(self.running) >= self._slots

    def add(self, sequence: EdgeSequence) -> None:
        """Let the sequence wait at its place in the order of arrival."""
        self.waiting.append(sequence)
        self.waiting.sort(key=_arrival)

    def remove(self, sequence: EdgeSequence) -> None:
        """Forget the sequence, wherever it is. Idempotent."""
        for sequences in (self.waiting, self.running):
            if sequence in sequences:
                sequences.remove(sequence)

    def admit(self, allocate: Callable[[EdgeSequence], bool]) -> None:
        """Give free slots to the sequences that wait longest; `allocate` takes cells, or says that there is no room.

        None overtakes one that does not fit yet, so that short prompts cannot put off a long one for ever.
        """
        while self.waiting and len(self.running) < self._slots and allocate(self.waiting[0]):
            self.running.append(self.waiting.pop(0))

    def schedule(self, prompt_tokens: int) -> list[ScheduledTokens]:
        """The next step: every sequence in decode, and at most `prompt_tokens` (at least one) tokens of prompts.

        Half of those go to the oldest prompt, so that it ends; the rest to the prompts with the fewest tokens left, so
        that a short one need not wait for a long one.
        """
        decoding = [ScheduledTokens(sequence, 1) for sequence in self.running if sequence.pending == 1]
        prompts = _without_held_back(sorted((s for s in self.running if s.pending > 1), key=_arrival))
        budget = min(self._step_tokens - len(decoding), max(1, prompt_tokens))
        if not prompts or budget <= 0:
            return decoding
        counts = [0] * len(prompts)
        counts[0] = min(prompts[0].pending, (budget + 1) // 2)
        left = budget - counts[0]
        for place in sorted(range(len(prompts)), key=lambda place: prompts[place].pending):
            more = min(left, prompts[place].pending - counts[place])
            counts[place] += more
            left -= more
        return decoding + [ScheduledTokens(*entry) for entry in zip(prompts, counts, strict=True) if entry[1]]

    def preempt(self) -> EdgeSequence | None:
        """Send the newest of at least two running sequences back to wait; None if there is only one."""
        if len(self.running) < 2:
            return None
        newest = max(self.running, key=_arrival)
        self.running.remove(newest)
        self.add(newest)
        return newest


def _arrival(sequence: EdgeSequence) -> int:
    return sequence.arrival


def _without_held_back(prompts: list[EdgeSequence]) -> list[EdgeSequence]:
    """Without prompts whose next tokens an older one is about to compute. The oldest is never held back."""
    free: list[EdgeSequence] = []
    for prompt in prompts:
        end = prompt.computed + MIN_SHARED_TOKENS
        ahead = (older for older in free if _may_share(older, prompt) and older.computed <= prompt.computed)
        if len(prompt.tokens) <= end or not any(older.tokens[:end] == prompt.tokens[:end] for older in ahead):
            free.append(prompt)
    return free


def _may_share(one: EdgeSequence, other: EdgeSequence) -> bool:
    """Only within a namespace: the length of a wait would reveal how much of another's prompt is the same."""
    return one.cache_namespace is not None and one.cache_namespace == other.cache_namespace
