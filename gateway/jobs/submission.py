"""From a body to a stored request: what every route that takes prompts does."""

import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from broker.backpressure import Overload, overload
from broker.idempotency import Idempotency
from gateway.http.authentication import asking_owner
from gateway.jobs.request_validation import Refused
from gateway.services import Services
from schemas.owners import NOBODY, Owner
from schemas.requests import AcceptedRequest, JobRequest

log = logging.getLogger(__name__)


class Overloaded(Exception):
    """There is no room for the request now."""

    def __init__(self, overload: Overload) -> None:
        whose = "Your" if overload.is_owners else "All"
        super().__init__(f"{whose} unfinished jobs reach backpressure.{overload.limit}.")
        self.overload = overload


class ResultExpired(Exception):
    """An `Idempotency-Key` stands for a request whose result is kept no longer. Nothing was submitted."""


@dataclass(frozen=True)
class Submitted:
    """Requests that are stored, in the order of their bodies."""

    requests: Sequence[AcceptedRequest]
    #: Whether they came with an `Idempotency-Key`: whoever gave it may ask for them again.
    keyed: bool = False
    #: Whether an earlier request with the same key submitted them; they may have finished.
    replayed: bool = False


def submit(
    services: Services,
    body: JobRequest,
    *,
    owner: Owner | None = None,
    request_id: str | None = None,
    note: str = "",
    key: Idempotency | None = None,
) -> AcceptedRequest:
    """As `submit_all`, for one body."""
    return submit_all(services, [body], owner=owner, request_ids=[request_id], note=note, key=key).requests[0]


def submit_all(
    services: Services,
    bodies: Sequence[JobRequest],
    *,
    owner: Owner | None = None,
    request_ids: Sequence[str | None] = (),
    note: str = "",
    key: Idempotency | None = None,
) -> Submitted:
    """Accept the requests and store them to wait for a worker, all or none. Three round trips to Redis.

    Raises `Refused`, `Overloaded`, `IdempotencyConflict`, `ResultExpired`, `NotOnDisk` or Redis's own error; then
    nothing was accepted. `owner`: who asks, if None. `request_ids`: new ones where None; one that was stored before is
    left as it is. `note`: see `AcceptedRequest.note`. `key`: where it stands for earlier requests, those are answered.

    The load is looked at before the requests are stored: it may pass a limit by as many as are submitted at one moment.
    """
    store = services.store
    owner = owner or asking_owner() or NOBODY
    ids = _ids(len(bodies), request_ids)
    try:
        accepted = [_accepted(services, body, one, owner, note) for body, one in zip(bodies, ids, strict=True)]
    except Refused:  # which settings may do that were others when the same body was accepted
        if (earlier := submitted_before(services, key, len(bodies))) is not None:
            return earlier
        raise
    tier = accepted[0].policy.first_tier
    survey = store.survey(accepted, tier, services.router.to_survey(tier), key)
    if survey.earlier is not None:
        return _replayed(services, survey.earlier, len(bodies))
    for culprit in filter(None, survey.quarantined):
        reason = f"it is quarantined: a worker that did nothing else ended on it, in your job {culprit}"
        raise Refused("messages", "a prompt that was tried before", reason)
    num_tokens = sum(request.num_tokens_at_most for request in accepted)
    full = overload(survey.load, num_tokens, services.backpressure, num_requests=len(accepted))
    if full is not None:
        raise Overloaded(full)
    routed = [
        (request, services.router.route(request, request.policy.first_tier, survey.workers)) for request in accepted
    ]
    stored = store.create_all(routed, key)
    if stored != ids[0]:
        return _replayed(services, stored, len(bodies))
    for request in accepted:
        log.info("request_accepted request_id=%s policy=%s", request.request_id, request.policy.name)
    return Submitted(accepted, keyed=key is not None)


def submitted_before(services: Services, key: Idempotency | None, num: int) -> Submitted | None:
    """The requests for which the key stands, of a body that makes so many; None where it stands for nothing yet.

    Raises `IdempotencyConflict`, `ResultExpired` or `NotOnDisk`.
    """
    first_id = None if key is None else services.store.idempotent(key)
    return None if first_id is None else _replayed(services, first_id, num)


def _replayed(services: Services, first_id: str, num: int) -> Submitted:
    records = [services.store.read(request_id) for request_id in _siblings(first_id, num)]
    requests = [record.request for record in records if record is not None]
    if len(requests) < num:
        raise ResultExpired(f"The Idempotency-Key stands for job {first_id!r}, whose result is kept no longer.")
    log.info("request_replayed request_id=%s", first_id)
    return Submitted(requests, keyed=True, replayed=True)


def _accepted(services: Services, body: JobRequest, request_id: str, owner: Owner, note: str) -> AcceptedRequest:
    accepted = services.admission.accept(body, request_id, services.clock(), owner)
    return accepted.model_copy(update={"note": note}) if note else accepted


def _ids(num: int, chosen: Sequence[str | None]) -> list[str]:
    """The ids that were chosen, or new ones: the first by chance, the others made of it."""
    new = _siblings(uuid.uuid4().hex, num)
    return [given or made for given, made in zip(chosen or [None] * num, new, strict=True)]


def _siblings(first_id: str, num: int) -> list[str]:
    """The ids of requests that one body makes: whoever knows the first knows all."""
    return [first_id, *(uuid.uuid5(uuid.NAMESPACE_URL, f"{first_id}/{place}").hex for place in range(1, num))]
