"""What a cloud engine is asked to write, and what it answers. Knows no engine, no queue and no Redis."""

from dataclasses import dataclass

from schemas.drafts import Draft
from schemas.requests import AcceptanceRule, Message, Sampling
from schemas.results import DraftStatistics, FinishReason, TokenLogprob
from workers.runtime.engine import Engine


@dataclass(frozen=True)
class AnswerOrder:
    """One answer to be written, with the edge's draft where there is one."""

    request_id: str
    messages: tuple[Message, ...]
    sampling: Sampling
    #: None: the cloud model writes the whole answer.
    draft: Draft | None
    acceptance: AcceptanceRule
    #: False: the request reads no cached prefix, and no other request reads what it leaves in the cache.
    use_cache: bool
    #: Cached prefixes are shared within a namespace only.
    cache_namespace: str


@dataclass(frozen=True)
class CloudAnswer:
    """The answer as the cloud model wrote it."""

    text: str
    #: The end-of-text token included, where the model wrote one.
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    #: Prompt tokens that were read from the prefix cache.
    cached_tokens: int
    #: None where there was no draft.
    draft: DraftStatistics | None
    logprobs: tuple[TokenLogprob, ...] = ()


CloudEngine = Engine[AnswerOrder, CloudAnswer]
