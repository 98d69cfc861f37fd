"""How many tokens of each draft the next step verifies.

Owns the decision, which is one of throughput: a proposed token costs compute whether it is accepted or not, and
saves a step with the probability that it and all before it are accepted. The proposed tokens are those that raise the
expected tokens per second of the whole batch (goodput, as in TurboSpec, Liu et al. 2024); a full batch, a doubtful
draft and a slow machine all lower their number by this one rule. Pure; knows no engine.
"""

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

from workers.runtime.step_cost import StepCost

#: Borders of the bins of edge probability for which acceptance is learned separately.
PROBABILITY_BORDERS = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97, 0.995)
#: Expected acceptance in each bin before anything was verified: measured with a small model's drafts for a larger
#: model of its own family.
PRIOR_ACCEPTANCE = (0.25, 0.4, 0.5, 0.65, 0.8, 0.88, 0.94, 0.98, 0.995)
#: The same for the token after a correction, where a word-for-word replacement is only assumed.
PRIOR_UNCONFIRMED = 0.4
#: The same for a token from prompt lookup that followed the 1, 2, 3, 4 or more tokens before it.
PRIOR_LOOKUP = (0.15, 0.4, 0.6, 0.75)
#: How many verified tokens a prior is worth.
PRIOR_TOKENS = 20.0
#: An observation's weight is multiplied by this with each later one of its bin.
TABLE_MEMORY = 0.999
#: The same within one request.
REQUEST_MEMORY = 0.9
#: The edge's probability is taken to be this where the draft came without figures.
UNKNOWN_PROBABILITY = 0.9
#: A request's initial counts of accepted and rejected tokens: small, since one rejection says much.
INITIAL_ACCEPTED, INITIAL_REJECTED = 1.0, 0.5
#: The highest chance of any token: a rejection is always possible.
MAX_CHANCE = 0.999


def draft_bin(probability: float, *, unconfirmed: bool) -> int:
    """The bin of a draft token. `unconfirmed`: no accepted token yet confirms this position in the draft."""
    if unconfirmed:
        return len(PRIOR_ACCEPTANCE)
    return sum(probability >= border for border in PROBABILITY_BORDERS)


def lookup_bin(matched: int) -> int:
    """The bin of a token from prompt lookup, where `matched` (at least 1) tokens before it matched."""
    return len(PRIOR_ACCEPTANCE) + min(matched, len(PRIOR_LOOKUP))


class AcceptanceTable:
    """How often proposed tokens are accepted, by bin, over all drafts of one edge model."""

    def __init__(self) -> None:
        self._accepted = [mean * PRIOR_TOKENS for mean in (*PRIOR_ACCEPTANCE, PRIOR_UNCONFIRMED, *PRIOR_LOOKUP)]
        self._verified = [PRIOR_TOKENS] * len(self._accepted)

    def expected(self, bin_index: int) -> float:
        """The chance that a token of the bin is accepted if all before it are."""
        return self._accepted[bin_index] / self._verified[bin_index]

    def learn(self, bin_index: int, *, accepted: bool) -> None:
        """Count a verified token of the bin."""
        self._accepted[bin_index] = self._accepted[bin_index] * TABLE_MEMORY + accepted
        self._verified[bin_index] = self._verified[bin_index] * TABLE_MEMORY + 1.0


class Trust:
    """How much better or worse one request's draft does than the table expects, as a factor on the odds."""

    def __init__(self) -> None:
        self._accepted = self._expected_accepted = 0.0
        self._rejected = self._expected_rejected = 0.0

    def learn(self, expected: float, *, accepted: bool) -> None:
        """Count a verified token of this draft that had this chance by the table."""
        self._accepted = self._accepted * REQUEST_MEMORY + accepted
        self._expected_accepted = self._expected_accepted * REQUEST_MEMORY + expected
        self._rejected = self._rejected * REQUEST_MEMORY + (not accepted)
        self._expected_rejected = self._expected_rejected * REQUEST_MEMORY + 1.0 - expected

    def adjust(self, expected: float) -> float:
        """The table's chance, corrected for this request."""
        accepted = (INITIAL_ACCEPTED + self._accepted) / (INITIAL_ACCEPTED + self._expected_accepted)
        rejected = (INITIAL_REJECTED + self._rejected) / (INITIAL_REJECTED + self._expected_rejected)
        factor = accepted / rejected
        odds = factor * expected / max(1.0 - expected, 1.0 - MAX_CHANCE)
        return min(odds / (1.0 + odds), MAX_CHANCE)


def draft_survival(
    probabilities: Sequence[float], *, unconfirmed: bool, table: AcceptanceTable, trust: Trust
) -> tuple[float, ...]:
    """For each next draft token the chance that it and all before it are accepted, given the edge's probabilities.

    `unconfirmed`: no accepted token yet confirms this position in the draft.
    """
    bins = (draft_bin(value, unconfirmed=unconfirmed and place == 0) for place, value in enumerate(probabilities))
    return tuple(accumulate((trust.adjust(table.expected(each)) for each in bins), mul))


def lookup_survival(num_tokens: int, matched: int, table: AcceptanceTable) -> tuple[float, ...]:
    """The same for tokens from prompt lookup; each one that is accepted lengthens the match."""
    return tuple(accumulate((table.expected(lookup_bin(matched + offset)) for offset in range(num_tokens)), mul))


def proposal_lengths(batch: Sequence[Sequence[float]], cost: StepCost) -> list[int]:
    """How many tokens to propose for each request, so that the batch's expected tokens per second are at their maximum.

    `batch` has each request's survival chances, which fall from token to token. Each request writes one token anyway.
    Taking tokens in the order of their chances is optimal, since expected tokens over cost is a quotient of two sums.
    """
    counts = [0] * len(batch)
    offered = sorted(
        ((chance, row) for row, survival in enumerate(batch) for chance in survival), key=lambda offer: -offer[0]
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
