"""From a user's body to an accepted request, in which every open choice has been made.

Pure: settings and a body in, a request or a `Refused` out.
"""

from importlib.metadata import entry_points

from config.settings import Settings, read_secret
from gateway.webhooks.delivery import ForbiddenAddress, checked_url
from schemas.gbnf import GrammarError, as_lark
from schemas.owners import NOBODY, Owner
from schemas.policy import Policy, Tier
from schemas.requests import (
    EVERYBODYS_NAMESPACE,
    AcceptanceMode,
    AcceptanceRule,
    AcceptedRequest,
    ConfidenceRule,
    JobRequest,
    Message,
    Pooling,
    groups_namespace,
    owners_namespace,
    split_member,
)

#: The entry points of confidence strategies, ours and users' own (docs/architecture.md).
STRATEGY_GROUP = "firstdraft.confidence_strategies"
#: Characters of a grammar that a refusal repeats.
MAX_SHOWN_CHARS = 80
#: The strategy that is a weighted mean of others.
ENSEMBLE = "ensemble"


class Refused(Exception):
    """The request cannot be accepted because of one field's value."""

    def __init__(self, field: str, value: object, reason: str) -> None:
        super().__init__(f"{field}: {reason} (it is {value!r})")
        self.field = field
        self.value = value
        self.reason = reason


class Admission:
    """Accepts or refuses requests. The constructor raises ValueError where the settings name an unknown strategy."""

    def __init__(self, settings: Settings) -> None:
        self._strategies = frozenset(entry.name for entry in entry_points(group=STRATEGY_GROUP))
        self._requests, self._webhooks = settings.requests, settings.webhooks
        self._default_policy = settings.requests.policy
        self.policies = {name: _policy(name, settings) for name in settings.policies}
        confidence, verifier = settings.edge.confidence, settings.cloud.draft_verifier
        self._confidence = ConfidenceRule(
            strategy=confidence.strategy,
            threshold=confidence.threshold,
            weights=confidence.weights,
            pooling=Pooling(confidence.pooling),
            quantile=confidence.quantile,
        )
        self._acceptance = AcceptanceRule(mode=AcceptanceMode(verifier.mode), threshold=verifier.acceptance_threshold)
        try:
            self._check_confidence(self._confidence, "edge.confidence")
        except Refused as refusal:
            raise ValueError(str(refusal)) from refusal

    @property
    def default_policy(self) -> Policy:
        """The policy of requests that do not name one."""
        return self.policies[self._default_policy]

    def cache_namespace(self, owner: Owner) -> str:
        """The cache namespace of the owner's requests. Settings and the API key decide, nothing in a request."""
        if self._requests.cache_sharing == "all":
            return EVERYBODYS_NAMESPACE
        return owners_namespace(owner.name) if owner.cache_group is None else groups_namespace(owner.cache_group)

    def accept(self, body: JobRequest, request_id: str, now_s: float, owner: Owner = NOBODY) -> AcceptedRequest:
        """The request with every choice made. Raises `Refused`."""
        policy = self._policy(body.policy)
        messages = body.conversation()
        self._check_length(messages)
        _check_grammar(body.grammar)
        self._check_webhook(body.webhook)
        confidence, acceptance = self._confidence, self._acceptance
        if body.confidence is not None:
            stated = body.confidence.model_dump(exclude_none=True)
            confidence = confidence.model_copy(update={**stated, "stated": tuple(stated)})
        if body.acceptance is not None:
            acceptance = acceptance.model_copy(update=body.acceptance.model_dump(exclude_none=True))
        self._check_confidence(confidence, "confidence")
        return AcceptedRequest(
            request_id=request_id,
            messages=messages,
            sampling=body.sampling(),
            policy=policy,
            confidence=confidence,
            acceptance=acceptance,
            traffic_class=body.traffic_class,
            accepted_at_s=now_s,
            owner=owner.name,
            cache_namespace=self.cache_namespace(owner),
            weight=owner.weight,
            deadline_s=self._deadline_s(body.deadline_s),
            webhook=body.webhook,
        )

    def _policy(self, name: str | None) -> Policy:
        if name is None:
            return self.default_policy
        if name not in self.policies:
            raise Refused("policy", name, f"must be one of {', '.join(sorted(self.policies))}")
        return self.policies[name]

    def _deadline_s(self, asked: float | None) -> float:
        longest = self._requests.deadline_s
        if asked is not None and asked > longest:
            raise Refused("deadline_s", asked, f"must be at most {longest:g}")
        return longest if asked is None else asked

    def _check_webhook(self, url: str | None) -> None:
        if url is None:
            return
        if read_secret(self._webhooks.secret_env) is None:
            raise Refused("webhook", url, f"webhooks are off: {self._webhooks.secret_env} is not set")
        try:
            checked_url(url, allow_http=self._webhooks.allow_http)
        except ForbiddenAddress as error:
            raise Refused("webhook", url, str(error)) from error

    def _check_length(self, messages: tuple[Message, ...]) -> None:
        num_bytes = sum(len(message.content.encode()) for message in messages)
        if num_bytes > self._requests.max_prompt_bytes:
            reason = f"the prompt must have at most {self._requests.max_prompt_bytes} bytes"
            raise Refused("messages", f"{num_bytes} bytes", reason)

    def _check_confidence(self, rule: ConfidenceRule, field: str) -> None:
        known = ", ".join(sorted(self._strategies | {ENSEMBLE}))
        if rule.strategy != ENSEMBLE and rule.strategy not in self._strategies:
            raise Refused(f"{field}.strategy", rule.strategy, f"must be one of {known}")
        for name in rule.weights:
            strategy, pooling = split_member(name)
            if strategy not in self._strategies:
                raise Refused(f"{field}.weights", name, f"must name strategies out of {known}, without {ENSEMBLE}")
            if pooling is not None and pooling not in set(Pooling):
                raise Refused(f"{field}.weights", name, f"after the colon must be one of {', '.join(Pooling)}")
        if rule.strategy == ENSEMBLE and not any(rule.weights.values()):
            raise Refused(f"{field}.weights", rule.weights, "must give at least one strategy a weight above 0")


def _check_grammar(text: str | None) -> None:
    if text is None:
        return
    try:
        as_lark(text)
    except GrammarError as error:
        raise Refused("grammar", text[:MAX_SHOWN_CHARS], str(error)) from error


def _policy(name: str, settings: Settings) -> Policy:
    """The configured policy, without the modules that the settings switch off."""
    row = settings.policies[name]
    return Policy(
        name=name,
        description=row.description,
        tiers=tuple(Tier(tier) for tier in row.tiers),
        confidence_decides=row.confidence_decides and settings.edge.confidence.enabled,
        verify_draft=row.verify_draft and settings.cloud.draft_verifier.enabled,
        kv_caches=row.kv_caches,
    )
