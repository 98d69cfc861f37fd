"""The edge's job: draft, assess, then answer or escalate."""

import logging
import random
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from broker.audits import AuditQueue
from broker.leases import LeasedRequest
from broker.request_store import RequestStore
from broker.router import Router
from schemas.audits import Audit
from schemas.calibration import Tally
from schemas.drafts import Draft
from schemas.events import Decision
from schemas.policy import Tier
from schemas.requests import AcceptedRequest
from schemas.results import ConfidenceReport, DraftStatistics, Models, Result, Timings, Usage
from workers.edge.calibrated_rule import CalibratedRule, calibrated
from workers.edge.confidence import assess
from workers.edge.decision import beyond_edge, decide
from workers.edge.engine import DraftOrder, EdgeEngine
from workers.runtime.calibrations import ActiveCalibrations
from workers.runtime.failures import BeyondModel
from workers.runtime.in_flight import InFlight
from workers.runtime.job import Commit
from workers.runtime.prefix_ledger import Served

log = logging.getLogger(__name__)


@dataclass
class Drafted:
    """A draft, the rule that it is judged by, and once it has been judged, the confidence in it."""

    draft: Draft
    judged_by: CalibratedRule
    report: ConfidenceReport | None = None


@dataclass(frozen=True)
class Quality:
    """What the edge needs to judge drafts by calibrations, and to have some of the kept ones audited."""

    calibrations: ActiveCalibrations
    audits: AuditQueue
    #: The configured share of kept drafts that are audited.
    audit_share: float
    clock: Callable[[], float]


class Drafting:
    """The edge's `Work` (`workers.runtime.job`)."""

    def __init__(
        self,
        engine: EdgeEngine,
        store: RequestStore,
        in_flight: InFlight,
        router: Router,
        served: Served,
        quality: Quality,
        *,
        early_escalation: bool,
    ) -> None:
        self._engine = engine
        self._store = store
        self._in_flight = in_flight
        self._router = router
        self._served = served
        self._quality = quality
        self._early_escalation = early_escalation

    def submit(self, leased: LeasedRequest) -> "Future[Drafted | BeyondModel]":
        """Submit the request to the engine. The draft's text is published while it is generated.

        If the edge model cannot honour an option, and the policy has a cloud tier, the result is `BeyondModel` instead
        of a failure, since the cloud's model may be able to.
        """
        request, lease, policy = leased.request, leased.lease, leased.request.policy
        # Stopping a draft early makes sense only if low confidence escalates it.
        low_confidence_escalates = policy.confidence_decides and policy.has(Tier.CLOUD)
        judged_by = self._rule(request)
        order = DraftOrder(
            request_id=lease.work_id,
            messages=request.messages,
            sampling=request.sampling,
            rule=judged_by.rule,
            use_cache=policy.kv_caches,
            cache_namespace=request.cache_namespace,
            # A draft that escalates anyway is worth more whole: the cloud verifies it, and its label counts.
            may_escalate_early=self._early_escalation and low_confidence_escalates and not judged_by.keeps_nothing,
        )
        product: Future[Drafted | BeyondModel] = Future()
        product.set_running_or_notify_cancel()

        def finish(drafted: "Future[Draft]") -> None:
            error = drafted.exception()
            if error is None:
                product.set_result(Drafted(drafted.result(), judged_by))
            elif isinstance(error, BeyondModel) and policy.has(Tier.CLOUD):
                product.set_result(error)
            else:
                product.set_exception(error)

        self._engine.submit(order, lambda text: self._in_flight.publish(lease, text)).add_done_callback(finish)
        return product

    def _rule(self, request: AcceptedRequest) -> CalibratedRule:
        active = self._quality.calibrations.find(
            self._engine.model_name, request.confidence.strategy, request.traffic_class
        )
        if active is None:
            return calibrated(request.confidence, None, None, 0.0)
        return calibrated(request.confidence, active.calibration, active.drift, self._quality.audit_share)

    def conclude(self, leased: LeasedRequest, product: Drafted | BeyondModel, drafting_s: float) -> Commit:
        """Answer with the draft, or escalate. Raises `StrategyFailed`.

        Runs on the job's own thread, so that a user's strategy that blocks or raises affects only this request.
        """
        request, lease = leased.request, leased.lease
        if isinstance(product, BeyondModel):
            log.info("left_to_cloud request_id=%s reason=%r", lease.request_id, str(product))
            return self._escalation(leased, None, beyond_edge(str(product)))
        draft, judged_by = product.draft, product.judged_by
        product.report = report = judged_by.completed(assess(draft.figures, judged_by.rule))
        decision = decide(request.policy, report)
        log.info(
            "%s request_id=%s confidence=%.3f threshold=%.3f drafted_tokens=%d early=%s",
            "draft_escalated" if decision.escalated else "draft_answered",
            lease.request_id,
            report.value,
            report.threshold,
            len(draft.token_ids),
            draft.escalated_early,
        )
        if decision.escalated:
            return self._escalation(leased, draft.model_copy(update={"confidence": report}), decision)
        events = [*self._in_flight.unpublished(lease), decision]
        return partial(self._store.succeed, lease, _answer(leased, draft, report, drafting_s), events)

    def publish(self, leased: LeasedRequest, product: Drafted | BeyondModel) -> None:
        """Report the conversation to the prefix index; count the draft, and have it audited if it is drawn."""
        if isinstance(product, Drafted):
            self._served(leased.request, product.draft.text)
            self._count(leased, product)

    def _count(self, leased: LeasedRequest, drafted: Drafted) -> None:
        """Count a draft that was decided by a calibration's promise."""
        request, judged_by, report = leased.request, drafted.judged_by, drafted.report
        decided = request.policy.confidence_decides and request.policy.has(Tier.CLOUD)
        if judged_by.calibration is None or report is None or not judged_by.governed or not decided:
            return
        draft = drafted.draft
        tally = Tally(
            version=judged_by.calibration.version,
            kept=int(report.sure),
            escalated=int(not report.sure),
            stopped_early=int(draft.escalated_early),
        )
        self._quality.calibrations.count(judged_by.calibration.scope.digest, tally)
        # An answer drawn at random differs from another one for that reason alone.
        if report.sure and request.sampling.greedy and random.random() < judged_by.audit_share:  # noqa: S311
            audit = Audit(
                request_id=leased.lease.request_id,
                messages=request.messages,
                sampling=request.sampling,
                cache_namespace=request.cache_namespace,
                draft=draft.model_copy(update={"confidence": report}),
                drawn=judged_by.audit_share,
            )
            self._quality.audits.add(audit, self._quality.clock())

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
