"""The drafts of the requests that an engine is writing: where each answer stands, and what to propose next.

Owns the state per request and ties alignment and policy together. Pure but for the clock that it is handed; runs
inside the engine's worker process.
"""

from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from workers.cloud.alignment import Alignment
from workers.cloud.proposing import UNKNOWN_PROBABILITY, AcceptanceTable, Trust, candidates, share_out
from workers.cloud.step_cost import StepCost


@dataclass(frozen=True)
class DraftHint:
    """What travels with a request to the proposer. Without tokens, nothing is ever proposed."""

    token_ids: Sequence[int] = ()
    #: The edge's probability of each token; shorter than `token_ids` where it is not known.
    probabilities: Sequence[float] = ()
    rejoin: bool = True
    adapt: bool = True
    #: The most tokens proposed in one step.
    max_proposed: int = 0
    #: Nothing is proposed from a token on whose probability at the edge was below this.
    min_edge_probability: float = 0.0

    def pack(self) -> dict[str, Any]:
        """The hint in types that msgpack knows."""
        return asdict(self)

    @classmethod
    def unpack(cls, packed: dict[str, Any]) -> "DraftHint":
        """What `pack` wrote."""
        return cls(**packed)


@dataclass
class _InFlight:
    hint: DraftHint
    alignment: Alignment
    #: Where the answer will be cut: `max_tokens` or the context.
    most_tokens: int
    most_proposed: int
    trust: Trust = field(default_factory=Trust)
    written: int = 0

    def probability(self, index: int) -> float:
        known = self.hint.probabilities
        return known[index] if index < len(known) else UNKNOWN_PROBABILITY

    def offered(self) -> range:
        """Indices of the draft tokens that may be proposed now."""
        begin = self.alignment.continuation
        if begin is None:
            return range(0)
        # The step writes one token beyond those proposed, which must fit as well.
        room = min(self.most_proposed, self.most_tokens - self.written - 1)
        end = max(begin, min(begin + room, len(self.hint.token_ids)))
        for index in range(begin, end):
            if self.probability(index) < self.hint.min_edge_probability:
                return range(begin, index)
        return range(begin, end)

    @property
    def guess(self) -> bool:
        """Whether nothing confirms yet that the draft goes on where it is thought to."""
        return self.written > 0 and self.alignment.streak == 0


class DraftsInFlight:
    """All requests of one engine by id."""

    def __init__(self) -> None:
        self._requests: dict[str, _InFlight] = {}
        self._table = AcceptanceTable()
        self._cost = StepCost()
        #: Rows and tokens of the step under way, and when it began; None where it cannot be told.
        self._step: tuple[frozenset[str], int, float] | None = None

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def begin(self, request_id: str, hint: DraftHint, *, most_tokens: int, most_proposed: int) -> None:
        """Take up a request that has written nothing yet."""
        alignment = Alignment(hint.token_ids, rejoin=hint.rejoin)
        most = min(most_proposed, hint.max_proposed) if hint.max_proposed else most_proposed
        self._requests[request_id] = _InFlight(hint, alignment, most_tokens, most)

    def written(self, request_id: str) -> int:
        """Tokens of the answer that are accounted for."""
        return self._requests[request_id].written

    def advance(self, request_id: str, tokens: Sequence[int]) -> None:
        """The model wrote these tokens next."""
        request = self._requests[request_id]
        for token in tokens:
            index, guess = request.alignment.continuation, request.guess
            stood = request.alignment.advance(token)
            request.written += 1
            if index is None:
                continue
            accepted = stood and request.hint.token_ids[index] == token
            probability = request.probability(index)
            request.trust.learn(self._table.expected(probability, guess=guess), accepted=accepted)
            self._table.learn(probability, guess=guess, accepted=accepted)

    def propose(self, writing: Sequence[str], *, now_s: float, reads_prompts: bool = False) -> dict[str, list[int]]:
        """Draft tokens to verify in the next step, for those of the requests that get any.

        `reads_prompts`: the engine also works on prompts, so that the time of a step says nothing about its tokens.
        """
        if reads_prompts:
            self._step = None
        self._time(writing, now_s)
        offered = {request_id: self._requests[request_id].offered() for request_id in writing}
        counts = self._counts(offered)
        tokens = len(writing) + sum(counts.values())
        self._step = (frozenset(writing), tokens, now_s)
        return {
            request_id: list(self._requests[request_id].hint.token_ids[span.start : span.start + counts[request_id]])
            for request_id, span in offered.items()
            if counts[request_id]
        }

    def forget_all_but(self, alive: Container[str]) -> None:
        """Drop requests that the engine has finished."""
        for request_id in [known for known in self._requests if known not in alive]:
            del self._requests[request_id]

    def _time(self, writing: Sequence[str], now_s: float) -> None:
        """Learn from the step that has just ended, if nothing but its own tokens was in it."""
        if self._step is None:
            return
        rows, tokens, began_s = self._step
        if rows.issuperset(writing) and writing:
            self._cost.observe(tokens, now_s - began_s)

    def _counts(self, offered: dict[str, range]) -> dict[str, int]:
        if not any(offered.values()):
            return dict.fromkeys(offered, 0)
        batch = []
        for request_id, span in offered.items():
            request = self._requests[request_id]
            probabilities = [request.probability(index) for index in span]
            batch.append(candidates(probabilities, guess=request.guess, table=self._table, trust=request.trust))
        counts = share_out(batch, self._cost)
        return {
            request_id: counts[row] if self._requests[request_id].hint.adapt else len(span)
            for row, (request_id, span) in enumerate(offered.items())
        }
