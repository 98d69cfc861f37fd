"""How many tokens of each draft the next step verifies.

Owns the decision, which is one of throughput: a proposed token costs compute whether it is accepted or not, and
spares a step with the probability that it and all before it are accepted. The tokens that pay are those that raise
the expected tokens per second of the whole batch (goodput, as in TurboSpec, Liu et al. 2024); a full batch, a
doubtful draft and a slow machine all lower their number by this one rule. Pure; knows no engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

from workers.runtime.step_cost import StepCost

#: Borders of the bins of edge probability for which acceptance is learned apart.
PROBABILITY_BORDERS = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97, 0.995)
#: Expected acceptance in each bin before anything was verified: what a small model's drafts of a larger model of
#: its own family measured.
PRIOR_ACCEPTANCE = (0.25, 0.4, 0.5, 0.65, 0.8, 0.88, 0.94, 0.98, 0.995)
#: The same for the token after a correction, where a word-for-word replacement is only assumed.
PRIOR_GUESS = 0.4
#: The same for a token that once followed the 1, 2, 3, 4 or more tokens before it.
PRIOR_ECHO = (0.15, 0.4, 0.6, 0.75)
#: How many verified tokens a prior is worth.
PRIOR_TOKENS = 20.0
#: What an observation's weight shrinks to with each later one of its bin.
TABLE_MEMORY = 0.999
#: The same within one request.
REQUEST_MEMORY = 0.9
#: The edge's probability is taken to be this where the draft came without figures.
UNKNOWN_PROBABILITY = 0.9
#: What a request's trust starts from, in accepted and rejected tokens: little, since one rejection says much.
INITIAL_ACCEPTED, INITIAL_REJECTED = 1.0, 0.5
#: No token counts as surer than this: a rejection is always possible.
SUREST = 0.999


class AcceptanceTable:
    """How often drafted tokens are accepted, by the edge's probability of them, over all drafts of one edge model."""

    def __init__(self) -> None:
        self._accepted = [mean * PRIOR_TOKENS for mean in (*PRIOR_ACCEPTANCE, PRIOR_GUESS, *PRIOR_ECHO)]
        self._verified = [PRIOR_TOKENS] * len(self._accepted)

    def expected(self, probability: float, *, guess: bool) -> float:
        """The chance that the token is accepted if all before it are."""
        index = self._bin(probability, guess=guess)
        return self._accepted[index] / self._verified[index]

    def expected_echo(self, matched: int) -> float:
        """The same for a token that followed so many (at least 1) of the tokens before it elsewhere."""
        index = self._echo_bin(matched)
        return self._accepted[index] / self._verified[index]

    def learn_echo(self, matched: int, *, accepted: bool) -> None:
        """The model decided about such a token."""
        self._learn(self._echo_bin(matched), accepted=accepted)

    def learn(self, probability: float, *, guess: bool, accepted: bool) -> None:
        """The model decided about such a token of the draft."""
        self._learn(self._bin(probability, guess=guess), accepted=accepted)

    def _learn(self, index: int, *, accepted: bool) -> None:
        self._accepted[index] = self._accepted[index] * TABLE_MEMORY + accepted
        self._verified[index] = self._verified[index] * TABLE_MEMORY + 1.0

    @staticmethod
    def _bin(probability: float, *, guess: bool) -> int:
        if guess:
            return len(PRIOR_ACCEPTANCE)
        return sum(probability >= border for border in PROBABILITY_BORDERS)

    @staticmethod
    def _echo_bin(matched: int) -> int:
        return len(PRIOR_ACCEPTANCE) + min(matched, len(PRIOR_ECHO))


class Trust:
    """How much better or worse one request's draft does than the table expects, as a factor on the odds."""

    def __init__(self) -> None:
        self._accepted = self._expected_accepted = 0.0
        self._rejected = self._expected_rejected = 0.0

    def learn(self, expected: float, *, accepted: bool) -> None:
        """The model decided about a token of this draft that was expected to be accepted with this chance."""
        self._accepted = self._accepted * REQUEST_MEMORY + accepted
        self._expected_accepted = self._expected_accepted * REQUEST_MEMORY + expected
        self._rejected = self._rejected * REQUEST_MEMORY + (not accepted)
        self._expected_rejected = self._expected_rejected * REQUEST_MEMORY + 1.0 - expected

    def adjust(self, expected: float) -> float:
        """The table's chance, corrected for this request."""
        accepted = (INITIAL_ACCEPTED + self._accepted) / (INITIAL_ACCEPTED + self._expected_accepted)
        rejected = (INITIAL_REJECTED + self._rejected) / (INITIAL_REJECTED + self._expected_rejected)
        factor = accepted / rejected
        odds = factor * expected / max(1.0 - expected, 1.0 - SUREST)
        return min(odds / (1.0 + odds), SUREST)


@dataclass(frozen=True)
class Candidates:
    """What one request could have verified in the next step."""

    #: Chance of each next draft token that it and all before it are accepted: falls from token to token.
    survival: tuple[float, ...]


def candidates(probabilities: Sequence[float], *, guess: bool, table: AcceptanceTable, trust: Trust) -> Candidates:
    """The chances of the next draft tokens, of which the edge was this sure.

    `guess`: nothing yet confirms that the draft goes on here.
    """
    survival, chain = [], 1.0
    for offset, probability in enumerate(probabilities):
        chain *= trust.adjust(table.expected(probability, guess=guess and offset == 0))
        survival.append(chain)
    return Candidates(tuple(survival))


def echo_candidates(num_tokens: int, matched: int, table: AcceptanceTable) -> Candidates:
    """The chances of so many tokens that once followed the last `matched`; each that is right lengthens the match."""
    chances = (table.expected_echo(matched + offset) for offset in range(num_tokens))
    return Candidates(tuple(accumulate(chances, mul)))


def share_out(batch: Sequence[Candidates], cost: StepCost) -> list[int]:
    """How many tokens to propose for each request of the batch, so that expected tokens per second are the most.

    Each request writes one token anyway. Taking tokens in the order of their chances is optimal, since expected
    tokens over cost is a quotient of two sums.
    """
    counts = [0] * len(batch)
    offered = sorted(
        ((chance, row) for row, request in enumerate(batch) for chance in request.survival),
        key=lambda offer: -offer[0],
    )
    expected = float(len(batch))
    step_s = cost.base_s + cost.token_s * len(batch)
    for chance, row in offered:
        if chance * step_s <= cost.token_s * expected:
            break
        counts[row] += 1
        expected += chance
        step_s += cost.token_s
    return counts
