"""The cloud's job: verify the draft, or write without one where the policy says so."""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from broker.leases import LeasedRequest
from broker.request_store import RequestStore
from schemas.drafts import Draft
from schemas.policy import Tier
from schemas.results import DraftStatistics, Models, Result, Timings, Usage
from workers.cloud.answer_order import AnswerOrder, CloudAnswer, CloudEngine
from workers.cloud.auditing import Auditing
from workers.cloud.labelling import label_of
from workers.runtime.calibrations import ActiveCalibrations
from workers.runtime.in_flight import InFlight
from workers.runtime.job import Commit
from workers.runtime.prefix_ledger import Served

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Quality:
    """What the cloud needs to label drafts."""

    calibrations: ActiveCalibrations
    auditing: Auditing
    clock: Callable[[], float]


class Verifying:
    """The cloud's `Work`."""

    def __init__(
        self, engine: CloudEngine, store: RequestStore, in_flight: InFlight, served: Served, quality: Quality
    ) -> None:
        self._engine = engine
        self._store = store
        self._in_flight = in_flight
        self._served = served
        self._quality = quality

    def submit(self, leased: LeasedRequest) -> "Future[CloudAnswer]":
        """Hand the request to the engine; its text is published as it is written."""
        request, lease = leased.request, leased.lease
        self._quality.auditing.give_way()
        order = AnswerOrder(
            request_id=lease.work_id,
            messages=request.messages,
            sampling=request.sampling,
            draft=leased.draft if request.policy.verify_draft else None,
            acceptance=request.acceptance,
            use_cache=request.policy.kv_caches,
            cache_namespace=request.cache_namespace,
        )
        return self._engine.submit(order, lambda text: self._in_flight.publish(lease, text))

    def conclude(self, leased: LeasedRequest, answer: CloudAnswer, verifying_s: float) -> Commit:
        """The cloud's answer is the request's."""
        lease = leased.lease
        result = _result(leased, answer, verifying_s, self._engine.model_name)
        statistics = result.draft or DraftStatistics()
        log.info(
            "answer_written request_id=%s drafted_tokens=%d accepted_tokens=%d rewritten_tokens=%d",
            lease.request_id,
            statistics.drafted_tokens,
            statistics.accepted_tokens,
            statistics.rewritten_tokens,
        )
        return partial(self._store.succeed, lease, result, self._in_flight.unpublished(lease))

    def publish(self, leased: LeasedRequest, answer: CloudAnswer) -> None:
        """Report the conversation to the prefix index; the answer labels the draft."""
        self._served(leased.request, answer.text)
        draft, request = leased.draft, leased.request
        if draft is None or draft.confidence is None or not request.sampling.greedy:
            return
        active = self._quality.calibrations.of_version(draft.confidence.calibration)
        states_its_own = {"threshold", "max_risk"} & set(request.confidence.stated)
        if active is None or states_its_own or not request.policy.confidence_decides:
            return
        calibration = active.calibration
        if calibration.scope.cloud_model == self._engine.model_name:
            rule, now_s = calibration.audited_by, self._quality.clock()
            label = label_of(draft, answer, rule, kept=False, drawn=1.0, now_s=now_s)
            if label is not None:
                self._quality.calibrations.label(calibration.scope.digest, label)


def _result(leased: LeasedRequest, answer: CloudAnswer, verifying_s: float, model_name: str) -> Result:
    draft = leased.draft
    num_tokens = len(answer.token_ids)
    return Result(
        text=answer.text,
        finish_reason=answer.finish_reason,
        tier=Tier.CLOUD,
        policy=leased.request.policy.name,
        confidence=draft.confidence if draft else None,
        draft=_draft_statistics(draft, answer),
        usage=Usage(
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=num_tokens,
            edge_completion_tokens=len(draft.token_ids) if draft else 0,
            cloud_completion_tokens=num_tokens,
            edge_cached_tokens=draft.cached_tokens if draft else 0,
            cloud_cached_tokens=answer.cached_tokens,
        ),
        timings=Timings(
            queued_ms=leased.queued_s * 1000,
            drafting_ms=leased.drafting_s * 1000,
            verify_queued_ms=leased.verify_queued_s * 1000,
            verifying_ms=verifying_s * 1000,
            total_ms=(leased.age_s + verifying_s) * 1000,
        ),
        models=Models(edge=draft.model if draft else None, cloud=model_name),
        logprobs=answer.logprobs,
    )


def _draft_statistics(draft: Draft | None, answer: CloudAnswer) -> DraftStatistics | None:
    """The engine's, with what only the draft knows; None where nothing was drafted."""
    if draft is None:
        return None
    statistics = answer.draft or DraftStatistics(
        drafted_tokens=len(draft.token_ids), rewritten_tokens=len(answer.token_ids)
    )
    return statistics.model_copy(update={"escalated_early": draft.escalated_early})
