"""The edge's job: draft, judge, then answer or escalate."""

import logging
from concurrent.futures import Future

from broker.leases import LeasedRequest
from broker.request_store import RequestStore
from broker.router import Router
from schemas.drafts import Draft
from schemas.policy import Policy, Tier
from schemas.results import ConfidenceReport, DraftStatistics, Models, Result, Timings, Usage
from workers.edge.confidence import assess
from workers.edge.decision import beyond_edge, decide
from workers.edge.engine import DraftOrder, EdgeEngine
from workers.runtime.failures import BeyondModel
from workers.runtime.in_flight import InFlight
from workers.runtime.prefix_ledger import Served

log = logging.getLogger(__name__)


class Drafting:
    """What the edge puts into a `Stage`."""

    def __init__(
        self,
        engine: EdgeEngine,
        store: RequestStore,
        in_flight: InFlight,
        router: Router,
        served: Served,
        *,
        early_escalation: bool,
    ) -> None:
        self._engine = engine
        self._store = store
        self._in_flight = in_flight
        self._router = router
        self._served = served
        self._early_escalation = early_escalation

    def submit(self, taken: LeasedRequest) -> "Future[Draft | BeyondModel]":
        """Hand the request to the engine; its text is published as it is written.

        Where the edge's model cannot do what an option asks and the policy has a cloud, that is the product, not a
        failure: the cloud's may.
        """
        request, lease = taken.request, taken.lease
        order = DraftOrder(
            request_id=lease.work_id,
            messages=request.messages,
            sampling=request.sampling,
            rule=request.confidence,
            use_cache=request.policy.kv_caches,
            cache_namespace=request.cache_namespace,
            may_escalate_early=self._early_escalation and _may_be_given_up(request.policy),
        )
        drafted = self._engine.submit(order, lambda text: self._in_flight.publish(lease, text))
        return _or_beyond(drafted, wanted=request.policy.has(Tier.CLOUD))

    def conclude(self, taken: LeasedRequest, product: Draft | BeyondModel, drafting_s: float) -> bool:
        """Commit the answer, or hand the draft on. False where the hold was lost."""
        if isinstance(product, BeyondModel):
            return self._leave_to_cloud(taken, product)
        return self._judge(taken, product, drafting_s)

    def _leave_to_cloud(self, taken: LeasedRequest, limit: BeyondModel) -> bool:
        """Hand the request on without a draft."""
        request, lease = taken.request, taken.lease
        log.info("left_to_cloud request_id=%s reason=%r", lease.request_id, str(limit))
        route = self._router.route(request, Tier.CLOUD)
        return self._store.escalate(lease, None, [*self._in_flight.unpublished(lease), beyond_edge(str(limit))], route)

    def _judge(self, taken: LeasedRequest, draft: Draft, drafting_s: float) -> bool:
        request, lease = taken.request, taken.lease
        report = assess(draft.figures, request.confidence)
        decision = decide(request.policy, report)
        events = [*self._in_flight.unpublished(lease), decision]
        if decision.escalated:
            route = self._router.route(request, Tier.CLOUD)
            moved = self._store.escalate(lease, draft.model_copy(update={"confidence": report}), events, route)
            event = "draft_escalated"
        else:
            moved = self._store.succeed(lease, _answer(taken, draft, report, drafting_s), events)
            event = "draft_answered"
        log.info(
            "%s request_id=%s confidence=%.3f threshold=%.3f drafted_tokens=%d early=%s",
            event,
            lease.request_id,
            report.value,
            report.threshold,
            len(draft.token_ids),
            draft.escalated_early,
        )
        return moved

    def publish(self, taken: LeasedRequest, product: Draft | BeyondModel) -> None:
        """Have the prefix index told what the engine's cache holds now."""
        if isinstance(product, Draft):
            self._served(taken.request, product.text)


def _or_beyond(drafted: "Future[Draft]", *, wanted: bool) -> "Future[Draft | BeyondModel]":
    """The same, but that the model's own limits are what comes of it, where that is wanted, and no failure."""
    product: Future[Draft | BeyondModel] = Future()
    product.set_running_or_notify_cancel()

    def pass_on(done: "Future[Draft]") -> None:
        error = done.exception()
        if wanted and isinstance(error, BeyondModel):
            product.set_result(error)
        elif error is not None:
            product.set_exception(error)
        else:
            product.set_result(done.result())

    drafted.add_done_callback(pass_on)
    return product


def _may_be_given_up(policy: Policy) -> bool:
    """A draft is worth giving up only where being unsure sends it on."""
    return policy.confidence_decides and policy.has(Tier.CLOUD)


def _answer(taken: LeasedRequest, draft: Draft, report: ConfidenceReport, drafting_s: float) -> Result:
    num_tokens = len(draft.token_ids)
    return Result(
        text=draft.text,
        finish_reason=draft.finish_reason,
        tier=Tier.EDGE,
        policy=taken.request.policy.name,
        confidence=report,
        draft=DraftStatistics(drafted_tokens=num_tokens),
        usage=Usage(
            prompt_tokens=draft.prompt_tokens,
            completion_tokens=num_tokens,
            edge_completion_tokens=num_tokens,
            edge_cached_tokens=draft.cached_tokens,
        ),
        timings=Timings(
            queued_ms=taken.queued_s * 1000,
            drafting_ms=drafting_s * 1000,
            total_ms=(taken.age_s + drafting_s) * 1000,
        ),
        models=Models(edge=draft.model),
        logprobs=draft.logprobs,
    )
