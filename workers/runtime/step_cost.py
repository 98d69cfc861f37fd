"""The duration of an engine's step as a linear function of its tokens, fitted online. Pure."""

#: Weight of the prior, as a sum of squared deviations in tokens: a few dozen varied steps outweigh it.
PRIOR_WEIGHT = 400.0
#: Each step multiplies the weight of earlier ones by this: about the last 200 steps count.
MEMORY = 0.995
#: Durations are capped at this many times the expected one: longer steps were disturbed from outside.
OUTLIER = 3.0
#: The base cost is at least this share of the mean step, since a line fitted to noise may cross zero.
MIN_BASE_SHARE = 0.05


class StepCost:
    """Seconds of a step = `base_s` + `token_s` times its tokens.

    `prior_ratio`: the prior for `token_s` / `base_s`.
    """

    def __init__(self, prior_ratio: float) -> None:
        self._prior_ratio = prior_ratio
        self._weight = 0.0
        self._mean_tokens = 0.0
        self._mean_s = 0.0
        self._squares = 0.0
        self._products = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        """Add a measured step."""
        if self._weight >= 1.0:
            seconds = min(seconds, OUTLIER * (self.base_s + self.token_s * tokens))
        self._weight = self._weight * MEMORY + 1.0
        off_tokens, off_s = tokens - self._mean_tokens, seconds - self._mean_s
        self._mean_tokens += off_tokens / self._weight
        self._mean_s += off_s / self._weight
        self._squares = self._squares * MEMORY + off_tokens * (tokens - self._mean_tokens)
        self._products = self._products * MEMORY + off_tokens * (seconds - self._mean_s)

    @property
    def measured(self) -> bool:
        """Whether any step was observed."""
        return self._weight > 0.0

    @property
    def token_s(self) -> float:
        """Seconds per token; never negative."""
        if not self.measured:
            return self._prior_ratio
        prior = self._prior_ratio * self._mean_s / (1.0 + self._prior_ratio * self._mean_tokens)
        return max(0.0, (self._products + PRIOR_WEIGHT * prior) / (self._squares + PRIOR_WEIGHT))

    @property
    def base_s(self) -> float:
        """Seconds of a step without tokens; always positive."""
        if not self.measured:
            return 1.0
        return max(self._mean_s - self.token_s * self._mean_tokens, MIN_BASE_SHARE * self._mean_s, 1e-9)
