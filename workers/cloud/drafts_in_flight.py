"""The drafts of the requests that an engine is writing: where each answer stands, and what to propose next.

Owns the state per request and ties alignment and policy together. Pure but for the clock that it is handed; runs
inside the engine's worker process.
"""

from collections import OrderedDict
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from workers.cloud.alignment import Alignment
from workers.cloud.prompt_lookup import PromptLookup
from workers.cloud.proposal_length import (
    UNKNOWN_PROBABILITY,
    AcceptanceTable,
    Candidates,
    Trust,
    candidates,
    echo_candidates,
    share_out,
)
from workers.runtime.step_cost import StepCost

#: Seconds that one more token costs, over seconds of an empty step, before anything was measured.
PRIOR_COST_RATIO = 0.02
#: Draft models about whose drafts something is kept in mind; a deployment has one or two at a time.
MOST_MODELS = 32


@dataclass(frozen=True)
class DraftHint:
    """What travels with a request to the proposer. Without tokens, nothing is ever proposed."""

    token_ids: Sequence[int] = ()
    #: The edge's probability of each token; shorter than `token_ids` where it is not known.
    probabilities: Sequence[float] = ()
    #: The model that wrote the draft: what is learned about the drafts of one says nothing of another's.
    model: str = ""
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
    echo: PromptLookup
    table: AcceptanceTable
    #: Where the answer will be cut: `max_tokens` or the context.
    most_tokens: int
    most_proposed: int
    trust: Trust = field(default_factory=Trust)
    written: int = 0
    #: The tokens that were proposed last because they had followed the last `matched` ones elsewhere.
    echoed: Sequence[int] = ()
    matched: int = 0

    def probability(self, index: int) -> float:
        known = self.hint.probabilities
        return known[index] if index < len(known) else UNKNOWN_PROBABILITY

    @property
    def room(self) -> int:
        """Tokens that may be proposed: the step writes one beyond them, which must fit as well."""
        return max(0, min(self.most_proposed, self.most_tokens - self.written - 1))

    def offered(self) -> range:
        """Indices of the draft tokens that may be proposed now."""
        begin = self.alignment.continuation
        if begin is None:
            return range(0)
        end = max(begin, min(begin + self.room, len(self.hint.token_ids)))
        for index in range(begin, end):
            if self.probability(index) < self.hint.min_edge_probability:
                return range(begin, index)
        return range(begin, end)

    def phrase(self) -> tuple[list[int], int]:
        """What may be proposed instead, where nothing confirms that the draft goes on, and how many tokens matched."""
        if not (self.hint.token_ids and self.hint.rejoin and self.guess):
            return [], 0
        return self.echo.continuation(self.room)

    @property
    def guess(self) -> bool:
        """Whether nothing confirms yet that the draft goes on where it is thought to."""
        return self.written > 0 and self.alignment.streak == 0


@dataclass(frozen=True)
class _Offer:
    """What one request could have verified: its tokens, and the chances that each and all before it are accepted."""

    tokens: Sequence[int]
    chances: Candidates
    #: Tokens that matched elsewhere, if that is where these come from.
    matched: int = 0


class DraftsInFlight:
    """All requests of one engine by id."""

    def __init__(self) -> None:
        self._requests: dict[str, _InFlight] = {}
        self._tables: OrderedDict[str, AcceptanceTable] = OrderedDict()
        self._cost = StepCost(PRIOR_COST_RATIO)
        #: Rows and tokens of the step under way, and when it began; None where it cannot be told.
        self._step: tuple[frozenset[str], int, float] | None = None

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def begin(
        self,
        request_id: str,
        hint: DraftHint,
        *,
        most_tokens: int,
        most_proposed: int,
        prompt_tokens: Sequence[int] = (),
    ) -> None:
        """Take up a request that has written nothing yet."""
        alignment = Alignment(hint.token_ids, rejoin=hint.rejoin)
        most = min(most_proposed, hint.max_proposed) if hint.max_proposed else most_proposed
        echo = PromptLookup(hint.token_ids, prompt_tokens if hint.token_ids and hint.rejoin else ())
        table = self._table(hint.model)
        self._requests[request_id] = _InFlight(hint, alignment, echo, table, most_tokens, most)

    def _table(self, model: str) -> AcceptanceTable:
        """What was learned of this model's drafts; of those of `MOST_MODELS`, the ones seen last."""
        table = self._tables.setdefault(model, AcceptanceTable())
        self._tables.move_to_end(model)
        if len(self._tables) > MOST_MODELS:
            self._tables.popitem(last=False)
        return table

    def written(self, request_id: str) -> int:
        """Tokens of the answer that are accounted for."""
        return self._requests[request_id].written

    def advance(self, request_id: str, tokens: Sequence[int]) -> None:
        """The model wrote these tokens next."""
        request = self._requests[request_id]
        for place, token in enumerate(tokens):
            if place < len(request.echoed):
                request.table.learn_echo(request.matched + place, accepted=request.echoed[place] == token)
            index, guess = request.alignment.continuation, request.guess
            request.alignment.advance(token)
            request.echo.advance(token)
            request.written += 1
            if index is None:
                continue
            accepted = request.hint.token_ids[index] == token
            probability = request.probability(index)
            request.trust.learn(request.table.expected(probability, guess=guess), accepted=accepted)
            request.table.learn(probability, guess=guess, accepted=accepted)
        request.echoed = ()

    def propose(self, writing: Sequence[str], *, now_s: float, reads_prompts: bool = False) -> dict[str, list[int]]:
        """Draft tokens to verify in the next step, for those of the requests that get any.

        `reads_prompts`: the engine also works on prompts, so that the time of a step says nothing about its tokens.
        """
        if reads_prompts:
            self._step = None
        self._time(writing, now_s)
        offers = {request_id: self._offer(self._requests[request_id]) for request_id in writing}
        counts = self._counts(offers)
        self._step = (frozenset(writing), len(writing) + sum(counts.values()), now_s)
        proposed = {}
        for request_id, offer in offers.items():
            tokens = list(offer.tokens[: counts[request_id]])
            request = self._requests[request_id]
            request.echoed, request.matched = (tokens, offer.matched) if offer.matched else ((), 0)
            if tokens:
                proposed[request_id] = tokens
        return proposed

    def _offer(self, request: _InFlight) -> _Offer:
        """The draft's next tokens, or a repeated phrase where that promises more."""
        span, guess = request.offered(), request.guess
        probabilities = [request.probability(index) for index in span]
        chances = candidates(probabilities, guess=guess, table=request.table, trust=request.trust)
        draft = _Offer(request.hint.token_ids[span.start : span.stop], chances)
        phrase, matched = request.phrase()
        if not phrase:
            return draft
        echo = _Offer(phrase, echo_candidates(len(phrase), matched, request.table), matched)
        return max(draft, echo, key=lambda offer: sum(offer.chances.survival))

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

    def _counts(self, offers: dict[str, _Offer]) -> dict[str, int]:
        if not any(offer.tokens for offer in offers.values()):
            return dict.fromkeys(offers, 0)
        counts = share_out([offer.chances for offer in offers.values()], self._cost)
        return {
            request_id: counts[row] if self._requests[request_id].hint.adapt else len(offer.tokens)
            for row, (request_id, offer) in enumerate(offers.items())
        }
