"""How many prompt tokens a step may take, so that sequences in decode are hardly slowed down (chunked prefill).

Pure: learns from the duration of steps. Knows nothing of requests.
"""

from workers.runtime.step_cost import StepCost

#: A step with prompt tokens may take this many times as long as a step with decode alone.
STALL_FACTOR = 2.5
#: The same while others wait for a slot: the more a step gets done, the sooner everyone ends.
CROWDED_STALL_FACTOR = 5.0
#: On a CPU, from this many tokens per batch, llama.cpp's flash attention runs in tiles over the whole KV cache; below,
#: each token attends to its own sequence's cells alone. A step that decodes for many sequences costs twice as much from
#: here on; a token of a long prompt in a step without decode costs half as much.
TILE_TOKENS = 64
#: Seconds that a step without decode may take, unless one tile takes longer: new and cancelled requests wait for its
#: end.
MAX_PREFILL_STEP_S = 0.5
#: Weight of the newest step in the running averages.
LEARNING_RATE = 0.2
#: Prompt tokens in a step however slow the machine: a prompt must progress. Not more, because on a CPU one of a long
#: prompt's last tokens can cost as much as several sequences in decode; the prompt ends hardly later.
MIN_PROMPT_TOKENS = 4
#: Seconds per prompt token and per decoded token before anything was measured.
ASSUMED_PROMPT_TOKEN_S, ASSUMED_DECODE_TOKEN_S = 0.001, 0.006
#: Seconds per further decoded token, over seconds of an empty step, before anything was measured.
PRIOR_COST_RATIO = 0.35


class PrefillBudget:
    """Learns what a step with decode alone costs (a line in the number of sequences), and what a prompt token adds.

    Prompt tokens cost more each in small chunks, which must not lead to chunks smaller still. Therefore the line
    extrapolates to any number of sequences (while prompts always wait, no step is without them, and too low an estimate
    would blame them for the rest), and prefill with and without decode are measured apart.

    `in_tiles`: whether attention runs in tiles of `TILE_TOKENS`, as it does on a CPU.
    """

    def __init__(self, *, in_tiles: bool) -> None:
        self._in_tiles = in_tiles
        #: The least prompt tokens of a step without decode; what fewer cost is not representative, and is not learned.
        self._min_alone = TILE_TOKENS if in_tiles else MIN_PROMPT_TOKENS
        #: Seconds per prompt token in a step without decode, and beside decode (None until one was measured).
        self._alone_s = ASSUMED_PROMPT_TOKEN_S
        self._beside_s: float | None = None
        self._decode = StepCost(PRIOR_COST_RATIO)

    def prompt_tokens(self, num_decoding: int, step_tokens: int, *, crowded: bool) -> int:
        """The most prompt tokens of the next step, beside `num_decoding` sequences in decode.

        `crowded`: others wait for a slot.
        """
        if num_decoding == 0:
            count = int(MAX_PREFILL_STEP_S / self._alone_s)
            if self._in_tiles:
                count = TILE_TOKENS * round(count / TILE_TOKENS)
            return min(step_tokens, max(self._min_alone, count))
        factor = CROWDED_STALL_FACTOR if crowded else STALL_FACTOR
        spare_s = (factor - 1.0) * self._decode_s(num_decoding)
        room = min(step_tokens, TILE_TOKENS - 1) if self._in_tiles else step_tokens
        return max(MIN_PROMPT_TOKENS, min(room - num_decoding, int(spare_s / (self._beside_s or self._alone_s))))

    def learn(self, num_decoding: int, num_prompt_tokens: int, took_s: float) -> None:
        """Take the duration of a step into account."""
        if num_prompt_tokens == 0:
            self._decode.observe(num_decoding, took_s)
        elif num_decoding == 0 and num_prompt_tokens >= self._min_alone:
            self._alone_s = _average(self._alone_s, took_s / num_prompt_tokens)
        elif num_decoding and num_prompt_tokens >= MIN_PROMPT_TOKENS:
            added_s = max(took_s - self._decode_s(num_decoding), 0.0)
            self._beside_s = _average(self._beside_s or self._alone_s, added_s / num_prompt_tokens)

    def _decode_s(self, num_decoding: int) -> float:
        """Expected seconds of a step with `num_decoding` sequences (at least 1) in decode and no prompts."""
        if not self._decode.measured:
            return num_decoding * ASSUMED_DECODE_TOKEN_S
        return self._decode.base_s + self._decode.token_s * num_decoding


def _average(average_s: float, newest_s: float) -> float:
    """The running average; never 0, because it is divided by."""
    return max(average_s + LEARNING_RATE * (newest_s - average_s), ASSUMED_PROMPT_TOKEN_S / 1000)
