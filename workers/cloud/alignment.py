"""Where an answer, as it is being written, stands in the draft that it verifies.

Owns the one rule for "this draft token stands in the answer", used by the proposer (what to propose next), by the
events (accepted or corrected) and by the statistics, so that the three always agree. Pure; knows no engine.

After a correction the answer often meets the draft again a few tokens on: as reference-based decoding does (LLMA,
Yang et al. 2023; prompt lookup), the last tokens written are looked up in what follows in the draft.
"""

from collections.abc import Sequence

#: How far past the last standing token the draft is searched, in tokens. A whole paragraph may have been left out.
SEARCH_WINDOW = 64
#: A single matching token lets the draft be tried again if it is at most this many tokens from where it would be after
#: a word-for-word replacement; farther away, chance matches of common tokens would lead astray.
NEAR_TOKENS = 6
#: Matching tokens in a row that settle that the answer has met the draft again elsewhere than after a replacement.
SETTLING_EVIDENCE = 2
#: After this many tokens in a row that the draft does not have, a word-for-word replacement is no longer assumed.
GUESSED_TOKENS = 3


class Alignment:
    """One answer against one draft. `advance` takes linear time in the window, only where the two differ."""

    def __init__(self, draft: Sequence[int], *, rejoin: bool = True) -> None:
        self._draft = draft
        self._rejoin = rejoin
        #: Draft tokens before this index are settled: they stand or never will.
        self._settled = 0
        #: Answer tokens written since the last one that is settled.
        self._differing: list[int] = []
        #: Where the answer may have met the draft again, on the evidence of a single token.
        self._tentative: int | None = None
        #: Draft tokens that stand in the answer.
        self.accepted = 0
        #: Matching tokens in a row, up to the last one written.
        self.streak = 0

    def advance(self, token: int) -> bool:
        """Take the answer's next token; whether it is the draft's own and stands there.

        The first token of a run that meets the draft again is known to stand, and counted, with the second.
        """
        if not self._differing and self._settled < len(self._draft) and self._draft[self._settled] == token:
            return self._stand(self._settled + 1, 1)
        self.streak = 0
        self._differing.append(token)
        self._tentative = None
        return self._rejoin and self._find(token)

    @property
    def continuation(self) -> int | None:
        """Index in the draft of the token that should come next; None where the draft gives no hint."""
        if self._differing and not self._rejoin:
            return None
        if self._tentative is None and len(self._differing) > GUESSED_TOKENS:
            return None
        cursor = self._settled + len(self._differing) if self._tentative is None else self._tentative
        return cursor if cursor < len(self._draft) else None

    def _stand(self, end: int, evidence: int) -> bool:
        self._settled = end
        self._differing.clear()
        self._tentative = None
        self.accepted += evidence
        self.streak += evidence
        return True

    def _find(self, token: int) -> bool:
        """Look for the tokens just written in the draft that is not settled yet."""
        replaced = self._settled + len(self._differing)
        best, end = (0, 0), 0
        for index in range(self._settled, min(len(self._draft), self._settled + SEARCH_WINDOW)):
            if self._draft[index] == token:
                found = (self._evidence(index), -abs(index + 1 - replaced))
                if end == 0 or found > best:
                    best, end = found, index + 1
        evidence, distance = best[0], -best[1]
        if end and (evidence >= SETTLING_EVIDENCE or distance == 0):
            return self._stand(end, evidence)
        if end and distance <= NEAR_TOKENS:
            self._tentative = end
        return False

    def _evidence(self, index: int) -> int:
        """How many of the last differing tokens end at draft `index`."""
        longest = min(len(self._differing), index + 1 - self._settled)
        length = 0
        while length < longest and self._differing[-1 - length] == self._draft[index - length]:
            length += 1
        return length
