"""The edge's job: draft, assess, then answer or escalate."""

import logging
from concurrent.futures import Future
from functools import partial

from broker.leases import LeasedRequest
from broker.request_store import RequestStore
from broker.router import Router
from schemas.drafts import Draft
from schemas.events import Decision
from schemas.policy import Tier
from schemas.results import ConfidenceReport, DraftStatistics, Models, Result, Timings, Usage
from workers.edge.confidence import assess
from workers.edge.decision import beyond_edge, decide
from workers.edge.engine import DraftOrder, EdgeEngine
from workers.runtime.failures import BeyondModel
from workers.runtime.in_flight import InFlight
from workers.runtime.job import Commit
from workers.runtime.prefix_ledger import Served

log = logging.getLogger(__name__)


class Drafting:
    """The edge's `Work` (`workers.runtime.job`)."""

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

    def submit(self, leased: LeasedRequest) -> "Future[Draft | BeyondModel]":
        """Submit the request to the engine. The draft's text is published while it is generated.

        If the edge model cannot honour an option, and the policy has a cloud tier, the result is `BeyondModel` instead
        of a failure, since the cloud's model may be able to.
        """
        request, lease, policy = leased.request, leased.lease, leased.request.policy
        # Stopping a draft early makes sense only if low confidence escalates it.
        low_confidence_escalates = policy.confidence_decides and policy.has(Tier.CLOUD)
        order = DraftOrder(
            request_id=lease.work_id,
            messages=request.messages,
            sampling=request.sampling,
            rule=request.confidence,
            use_cache=policy.kv_caches,
            cache_namespace=request.cache_namespace,
            may_escalate_early=self._early_escalation and low_confidence_escalates,
        )
        product: Future[Draft | BeyondModel] = Future()
        product.set_running_or_notify_cancel()

        def finish(drafted: "Future[Draft]") -> None:
            error = drafted.exception()
            if error is None:
                product.set_result(drafted.result())
            elif isinstance(error, BeyondModel) and policy.has(Tier.CLOUD):
                product.set_result(error)
            else:
                product.set_exception(error)

        self._engine.submit(order, lambda text: self._in_flight.publish(lease, text)).add_done_callback(finish)
        return product

    def conclude(self, leased: LeasedRequest, product: Draft | BeyondModel, drafting_s: float) -> Commit:
        """Answer with the draft, or escalate. Raises `StrategyFailed`.

        Runs on the job's own thread, so that a user's strategy that blocks or raises affects only this request.
        """
        request, lease = leased.request, leased.lease
        if isinstance(product, BeyondModel):
            log.info("left_to_cloud request_id=%s reason=%r", lease.request_id, str(product))
            return self._escalation(leased, None, beyond_edge(str(product)))
        report = assess(product.figures, request.confidence)
        decision = decide(request.policy, report)
        log.info(
            "%s request_id=%s confidence=%.3f threshold=%.3f drafted_tokens=%d early=%s",
            "draft_escalated" if decision.escalated else "draft_answered",
            lease.request_id,
            report.value,
            report.threshold,
            len(product.token_ids),
            product.escalated_early,
        )
        if decision.escalated:
            return self._escalation(leased, product.model_copy(update={"confidence": report}), decision)
        events = [*self._in_flight.unpublished(lease), decision]
        return partial(self._store.succeed, lease, _answer(leased, product, report, drafting_s), events)

    def publish(self, leased: LeasedRequest, product: Draft | BeyondModel) -> None:
        """Report the conversation to the prefix index."""
        if isinstance(product, Draft):
            self._served(leased.request, product.text)

    def _escalation(self, leased: LeasedRequest, draft: Draft | None, decision: Decision) -> Commit:
        events = [*self._in_flight.unpublished(leased.lease), decision]

        def commit() -> bool:
            route = self._router.route(leased.request, Tier.CLOUD)
            return self._store.escalate(leased.lease, draft, events, route)

        return commit


def _answer(leased: LeasedRequest, draft: Draft, report: ConfidenceReport, drafting_s: float) -> Result:
    num_tokens = len(draft.token_ids)
    return Result(
        text=draft.text,
        finish_reason=draft.finish_reason,
        tier=Tier.EDGE,
        policy=leased.request.policy.name,
        confidence=report,
        draft=DraftStatistics(drafted_tokens=num_tokens),
        usage=Usage(
            prompt_tokens=draft.prompt_tokens,
            completion_tokens=num_tokens,
            edge_completion_tokens=num_tokens,
            edge_cached_tokens=draft.cached_tokens,
        ),
        timings=Timings(
            queued_ms=leased.queued_s * 1000,
            drafting_ms=drafting_s * 1000,
            total_ms=(leased.age_s + drafting_s) * 1000,
        ),
        models=Models(edge=draft.model),
        logprobs=draft.logprobs,
    )
