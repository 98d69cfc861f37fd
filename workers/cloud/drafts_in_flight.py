"""The drafts of the requests that an engine is writing: how far each answer has got in its draft, what to propose next.

Owns the state per request, and combines alignment, prompt lookup and proposal length. Pure: the clock is a parameter.
Runs inside the engine's worker process.
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
    Trust,
    draft_bin,
    draft_survival,
    lookup_bin,
    lookup_survival,
    proposal_lengths,
)
from workers.runtime.step_cost import StepCost

#: Where a request's `extra_args` hold its packed `DraftHint`.
HINT_KEY = "firstdraft_draft"
#: Seconds that one more token costs, over seconds of an empty step, before anything was measured.
PRIOR_COST_RATIO = 0.02
#: Draft models whose acceptance is remembered; a deployment has one or two at a time.
MAX_MODELS = 32


@dataclass(frozen=True)
class DraftHint:
    """What travels with a request to the proposer. Without tokens, nothing is ever proposed."""

    token_ids: Sequence[int] = ()
    #: The edge's probability of each token; shorter than `token_ids` where it is not known.
    probabilities: Sequence[float] = ()
    #: The model that wrote the draft: acceptance is learned for each model separately.
    model: str = ""
    rejoin: bool = True
    adapt: bool = True
    #: The most tokens proposed in one step.
    max_proposed: int = 0
    #: Proposals end before the first token whose probability at the edge was below this.
    min_edge_probability: float = 0.0

    def pack(self) -> dict[str, Any]:
        """The hint in types that msgpack knows."""
        return asdict(self)

    @classmethod
    def unpack(cls, packed: dict[str, Any]) -> "DraftHint":
        """What `pack` wrote."""
        return cls(**packed)


@dataclass
class _DraftState:
    """One request's draft and the answer so far."""

    hint: DraftHint
    alignment: Alignment
    lookup: PromptLookup
    table: AcceptanceTable
    #: The most tokens that the answer can have: `max_tokens` or the context.
    max_tokens: int
    max_proposed: int
    trust: Trust = field(default_factory=Trust)
    num_written: int = 0
    #: The tokens proposed last if they came from prompt lookup, and how many tokens before them had matched.
    looked_up: Sequence[int] = ()
    matched: int = 0

    def probability(self, index: int) -> float:
        known = self.hint.probabilities
        return known[index] if index < len(known) else UNKNOWN_PROBABILITY

    @property
    def room(self) -> int:
        """Tokens that may be proposed: the step writes one beyond them, which must fit as well."""
        return max(0, min(self.max_proposed, self.max_tokens - self.num_written - 1))

    @property
    def unconfirmed(self) -> bool:
        """Whether no accepted token yet confirms the position in the draft."""
        return self.num_written > 0 and self.alignment.streak == 0

    def next_draft_tokens(self) -> range:
        """Indices of the draft tokens that may be proposed now."""
        begin = self.alignment.continuation
        if begin is None:
            return range(0)
        end = max(begin, min(begin + self.room, len(self.hint.token_ids)))
        for index in range(begin, end):
            if self.probability(index) < self.hint.min_edge_probability:
                return range(begin, index)
        return range(begin, end)

    def best_offer(self) -> "_Offer":
        """The draft's next tokens, or those of prompt lookup where more of them can be expected to be accepted."""
        span, unconfirmed = self.next_draft_tokens(), self.unconfirmed
        probabilities = [self.probability(index) for index in span]
        survival = draft_survival(probabilities, unconfirmed=unconfirmed, table=self.table, trust=self.trust)
        draft = _Offer(self.hint.token_ids[span.start : span.stop], survival)
        if not (self.hint.token_ids and self.hint.rejoin and unconfirmed):
            return draft
        tokens, matched = self.lookup.continuation(self.room)
        looked_up = _Offer(tokens, lookup_survival(len(tokens), matched, self.table), matched)
        return max(draft, looked_up, key=lambda offer: sum(offer.survival))

    def advance(self, tokens: Sequence[int]) -> None:
        for place, token in enumerate(tokens):
            if place < len(self.looked_up):
                self.table.learn(lookup_bin(self.matched + place), accepted=self.looked_up[place] == token)
            index, unconfirmed = self.alignment.continuation, self.unconfirmed
            self.alignment.advance(token)
            self.lookup.advance(token)
            self.num_written += 1
            if index is None:
                continue
            accepted = self.hint.token_ids[index] == token
            bin_index = draft_bin(self.probability(index), unconfirmed=unconfirmed)
            self.trust.learn(self.table.expected(bin_index), accepted=accepted)
            self.table.learn(bin_index, accepted=accepted)
        self.looked_up = ()


@dataclass(frozen=True)
class _Offer:
    """Tokens that one request could have verified."""

    tokens: Sequence[int]
    #: For each the chance that it and all before it are accepted.
    survival: Sequence[float]
    #: Tokens before them that matched, if they come from prompt lookup.
    matched: int = 0


class DraftsInFlight:
    """All requests of one engine by id."""

    def __init__(self) -> None:
        self._requests: dict[str, _DraftState] = {}
        self._tables: OrderedDict[str, AcceptanceTable] = OrderedDict()
        self._cost = StepCost(PRIOR_COST_RATIO)
        #: Requests and tokens of the step under way, and when it began; None where its time says nothing.
        self._step: tuple[frozenset[str], int, float] | None = None

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def begin(
        self,
        request_id: str,
        hint: DraftHint,
        *,
        max_tokens: int,
        max_proposed: int,
        prompt_tokens: Sequence[int] = (),
    ) -> None:
        """Add a request that has written nothing yet."""
        alignment = Alignment(hint.token_ids, rejoin=hint.rejoin)
        most = min(max_proposed, hint.max_proposed) if hint.max_proposed else max_proposed
        lookup = PromptLookup(hint.token_ids, prompt_tokens if hint.token_ids and hint.rejoin else ())
        self._requests[request_id] = _DraftState(hint, alignment, lookup, self._table(hint.model), max_tokens, most)

    def _table(self, model: str) -> AcceptanceTable:
        """The model's table; the tables of the `MAX_MODELS` models used last are kept."""
        table = self._tables.setdefault(model, AcceptanceTable())
        self._tables.move_to_end(model)
        if len(self._tables) > MAX_MODELS:
            self._tables.popitem(last=False)
        return table

    def num_written(self, request_id: str) -> int:
        """The tokens of the answer that `advance` has taken."""
        return self._requests[request_id].num_written

    def advance(self, request_id: str, tokens: Sequence[int]) -> None:
        """Take the answer's next tokens."""
        self._requests[request_id].advance(tokens)

    def propose(self, writing: Sequence[str], *, now_s: float, reads_prompts: bool = False) -> dict[str, list[int]]:
        """Tokens to verify in the next step, by request; requests without any are left out.

        `reads_prompts`: the engine also reads prompts, so that the time of the step says nothing about its tokens.
        """
        if self._step is not None and not reads_prompts:
            rows, tokens, began_s = self._step
            if writing and rows.issuperset(writing):
                self._cost.observe(tokens, now_s - began_s)
        offers = {request_id: self._requests[request_id].best_offer() for request_id in writing}
        counts = proposal_lengths([offer.survival for offer in offers.values()], self._cost)
        proposed = {}
        for (request_id, offer), count in zip(offers.items(), counts, strict=True):
            request = self._requests[request_id]
            tokens_now = list(offer.tokens[:count] if request.hint.adapt else offer.tokens)
            request.looked_up, request.matched = (tokens_now, offer.matched) if offer.matched else ((), 0)
            if tokens_now:
                proposed[request_id] = tokens_now
        self._step = (frozenset(writing), len(writing) + sum(map(len, proposed.values())), now_s)
        return proposed

    def forget_all_but(self, alive: Container[str]) -> None:
        """Remove requests that the engine has finished."""
        for request_id in [known for known in self._requests if known not in alive]:
            del self._requests[request_id]
