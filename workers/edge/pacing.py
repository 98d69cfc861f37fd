"""How many prompt tokens may ride along with a step, so that those who are writing do not notice much.

Pure: learns from the time that steps took. Knows nothing of requests.
"""

#: A step with prompt tokens in it may take this many times as long as one without.
STALL_FACTOR = 2.5
#: What a step may take that nobody waits on to write: whoever arrives or cancels meanwhile waits for its end.
MOST_READING_S = 0.5
#: Weight of the newest step in the running averages.
LEARNING_RATE = 0.2
#: Prompt tokens that ride along however slow the machine: a prompt must progress. On a CPU, one of a long prompt's last
#: tokens can cost as much as several writers, so that more would stall them; the prompt ends hardly later.
MIN_PROMPT_TOKENS = 4
#: Seconds that a prompt token and a written token cost before anything was measured.
ASSUMED_PROMPT_TOKEN_S, ASSUMED_WRITTEN_TOKEN_S = 0.001, 0.006


class Pacing:
    """Running averages of what a prompt token and a written token cost."""

    def __init__(self) -> None:
        self._prompt_token_s = ASSUMED_PROMPT_TOKEN_S
        #: By the number of requests that write: batches gain from their size, so a cost per token would be wrong.
        self._writing_s: dict[int, float] = {}

    def prompt_tokens(self, num_writing: int, step_tokens: int) -> int:
        """How many prompt tokens the next step may read beside so many that write."""
        if num_writing == 0:
            return max(MIN_PROMPT_TOKENS, min(step_tokens, int(MOST_READING_S / self._prompt_token_s)))
        spare_s = (STALL_FACTOR - 1.0) * self._expected_s(num_writing)
        return max(MIN_PROMPT_TOKENS, min(step_tokens - num_writing, int(spare_s / self._prompt_token_s)))

    def learn(self, num_writing: int, num_prompt_tokens: int, took_s: float) -> None:
        """Note what a step cost."""
        if num_prompt_tokens == 0:
            known = self._writing_s.get(num_writing, took_s)
            self._writing_s[num_writing] = known + LEARNING_RATE * (took_s - known)
        elif num_prompt_tokens >= MIN_PROMPT_TOKENS:
            cost = max(took_s - self._expected_s(num_writing), 0.0) / num_prompt_tokens
            self._prompt_token_s += LEARNING_RATE * (cost - self._prompt_token_s)
            self._prompt_token_s = max(self._prompt_token_s, ASSUMED_PROMPT_TOKEN_S / 1000)

    def _expected_s(self, num_writing: int) -> float:
        """Of a step without prompts: as measured with the nearest number of requests, or as assumed."""
        if num_writing == 0:
            return 0.0
        if not self._writing_s:
            return num_writing * ASSUMED_WRITTEN_TOKEN_S
        nearest = min(self._writing_s, key=lambda known: abs(known - num_writing))
        return self._writing_s[nearest]
