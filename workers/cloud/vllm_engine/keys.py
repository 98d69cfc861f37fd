"""Names under which a request's `extra_args` carry what our code in vLLM's worker process reads."""

#: The packed `DraftHint`.
HINT_KEY = "firstdraft_draft"
#: Pairs of token id and bias.
BIASES_KEY = "firstdraft_logit_bias"
