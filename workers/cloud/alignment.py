"""Which position in its draft an answer has reached as it is being written.

Owns the one rule for "this draft token is accepted", used by the proposer (what to propose next), by the events
(accepted or corrected) and by the statistics, so that the three always agree. Pure; knows no engine.

After a correction the answer often meets the draft again a few tokens on: as reference-based decoding does (LLMA,
Yang et al. 2023; prompt lookup), the last tokens written are looked up in what follows in the draft.
"""

from collections.abc import Sequence

#: How many tokens past the last accepted one the draft is searched. A whole paragraph may have been left out.
SEARCH_WINDOW = 64
#: A single matching token lets the draft be tried again if it is at most this many tokens from where it would be after
#: a word-for-word replacement; farther away, most matches of common tokens are chance.
NEAR_TOKENS = 6
#: Matching tokens in a row that prove that the answer has met the draft again elsewhere than after a replacement.
SETTLING_EVIDENCE = 2
#: After this many tokens in a row that the draft does not have, a word-for-word replacement is no longer assumed.
GUESSED_TOKENS = 3


class Alignment:
    """One answer against one draft. `advance` takes time linear in the window only where the two differ."""

    def __init__(self, draft: Sequence[int], *, rejoin: bool = True) -> None:
        self._draft = draft
        self._rejoin = rejoin
        #: Draft tokens before this index are decided: accepted, or not.
        self._settled = 0
        #: Answer tokens written since the last accepted one.
        self._differing: list[int] = []
        #: Where the answer may have met the draft again, on the evidence of a single token.
        self._tentative: int | None = None
        #: The number of draft tokens accepted.
        self.accepted = 0
        #: Matching tokens in a row, up to the last one written.
        self.streak = 0

    def advance(self, token: int) -> bool:
        """Take the answer's next token; whether it is an accepted token of the draft.

        The first token of a run that meets the draft again is recognised, and counted, with the second.
        """
        if not self._differing and self._settled < len(self._draft) and self._draft[self._settled] == token:
            return self._accept(self._settled + 1, 1)
        self.streak = 0
        self._differing.append(token)
        self._tentative = None
        return self._rejoin and self._search(token)

    @property
    def continuation(self) -> int | None:
        """Index in the draft of the token expected next; None where there is none."""
        if self._differing and not self._rejoin:
            return None
        if self._tentative is None and len(self._differing) > GUESSED_TOKENS:
            return None
        cursor = self._settled + len(self._differing) if self._tentative is None else self._tentative
        return cursor if cursor < len(self._draft) else None

    def _accept(self, end: int, evidence: int) -> bool:
        self._settled = end
        self._differing.clear()
        self._tentative = None
        self.accepted += evidence
        self.streak += evidence
        return True

    def _search(self, token: int) -> bool:
        """Look for the tokens just written in the undecided part of the draft."""
        replaced = self._settled + len(self._differing)
        best, end = (0, 0), 0
        for index in range(self._settled, min(len(self._draft), self._settled + SEARCH_WINDOW)):
            if self._draft[index] == token:
                match = (self._evidence(index), -abs(index + 1 - replaced))
                if end == 0 or match > best:
                    best, end = match, index + 1
        evidence, distance = best[0], -best[1]
        if end and (evidence >= SETTLING_EVIDENCE or distance == 0):
            return self._accept(end, evidence)
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
